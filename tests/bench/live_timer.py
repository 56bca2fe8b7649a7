"""The batch timer live: modes and loads, a co-tenant that comes and goes, and the simulator beside.

    python -m tests.bench.live_timer [RESULT.json] [--runner onnx|tensorrt] [--quick]

Requests of one sample arrive by a Poisson process (open loop; latency counts from the time at which
they were meant to come) at `Pipeline.arrived` and leave as bytes at the sender: all threads of the
daemon, without the broker's socket. ``--runner onnx`` runs a small network on one core, beside a
co-tenant that keeps all cores busy; ``--runner tensorrt`` runs one on the first GPU, beside a
process that keeps that GPU busy. Each cell is simulated with the curve that was measured here and
the same arrival times. ``--quick`` takes 4 s a cell instead of 20.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edged import v2
from edged.daemon import SWITCH_INTERVAL_S
from edged.errors import EdgedError
from edged.latency import LatencyCurve
from edged.metrics import Metrics
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
from edged.simulate.arrivals import Arrivals, poisson
from edged.simulate.device import Device as SimulatedDevice
from edged.simulate.device import Rules, simulate
from edged.simulate.summary import summarize
from tests.bench.gpu_networks import CLASSES, Network
from tests.bench.live_setups import SIZES, Setup, onnx_setup, tensorrt_setup
from tests.doubles.turns import Turns

TOPICS = Topics("edged/v1", "bench")
LOADS = (0.1, 0.3, 0.5, 0.7)
SETTLE_S = 1.0


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

    def __init__(self, network: Network, slo_s: float) -> None:
        shape = (network.tokens, network.width)
        self.input = (InputSpec(name="x", datatype="FP32", shape=shape),)
        self.output = (OutputSpec(name="y", shape=(CLASSES,)),)
        self.slo_ms = slo_s * 1e3


@dataclass
class Seen:
    """What became of the requests of one cell, by number."""

    due: dict[int, float] = field(default_factory=dict)
    latency_s: dict[int, float] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    service_s: list[tuple[float, int, float]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    late_s: list[float] = field(default_factory=list)


class OneDevice:
    """The request path over one device, with the tuner's thread beside."""

    def __init__(self, setup: Setup, runner: Runner, curve: LatencyCurve, slo_s: float) -> None:
        self.seen = Seen()
        self.timer = TimedTimer(curve, SIZES[-1], slo_s=slo_s)
        self.timer.costs_s = []
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

    def _take(self, device: str) -> Work | None:
        work = self.room.take(device)
        if work is not None and work.lateness_s is not None:
            self.seen.late_s.append(work.lateness_s)
        return work

    def _done(self, done: Done) -> None:
        self.seen.reasons[done.reason] += done.samples > 0
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
        self.timer.costs_s.clear()
        begun = time.monotonic() + 0.05
        for number, at in enumerate(times, first):
            due = begun + float(at)
            while (left := due - time.monotonic()) > 0:
                time.sleep(left)
            seen.due[number] = due
            self.pipeline.arrived(
                Arrival(
                    topic=TOPICS.infer("m"),
                    payload=self._body,
                    receipt=Receipt(1, 0, 0, 0),
                    received=time.monotonic(),
                    response_topic=TOPICS.reply("c"),
                    correlation=str(number).encode(),
                    content_type=OCTET_STREAM,
                    user={HEADER_LENGTH: str(self._header)},
                )
            )
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


# ------------------------------------------------------------------ figures


def figures(seen: Seen, slo_s: float, skip_s: float = SETTLE_S) -> dict[str, Any]:
    """Of the requests that were due after the first ``skip_s``."""
    begun = min(seen.due.values()) + skip_s
    kept = [number for number, due in seen.due.items() if due >= begun]
    latencies = np.array([seen.latency_s[n] for n in kept if n in seen.latency_s] or [math.nan])
    batches = [(samples, s) for at, samples, s in seen.service_s if at >= begun and s > 0]
    samples = sum(count for count, _ in batches)
    within = sum(seen.latency_s.get(number, math.inf) <= slo_s for number in kept)
    return {
        "requests": len(kept),
        "mean_ms": float(latencies.mean()) * 1e3,
        "p99_ms": float(np.quantile(latencies, 0.99)) * 1e3,
        "attainment": within / max(1, len(kept)),
        "device_ms": 1e3 * sum(s for _, s in batches) / max(1, samples),
        "mean_batch": samples / max(1, len(batches)),
        "reasons": dict(seen.reasons),
        "refused": dict(seen.refused),
    }


def simulated(
    curve: LatencyCurve, times: Any, price: float, slo_s: float, seen: Seen
) -> dict[str, float]:
    """The same timer on the same arrivals, and a device with the measured curve.

    Args:
        curve: as measured on the idle device.
        times: seconds.
        price: c.
        slo_s: of the requests.
        seen: what ran live. The path around the device keeps it from being as fast as alone, and
            from being as regular: median and spread of its times over the curve are simulated too.
    """
    ratios = np.log([s / curve(samples) for _, samples, s in seen.service_s if s > 0] or [1.0])
    low, middle, high = np.quantile(ratios, (0.159, 0.5, 0.841))
    timer = BatchTimer(curve, SIZES[-1], price=price, slo_s=slo_s)
    arrivals = Arrivals(np.asarray(times), np.zeros(len(times), np.int64))
    device = SimulatedDevice(
        curve, steps=((0.0, math.exp(middle)),), noise=float(high - low) / 2, seed=1
    )
    rules = Rules(slo_s=slo_s, expire=True, tune=timer.retune)
    found = summarize(simulate(timer, arrivals, device, rules), slo_s=slo_s)
    return {
        "slower": math.exp(middle),
        "noise": float(high - low) / 2,
        "mean_ms": found.mean_ms,
        "p99_ms": found.p99_ms,
        "attainment": found.attainment,
        "device_ms": found.device_ms,
        "mean_batch": found.mean_batch,
    }


