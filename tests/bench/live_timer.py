"""The batch timer live: modes and loads, a co-tenant that comes and goes, and the simulator beside.

    timeout 330 python -m tests.bench.live_timer [RESULT.json] [--runner onnx|tensorrt]

Requests of one sample arrive by a Poisson process (open loop; latency counts from the time at which
they were meant to come) at `Pipeline.arrived` and leave as bytes at the sender: all threads of the
daemon, without the broker's socket. ``--runner onnx`` runs a small network on one core, beside a
co-tenant that keeps all cores busy; ``--runner tensorrt`` runs one on the first GPU, beside a
process that keeps that GPU busy. Each cell is simulated with the curve that was measured here and
the same arrival times. What there is, is written after each cell, so that a run that is cut short
is not lost; ``--budget`` is the seconds that all of it may take (300).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edged import v2
from edged.daemon import SWITCH_INTERVAL_S
from edged.errors import EdgedError
from edged.latency import LatencyCurve
from edged.metrics import Metrics
from edged.postprocess import Postprocessor
from edged.protocol import HEADER_LENGTH, OCTET_STREAM, Topics
from edged.recipe import InputSpec, OutputSpec
from edged.runners import Runner, warm_up
from edged.serve.admit import Admission
from edged.serve.batch import WaitingRoom
from edged.serve.decode import Decoder
from edged.serve.devices import LEAD_S
from edged.serve.gpu import Device, DevicePorts, Done, Served
from edged.serve.pipeline import Pipeline
from edged.serve.pipeline_ports import Sender, Watchers
from edged.serve.price import MODES
from edged.serve.request import Arrival, LinkUp, Receipt, Reply, ReplyFormat, Work
from edged.serve.timer import BatchTimer, Decision, Waiting
from edged.serve.tuner import tune
from edged.simulate.arrivals import poisson
from tests.bench.gpu_networks import CLASSES, Network
from tests.bench.live_figures import (
    Seen,
    between,
    figures,
    ranking,
    simulated,
    spread,
)
from tests.bench.live_setups import SIZES, Setup, onnx_setup, tensorrt_setup
from tests.bench.live_table import sentences
from tests.doubles.turns import Turns

TOPICS = Topics("edged/v1", "bench")
LOADS = (0.1, 0.3, 0.5, 0.7)
MOST_RATE = 2500.0
"""Requests/s that the sending thread can time; loads beyond it are left out."""
LEAST_S, MOST_S = 4.0, 20.0
"""Bounds of the seconds for a cell."""
START_S = 30.0
"""For the warm-up and the co-tenant's starts."""


class TimedTimer(BatchTimer):
    """The timer, and how long each of its decisions took."""

    costs_s: list[float]

    def decide(self, now: float, waiting: Waiting) -> Decision:
        """As it is, with a stopwatch."""
        begun = time.perf_counter()
        decision = super().decide(now, waiting)
        self.costs_s.append(time.perf_counter() - begun)
        return decision


class Model:
    """What the decoder asks of a model."""

    freshness: Any = "all"
    postprocessor: Postprocessor | None = None

    def __init__(self, network: Network, slo_s: float) -> None:
        shape = (network.tokens, network.width)
        self.input = (InputSpec(name="x", datatype="FP32", shape=shape),)
        self.output = (OutputSpec(name="y", shape=(CLASSES,)),)
        self.slo_ms = slo_s * 1e3


