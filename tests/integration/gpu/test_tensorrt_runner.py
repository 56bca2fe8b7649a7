"""What only a GPU can show of the TensorRT runner; common rules are in the conformance suite."""

from __future__ import annotations

import gc
import queue
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edged.runners import Completion, Runner, TensorSpec, run_batch, warm_up
from tests.bench.gpu_networks import (
    SMALL,
    network_plan,
    onnx_plan,
)
from tests.doubles.gpu_runner import (
    FLOAT,
    ROOT,
    SIZES,
    assert_close,
    batch,
    captures,
    make,
    reference,
)

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def plan() -> bytes:
    """The small network in FP32, batch 1 to 8."""
    return network_plan(SMALL, half=False, max_batch=8)


@pytest.fixture
def runner(plan: bytes) -> Iterator[Any]:
    """Prepared, with two lanes."""
    made = make(plan, lanes=2)
    made.prepare()
    yield made
    made.close()


@pytest.mark.parametrize("size", range(1, 9))
def test_every_batch_size_gives_the_right_rows(runner: Any, size: int) -> None:
    """Sizes between the warmed ones are padded up, and the padding does not show."""
    rows = batch(size, size)

    assert_close(run_batch(runner, {"x": rows}, lane=size % 2).outputs["y"], reference(rows))


def test_all_sizes_run_as_graphs(runner: Any) -> None:
    """Capture works for each lane and size, where the runtime says that it does."""
    assert runner.graphs == (2 * len(SIZES) if captures() else 0)


def test_plain_calls_and_graphs_agree(plan: bytes) -> None:
    """A runner that captured nothing computes the same as one that did."""
    plain, captured = make(plan, lanes=1), make(plan, lanes=1)
    captured.prepare()
    rows = batch(3)
    try:
        assert plain.graphs == 0
        assert captured.graphs == (len(SIZES) if captures() else 0)
        assert_close(
            run_batch(plain, {"x": rows}).outputs["y"],
            np.array(run_batch(captured, {"x": rows}).outputs["y"]),
        )
    finally:
        plain.close()
        captured.close()


@pytest.mark.parametrize("memory", ["copy", "mapped", "measure"])
def test_each_kind_of_memory_computes_the_same(plan: bytes, memory: str) -> None:
    """Zero-copy is a matter of speed; measuring ends with one of the two."""
    made = make(plan, lanes=2, memory=memory)
    try:
        made.prepare()
        rows = batch(5)

        assert_close(run_batch(made, {"x": rows}, lane=1).outputs["y"], reference(rows))
        assert made.memory in {"copy", "mapped"}
    finally:
        made.close()


def test_lanes_are_measured(plan: bytes) -> None:
    """Without a number, between one and three lanes stay, and all of them work."""
    made = make(plan)
    try:
        curve = warm_up(made, SIZES)
        rows = batch(8)

        assert 1 <= made.lanes <= 3
        assert curve.stepped
        assert curve.sizes == SIZES
        for lane in range(made.lanes):
            assert_close(run_batch(made, {"x": rows}, lane=lane).outputs["y"], reference(rows))
    finally:
        made.close()


def test_convolutions_are_right_in_every_lane_and_size() -> None:
    """The bundled residual CNN, its lanes prepared together, against ONNX Runtime.

    Of a first lane whose graphs were captured before the others had run, TensorRT-RTX made rubbish.
    """
    from edged.runners.onnx import FloatGraph
    from edged.runners.tensorrt import TensorRTRunner

    model = (ROOT / "engines" / "digits" / "model.onnx").read_bytes()
    rows = np.random.default_rng(3).uniform(0, 1, (32, 1, 8, 8)).astype(np.float32)
    wanted = FloatGraph(model).run({"image": rows})["logits"]
    made = TensorRTRunner(
        onnx_plan(model, {"image": (1, 8, 8)}, 32),
        [TensorSpec("image", FLOAT, (1, 8, 8))],
        [TensorSpec("logits", FLOAT, (10,))],
        32,
        lanes=3,
    )
    try:
        made.prepare()
        for lane in range(3):
            for size in (32, 1, 2, 4, 8, 16, 7, 3, 32, 5, 1):
                found = run_batch(made, {"image": rows[:size]}, lane=lane).outputs["logits"]
                assert_close(found, wanted[:size])
    finally:
        made.close()


def test_lanes_overlap_without_mixing_rows(runner: Any) -> None:
    """A thousand batches over two lanes, each with its own rows, each answered with them."""
    done: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    free = [0, 1]
    inputs = [batch(4, seed) for seed in range(16)]
    answers = [reference(rows) for rows in inputs]

    def submit(number: int) -> None:
        lane = free.pop()
        np.copyto(runner.staging(lane)["x"][:4], inputs[number % 16])
        runner.submit(lane, 4, lambda completion: finished(number, completion))

    def finished(number: int, completion: Completion) -> None:
        done.put((number, np.array(completion.outputs["y"])))
        free.append(completion.lane)

    for number in range(2):
        submit(number)
    for number in range(2, 1000):
        answered, rows = done.get(timeout=30)
        assert_close(rows, answers[answered % 16])
        submit(number)


def test_the_runtime_cache_is_written_and_read(plan: bytes, tmp_path: Path) -> None:
    """TensorRT-RTX keeps what it compiled; a damaged cache does no harm."""
    from edged.runners.tensorrt_engine import import_tensorrt

    if not hasattr(import_tensorrt(), "IRuntimeCache"):
        pytest.skip("only TensorRT-RTX has a runtime cache")
    cache = tmp_path / "engine.cache"
    for content in (None, None, b"no cache"):
        if content is not None:
            cache.write_bytes(content)
        made = make(plan, lanes=1, cache=cache)
        made.prepare()
        assert_close(run_batch(made, {"x": batch(2)}).outputs["y"], reference(batch(2)))
        made.close()
        assert cache.stat().st_size > 100


def test_a_batch_leaves_nothing_behind(runner: Runner) -> None:
    """After a thousand batches the interpreter has as many objects as after a hundred."""
    rows = batch(3)

    def blocks_after(batches: int) -> int:
        for number in range(batches):
            run_batch(runner, {"x": rows}, lane=number % 2)
        gc.collect()
        return sys.getallocatedblocks()

    before = blocks_after(100)
    assert blocks_after(900) - before <= 50


def test_graphs_that_are_slower_are_dropped(plan: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bar that none can pass all sizes run by plain calls, and right."""
    from edged.runners import tensorrt_lane

    monkeypatch.setattr(tensorrt_lane, "SLOWER", 0.0)
    made = make(plan, lanes=1)
    try:
        made.prepare()
        assert made.graphs == 0
        assert_close(run_batch(made, {"x": batch(3)}).outputs["y"], reference(batch(3)))
    finally:
        made.close()
