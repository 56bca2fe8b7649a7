"""A real `edged serve` on a bundled model, started as a user would."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from edged.build.pipeline import build_model
from edged.client import Endpoint, InferClient

ROOT = Path(__file__).resolve().parents[2]
READY_S = 60.0


def copy_model(name: str, to: Path) -> tuple[Path, Path]:
    """Copies a bundled model's sources (no engines) to ``to/engines`` and ``to/calib``."""
    shutil.copytree(
        ROOT / "engines" / name, to / "engines" / name, ignore=shutil.ignore_patterns("built")
    )
    shutil.copytree(ROOT / "calib" / name, to / "calib" / name)
    return to / "engines", to / "calib"


def clean_environment(**extra: str) -> dict[str, str]:
    """This process's environment without edged's variables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EDGED_")}
    return kept | extra


@contextlib.contextmanager
def running_service(
    folder: Path,
    host: str,
    port: int,
    *,
    model: str = "digits",
    recipe: str = "",
    before: Callable[[Path], None] = lambda _engines: None,
    **environment: str,
) -> Iterator[Endpoint]:
    """Builds the model's engine in ``folder`` and serves it until the block ends.

    Args:
        folder: gets sources, engine and the daemon's log.
        host: the broker's.
        port: the broker's.
        model: a bundled model.
        recipe: what is added to the end of its recipe.
        before: does something to the store before the service starts.
        environment: further variables, e.g. ``EDGED_SERVE__QUEUE_SAMPLES="4"``.
    """
    engines, calib = copy_model(model, folder)
    with (engines / model / "recipe.toml").open("a", encoding="utf-8") as file:
        file.write(recipe)
    build_model(model, engines=engines, calib=calib, precision="int8")
    before(engines)
    endpoint = Endpoint("edge", host, port)
    settings = clean_environment(
        EDGED_BROKER__HOST=host,
        EDGED_BROKER__PORT=str(port),
        EDGED_DEVICE__NAME=endpoint.device,
        EDGED_PATHS__ENGINES=str(engines),
        EDGED_PATHS__CALIB=str(calib),
        **environment,
    )
    with (folder / "daemon.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "edged", "serve"],
            env=settings, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        with InferClient(endpoint) as client:
            client.wait_status("online", READY_S)
        yield endpoint
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
