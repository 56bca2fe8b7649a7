"""What only a GPU can show of the TensorRT runner; common rules are in the conformance suite."""

from __future__ import annotations

import contextlib
import gc
import queue
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edged.errors import DeviceFaultError, EngineRefusedError
from edged.runners import Completion, Runner, TensorSpec, run_batch, warm_up
from tests.bench.gpu_networks import (
    CLASSES,
    MEDIUM,
    SMALL,
    network_onnx,
    network_plan,
    onnx_plan,
)

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parents[3]
FLOAT = np.dtype(np.float32)
SAMPLE = (SMALL.tokens, SMALL.width)
INPUT, OUTPUT = TensorSpec("x", FLOAT, SAMPLE), TensorSpec("y", FLOAT, (CLASSES,))
SIZES = (1, 2, 4, 8)


@pytest.fixture(scope="module")
def plan() -> bytes:
    """The small network in FP32, batch 1 to 8."""
    return network_plan(SMALL, half=False, max_batch=8)


def make(plan: bytes, **options: Any) -> Any:
    """A runner on the first GPU."""
    from edged.runners.tensorrt import TensorRTRunner

    return TensorRTRunner(plan, [INPUT], [OUTPUT], 8, sizes=SIZES, **options)


def make_medium(plan: bytes) -> Any:
    """The medium network on the first GPU."""
    from edged.runners.tensorrt import TensorRTRunner

    sample = TensorSpec("x", FLOAT, (MEDIUM.tokens, MEDIUM.width))
    return TensorRTRunner(plan, [sample], [OUTPUT], 8, sizes=SIZES)


@pytest.fixture
def runner(plan: bytes) -> Iterator[Any]:
    """Prepared, with two lanes."""
    made = make(plan, lanes=2)
    made.prepare()
    yield made
    made.close()


def reference(rows: Any) -> Any:
    """ONNX Runtime's answer."""
    from edged.runners.onnx import FloatGraph

    return FloatGraph(network_onnx(SMALL, half=False)).run({"x": rows})["y"]


def captures() -> bool:
    """Whether graphs can be captured: TensorRT-RTX denies it of engines that may allocate."""
    from edged.runners.tensorrt_engine import import_tensorrt

    return not hasattr(import_tensorrt().IExecutionContext, "is_stream_capturable")


def batch(size: int, seed: int = 0) -> Any:
    """Random rows."""
    return np.random.default_rng(seed).standard_normal((size, *SAMPLE)).astype(np.float32)