class OneDevice:
    """The request path over one device, with the tuner's thread beside."""

    def __init__(self, setup: Setup, runner: Runner, curve: LatencyCurve, slo_s: float) -> None:
        self.seen = Seen()
        self._curve, self._slo_s = curve, slo_s
        self.timer = self._fresh_timer(0.0)
        self.room = WaitingRoom({}, Admission(4096).refusal)
        model = Model(setup.network, slo_s)
        self.pipeline = Pipeline(
            Decoder(TOPICS, {"m": model}.get),
            {"m": ReplyFormat("bench")},
            self.room,
            Metrics(),
            Watchers(lambda _outcome, _status: None, lambda _change: None),
            dead_topic=TOPICS.dead,
        )
        ports = DevicePorts(
            take=self._take,
            take_now=self.room.take_now,
            hand=self.room.hand,
            call=self.room.call,
            completed=self._completed,
            done=self._done,
            put_back=self.room.put_back,
            failed=_give_up,
            renew=lambda _device: None,
        )
        device = Device("one", {"m": Served(runner, model.input)}, ports)
        self.room.add_device("one", runner.lanes, {}, LEAD_S)
        self.room.set_model("m", {"one": self.timer})
        up = LinkUp(1, session_present=False, window=1000, max_packet_bytes=0)
        self.pipeline.link_changed(up)
        self._turns = Turns()
        sender = Sender(self._publish, lambda _receipt: True, self._turns.wake)
        self.pipeline.start(sender, [device])
        self._turns.start(self.pipeline)
        tensor = np.zeros((1, setup.network.tokens, setup.network.width), np.float32)
        request = v2.InferRequest(inputs=(v2.Tensor("x", tensor),))
        self._body, self._header = v2.write_request(request)
        self._ended = threading.Event()
        self._tuner = threading.Thread(target=self._tune, name="tuner", daemon=True)
        self._tuner.start()

    def _fresh_timer(self, price: float) -> TimedTimer:
        timer = TimedTimer(self._curve, SIZES[-1], price=price, slo_s=self._slo_s)
        timer.costs_s = []
        return timer

    def begin(self, price: float) -> None:
        """A timer that knows nothing of the runs before, as the simulated one does."""
        self.timer = self._fresh_timer(price)
        self.room.set_model("m", {"one": self.timer})

    def _take(self, device: str) -> Work | None:
        work = self.room.take(device)
        if work is not None and work.lateness_s is not None:
            self.seen.late_s.append(work.lateness_s)
        return work

    def _done(self, done: Done) -> None:
        if done.samples:
            self.seen.reasons[done.reason] += 1
        self.pipeline.done(done)

    def _completed(self, device: str, queue: str, samples: int, service_s: float) -> None:
        self.seen.service_s.append((time.monotonic(), samples, service_s))
        self.room.completed(device, queue, samples, service_s, call=False)

    def _publish(self, reply: Reply) -> int:
        number, seen = int(reply.correlation or b"0"), self.seen
        if number in seen.due:  # else of the cell before
            if dict(reply.user).get("status") == "200":
                seen.latency_s[number] = time.monotonic() - seen.due[number]
            else:
                seen.refused[str(json.loads(reply.payload)["code"])] += 1
        return 1

    def _tune(self) -> None:
        while not self._ended.wait(1.0):
            for timer, task in self.room.tunings():
                self.room.tuned(timer, tune(task, lambda: time.sleep(0)))

    def run(self, times: Any, first: int) -> Seen:
        """Sends a request at each of these seconds; what became of them once all have ended."""
        self.seen = seen = Seen()
        begun = time.monotonic() + 0.05
        for number, at in enumerate(times, first):
            due = begun + float(at)
            while (left := due - time.monotonic()) > 0:
                time.sleep(left)
            seen.due[number] = due
            arrival = Arrival(
                topic=TOPICS.infer("m"),
                payload=self._body,
                receipt=Receipt(1, 0, 0, 0),
                received=time.monotonic(),
                response_topic=TOPICS.reply("c"),
                correlation=str(number).encode(),
                content_type=OCTET_STREAM,
                user={HEADER_LENGTH: str(self._header)},
            )
            with self._turns.one_thread:
                self.pipeline.arrived(arrival)
            self._turns.wake()
        until = time.monotonic() + 10.0
        while self.pipeline.outstanding and time.monotonic() < until:
            time.sleep(0.005)
        return seen

    def close(self) -> None:
        """Ends the threads."""
        self._ended.set()
        self._tuner.join(10.0)
        self._turns.stop()
        self.pipeline.stop()


def _give_up(device: str, error: EdgedError) -> None:
    raise RuntimeError(f"{device}: {error}")


# ------------------------------------------------------------------ the runs


def modes_and_loads(
    path: OneDevice, curve: LatencyCurve, slo_s: float, seconds: float
) -> Iterator[dict[str, Any]]:
    """Every mode at every load that can be sent, live and simulated."""
    capacity = SIZES[-1] / curve(SIZES[-1])
    for load in (load for load in LOADS if load * capacity <= MOST_RATE):
        count = max(200, int(load * capacity * seconds))
        times = poisson(load * capacity, count, seed=int(load * 100)).times
        for number, (mode, price) in enumerate(MODES.items(), 1):
            path.begin(price)
            seen = path.run(times, first=1_000_000 * (10 * int(10 * load) + number))
            live, model = figures(seen, slo_s), simulated(curve, times, price, slo_s, seen)
            yield {
                "mode": mode, "load": load, "phi": path.timer.phi, "live": live,
                "simulated": model,
                "decision_us": spread(path.timer.costs_s, 1e6),
                "lateness_ms": spread(path.seen.late_s, 1e3),
                "off": {name: live[name] / model[name] - 1 for name in ("mean_ms", "device_ms")},
            }  # fmt: skip


