"""The whole request path against the bare loop on the same engine; one GPU or several.

    python -m tests.bench.gpu_pipeline RESULT.json [SAMPLES]

Requests of 32 samples each (or of SAMPLES) enter as bytes at `Pipeline.arrived` and leave as
bytes at the sender: everything but the broker's socket. The path is kept saturated (closed loop,
four batches a lane).
With two GPUs also: both against one, and with the first one loaded by another process.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pycuda.driver as drv

from edged.daemon import SWITCH_INTERVAL_S
from edged.runners import TensorSpec
from edged.runners.tensorrt import TensorRTRunner
from tests.bench.gpu_lanes import lanes_loop
from tests.bench.gpu_networks import CLASSES, LARGE, MEDIUM, Network, network_plan
from tests.bench.path import BATCH, RequestPath, request_of

SECONDS = 2.0
HAMMER = """
import pycuda.driver as drv, sys
drv.init(); context = drv.Device(0).retain_primary_context(); context.push()
import numpy as np
sys.path.insert(0, ".")
from tests.bench.gpu_lanes import StraightLoop
from edged.runners import TensorSpec
loop = StraightLoop(open(sys.argv[1], "rb").read(), TensorSpec("x", np.dtype("f4"), (196, 768)))
rows = np.random.default_rng(0).standard_normal((32, 196, 768)).astype("f4")
print("on", flush=True)
loop.run(rows, 600)
"""


def make_runner(network: Network, plan: bytes, device: str) -> TensorRTRunner:
    """Ready to run."""
    spec = TensorSpec("x", np.dtype(np.float32), (network.tokens, network.width))
    out = TensorSpec("y", spec.dtype, (CLASSES,))
    return TensorRTRunner(plan, [spec], [out], BATCH, device=device, sizes=(1, 8, BATCH))


def body_of(network: Network, samples: int) -> tuple[Any, bytes, int]:
    """Rows of a whole batch, and a request with so many of them."""
    return request_of((network.tokens, network.width), samples)


def measure(
    network: Network, plan: bytes, devices: list[str], samples: int = BATCH, rounds: int = 3
) -> dict[str, Any]:
    """Path and bare loop in turn, on the same runners."""
    rows, body, header = body_of(network, samples)
    runners = {name: make_runner(network, plan, name) for name in devices}
    path = RequestPath((network.tokens, network.width), runners, samples)
    path.run(body, header, 0.5)
    results, bare = [], []
    for _ in range(rounds):
        results.append(path.run(body, header, SECONDS))
        if len(devices) == 1:
            bare.append(lanes_loop(runners[devices[0]], rows, SECONDS)["samples_s"])
    path.close()
    lanes = {name: runner.lanes for name, runner in runners.items()}
    for runner in runners.values():
        runner.close()
    best = sorted(results, key=lambda result: result["samples_s"])[len(results) // 2]
    document = {"network": network.name, "devices": devices, "lanes": lanes, **best}
    if bare:
        document["bare_samples_s"] = median(bare)
        document["of_bare"] = median(r["samples_s"] / b for r, b in zip(results, bare, strict=True))
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()
    return document


@contextlib.contextmanager
def hammered(plan: bytes) -> Iterator[None]:
    """Another process keeps the first GPU busy."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "hammer.plan"
        file.write_bytes(plan)
        process = subprocess.Popen(
            [sys.executable, "-c", HAMMER, str(file)], stdout=subprocess.PIPE
        )
        try:
            if process.stdout is None or not process.stdout.readline():
                raise RuntimeError("the co-tenant ended before it began")
            yield
        finally:
            process.kill()
            process.wait()


def main() -> None:
    """Measures and writes the JSON."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)  # as the daemon does
    samples = int(sys.argv[2]) if len(sys.argv) > 2 else BATCH
    drv.init()
    count = drv.Device.count()
    rows = []
    medium, large = network_plan(MEDIUM, half=True), network_plan(LARGE, half=True)
    for network, plan in ((MEDIUM, medium), (LARGE, large)):
        rows.append(measure(network, plan, ["cuda:0"], samples))
        if count > 1:
            rows.append(measure(network, plan, ["cuda:0", "cuda:1"], samples))
    if count > 1:
        with hammered(large):
            rows += [
                measure(LARGE, large, devices, samples) | {"loaded": "cuda:0"}
                for devices in (["cuda:0"], ["cuda:1"], ["cuda:0", "cuda:1"])
            ]
    document = {"device": drv.Device(0).name(), "gpus": count, "rows": rows}
    Path(sys.argv[1]).write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
