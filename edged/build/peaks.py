"""What this device can do at most, measured: operations and bytes in a second.

Both come from graphs that the target itself builds and runs, so that a GPU is measured through the
same runner as the engines. Two lengths of each are timed and the difference counts: staging,
launching and the copies of inputs and outputs cancel out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edged.build.plan import TypedGraphs
from edged.build.precision import Variant
from edged.build.target import Bench, Order, Target
from edged.build_options import EngineOptions
from edged.recipe import InputSpec, ModelInfo, OutputSpec, Recipe
from edged.runners import run_batch

_ROUNDS = 7


@dataclass(frozen=True)
class Peaks:
    """The two roofs.

    Attributes:
        operations_s: additions and multiplications in a second.
        bytes_s: read from memory in a second.
    """

    operations_s: float
    bytes_s: float


def measure_peaks(target: Target, folder: Path, bench: Bench) -> Peaks:
    """Measures the device of a target in FP32.

    Args:
        target: builds and runs the graphs.
        folder: for temporary files.
        bench: how large the graphs are.

    Raises:
        EdgedError: they cannot be built or run.
    """

    def seconds(graph: Callable[[int], bytes], length: int, width: int, rows: int) -> float:
        return _seconds(target, folder, graph(length), (width, rows))

    def chain(length: int) -> bytes:
        return _graph(bench.columns, length, shared=True)

    def reads(length: int) -> bytes:
        return _graph(bench.wide, length, shared=False)

    short, long = (seconds(chain, n, bench.columns, bench.rows) for n in bench.steps)
    operations = 2 * bench.rows * bench.columns**2 * (bench.steps[1] - bench.steps[0])
    fewer, more = (seconds(reads, n, bench.wide, 1) for n in bench.reads)
    moved = 4 * bench.wide**2 * (bench.reads[1] - bench.reads[0])
    return Peaks(operations / _difference(short, long), moved / _difference(fewer, more))


def _difference(short: float, long: float) -> float:
    """Seconds between two runs; on a busy machine the longer one may seem to take no longer."""
    return max(long - short, long / 10)


def _graph(width: int, length: int, *, shared: bool) -> bytes:
    """``x W W ...`` with one weight, or ``x W1 W2 ...`` with a weight each."""
    weights, nodes, last = [], [], "x"
    for at in range(length):
        name = "w" if shared else f"w{at}"
        if at == 0 or not shared:
            # Any ordinary numbers: rows that sum to 1 keep the chain from growing or vanishing.
            values = np.full((width, width), 1 / width, np.float32)
            weights.append(numpy_helper.from_array(values, name))
        result = "y" if at == length - 1 else f"h{at}"
        nodes.append(helper.make_node("MatMul", [last, name], [result], name=f"m{at}"))
        last = result
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])
        for name in ("x", "y")
    ]
    graph = helper.make_graph(nodes, "peak", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(onnx.ModelProto.SerializeToString(model))


def _seconds(target: Target, folder: Path, model: bytes, shape: tuple[int, int]) -> float:
    width, rows = shape
    recipe = Recipe(
        name="peak",
        folder=folder,
        model=ModelInfo(sha256="0" * 64),
        input=(InputSpec(name="x", datatype="FP32", shape=(width,)),),
        output=(OutputSpec(name="y", shape=(width,)),),
        engine=EngineOptions(max_batch=rows, batch_sizes=(rows,)),
    )
    order = Order(recipe, Variant("fp32"), TypedGraphs(model, model), folder)
    runner = target.open(order, target.make(order, lambda _what, _share: None))
    try:
        runner.prepare(lambda _done, _total: None)
        batch = {"x": np.ones((rows, width), np.float32)}
        run_batch(runner, batch)
        times = []
        for _ in range(_ROUNDS):
            begun = time.perf_counter()
            run_batch(runner, batch)
            times.append(time.perf_counter() - begun)
        return min(times)  # the machine at its best, which is what a roof is
    finally:
        runner.close()
