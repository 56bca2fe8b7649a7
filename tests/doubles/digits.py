"""Held-out digits as requests, and what the installed engine makes of them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from edged import preprocess, protocol, runners
from edged.engine_store import EngineStore
from tests.doubles.wire import Ask, Message

Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]
ROOT = Path(__file__).resolve().parents[2]


def images() -> Pixels:
    """Held-out images, ``[360, 8, 8, 1]``."""
    with np.load(ROOT / "calib" / "digits" / "heldout.npz", allow_pickle=False) as arrays:
        return np.array(arrays["image"], np.uint8)


def logits(engines: Path, pixels: Pixels) -> Logits:
    """What the engine computes, without any service around it, ``[n, 10]``."""
    engine = EngineStore(engines).current("digits")
    (spec,) = engine.manifest.input
    runner = runners.load(engine, threads=1)
    rows = np.empty((len(pixels), *spec.model_shape), np.float32)
    preprocess.into(pixels, rows, scale=spec.scale, offset=spec.offset, transpose=spec.transpose)
    size = runner.max_batch
    parts = [
        np.array(runners.run_batch(runner, {"image": rows[at : at + size]}).outputs["logits"])
        for at in range(0, len(rows), size)
    ]
    runner.close()
    return np.concatenate(parts).astype(np.float32)


def json_body(pixels: Pixels, **more: object) -> bytes:
    """V2 in plain JSON."""
    tensor = {
        "name": "image", "datatype": "UINT8", "shape": list(pixels.shape), "data": pixels.tolist()
    }  # fmt: skip
    return json.dumps({"inputs": [tensor], **more}).encode()


def binary(pixels: Pixels, *, shape: list[int] | None = None, **more: object) -> tuple[bytes, int]:
    """V2 with the tensor behind the header, written by hand; the body and its header's length."""
    tensor = {
        "name": "image",
        "datatype": "UINT8",
        "shape": list(pixels.shape) if shape is None else shape,
        "parameters": {"binary_data_size": pixels.size},
    }
    header = json.dumps({"inputs": [tensor], **more}).encode()
    return header + pixels.tobytes(), len(header)


def binary_ask(topics: protocol.Topics, pixels: Pixels, correlation: bytes, **more: Any) -> Ask:
    """A sound request in binary form."""
    payload, length = binary(pixels)
    fields: dict[str, Any] = {
        "reply": topics.reply("wire"),
        "correlation": correlation,
        "content_type": protocol.OCTET_STREAM,
        "user": [(protocol.HEADER_LENGTH, str(length))],
    }
    return Ask(topics.infer("digits"), payload, **(fields | more))


def binary_logits(reply: Message) -> Logits:
    """The logits of a binary answer, read by hand."""
    length = int(dict(reply.user)[protocol.HEADER_LENGTH])
    (output,) = json.loads(reply.payload[:length])["outputs"]
    rows: Logits = np.frombuffer(reply.payload[length:], np.float32)
    return rows.reshape([int(size) for size in output["shape"]])


def json_logits(payload: bytes) -> Logits:
    """The logits of a JSON answer."""
    (output,) = json.loads(payload)["outputs"]
    rows: Logits = np.array(output["data"], np.float32)
    return rows.reshape([int(size) for size in output["shape"]])


def png(pixels: Pixels) -> bytes:
    """One image, ``[8, 8, 1]``, as a PNG file's content."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0]).save(buffer, "PNG")
    return buffer.getvalue()
