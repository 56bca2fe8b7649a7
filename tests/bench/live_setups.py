"""What `tests.bench.live_timer` serves, and by whom it is disturbed: on a CPU, on a GPU."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from edged.runners import Runner, TensorSpec
from tests.bench.gpu_networks import CLASSES, DEEP, Network, network_onnx

SIZES = (1, 2, 4, 8, 16)
CPU_NETWORK = Network("cpu", tokens=1, width=1024, hidden=4096, blocks=4)
"""134 MB of weights, read for each batch whatever its size: setup time is large, as on a GPU."""
CO_TENANT = """
import numpy as np
rows = np.random.default_rng(0).standard_normal((1024, 1024)).astype("f4")
rows @ rows
print("on", flush=True)
while True:
    rows @ rows
"""


@dataclass(frozen=True)
class Setup:
    """What serves, and who disturbs it.

    Attributes:
        network: of the model.
        make: a new runner.
        disturb: keeps the device busy by another process while its context is open.
    """

    network: Network
    make: Callable[[], Runner]
    disturb: Callable[[], contextlib.AbstractContextManager[None]]


# ------------------------------------------------------------------ what serves


def onnx_setup() -> Setup:
    """A small network on one core of ONNX Runtime; the co-tenant takes all cores."""
    from edged.runners.onnx import OnnxRunner

    network = CPU_NETWORK
    model = network_onnx(network, half=False)
    inputs, outputs = _specs(network)
    return Setup(
        network,
        lambda: OnnxRunner(model, inputs, outputs, SIZES[-1], threads=1),
        lambda: _beside([sys.executable, "-c", CO_TENANT]),
    )


def tensorrt_setup() -> Setup:
    """A network on the first GPU; another process keeps that GPU busy."""
    from edged.runners.tensorrt import TensorRTRunner
    from tests.bench.gpu_networks import LARGE, network_plan
    from tests.bench.gpu_pipeline import hammered

    plan = network_plan(DEEP, half=True, max_batch=SIZES[-1])
    large = network_plan(LARGE, half=True)
    inputs, outputs = _specs(DEEP)
    return Setup(
        DEEP,
        lambda: TensorRTRunner(plan, inputs, outputs, SIZES[-1], sizes=SIZES),
        lambda: hammered(large),
    )


def _specs(network: Network) -> tuple[list[TensorSpec], list[TensorSpec]]:
    shape = (network.tokens, network.width)
    f4 = np.dtype(np.float32)
    return [TensorSpec("x", f4, shape)], [TensorSpec("y", f4, (CLASSES,))]


@contextlib.contextmanager
def _beside(command: list[str]) -> Iterator[None]:
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            if process.stdout is None or not process.stdout.readline():
                raise RuntimeError("the co-tenant ended before it began")
            yield
        finally:
            process.kill()