def contention(
    path: OneDevice, setup: Setup, curve: LatencyCurve, slo_s: float, seconds: float
) -> Iterator[dict[str, Any]]:
    """A co-tenant comes and goes while requests keep coming; each third by itself."""
    capacity = SIZES[-1] / curve(SIZES[-1])
    rate = min(0.3 * capacity, MOST_RATE)
    for position, mode in enumerate(("latency", "use-the-slo")):
        path.begin(MODES[mode])
        times = poisson(rate, int(rate * 3 * seconds), seed=7).times
        switch = threading.Thread(target=_disturb, args=(setup, seconds), daemon=True)
        switch.start()
        seen = path.run(times, first=1_000_000_000 * (position + 1))
        switch.join()
        first = min(seen.due.values())
        row: dict[str, Any] = {"mode": mode, "load": rate / capacity, "phases": {}}
        for phase, name in enumerate(("before", "contended", "after")):
            part = between(seen, first + phase * seconds, first + (phase + 1) * seconds)
            row["phases"][name] = figures(part, slo_s, skip_s=0.0) if part.due else {}
        row["whole"] = figures(seen, slo_s)
        yield row


def _disturb(setup: Setup, seconds: float) -> None:
    time.sleep(seconds)
    with setup.disturb():
        time.sleep(seconds)


def say(document: Any) -> None:
    """One line of JSON, with three digits."""
    sys.stdout.write(json.dumps(_short(document)) + "\n")
    sys.stdout.flush()


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _short(item) for name, item in value.items()}
    return float(f"{value:.3g}") if isinstance(value, float) else value


def measure(setup: Setup, seconds: float, save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """All runs; what there is, is saved after each."""
    runner = setup.make()
    curve = warm_up(runner, SIZES, repeats=50, budget_s=1.0)
    slo_s = max(0.025, 5 * curve(SIZES[-1]))
    document: dict[str, Any] = {
        "runner": type(runner).__name__,
        "machine": {"arch": platform.machine(), "cpus": os.cpu_count(), "load": os.getloadavg()},
        "network": setup.network.name,
        "seconds": seconds,
        "curve_ms": {str(n): 1e3 * s for n, s in zip(curve.sizes, curve.seconds, strict=True)},
        "slo_ms": slo_s * 1e3,
        "cells": [],
        "contention": [],
    }
    say({name: value for name, value in document.items() if value})
    path = OneDevice(setup, runner, curve, slo_s)
    try:
        path.run(np.arange(100) * 0.02, first=1)
        for cell in modes_and_loads(path, curve, slo_s, seconds):
            document["cells"].append(cell)
            document["ranking"] = ranking(document["cells"])
            say(cell)
            save(document)
        for row in contention(path, setup, curve, slo_s, seconds):
            document["contention"].append(row)
            say(row)
            save(document)
    finally:
        path.close()
        runner.close()
    return document


def main() -> None:
    """Measures and writes the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("result", nargs="?", type=Path)
    parser.add_argument("--runner", choices=("onnx", "tensorrt"), default="onnx")
    parser.add_argument("--budget", type=float, default=300.0, help="seconds for all, about")
    options = parser.parse_args()
    begun = time.monotonic()
    sys.setswitchinterval(SWITCH_INTERVAL_S)  # as the daemon does
    setup = onnx_setup() if options.runner == "onnx" else tensorrt_setup()
    left_s = options.budget - (time.monotonic() - begun)
    # Sixteen cells and six thirds; a simulation and its tuner take a third as long again.
    seconds = min(MOST_S, max(LEAST_S, (left_s - START_S) / (len(MODES) * len(LOADS) * 4 / 3 + 6)))

    def save(document: dict[str, Any]) -> None:
        if options.result:
            options.result.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    document = measure(setup, seconds, save)
    sys.stdout.write("\n".join(sentences(document)) + "\n")


if __name__ == "__main__":
    main()
