"""Figures of `tests.bench.live_timer`: what came of the requests, live and simulated."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import numpy as np

from edged.latency import LatencyCurve
from edged.serve.timer import BatchTimer
from edged.simulate.arrivals import Arrivals
from edged.simulate.device import Device as SimulatedDevice
from edged.simulate.device import Rules, simulate
from edged.simulate.summary import summarize
from tests.bench.live_setups import SIZES

SETTLE_S = 1.0
LEVEL = 1.05
"""Modes whose device times are closer than that are level."""


@dataclass
class Seen:
    """What became of the requests of one cell, by number."""

    due: dict[int, float] = field(default_factory=dict)
    latency_s: dict[int, float] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    service_s: list[tuple[float, int, float]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    late_s: list[float] = field(default_factory=list)


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


def between(seen: Seen, begin: float, end: float) -> Seen:
    """Of the requests that were due in a span of time."""
    due = {number: at for number, at in seen.due.items() if begin <= at < end}
    return Seen(
        due,
        {number: seen.latency_s[number] for number in due if number in seen.latency_s},
        service_s=[each for each in seen.service_s if begin <= each[0] < end],
    )


def ranking(cells: list[Any]) -> dict[str, Any]:
    """Modes by their device time at each load, live and simulated.

    ``reversed`` has the pairs whose order is another one live, of those that are not level in the
    simulation: who takes more than `LEVEL` of the other's time.
    """
    found = {}
    for load in sorted({cell["load"] for cell in cells}):
        mine = {cell["mode"]: cell for cell in cells if cell["load"] == load}
        live, model = (
            {mode: cell[where]["device_ms"] for mode, cell in mine.items()}
            for where in ("live", "simulated")
        )
        found[str(load)] = {
            "live": sorted(live, key=lambda mode: live[mode]),
            "simulated": sorted(model, key=lambda mode: model[mode]),
            "reversed": [
                [less, more]
                for less, more in permutations(mine, 2)
                if model[more] > LEVEL * model[less] and live[more] < live[less]
            ],
        }
    return found
