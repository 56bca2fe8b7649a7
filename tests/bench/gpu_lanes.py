"""Bare loops on a GPU: lanes and CUDA graphs against one context, pageable memory, synchronous.

    python -m tests.bench.gpu_lanes RESULT.json

Both loops run in one process on the same engine, in turn, five rounds; medians are given. Samples
are copied into the staging buffers in both, since that is what serving does.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pycuda.driver as drv

from edged.runners import Completion, TensorSpec
from edged.runners.tensorrt import TensorRTRunner
from edged.runners.tensorrt_engine import import_tensorrt
from tests.bench.gpu_networks import CLASSES, LARGE, MEDIUM, SMALL, Network, network_plan

SIZES = (1, 8, 32)
ROUNDS = 5
ROUND_S = 0.4


class StraightLoop:
    """One context, pageable memory, every step waited for."""

    def __init__(self, data: bytes, spec: TensorSpec) -> None:
        trt = import_tensorrt()
        self.context = drv.Device(0).retain_primary_context()
        self.context.push()
        self.runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self.engine = self.runtime.deserialize_cuda_engine(data)
        self.execution = self.engine.create_execution_context()
        self.spec = spec
        self.input = drv.mem_alloc(32 * int(np.prod(spec.shape)) * 4)
        self.output = drv.mem_alloc(32 * CLASSES * 4)
        self.execution.set_tensor_address("x", int(self.input))
        self.execution.set_tensor_address("y", int(self.output))
        self.stream = drv.Stream()

    def run(self, rows: Any, seconds: float) -> tuple[float, float]:
        """Samples/s, and CPU microseconds of the loop a batch."""
        size = len(rows)
        staging, answer = np.empty_like(rows), np.empty((size, CLASSES), np.float32)
        batches, begun, cpu = 0, time.perf_counter(), time.thread_time()
        while time.perf_counter() - begun < seconds:
            np.copyto(staging, rows)
            self.execution.set_input_shape("x", rows.shape)
            drv.memcpy_htod(self.input, staging)
            self.execution.execute_async_v3(self.stream.handle)
            self.stream.synchronize()
            drv.memcpy_dtoh(answer, self.output)
            batches += 1
        wall = time.perf_counter() - begun
        return batches * size / wall, (time.thread_time() - cpu) / batches * 1e6

    def close(self) -> None:
        """Gives all back."""
        del self.execution, self.engine, self.runtime, self.input, self.output, self.stream
        drv.Context.pop()


def lanes_loop(runner: TensorRTRunner, rows: Any, seconds: float) -> dict[str, float]:
    """Keeps all lanes busy; samples/s, and CPU microseconds a batch without copying samples."""
    free = threading.Semaphore(runner.lanes)
    size, lane, batches, calls = len(rows), 0, 0, 0.0
    stagings = [runner.staging(n)["x"][:size] for n in range(runner.lanes)]

    def done(completion: Completion) -> None:
        if completion.error is not None:
            raise completion.error
        free.release()

    begun, cpu = time.perf_counter(), time.thread_time()
    while time.perf_counter() - begun < seconds:
        free.acquire()
        np.copyto(stagings[lane], rows)
        before = time.perf_counter()
        runner.submit(lane, size, done)
        calls += time.perf_counter() - before
        lane = (lane + 1) % runner.lanes
        batches += 1
    for _ in range(runner.lanes):
        free.acquire()
    wall = time.perf_counter() - begun
    return {
        "samples_s": batches * size / wall,
        "cpu_us": (time.thread_time() - cpu) / batches * 1e6,
        "submit_us": calls / batches * 1e6,
    }


def measure(network: Network, *, half: bool) -> list[dict[str, Any]]:
    """One row for each batch size."""
    data = network_plan(network, half=half)
    spec = TensorSpec("x", np.dtype(np.float32), (network.tokens, network.width))
    out = TensorSpec("y", spec.dtype, (CLASSES,))
    runner = TensorRTRunner(data, [spec], [out], 32, sizes=(1, 2, 4, 8, 16, 32), lanes=3)
    runner.prepare()
    straight = StraightLoop(data, spec)
    rows = []
    random = np.random.default_rng(1)
    for size in SIZES:
        batch = random.standard_normal((size, *spec.shape)).astype(np.float32)
        straight.run(batch, 0.1)
        pairs = [
            (straight.run(batch, ROUND_S), lanes_loop(runner, batch, ROUND_S))
            for _ in range(ROUNDS)
        ]
        result = {
            "network": network.name,
            "precision": "fp16" if half else "fp32",
            "batch": size,
            "straight_samples_s": median(s[0] for s, _ in pairs),
            "straight_cpu_us": median(s[1] for s, _ in pairs),
            "lanes_samples_s": median(n["samples_s"] for _, n in pairs),
            "lanes_cpu_us": median(n["cpu_us"] for _, n in pairs),
            "submit_us": median(n["submit_us"] for _, n in pairs),
            "graphs": runner.graphs,
            "ratio": median(n["samples_s"] / s[0] for s, n in pairs),
        }
        rows.append(result)
        told = {k: round(v, 2) if isinstance(v, float) else v for k, v in result.items()}
        sys.stdout.write(f"{told}\n")
    straight.close()
    runner.close()
    return rows


def main() -> None:
    """Measures all networks and writes the JSON."""
    drv.init()
    rows = [row for network in (SMALL, MEDIUM, LARGE) for row in measure(network, half=True)]
    document = {"device": drv.Device(0).name(), "rows": rows}
    Path(sys.argv[1]).write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
