"""`edged infer` against the real service on the bundled digits."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edged import infer
from edged.client import Endpoint
from edged.infer import InferOptions
from tests.doubles.broker import Mosquitto, free_port
from tests.doubles.service import ROOT, running_service


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """A service on digits behind a mosquitto of its own."""
    folder = tmp_path_factory.mktemp("service")
    with (
        Mosquitto(folder / "broker") as broker,
        running_service(folder, broker.host, broker.port) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def digits() -> dict[str, np.ndarray]:
    """The held-out digits: ``image`` and ``labels``."""
    with np.load(ROOT / "calib" / "digits" / "heldout.npz") as file:
        return {name: file[name] for name in file.files}


def call(options: InferOptions, stdin: bytes = b"") -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one call."""
    out, err = io.StringIO(), io.StringIO()
    code = infer.run(options, out=out, err=err, stdin=io.BytesIO(stdin))
    return code, out.getvalue(), err.getvalue()


def as_png(pixels: np.ndarray) -> bytes:
    """One 8x8x1 sample as a PNG file."""
    content = io.BytesIO()
    Image.fromarray(pixels[..., 0]).save(content, "png")
    return content.getvalue()


def test_batch_of_digits_is_named_right(
    endpoint: Endpoint, digits: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """A .npy of ten digits prints the right label first for each sample."""
    np.save(tmp_path / "ten.npy", digits["image"][:10])
    options = InferOptions(endpoint, "digits", str(tmp_path / "ten.npy"), input_name="image")
    code, out, err = call(options)
    assert (code, err) == (0, "")
    lines = [line for line in out.splitlines() if line.startswith("  sample")]
    best = [line.split(": ")[1].split(" ")[0] for line in lines]
    assert best == [str(label) for label in digits["labels"][:10]]
    assert "logits: float32 [10, 10]" in out


def test_png_from_standard_input_as_json(endpoint: Endpoint, digits: dict[str, np.ndarray]) -> None:
    """One PNG gives the same class as its array, with three ranked classes in the document."""
    options = InferOptions(endpoint, "digits", "-", json=True, top=3)
    code, out, err = call(options, as_png(digits["image"][0]))
    assert (code, err) == (0, "")
    document = json.loads(out)
    logits = document["outputs"]["logits"]
    assert logits["shape"] == [1, 10]
    assert int(np.argmax(logits["data"])) == digits["labels"][0]
    ranked = [entry.split(":") for entry in logits["classes"][0]]
    assert [int(index) for _, index, _ in ranked] == list(np.argsort(logits["data"])[::-1][:3])
    assert document["parameters"]["batch_size"] >= 1


def test_raw_prints_the_arrays(
    endpoint: Endpoint, digits: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """--raw prints numbers and no classes."""
    np.savez(tmp_path / "one.npz", image=digits["image"][:1])
    code, out, _ = call(InferOptions(endpoint, "digits", str(tmp_path / "one.npz"), raw=True))
    assert code == 0
    assert "[[" in out
    assert "sample 0" not in out


@pytest.mark.parametrize(
    ("model", "inputs", "why"),
    [
        ("digits", {"image": np.zeros((1, 9, 9, 1), np.uint8)}, "bad_shape (status 422)"),
        ("digits", {"image": np.zeros((1, 8, 8, 1), "f4")}, "bad_datatype (status 422)"),
        ("digits", {"pixels": np.zeros((1, 8, 8, 1), np.uint8)}, "it takes image UINT8 [n,8,8,1]"),
        ("letters", {"image": np.zeros((1, 8, 8, 1), np.uint8)}, "unknown_model (status 404)"),
        ("digits", {"image": np.zeros((1, 8, 8, 1), np.complex64)}, "complex64"),
    ],
)
def test_mistakes_are_one_line_and_exit_1(
    endpoint: Endpoint, tmp_path: Path, model: str, inputs: dict[str, Any], why: str
) -> None:
    """Each mistake prints its code and what the model takes, and exits with 1."""
    np.savez(tmp_path / "wrong.npz", **inputs)
    code, out, err = call(InferOptions(endpoint, model, str(tmp_path / "wrong.npz")))
    assert (code, out) == (1, "")
    assert why in err
    assert err.count("\n") == 1


def test_nobody_there_is_one_line_and_exit_1(
    endpoint: Endpoint, digits: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """No broker, no such device and no such file are said in one line each."""
    np.savez(tmp_path / "one.npz", image=digits["image"][:1])
    file = str(tmp_path / "one.npz")
    for options, why in [
        (InferOptions(replace(endpoint, port=free_port()), "digits", file), "no MQTT broker"),
        (
            InferOptions(replace(endpoint, device="elsewhere"), "digits", file, timeout_s=0.2),
            "nobody takes requests of device 'elsewhere'",
        ),
        (InferOptions(endpoint, "digits", str(tmp_path / "none.npz")), "No such file"),
        (InferOptions(replace(endpoint, device="a/b"), "digits", file), "device name 'a/b'"),
    ]:
        code, out, err = call(options)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert why in err
