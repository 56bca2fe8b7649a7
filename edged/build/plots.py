"""The plots of a build report, as figures of a page. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from edged.build.svg import Axis, Plot, Series, bars

Rows = Sequence[Mapping[str, Any]]

_MOST_BARS = 40


def latency(candidates: Rows) -> str:
    """Time of one batch against its size, by precision."""
    return _against_size(candidates, "latency_ms", "Latency of one batch", "ms")


def throughput(candidates: Rows) -> str:
    """Samples in a second against the batch size, by precision."""
    return _against_size(candidates, "samples_s", "Throughput, one batch at a time", "samples/s")


def _against_size(candidates: Rows, field: str, title: str, unit: str) -> str:
    timed = [row for row in candidates if field in row]
    series = [
        Series(
            row["variant"],
            [(float(size), value) for size, value in row[field].items()],
            [f"{row['variant']}: {value:,.4g} {unit} at {size}"
             for size, value in row[field].items()],
        )
        for row in timed
    ]  # fmt: skip
    sizes = [x for each in series for x, _ in each.points]
    values = [y for each in series for _, y in each.points]
    if not values:
        return ""
    many = max(sizes) > 1
    axis = Axis("batch size", log=many, ticks=sorted(set(sizes)))
    plot = Plot(
        axis,
        Axis(unit),
        (min(sizes), max(sizes) if many else 2, 0, max(values) * 1.12),
    )
    plot.lines(series)
    return _figure(title, plot.svg(f"{title} against batch size"))


def histogram(tensor: str, found: Mapping[str, Any]) -> str:
    """Counts of magnitudes with the chosen range; the counts are logarithmic."""
    counts, upper = found["counts"], float(found["upper"])
    edges = [upper * at / len(counts) for at in range(len(counts) + 1)]
    top = max(1, *counts)
    plot = Plot(Axis("magnitude"), Axis("values", log=True), (0.0, upper, 0.5, top * 2.0))
    plot.area(edges, counts)
    plot.rule(found["threshold"], f"127 = {found['threshold']:.4g}")
    title = f"{tensor}, and {found['zeros']:,} zeros"
    return _figure(title, plot.svg(f"magnitudes of {tensor}"))


def sensitivity(costs: Rows, int8: Rows, model: str) -> str:
    """What each layer costs alone in INT8; without a scan, the SQNR of its input."""
    if costs:
        ranked = sorted(costs, key=lambda cost: cost["sqnr_db"])[:_MOST_BARS]
        rows = [(cost["node"], _noise(cost["sqnr_db"]), "") for cost in ranked]
        return _figure(
            "Noise at the model's output with one layer alone in INT8, in % of the signal",
            bars(rows, "%"),
        )
    known = [layer for layer in int8 if "sqnr_db" in layer]
    ranked = sorted(known, key=lambda layer: layer["sqnr_db"])[:_MOST_BARS]
    rows = [(layer["node"], _noise(layer["sqnr_db"]), "") for layer in ranked]
    hint = f"edged build {model} --sensitivity measures what each layer costs the output"
    return (
        _figure("Noise that INT8 adds to each layer's input, in % of the signal", bars(rows, "%"))
        + f'<p class="soft">{escape(hint)}.</p>'
    )


def roofline(roof: Mapping[str, Any]) -> str:
    """Engines under the two roofs, both axes logarithmic."""
    peak, bandwidth = (float(roof["peaks"][name]) for name in ("operations_s", "bytes_s"))
    ridge = peak / bandwidth
    points = [p for p in roof["points"] if p["intensity"] > 0 and p["operations_s"] > 0]
    places = [float(p["intensity"]) for p in points] or [ridge]
    speeds = [float(p["operations_s"]) for p in points] or [peak]
    left, right = min(ridge, *places) / 3, max(ridge, *places) * 3
    low, high = min(speeds) / 3, max(peak, *speeds) * 3
    plot = Plot(
        Axis("operations a byte", log=True),
        Axis("operations/s", log=True),
        (left, right, low, high),
    )
    start = max(left, low / bandwidth)
    plot.path([(start, start * bandwidth), (ridge, peak), (right, peak)], "peak")
    for number, variant in enumerate(dict.fromkeys(p["variant"] for p in points)):
        mine = [p for p in points if p["variant"] == variant]
        labels = [
            f"{variant}, batch {p['batch']}: {p['operations_s'] / 1e9:,.4g} GFLOP/s, "
            f"{min(1.0, _share(p, peak, bandwidth)):.0%} of the roof"
            for p in mine
        ]
        marks = [(float(p["intensity"]), float(p["operations_s"])) for p in mine]
        plot.dots(Series(variant, marks, labels), number)
    return _figure("Roofline: engines by batch size", plot.svg("roofline"))


def _share(point: Mapping[str, Any], peak: float, bandwidth: float) -> float:
    return float(point["operations_s"]) / min(peak, float(point["intensity"]) * bandwidth)


def _noise(sqnr_db: float) -> float:
    """Noise as a share of the signal's amplitude, in %."""
    return 100 * math.pow(10, -sqnr_db / 20)


def _figure(title: str, body: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{body}</figure>"
