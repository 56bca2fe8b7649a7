"""What the engine gives in-process, and whether answers over MQTT are that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edged.build.dataset import SampleBatch, load_dataset, model_inputs
from edged.client import Message, tensor_message
from edged.engine_store import Engine
from edged.errors import EngineRefusedError
from edged.load_generator import Answer
from edged.runners import Runner, load, run_batch

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Expected:
    """The held-out samples and what the engine makes of them in-process.

    Attributes:
        messages: one request a sample.
        labels: the true class of each.
        output: name of the engine's first output, whose largest entry is the class.
        values: that output for each sample, ``[n, classes]``.
        tolerance: how far an answer's values may be from these; see `tolerance`.
        fp32_top1: accuracy of the FP32 model, from the engine's verification on the same samples.
    """

    messages: Sequence[Message]
    labels: Array
    output: str
    values: Array
    tolerance: float
    fp32_top1: float


def read_expected(engine: Engine, calib: Path) -> Expected:
    """Reads the held-out samples and runs the engine on them, alone and in the largest batches.

    Args:
        engine: the installed engine.
        calib: the model's calibration set.

    Raises:
        EdgedError: a sample file or the engine is damaged, or inputs are of variable length.
    """
    manifest = engine.manifest
    if any(spec.length is not None for spec in manifest.input):
        raise EngineRefusedError(
            f"model {manifest.model!r} takes inputs of variable length, which the demonstration "
            "does not send; choose another model"
        )
    split = load_dataset(calib, manifest.input).heldout
    parts = list(split.batches(len(split)))
    whole = SampleBatch(
        {
            spec.name: np.concatenate([part.inputs[spec.name] for part in parts])
            for spec in manifest.input
        },
        None,
    )
    samples = whole.inputs
    runner = load(engine)
    try:
        alone, together = (
            _outputs(runner, model_inputs(whole, manifest.input), manifest.output[0].name, size)
            for size in (1, manifest.max_batch)
        )
    finally:
        runner.close()
    return Expected(
        messages=[
            tensor_message({name: rows[at : at + 1] for name, rows in samples.items()})
            for at in range(len(alone))
        ],
        labels=np.concatenate([part.labels for part in parts if part.labels is not None]),
        output=manifest.output[0].name,
        values=alone,
        tolerance=tolerance(alone, together),
        fp32_top1=manifest.verdict.metrics["fp32_top1"],
    )


def _outputs(runner: Runner, feeds: Mapping[str, Array], name: str, size: int) -> Array:
    count = len(next(iter(feeds.values())))
    parts = [
        # A copy: the runner may use the same memory for the next batch.
        np.array(
            run_batch(runner, {key: rows[at : at + size] for key, rows in feeds.items()}).outputs[
                name
            ]
        )
        for at in range(0, count, size)
    ]
    return np.concatenate(parts)


def tolerance(alone: Array, together: Array) -> float:
    """How far an answer may be from what the engine gave for the sample alone.

    A sample's values depend in their last bits on the batch it was computed in, because the sums of
    the float layers are then ordered otherwise: the digits' logits of up to 6.2 differ by up to
    1.5e-6 between batch sizes (ONNX Runtime 1.32, x86-64; all sizes from 1 to 32, random batches).
    Four times what is found here between the smallest and the largest batch is allowed, and at
    least 1e-5 of the largest value, which is 6e-5: far below the smallest distance between the best
    and the second class of a test digit, 0.024.

    Args:
        alone: outputs computed in batches of 1.
        together: outputs of the same samples computed in the largest batches.
    """
    spread = float(np.abs(alone - together).max())
    return max(4 * spread, 1e-5 * float(np.abs(alone).max()))


def wrong_answers(answers: Sequence[Answer], expected: Expected) -> list[int]:
    """Numbers of the requests whose answer is not the engine's: another class, or values too far.

    Request ``i`` carried sample ``i`` modulo the number of samples. Refused and lost ones count.
    """
    wrong = []
    for answer in answers:
        wanted = expected.values[answer.index % len(expected.values)]
        values = None if answer.result is None else answer.result.outputs.get(expected.output)
        if (
            values is None
            or values.shape != (1, *wanted.shape)
            or values.argmax() != wanted.argmax()
            or not np.abs(values[0] - wanted).max() <= expected.tolerance
        ):
            wrong.append(answer.index)
    return wrong


def accuracy(answers: Sequence[Answer], expected: Expected) -> float:
    """Share of all requests whose answer's largest entry is the true class."""
    right = sum(
        int(answer.result.outputs[expected.output].argmax())
        == expected.labels[answer.index % len(expected.labels)]
        for answer in answers
        if answer.result is not None and expected.output in answer.result.outputs
    )
    return float(right / len(answers))
