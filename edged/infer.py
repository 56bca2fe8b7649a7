"""`edged infer`: sends a file and prints the answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, TextIO

import numpy as np

from edged.client import Endpoint, InferClient, Result, image_message, tensor_message
from edged.client.messages import Array
from edged.errors import EdgedError, ReplyError
from edged.postprocess.answer import documents, meaning_of
from edged.sample_file import SampleFile, read_sample_file

_MAX_LINES = 20


@dataclass(frozen=True)
class InferOptions:
    """What `edged infer` is asked for.

    Attributes:
        endpoint: broker and device.
        model: a model's name.
        file: .npy, .npz, PNG or JPEG; ``-`` for standard input.
        input_name: input that the array of a .npy file is for; a .npz file names its own.
        timeout_s: seconds to wait for each answer.
        top: so many best classes of each sample.
        raw: print the arrays themselves.
        json: print one JSON document.
        priority: one of `edged.protocol.PRIORITIES`; None: normal.
        deadline_ms: the device starts nothing later than this after its arrival.
    """

    endpoint: Endpoint
    model: str
    file: str
    input_name: str = "input"
    timeout_s: float = 10.0
    top: int = 3
    raw: bool = False
    json: bool = False
    priority: str | None = None
    deadline_ms: int | None = None


def run(
    options: InferOptions,
    *,
    out: TextIO | None = None,
    err: TextIO | None = None,
    stdin: BinaryIO | None = None,
) -> int:
    """Sends the file and prints the answer.

    Args:
        options: what to send where.
        out: for the answer; None: standard output.
        err: for the one line that says what went wrong; None: standard error.
        stdin: for the file ``-``; None: standard input.

    Returns:
        0, or 1 if there was no answer or an error; ``err`` then says why in one line.
    """
    out, err = out or sys.stdout, err or sys.stderr
    try:
        sample = read_sample_file(
            options.file, stdin or sys.stdin.buffer, input_name=options.input_name
        )
        with InferClient(options.endpoint) as client:
            result = _ask(client, options, sample)
            meant = meaning_of(result.outputs) is not None
            asks = not (options.raw or meant)
            classes = _ask_classes(client, options, sample, result) if asks else {}
    except ReplyError as error:
        print(f"edged infer: {error.code} (status {error.status}): {error.message}", file=err)
        return 1
    except (EdgedError, TimeoutError, ValueError) as error:
        print(f"edged infer: {error}", file=err)
        return 1
    lines = _json(options, result, classes) if options.json else _text(options, result, classes)
    out.writelines(f"{line}\n" for line in lines)
    return 0


def _ask(
    client: InferClient,
    options: InferOptions,
    sample: SampleFile,
    outputs: Sequence[str] = (),
    classes: int = 0,
) -> Result:
    if sample.image:
        message = image_message(sample.image, sample.content_type, classes=classes)
    else:
        message = tensor_message(sample.arrays, outputs=outputs, classes=classes)
    future = client.submit(
        options.model,
        message,
        priority=options.priority,
        deadline_ms=options.deadline_ms,
        expiry_s=int(options.timeout_s) + 1,
    )
    return client.wait(future, options.model, options.timeout_s)


def _ask_classes(
    client: InferClient, options: InferOptions, sample: SampleFile, result: Result
) -> dict[str, list[list[str]]]:
    """The best classes of each sample by output, as ``value:index[:label]``.

    Asked for a second time: what the outputs are is known from the first answer only, and the
    labels are known to the device only.
    """
    names = [name for name, data in result.outputs.items() if _ranked(data)]
    if not names or options.top < 1:
        return {}
    answer = _ask(client, options, sample, names, options.top)
    return {
        name: [[bytes(item).decode("utf-8", "replace") for item in row] for row in rows]
        for name, rows in answer.outputs.items()
        if name in names
    }


def _ranked(data: Array) -> bool:
    return data.ndim == 2 and data.dtype.kind == "f" and data.shape[1] > 1


def _text(options: InferOptions, result: Result, classes: dict[str, list[list[str]]]) -> list[str]:
    batch = result.parameters.get("batch_size", "?")
    version = f" {result.model_version}" if result.model_version else ""
    by = f", by {result.device}" if result.device else ""
    took = f"{result.latency_s * 1e3:.1f} ms"
    lines = [f"{options.model}{version}: {took}, in a batch of {batch}{by}"]
    if not options.raw and meaning_of(result.outputs) is not None:
        return lines + _meant(documents(result.outputs))
    for name, data in result.outputs.items():
        lines.append(f"{name}: {data.dtype} {list(data.shape)}")
        if options.raw:
            lines += [f"  {line}" for line in str(data).splitlines()]
        for number, row in enumerate(classes.get(name, ())[:_MAX_LINES]):
            lines.append(f"  sample {number}: " + ", ".join(_readable(item) for item in row))
        if len(classes.get(name, ())) > _MAX_LINES:
            lines.append(f"  and {len(classes[name]) - _MAX_LINES} more; --json prints all")
    return lines


def _meant(samples: list[Any]) -> list[str]:
    """Post-processed outputs, sample by sample."""
    lines = []
    for number, found in enumerate(samples[:_MAX_LINES]):
        if isinstance(found, dict):
            lines.append(f"  sample {number}: {found['text']!r} ({_digits(found['confidence'])})")
        elif found and "box" in found[0]:
            lines.append(f"  sample {number}: {len(found)} found")
            lines += [f"    {_scored(entry)} at {_corners(entry['box'])}" for entry in found]
        else:
            lines.append(f"  sample {number}: " + (", ".join(map(_scored, found)) or "0 found"))
    if len(samples) > _MAX_LINES:
        lines.append(f"  and {len(samples) - _MAX_LINES} more; --json prints all")
    return lines


def _scored(entry: dict[str, Any]) -> str:
    return f"{entry.get('label', 'class ' + str(entry['class']))} ({_digits(entry['score'])})"


def _digits(score: float | None) -> str:
    return "?" if score is None else f"{score:.4g}"


def _corners(box: list[float]) -> str:
    left, top, right, bottom = box
    return f"({left:g}, {top:g}) to ({right:g}, {bottom:g})"


def _readable(item: str) -> str:
    """``12.5:7:seven`` -> ``seven (12.5)``."""
    value, index, *label = item.split(":", 2)
    return f"{label[0] if label else f'class {index}'} ({float(value):.4g})"


def _json(options: InferOptions, result: Result, classes: dict[str, list[list[str]]]) -> list[str]:
    outputs: dict[str, dict[str, Any]] = {
        name: {"shape": list(data.shape), "datatype": str(data.dtype), "data": _plain(data)}
        for name, data in result.outputs.items()
    }
    for name, rows in classes.items():
        outputs[name]["classes"] = rows
    document = {
        "model": options.model,
        "model_version": result.model_version,
        "latency_ms": round(result.latency_s * 1e3, 3),
        **({"device": result.device} if result.device else {}),
        "parameters": dict(result.parameters),
        "outputs": outputs,
    }
    if meaning_of(result.outputs) is not None:
        document["results"] = documents(result.outputs)
    return [json.dumps(document)]


def _plain(data: Array) -> list[Any]:
    if data.dtype.kind == "O":
        return [bytes(item).decode("utf-8", "replace") for item in data.ravel()]
    if data.dtype.kind == "f":  # JSON has no word for NaN and infinity
        return [float(v) if np.isfinite(v) else None for v in data.ravel()]
    values: list[Any] = data.ravel().tolist()
    return values