def assert_close(found: Any, wanted: Any) -> None:
    """TensorRT uses TF32 for FP32 products: ten bits of mantissa."""
    assert np.abs(found - wanted).max() <= 5e-3 * np.abs(wanted).max()


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


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_damaged_plans_are_refused(plan: bytes, damage: str) -> None:
    """Each with a message, none with a crash. The store's digest finds them even before."""
    data = {
        "cut": plan[: len(plan) // 2],
        "flipped": bytes([plan[0] ^ 0xFF]) + plan[1:],
        "empty": b"",
        "text": b"not an engine" * 100,
    }[damage]

    with pytest.raises(EngineRefusedError, match="build it again"):
        make(data)


def test_specs_that_are_not_the_engines_are_refused(plan: bytes) -> None:
    """Names, shapes and batch sizes are compared with the engine's own."""
    from edged.runners.tensorrt import TensorRTRunner

    other = TensorSpec("x", FLOAT, (SMALL.tokens, 7))
    with pytest.raises(EngineRefusedError, match="its manifest says"):
        TensorRTRunner(plan, [other], [OUTPUT], 8)
    with pytest.raises(EngineRefusedError, match="its manifest names"):
        TensorRTRunner(plan, [INPUT], [TensorSpec("z", FLOAT, (CLASSES,))], 8)
    with pytest.raises(EngineRefusedError, match="covers batch size"):
        TensorRTRunner(plan, [INPUT], [OUTPUT], 64)


def test_a_missing_device_is_refused(plan: bytes) -> None:
    """The message names the device."""
    with pytest.raises(EngineRefusedError, match="cuda:63 cannot be used"):
        make(plan, device="cuda:63")


def test_a_dla_that_is_not_there_is_refused() -> None:
    """TensorRT is asked; the message says how many it finds."""
    from edged.runners.tensorrt import fingerprint
    from edged.runners.tensorrt_engine import import_tensorrt

    trt = import_tensorrt()
    cores = trt.Runtime(trt.Logger()).num_DLA_cores
    with pytest.raises(EngineRefusedError, match=f"finds {cores} DLA cores"):
        fingerprint(f"dla:{cores}")


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


def test_too_little_memory_is_said() -> None:
    """With the device's memory taken by others, loading is refused, and works again after."""
    import pycuda.driver as drv

    from edged.runners.cuda import CudaDevice

    device = CudaDevice("cuda:0")
    plan = network_plan(MEDIUM, half=False, max_batch=8)
    taken = []
    with device.current():
        for size in (1 << power for power in range(34, 17, -1)):
            with contextlib.suppress(drv.MemoryError):
                while True:
                    taken.append(drv.mem_alloc(size))
    try:
        with pytest.raises(EngineRefusedError, match=r"(?i)memory"):
            make_medium(plan)
    finally:
        with device.current():
            for block in taken:
                block.free()
    make_medium(plan).close()


def test_200_loads_and_unloads_leak_nothing(plan: bytes, tmp_path: Path) -> None:
    """Good and bad engines in turn: device memory and the process's own stay where they were."""
    import psutil

    from edged.runners.cuda import CudaDevice

    device, process = CudaDevice("cuda:0"), psutil.Process()

    def round_trip(number: int) -> None:
        if number % 4 == 3:
            with pytest.raises(EngineRefusedError):
                make(plan[: len(plan) // 2])
            return
        made = make(plan, lanes=1, cache=tmp_path / "engine.cache")
        if number % 4 == 1:
            made.prepare()
        run_batch(made, {"x": batch(1)})
        made.close()

    for number in range(20):
        round_trip(number)
    free, resident = device.free_bytes(), process.memory_info().rss
    for number in range(200):
        round_trip(number)

    assert free - device.free_bytes() <= 64 << 20
    assert process.memory_info().rss - resident <= 100 << 20


POISON = """
import numpy as np, pycuda.driver as drv, sys
from edged.runners import run_batch
from edged.runners.cuda import CudaDevice
from edged.errors import DeviceFaultError, DeviceLostError
import os
sys.path.insert(0, "tests/integration/gpu")
import test_tensorrt_runner as t
plan = open(sys.argv[1], "rb").read()
runner = t.make(plan, lanes=2)
runner.prepare()
ptx = b'''.version 7.0
.target sm_50
.address_size 64
.visible .entry poison() {
  .reg .u64 %a; .reg .u32 %v;
  mov.u64 %a, 64; mov.u32 %v, 1; st.global.u32 [%a], %v; ret;
}
'''
device = CudaDevice("cuda:0")
with device.current():
    drv.module_from_buffer(ptx).get_function("poison")(block=(1, 1, 1), grid=(1, 1))
failed = 0
for attempt in range(3):
    try:
        run_batch(runner, {"x": t.batch(2)}, lane=attempt % 2)
    except DeviceFaultError as err:
        failed += 1
        print("fault:", err)
assert failed == 3, failed
try:
    runner.abandon()
except DeviceLostError as err:
    print("lost:", err, flush=True)
os._exit(70)  # what the daemon does: nothing may be freed in a dead context
"""


def test_a_poisoned_context_is_told_as_lost(plan: bytes, tmp_path: Path) -> None:
    """After an illegal access every batch fails as a device fault, and only a new process helps."""
    (tmp_path / "engine.plan").write_bytes(plan)
    ended = subprocess.run(
        [sys.executable, "-c", POISON, str(tmp_path / "engine.plan")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert ended.stdout.count("fault:") == 3, ended.stderr
    assert "lost: the context of cuda:0 is destroyed" in ended.stdout, ended.stderr
    assert ended.returncode == 70


def test_faults_are_of_the_class_that_lets_a_batch_run_elsewhere() -> None:
    """`DeviceFaultError` is what the serving path retries."""
    assert DeviceFaultError.retryable
