"""docs/client.md: its examples run, on a real service, and its lists are complete."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from edged.client import SendingOptions
from tests.doubles.broker import Mosquitto
from tests.doubles.service import ROOT, clean_environment, running_service

PAGE = (ROOT / "docs" / "client.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_the_examples_run(tmp_path: Path, broker: Mosquitto) -> None:
    """One after the other, as a reader would type them, they end without an error."""
    with np.load(ROOT / "calib" / "digits" / "heldout.npz") as file:
        Image.fromarray(file["image"][0][..., 0]).save(tmp_path / "seven.png")
    with running_service(tmp_path, broker.host, broker.port) as endpoint:
        program = "\n".join(EXAMPLES).replace(
            'Endpoint("camera-7", host="broker.local")',
            f"Endpoint({endpoint.device!r}, {endpoint.host!r}, {endpoint.port})",
        )
        done = subprocess.run(
            [sys.executable, "-W", "error", "-"],
            input=program.encode(), cwd=tmp_path, env=clean_environment(PYTHONPATH=str(ROOT)),
            capture_output=True, timeout=60, check=False,
        )  # fmt: skip
    said = done.stdout.decode()
    assert done.returncode == 0, done.stderr.decode()
    assert said.startswith("(1, 10) ")
    assert "bad_shape 422 False" in said
    assert len(EXAMPLES) == 5


def test_every_option_is_listed() -> None:
    """The table has each of `SendingOptions`."""
    table = PAGE.split("## Options of a request")[1]
    for name in SendingOptions.__annotations__:
        assert f"`{name}`" in table


def test_importing_the_client_loads_nothing_of_the_service() -> None:
    """No GPU library, no settings, no broker library, and no module of the daemon."""
    program = "import sys, edged.client; print('\\n'.join(sys.modules))"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout
    loaded = set(out.decode().split())
    packages = {name.split(".")[0] for name in loaded}
    assert not packages & {
        "pycuda", "tensorrt", "tensorrt_rtx", "onnxruntime", "onnx", "pynvml", "paho", "pydantic",
        "PIL", "opentelemetry", "sqlite3",
    }  # fmt: skip
    ours = {name.split(".")[1] for name in loaded if name.startswith("edged.")}
    assert ours == {"backoff", "client", "errors", "mqtt", "protocol", "tls", "v2", "value"}