def spread(values: list[float], scale: float) -> dict[str, float]:
    """Median and 99th percentile."""
    if not values:
        return {}
    found = np.quantile(np.array(values) * scale, (0.5, 0.99))
    return {"count": len(values), "p50": float(found[0]), "p99": float(found[1])}


# ------------------------------------------------------------------ the runs


def modes_and_loads(
    path: OneDevice, curve: LatencyCurve, slo_s: float, seconds: float
) -> list[Any]:
    """Every mode at every load, live and simulated."""
    capacity = SIZES[-1] / curve(SIZES[-1])
    cells: list[Any] = []
    for load in LOADS:
        count = max(200, int(load * capacity * seconds))
        times = poisson(load * capacity, count, seed=int(load * 100)).times
        for mode, price in MODES.items():
            path.room.set_price("one", price)
            seen = path.run(times, first=1_000_000 * (len(cells) + 1))
            live, model = figures(seen, slo_s), simulated(curve, times, price, slo_s, seen)
            cell = {
                "mode": mode, "load": load, "phi": path.timer.phi, "live": live,
                "simulated": model,
                "decision_us": spread(path.timer.costs_s, 1e6),
                "lateness_ms": spread(path.seen.late_s, 1e3),
                "off": {name: live[name] / model[name] - 1 for name in ("mean_ms", "device_ms")},
            }  # fmt: skip
            cells.append(cell)
            say(cell)
    return cells


def contention(
    path: OneDevice, setup: Setup, curve: LatencyCurve, slo_s: float, seconds: float
) -> Any:
    """A co-tenant comes and goes while requests keep coming; each third by itself."""
    load = 0.3
    rate = load * SIZES[-1] / curve(SIZES[-1])
    rows = []
    for position, mode in enumerate(("latency", "use-the-slo")):
        path.room.set_price("one", MODES[mode])
        times = poisson(rate, int(rate * 3 * seconds), seed=7).times
        switch = threading.Thread(target=_disturb, args=(setup, seconds), daemon=True)
        switch.start()
        seen = path.run(times, first=100_000_000 * (position + 1))
        switch.join()
        first = min(seen.due.values())
        row: dict[str, Any] = {"mode": mode, "load": load, "phases": {}}
        for phase, name in enumerate(("before", "contended", "after")):
            part = _between(seen, first + phase * seconds, first + (phase + 1) * seconds)
            row["phases"][name] = figures(part, slo_s, skip_s=0.0) if part.due else {}
        row["whole"] = figures(seen, slo_s)
        rows.append(row)
        say(row)
    return rows


def _disturb(setup: Setup, seconds: float) -> None:
    time.sleep(seconds)
    with setup.disturb():
        time.sleep(seconds)


def _between(seen: Seen, begin: float, end: float) -> Seen:
    due = {number: at for number, at in seen.due.items() if begin <= at < end}
    return Seen(
        due,
        {number: seen.latency_s[number] for number in due if number in seen.latency_s},
        service_s=[each for each in seen.service_s if begin <= each[0] < end],
    )


def ranking(cells: list[Any]) -> dict[str, Any]:
    """Modes by their device time at each load, live and simulated: whether the order is one."""
    found = {}
    for load in LOADS:
        mine = [cell for cell in cells if cell["load"] == load]
        found[str(load)] = {
            where: [
                mode
                for _, mode in sorted((cell[where]["device_ms"], cell["mode"]) for cell in mine)
            ]
            for where in ("live", "simulated")
        }
    return found


def say(document: Any) -> None:
    """One line of JSON."""
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Measures and writes the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("result", nargs="?", type=Path)
    parser.add_argument("--runner", choices=("onnx", "tensorrt"), default="onnx")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    seconds = 4.0 if options.quick else 20.0
    sys.setswitchinterval(SWITCH_INTERVAL_S)  # as the daemon does
    setup = onnx_setup() if options.runner == "onnx" else tensorrt_setup()
    runner = setup.make()
    curve = warm_up(runner, SIZES, repeats=50, budget_s=1.0)
    slo_s = max(0.025, 5 * curve(SIZES[-1]))
    path = OneDevice(setup, runner, curve, slo_s)
    path.run(np.arange(100) * 0.02, first=1)
    cells = modes_and_loads(path, curve, slo_s, seconds)
    document = {
        "runner": options.runner,
        "machine": {"arch": platform.machine(), "cpus": os.cpu_count()},
        "network": setup.network.name,
        "seconds": seconds,
        "curve_ms": {str(n): 1e3 * s for n, s in zip(curve.sizes, curve.seconds, strict=True)},
        "slo_ms": slo_s * 1e3,
        "cells": cells,
        "ranking": ranking(cells),
        "contention": contention(path, setup, curve, slo_s, seconds),
    }
    path.close()
    runner.close()
    if options.result:
        options.result.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
