"""What `edged simulate` prints and draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TextIO

import numpy as np

from edged.simulate.capacity import ENOUGH, Capacity
from edged.simulate.device import Run
from edged.simulate.summary import Summary
from edged.simulate.workload import Plant, Workload
from edged.svg_plot import Panel, Series, render

SLICES = 60
"""Points of the latency over time."""


def load_text(workload: Workload, load: float) -> str:
    """``40 cameras``, ``600 requests/s``, ``the trace``."""
    if workload.recorded and load == 1:
        return "the trace"
    return f"{load:.0f} {workload.unit}" if workload.whole else f"{load:.4g} {workload.unit}"


def print_report(
    out: TextIO, plant: Plant, workload: Workload, summaries: dict[str, Summary]
) -> None:
    """The table of a run: the timer beside serving at once."""
    first = next(iter(summaries.values()))
    asked = load_text(workload, workload.load)
    print(f"{asked} on {plant.name}, {first.requests} requests after the warm-up", file=out)
    names = list(summaries)
    print(f"{'':<24}" + "".join(f"{name:>14}" for name in names), file=out)
    for label, pick in _ROWS:
        values = "".join(f"{pick(summary):>14}" for summary in summaries.values())
        print(f"{label:<24}{values}", file=out)
    reasons = sorted(first.reasons.items(), key=lambda item: -item[1])
    print("closed because: " + ", ".join(f"{name} {n}" for name, n in reasons), file=out)
    if overloaded(plant, workload):
        print(
            f"overload: {workload.load * workload.each:.4g} requests/s come, the device can do "
            f"{plant.most_rate:.4g} at most; the longer it lasts, the longer the queue",
            file=out,
        )


def overloaded(plant: Plant, workload: Workload) -> bool:
    """Whether more comes on average than the device can ever do."""
    return workload.load * workload.each > plant.most_rate


_ROWS: tuple[tuple[str, Callable[[Summary], str]], ...] = (
    ("mean, ms", lambda s: f"{s.mean_ms:.2f}"),
    ("p50, ms", lambda s: f"{s.p50_ms:.2f}"),
    ("p95, ms", lambda s: f"{s.p95_ms:.2f}"),
    ("p99, ms", lambda s: f"{s.p99_ms:.2f}"),
    ("p99.9, ms", lambda s: f"{s.p999_ms:.2f}"),
    ("answered in time", lambda s: f"{s.attainment:.2%}"),
    ("goodput, requests/s", lambda s: f"{s.goodput:.1f}"),
    ("device ms a request", lambda s: f"{s.device_ms:.3f}"),
    ("device busy", lambda s: f"{s.busy:.0%}"),
    ("mean batch", lambda s: f"{s.mean_batch:.2f}"),
)


def print_answer(
    out: TextIO, plant: Plant, workload: Workload, summary: Summary, found: Capacity
) -> None:
    """Yes or no, and the headroom."""
    asked, limit = load_text(workload, workload.load), plant.slo_s * 1e3
    verdict = "yes" if found.load >= workload.load else "no"
    print(
        f"{verdict}: {asked} under {limit:g} ms: {summary.attainment:.2%} answered in time "
        f"(99% asked), p99 {summary.p99_ms:.1f} ms, device {summary.busy:.0%} busy",
        file=out,
    )
    if summary.offered >= 1 and not overloaded(plant, workload):
        print(
            f"at its busiest {summary.offered:.2f} times as much comes as the device can then do",
            file=out,
        )
    elif summary.attainment >= ENOUGH > summary.last:
        print(f"it gets worse: of the last tenth {summary.last:.2%} were in time", file=out)
    if found.load <= 0:
        print("headroom: none; it carries no load of this kind under that limit", file=out)
    else:
        most = load_text(workload, found.load)
        print(
            f"headroom: up to {most}, {found.load / workload.load:.2f} times what was asked",
            file=out,
        )
    print(
        "This is time on the device and waiting for it; decoding, encoding and the network come "
        "on top.",
        file=out,
    )


def document(
    plant: Plant, workload: Workload, summaries: dict[str, Summary], found: Capacity | None
) -> dict[str, Any]:
    """All of it as one JSON document; what is not finite becomes null."""
    result: dict[str, Any] = {
        "device": plant.name,
        "load": workload.load,
        "unit": workload.unit,
        "slo_ms": plant.slo_s * 1e3,
        "most_requests_s": plant.most_rate,
        "policies": {name: asdict(summary) for name, summary in summaries.items()},
    }
    if found is not None:
        result["carried"] = found.load >= workload.load
        result["capacity"] = found.load
    return dict(_finite(result))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def charts(runs: dict[str, Run], plant: Plant, workload: Workload, found: Capacity | None) -> str:
    """SVG: latency over its quantiles and over time, batch sizes, and p99 by load."""
    limit = [(plant.slo_s * 1e3, "SLO")] if math.isfinite(plant.slo_s) else []
    shares = np.linspace(0, 0.999, 200)
    panels = [
        Panel(
            "Latency by share of requests",
            "share of requests, %",
            "latency, ms",
            [
                Series(name, (100 * shares).tolist(), _quantiles_ms(run, shares.tolist()))
                for name, run in runs.items()
                if len(run.latencies())
            ],
            marks=limit,
        ),
        Panel(
            "99th percentile over time",
            "second",
            "latency, ms",
            [Series(name, *_over_time(run)) for name, run in runs.items()],
            marks=limit,
        ),
        _batch_sizes(next(iter(runs.values()))),
    ]
    if found is not None:
        loads = [load for load, summary in found.tried if math.isfinite(summary.p99_ms)]
        tails = [s.p99_ms for _, s in found.tried if math.isfinite(s.p99_ms)]
        line = Series("", loads, [min(tail, 4 * plant.slo_s * 1e3) for tail in tails])
        title = "99th percentile by load (cut off at four times the SLO)"
        panels.append(Panel(title, workload.unit, "latency, ms", [line], marks=limit))
    return render(panels)


def _quantiles_ms(run: Run, shares: list[float]) -> list[float]:
    return [float(value) * 1e3 for value in np.quantile(run.latencies(), shares)]


def _batch_sizes(run: Run) -> Panel:
    sizes, counts = np.unique(run.sizes, return_counts=True)
    bars = Series("", sizes.tolist(), counts.tolist())
    return Panel("Batches by size", "samples in a batch", "batches", [bars], kind="bars")


def _over_time(run: Run) -> tuple[list[float], list[float]]:
    latencies, came = run.latencies(), run.arrivals.times[run.served()]
    if not len(came):
        return [], []
    edges = np.linspace(came.min(), came.max() + 1e-9, SLICES + 1)
    slots = np.digitize(came, edges) - 1
    xs, ys = [], []
    for slot in range(SLICES):
        inside = latencies[slots == slot]
        if len(inside):
            xs.append(float((edges[slot] + edges[slot + 1]) / 2))
            ys.append(float(np.quantile(inside, 0.99)) * 1e3)
    return xs, ys
