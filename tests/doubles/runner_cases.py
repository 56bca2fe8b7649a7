"""The kinds of runner that the conformance suite checks, each with what it must answer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edged import runners
from edged.errors import EngineError
from edged.runners import Runner, TensorSpec
from edged.runners.onnx import FloatGraph, OnnxRunner
from tests.bench.gpu_networks import CLASSES, SMALL, network_onnx, network_plan
from tests.doubles import engines
from tests.doubles import runner as scripted
from tests.doubles.runner import ScriptedRunner

Array = np.ndarray[Any, np.dtype[Any]]
FLOAT = np.dtype(np.float32)
INDEX = (TensorSpec("x", np.dtype(np.int64), (1,)),)
PICKED = (TensorSpec("y", FLOAT, (1, 2)),)


@dataclass(frozen=True)
class Case:
    """One kind of runner.

    Attributes:
        make: a runner with a batch limit of 4 and so many lanes, on which a batch fails that holds
            `poison` in its first row.
        draw: a batch of so many samples from a random generator.
        expected: what must come out of it.
        poison: a batch of one sample that makes the engine fail; where `fails`.
        fails: False: no input makes this engine fail.
        near: how far outputs may be off, absolutely and relatively.
    """

    make: Callable[[int], Runner]
    draw: Callable[[np.random.Generator, int], dict[str, Array]]
    expected: Callable[[Mapping[str, Array]], Mapping[str, Array]]
    poison: Mapping[str, Array]
    fails: bool = True
    near: float = 1e-5


def fails_on_negative(_number: int, inputs: Mapping[str, runners.Array]) -> EngineError | None:
    """The scripted engine's fault."""
    return EngineError("scripted fault") if inputs["x"][0, 0] < 0 else None


SCRIPTED = Case(
    make=lambda lanes: ScriptedRunner(4, lanes=lanes, fault=fails_on_negative),
    draw=lambda rng, n: {"x": rng.uniform(0, 9, size=(n, 3)).astype(np.float32)},
    expected=lambda batch: scripted.expected(batch["x"]),
    poison={"x": np.full((1, 3), -1, np.float32)},
)

ONNX = Case(
    make=lambda lanes: OnnxRunner(
        engines.picker().SerializeToString(), INDEX, PICKED, 4, lanes=lanes, threads=1
    ),
    draw=lambda rng, n: {"x": rng.integers(0, 4, size=(n, 1))},
    expected=lambda batch: {"y": engines.TABLE[batch["x"]]},
    poison={"x": np.full((1, 1), 99, np.int64)},
)


@functools.cache
def _small() -> tuple[bytes, FloatGraph]:
    """The small network of the benches: its plan for the GPU that is here, and its reference."""
    plan = network_plan(SMALL, half=False, max_batch=4)
    return plan, FloatGraph(network_onnx(SMALL, half=False))


def _tensorrt(lanes: int) -> Runner:
    from edged.runners.tensorrt import TensorRTRunner

    taken = TensorSpec("x", FLOAT, (SMALL.tokens, SMALL.width))
    given = TensorSpec("y", FLOAT, (CLASSES,))
    made = TensorRTRunner(_small()[0], [taken], [given], 4, lanes=lanes)
    made.prepare()
    return made


TENSORRT = Case(
    make=_tensorrt,
    draw=lambda rng, n: {
        "x": rng.standard_normal((n, SMALL.tokens, SMALL.width)).astype(np.float32)
    },
    expected=lambda batch: {"y": _small()[1].run(batch)["y"]},
    poison={"x": np.full((1, SMALL.tokens, SMALL.width), np.nan, np.float32)},
    fails=False,
    near=2e-2,  # TensorRT computes FP32 products in TF32, with ten bits of mantissa
)
