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
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Literal

import numpy as np
import pycuda.driver as drv

from edged import v2
from edged.daemon import SWITCH_INTERVAL_S
from edged.errors import EdgedError
from edged.metrics import Metrics
from edged.protocol import HEADER_LENGTH, OCTET_STREAM, Topics
from edged.recipe import InputSpec, OutputSpec
from edged.runners import TensorSpec, warm_up
from edged.runners.tensorrt import TensorRTRunner
from edged.serve.admit import Admission
from edged.serve.batch import WaitingRoom
from edged.serve.decode import Decoder, Limits
from edged.serve.devices import LEAD_S
from edged.serve.gpu import Device, DevicePorts, Served
from edged.serve.pipeline import Pipeline, Sender, Watchers
from edged.serve.request import Arrival, LinkUp, Receipt, Reply, ReplyFormat
from edged.serve.timer import BatchTimer
from tests.bench.gpu_lanes import lanes_loop
from tests.bench.gpu_networks import CLASSES, LARGE, MEDIUM, Network, network_plan

BATCH = 32
SAMPLES = int(sys.argv[2]) if len(sys.argv) > 2 else BATCH
SECONDS = 2.0
TOPICS = Topics("edged/v1", "bench")
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


class Model:
    """What the decoder asks of a model."""

    def __init__(self, network: Network) -> None:
        sample = (network.tokens, network.width)
        self.input = (InputSpec(name="x", datatype="FP32", shape=sample),)
        self.output = (OutputSpec(name="y", shape=(CLASSES,)),)
        self.slo_ms = 60_000.0
        self.freshness: Literal["all", "latest"] = "all"


def make_runner(network: Network, plan: bytes, device: str) -> TensorRTRunner:
    """Ready to run."""
    spec = TensorSpec("x", np.dtype(np.float32), (network.tokens, network.width))
    out = TensorSpec("y", spec.dtype, (CLASSES,))
    return TensorRTRunner(plan, [spec], [out], BATCH, device=device, sizes=(1, 8, BATCH))


class RequestPath:
    """The request path over some devices, fed in process."""

    def __init__(self, network: Network, runners: dict[str, TensorRTRunner]) -> None:
        model = Model(network)
        curves = {name: warm_up(runner, (1, 8, BATCH)) for name, runner in runners.items()}
        self.room = WaitingRoom({}, Admission(100_000).refusal)
        self.pipeline = Pipeline(
            Decoder(TOPICS, {"m": model}.get, limits=Limits(max_request_bytes=64 << 20)),
            {"m": ReplyFormat("bench")},
            self.room,
            Metrics(),
            Watchers(lambda _outcome, _status: None, lambda _change: None),
            dead_topic=TOPICS.dead,
        )
        self.done = {name: [0, 0.0] for name in runners}
        devices = []
        for name, runner in runners.items():
            devices.append(Device(name, {"m": Served(runner, model.input)}, self._ports()))
            self.room.add_device(name, runner.lanes, {}, LEAD_S)
        self.room.set_model("m", {n: BatchTimer(curve, BATCH) for n, curve in curves.items()})
        self.sent: dict[int, float] = {}
        self.latencies: list[float] = []
        self.free = threading.Semaphore(0)
        self.numbers = 0
        self.pipeline.start(Sender(self._publish, lambda _receipt: True), devices)
        self.pipeline.link_changed(
            LinkUp(1, session_present=False, window=1000, max_packet_bytes=0)
        )
        self.slots = 4 * BATCH // SAMPLES * sum(runner.lanes for runner in runners.values())

    def _ports(self) -> DevicePorts:
        def completed(device: str, model: str, samples: int, service_s: float) -> None:
            self.done[device][0] += samples
            self.done[device][1] += service_s
            self.room.completed(device, model, samples, service_s)

        return DevicePorts(
            take=self.room.take,
            completed=completed,
            done=self.pipeline.done,
            put_back=self.room.put_back,
            failed=_give_up,
            renew=_nothing,
        )

    def _publish(self, reply: Reply) -> int:
        if dict(reply.user).get("status") != "200":
            raise RuntimeError(reply.payload[:300].decode("ascii", "replace"))
        self.latencies.append(time.perf_counter() - self.sent.pop(int(reply.correlation or b"0")))
        self.free.release()
        return 1

    def run(self, body: bytes, header: int, seconds: float) -> dict[str, Any]:
        """Saturates the path; samples/s, busy share of each device, latency."""
        self.latencies.clear()
        for counts in self.done.values():
            counts[:] = [0, 0.0]
        for _ in range(self.slots):
            self.free.release()
        begun, sent = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds:
            self.free.acquire()
            self.numbers += 1
            self.sent[self.numbers] = time.perf_counter()
            self.pipeline.arrived(
                Arrival(
                    topic=TOPICS.infer("m"),
                    payload=body,
                    receipt=Receipt(1, 0, 0, 0),
                    received=time.monotonic(),
                    response_topic=TOPICS.reply("c"),
                    correlation=str(self.numbers).encode(),
                    content_type=OCTET_STREAM,
                    user={HEADER_LENGTH: str(header)},
                )
            )
            sent += 1
        for _ in range(self.slots):
            self.free.acquire()
        wall = time.perf_counter() - begun
        return {
            "samples_s": sent * SAMPLES / wall,
            "share": {
                name: round(count / (sent * SAMPLES), 3) for name, (count, _) in self.done.items()
            },
            "busy": {name: round(busy / wall, 3) for name, (_, busy) in self.done.items()},
            "p50_ms": median(self.latencies) * 1e3,
            "p99_ms": quantiles(self.latencies, n=100)[98] * 1e3,
        }

    def close(self) -> None:
        """Ends the threads."""
        self.pipeline.stop()


def _give_up(device: str, error: EdgedError) -> None:
    raise RuntimeError(f"{device}: {error}")


def _nothing(_device: str) -> None:
    pass


def body_of(network: Network) -> tuple[Any, bytes, int]:
    """Rows of a whole batch, and a request with the first of them."""
    shape = (BATCH, network.tokens, network.width)
    rows = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    tensor = v2.Tensor("x", rows[:SAMPLES])
    body, header = v2.write_request(v2.InferRequest(inputs=(tensor,)))
    return rows, body, header or 0


def measure(network: Network, plan: bytes, devices: list[str], rounds: int = 3) -> dict[str, Any]:
    """Path and bare loop in turn, on the same runners."""
    rows, body, header = body_of(network)
    runners = {name: make_runner(network, plan, name) for name in devices}
    path = RequestPath(network, runners)
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
    file = Path("/tmp/hammer.plan")  # noqa: S108  # a lent machine, gone afterwards
    file.write_bytes(plan)
    process = subprocess.Popen([sys.executable, "-c", HAMMER, str(file)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Measures and writes the JSON."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)  # as the daemon does
    drv.init()
    count = drv.Device.count()
    rows = []
    medium, large = network_plan(MEDIUM, half=True), network_plan(LARGE, half=True)
    for network, plan in ((MEDIUM, medium), (LARGE, large)):
        rows.append(measure(network, plan, ["cuda:0"]))
        if count > 1:
            rows.append(measure(network, plan, ["cuda:0", "cuda:1"]))
    if count > 1:
        with hammered(large):
            rows += [
                measure(LARGE, large, devices) | {"loaded": "cuda:0"}
                for devices in (["cuda:0"], ["cuda:1"], ["cuda:0", "cuda:1"])
            ]
    document = {"device": drv.Device(0).name(), "gpus": count, "rows": rows}
    Path(sys.argv[1]).write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
