"""The whole request path in process, against the bare loop on the same runner.

    python -m tests.bench.path RESULT.json [SECONDS]

Requests enter as bytes at `Pipeline.arrived` and leave as bytes at the sender: everything but the
broker's socket. The path is kept saturated (closed loop, four batches a lane). Run as a program it
uses a runner that takes a device's time and computes nothing, with the times that the networks of
tests/bench/gpu_networks.py have on an H200; tests/bench/gpu_pipeline.py has the device itself.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Literal

import numpy as np

from edged import v2
from edged.daemon import SWITCH_INTERVAL_S
from edged.errors import EdgedError
from edged.metrics import Metrics
from edged.protocol import HEADER_LENGTH, OCTET_STREAM, Topics
from edged.recipe import InputSpec, OutputSpec
from edged.runners import Runner, TensorSpec, warm_up
from edged.serve.admit import Admission
from edged.serve.batch import WaitingRoom
from edged.serve.decode import Decoder, Limits
from edged.serve.devices import LEAD_S
from edged.serve.gpu import Device, DevicePorts, Served
from edged.serve.pipeline import Pipeline
from edged.serve.pipeline_ports import Sender, Watchers
from edged.serve.request import Arrival, LinkUp, Receipt, Reply, ReplyFormat
from edged.serve.timer import BatchTimer
from tests.bench.timed_runner import TimedRunner, bare_loop
from tests.doubles.turns import Turns

BATCH = 32
CLASSES = 10
TOPICS = Topics("edged/v1", "bench")
NETWORKS = {"medium": ((49, 256), 215_745), "large": ((196, 768), 15_973)}
"""Shape of a sample, and samples/s of the bare loop on an H200 at batch 32 (gpu_pipeline.json)."""


class PathModel:
    """What the decoder asks of a model."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.input = (InputSpec(name="x", datatype="FP32", shape=shape),)
        self.output = (OutputSpec(name="y", shape=(CLASSES,)),)
        self.slo_ms = 60_000.0
        self.freshness: Literal["all", "latest"] = "all"
        self.postprocessor = None


class RequestPath:
    """The request path over some devices, fed in process.

    Args:
        shape: of a sample, float32.
        runners: by device; they are warmed up.
        samples: of a request.
    """

    def __init__(self, shape: tuple[int, ...], runners: Mapping[str, Runner], samples: int) -> None:
        model = PathModel(shape)
        self._samples = samples
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
        self._turns = Turns()
        sender = Sender(self._publish, lambda _receipt: True, self._turns.wake)
        self.pipeline.start(sender, devices)
        self.pipeline.link_changed(
            LinkUp(1, session_present=False, window=1000, max_packet_bytes=0)
        )
        self._turns.start(self.pipeline)
        self.slots = 4 * BATCH // self._samples * sum(runner.lanes for runner in runners.values())

    def _ports(self) -> DevicePorts:
        def completed(device: str, model: str, samples: int, service_s: float) -> None:
            self.done[device][0] += samples
            self.done[device][1] += service_s
            self.room.completed(device, model, samples, service_s, call=False)

        return DevicePorts(
            take=self.room.take,
            take_now=self.room.take_now,
            hand=self.room.hand,
            call=self.room.call,
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
            self._turns.wake()
            sent += 1
        for _ in range(self.slots):
            self.free.acquire()
        wall = time.perf_counter() - begun
        return {
            "samples_s": sent * self._samples / wall,
            "share": {
                name: round(count / (sent * self._samples), 3)
                for name, (count, _) in self.done.items()
            },
            "busy": {name: round(busy / wall, 3) for name, (_, busy) in self.done.items()},
            "p50_ms": median(self.latencies) * 1e3,
            "p99_ms": quantiles(self.latencies, n=100)[98] * 1e3,
        }

    def close(self) -> None:
        """Ends the threads."""
        self._turns.stop()
        self.pipeline.stop()


def _give_up(device: str, error: EdgedError) -> None:
    raise RuntimeError(f"{device}: {error}")


def _nothing(_device: str) -> None:
    pass


def request_of(shape: tuple[int, ...], samples: int) -> tuple[Any, bytes, int]:
    """Rows of a whole batch, and a request with the first of them: body and header length."""
    rows = np.random.default_rng(0).standard_normal((BATCH, *shape)).astype(np.float32)
    request = v2.InferRequest(inputs=(v2.Tensor("x", rows[:samples]),))
    body, header = v2.write_request(request)
    return rows, body, header or 0


def measure(name: str, samples: int, seconds: float) -> dict[str, Any]:
    """Path and bare loop in turn on one runner, three rounds."""
    shape, rate = NETWORKS[name]
    rows, body, header = request_of(shape, samples)
    spec = TensorSpec("x", np.dtype(np.float32), shape)
    runner = TimedRunner(spec, lambda count: 20e-6 + count * (1 / rate - 20e-6 / BATCH), BATCH)
    path = RequestPath(shape, {"timed": runner}, samples)
    path.run(body, header, 0.3)
    paths, bare = [], []
    for _ in range(3):
        paths.append(path.run(body, header, seconds)["samples_s"])
        bare.append(bare_loop(runner, rows, seconds))
    path.close()
    runner.close()
    return {
        "network": name,
        "samples_a_request": samples,
        "path_samples_s": round(median(paths)),
        "bare_samples_s": round(median(bare)),
        "of_bare": round(median(a / b for a, b in zip(paths, bare, strict=True)), 3),
    }


def main() -> None:
    """Measures and writes the JSON."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)  # as the daemon does
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 3.0
    rows = [measure(name, samples, seconds) for name in NETWORKS for samples in (32, 8)]
    text = json.dumps(rows, indent=1) + "\n"
    Path(sys.argv[1]).write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
