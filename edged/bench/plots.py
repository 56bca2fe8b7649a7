"""Charts of a run: latency over time, its distribution, and rates. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edged.bench.options import Share
from edged.bench.summary import Rows
from edged.bench.tally import GOOD
from edged.svg_plot import Panel, Series, render

_SLICES = 60
"""Points along the time axis."""
_QUANTILES = (0, 10, 25, 50, 75, 90, 95, 98, 99, 99.5, 99.9, 100)


def charts(rows: Rows, mix: Sequence[Share], slo_ms: float | None) -> str:
    """An SVG document of three panels."""
    marks = [] if slo_ms is None else [(slo_ms, f"SLO {slo_ms:g} ms")]
    return render(
        [
            Panel("Latency over time", "s", "ms", _over_time(rows), marks=marks),
            Panel(
                "Latency by percentile",
                "nines: 1 is p90, 2 is p99, 3 is p99.9",
                "ms",
                _by_percentile(rows, mix),
                marks=marks,
            ),
            Panel("Requests a second", "s", "1/s", _rates(rows)),
        ]
    )


def _edges(rows: Rows) -> np.ndarray:
    end = float(rows.intended.max()) if len(rows.intended) else 0.0
    return np.linspace(0.0, max(end, 1e-3), _SLICES + 1)


def _over_time(rows: Rows) -> list[Series]:
    edges = _edges(rows)
    good = rows.outcome == GOOD
    at, latency = rows.intended[good], rows.latency_s[good] * 1e3
    place = np.clip(np.searchsorted(edges, at, "right") - 1, 0, _SLICES - 1)
    middles = ((edges[:-1] + edges[1:]) / 2).tolist()
    return [
        Series(
            name,
            middles,
            [
                float(np.percentile(latency[place == number], q)) if (place == number).any()
                else float("nan")
                for number in range(_SLICES)
            ],
        )
        for name, q in (("p50", 50), ("p99", 99))
    ]  # fmt: skip


def _by_percentile(rows: Rows, mix: Sequence[Share]) -> list[Series]:
    series = []
    for number, share in enumerate(mix):
        latency = rows.good_latency_s(number) * 1e3
        if not len(latency):
            continue
        # The largest of n stands for a share of 1 - 1/n.
        shares = [min(q / 100, 1 - 1 / max(2, len(latency))) for q in _QUANTILES]
        nines = [float(-np.log10(1 - each)) for each in shares]
        values = [float(np.percentile(latency, q)) for q in _QUANTILES]
        name = share.priority or ("normal" if len(mix) > 1 else "")
        series.append(Series(name, nines, values))
    return series


def _rates(rows: Rows) -> list[Series]:
    edges = _edges(rows)
    width = float(edges[1] - edges[0])
    middles = ((edges[:-1] + edges[1:]) / 2).tolist()
    good = rows.outcome == GOOD
    offered, _ = np.histogram(rows.intended, edges)
    answered, _ = np.histogram((rows.intended + rows.latency_s)[good], edges)
    return [
        Series("offered", middles, (offered / width).tolist()),
        Series("answered", middles, (answered / width).tolist()),
    ]
