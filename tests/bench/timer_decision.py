"""What the batch timer costs: a decision, an arrival, a completion, and a round of the tuner.

    python -m tests.bench.timer_decision [RESULT.json] [--quick]

A decision is made under the waiting room's lock, for every arrival and completion while a device is
free; 50 us at the median is what it may take. A round of the tuner runs on a thread of its own,
about once a second; its share of a core is its time by `edged.serve.tuning.EVERY_S`, and the thread
rests longer where that would exceed `edged.serve.tuning.SHARE`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from edged.latency import LatencyCurve
from edged.serve.arrivals import TRACE
from edged.serve.timer import BatchTimer
from edged.serve.tuner import tune
from edged.serve.tuning import EVERY_S
from tests.doubles.simulated_device import linear, poisson, waiting

CAP = 32
CURVE = linear(0.002, 0.00025)
STEPPED = LatencyCurve(CURVE.sizes, CURVE.seconds, stepped=True)


def ready(curve: LatencyCurve, price: float, load: float) -> tuple[BatchTimer, float]:
    """A tuned timer after a second of Poisson arrivals, and the time."""
    timer = BatchTimer(curve, CAP, price=price, slo_s=1.0)
    arrivals = poisson(load * CAP / curve(CAP), 2000, 7)
    for came in arrivals:
        timer.arrived(came, 1)
    for _ in range(50):
        timer.completed(8, curve(8))
    timer.retune(arrivals[-1])
    return timer, arrivals[-1]


def quantiles(call: Callable[[], object], count: int) -> dict[str, float]:
    """Median and 99th percentile of single calls, in microseconds."""
    times = []
    for _ in range(count):
        began = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - began)
    times.sort()
    return {
        "median_us": statistics.median(times) / 1e3,
        "p99_us": times[int(0.99 * count)] / 1e3,
    }


def measure(count: int) -> list[dict[str, object]]:
    """A row for each kind of call and state of the timer."""
    rows: list[dict[str, object]] = []
    for name, curve in (("linear", CURVE), ("stepped", STEPPED)):
        for price in (0.0, 10.0, float("inf")):
            timer, now = ready(curve, price, 0.3)
            state = waiting([now - 0.002, now - 0.001, now], deadline=now + 1)

            def decide(
                timer: BatchTimer = timer, now: float = now, state: object = state
            ) -> object:
                return timer.decide(now, state)  # type: ignore[arg-type]  # bound by default

            rows.append(
                {"call": "decide", "curve": name, "price": price} | quantiles(decide, count)
            )
    timer, now = ready(CURVE, 10.0, 0.3)
    calls: dict[str, Callable[[], object]] = {
        "arrived": lambda: timer.arrived(now, 1),
        "completed": lambda: timer.completed(8, 0.004),
        "copy for the tuner": lambda: timer.tuning(now),
    }
    rows += [{"call": name, **quantiles(call, count // 2)} for name, call in calls.items()]
    rows += [_rounds(load, max(8, count // 1000)) for load in (0.05, 0.1, 0.3, 0.9)]
    return rows


def _rounds(load: float, count: int) -> dict[str, object]:
    """Rounds of the tuner on fresh arrivals, each going by the one before, as the thread's do."""
    arrivals = poisson(load * CAP / CURVE(CAP), TRACE * count, 7)
    first, _ = ready(CURVE, 10.0, load)
    task = first.tuning(0.0)
    if task is None:
        raise SystemExit("a finite price has something to tune")
    times = []
    for number in range(count):
        trace = tuple(arrivals[TRACE * number : TRACE * (number + 1)])
        began = time.thread_time_ns()
        task = replace(task, trace=trace, last=tune(replace(task, trace=trace)))
        times.append((time.thread_time_ns() - began) / 1e3)
    mean = statistics.fmean(times)
    longest = {"first_us": times[0], "mean_us": mean, "longest_us": max(times)}
    return {"call": "round of the tuner", "load": load, **longest, "share": mean / 1e6 / EVERY_S}


def main() -> int:
    """Measures, prints, and writes what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", nargs="?", type=Path)
    parser.add_argument("--quick", action="store_true", help="a tenth of the calls")
    options = parser.parse_args()
    rows = measure(2000 if options.quick else 20000)
    for row in rows:
        text = (
            f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()
        )
        print("  ".join(f"{name} {value}" for name, value in zip(row, text, strict=True)))  # noqa: T201  # a command
    if options.result:
        document = json.dumps(
            [{**row, "price": str(row.get("price", ""))} for row in rows], indent=1
        )
        options.result.write_text(document + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
