"""Faults of engines and devices: refused, told, survived; 200 loads leave nothing behind."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from edged.errors import DeviceFaultError, EngineRefusedError
from edged.runners import TensorSpec, run_batch
from tests.bench.gpu_networks import (
    CLASSES,
    MEDIUM,
    SMALL,
    network_plan,
)
from tests.doubles.gpu_runner import (
    FLOAT,
    INPUT,
    OUTPUT,
    batch,
    make,
    make_medium,
)

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def plan() -> bytes:
    """The small network in FP32, batch 1 to 8."""
    return network_plan(SMALL, half=False, max_batch=8)


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
sys.path.insert(0, ".")
from tests.doubles import gpu_runner as t
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
