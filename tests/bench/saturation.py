"""A real model through MQTT at saturation and in the open loop, against the bare loop.

    python -m tests.bench.saturation RESULT.json [SECONDS] [ROUNDS]

One small CNN (on one core a batch of 1 takes about 3 ms, one of 16 about 10 ms), run by one thread
of ONNX Runtime and served by ``edged serve`` behind a real mosquitto, QoS 1 both ways. In turn,
round by round: the bare loop around the same engine at each batch size, 16 requests outstanding,
and Poisson arrivals at 200, 400 and 800 requests/s, whose latency counts from the time at which
they were due. The requester speaks MQTT with the service's own codec, so that it takes little of
the cores. CPU is read from /proc, of the service, the broker and the requester each by itself.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from edged.engine_store import EngineStore
from edged.protocol import DEFAULT_ROOT, Topics
from edged.recipe import InputSpec, OutputSpec
from edged.runners import Runner, load, run_batch
from tests.bench.load import Answered, Requester
from tests.bench.one_at_a_time import machine, service
from tests.doubles.broker import Mosquitto
from tests.doubles.engines import install
from tests.doubles.onnx_models import GraphWriter

MODEL = "cnn"
SHAPE = (3, 32, 32)
CLASSES = 10
HIDDEN = 2048
MAX_BATCH = 16
SIZES = (1, 2, 4, 8, 16)
OUTSTANDING = 16
RATES = (200, 400, 800)
BROKER = ["max_inflight_messages 1000", "max_queued_messages 0"]
TICKS = os.sysconf("SC_CLK_TCK")


def network() -> bytes:
    """Six convolutions, and a layer whose weights make a batch of one cost more than a sample."""
    g = GraphWriter()
    out = g.node("Relu", [g.conv("x", "stem", (3, 32), strides=[2, 2])])
    out = g.node("Relu", [g.conv(out, "down", (32, 128), strides=[2, 2])])
    for number in range(4):
        out = g.node("Relu", [g.conv(out, f"block{number}", (128, 128))])
    flat = g.node("Flatten", [out])
    hidden = g.node("Relu", [g.gemm(flat, "hidden", (128 * 8 * 8, HIDDEN))])
    head = g.gemm(hidden, "head", (HIDDEN, CLASSES))
    model = g.model({"x": ["batch", *SHAPE]}, {head: ["batch", CLASSES]})
    return bytes(model.SerializeToString(deterministic=True))


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def bare(runner: Runner, size: int, seconds: float) -> dict[str, float]:
    """Batches of one size, one after the other: samples/s, and milliseconds of a batch."""
    rows = np.random.default_rng(0).standard_normal((size, *SHAPE)).astype(np.float32)
    times: list[float] = []
    begun = time.perf_counter()
    while (now := time.perf_counter()) - begun < seconds:
        run_batch(runner, {"x": rows})
        times.append(time.perf_counter() - now)
    return {"samples_s": len(times) * size / sum(times), "batch_ms": median(times) * 1e3}


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Seconds from the start at which requests are due."""
    chance, at, found = random.Random(seed), 0.0, []
    while (at := at + chance.expovariate(rate)) < seconds:
        found.append(at)
    return found


class Measured:
    """One round of everything.

    Args:
        requester: connected.
        pids: of the service and of the broker.
        seconds: of each load.
    """

    def __init__(self, requester: Requester, pids: Mapping[str, int], seconds: float) -> None:
        self._requester = requester
        self._pids = {**pids, "requester": os.getpid()}
        self._seconds = seconds

    def load(self, name: str, run: Callable[[], Answered]) -> dict[str, Any]:
        """One load: rate, latency, and CPU of each process for a request."""
        before = {who: cpu_s(pid) for who, pid in self._pids.items()}
        answered = run()
        used = {who: cpu_s(pid) - before[who] for who, pid in self._pids.items()}
        return {
            "load": name,
            "requests_s": answered.rate,
            "refused": answered.refused,
            "p50_ms": answered.percentile_ms(50),
            "p99_ms": answered.percentile_ms(99),
            **{f"{who}_cpu_ms": used[who] / answered.count * 1e3 for who in used},
        }

    def round(self, number: int) -> list[dict[str, Any]]:
        """Closed loop, then the open ones."""
        requester, seconds = self._requester, self._seconds
        rows = [
            self.load(
                f"{OUTSTANDING} outstanding", lambda: requester.closed_loop(OUTSTANDING, seconds)
            ),
            self.load("1 outstanding", lambda: requester.closed_loop(1, seconds / 2)),
        ]
        for rate in RATES:
            due = poisson(rate, seconds, number)
            rows.append(self.load(f"{rate}/s", lambda due=due: requester.at(due)))  # type: ignore[misc]  # bound now
        return rows


def medians(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each load, each figure the median over the rounds."""
    merged = []
    for name in dict.fromkeys(row["load"] for row in rows):
        same = [row for row in rows if row["load"] == name]
        figures = {key: round(median(row[key] for row in same), 3) for key in same[0]
                   if key != "load"}  # fmt: skip
        merged.append({"load": name, **figures})
    return merged


def measure(folder: Path, seconds: float, rounds: int) -> dict[str, Any]:
    """The whole run."""
    install(
        folder / "engines", MODEL, network(), InputSpec(name="x", datatype="FP32", shape=SHAPE),
        OutputSpec(name="head_out", shape=(CLASSES,)), MAX_BATCH,
    )  # fmt: skip
    runner = load(EngineStore(folder / "engines").current(MODEL), threads=1)
    found: dict[int, list[dict[str, float]]] = {size: [] for size in SIZES}
    rows: list[dict[str, Any]] = []
    one = {"EDGED_SERVE__ONNX_THREADS": "1"}
    with (
        Mosquitto(folder / "broker", BROKER) as broker,
        service(folder, broker, **one) as (process, _),
    ):
        requester = Requester(broker.port, Topics(DEFAULT_ROOT, "edge"), MODEL, SHAPE)
        requester.closed_loop(OUTSTANDING, 2.0)
        measured = Measured(requester, {"service": process.pid, "broker": broker.pid}, seconds)
        for number in range(rounds):
            for size in SIZES:
                found[size].append(bare(runner, size, seconds / 4))
            rows += measured.round(number)
            sys.stderr.write(f"\rround {number + 1} of {rounds}")
    sys.stderr.write("\n")
    runner.close()
    loop = {
        size: {key: round(median(each[key] for each in same), 3) for key in same[0]}
        for size, same in found.items()
    }
    best = max(each["samples_s"] for each in loop.values())
    loads = medians(rows)
    return {
        "bare": loop,
        "loads": loads,
        "of_bare": round(loads[0]["requests_s"] / best, 3),
        "seconds": seconds,
        "rounds": rounds,
        **machine(),
    }


def main() -> None:
    """Measures, and writes the JSON."""
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 8.0
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), seconds, rounds)
    text = json.dumps(found, indent=1) + "\n"
    Path(sys.argv[1]).write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
