"""Line and bar charts as SVG text. Pure: values in, one document out; nothing beyond the library.

Colours are told apart by people who see few of them (Okabe and Ito, 2008).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

WIDTH, HEIGHT = 640, 300
"""Of one panel, in pixels."""
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 34, 46
"""Margins of a panel around its plot area."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
STYLE = (
    "text{font:12px sans-serif;fill:#222}.title{font-size:14px;font-weight:bold}"
    ".grid{stroke:#ddd}.axis{stroke:#444}.line{fill:none;stroke-width:2}"
)


@dataclass(frozen=True)
class Series:
    """Points of one line, or one bar each. Points that are not finite are left out.

    Attributes:
        name: for the legend; empty: none.
        x: ascending for a line.
        y: as many as ``x``.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]

    def points(self) -> list[tuple[float, float]]:
        """Finite ones."""
        pairs = zip(self.x, self.y, strict=True)
        return [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]


@dataclass(frozen=True)
class Panel:
    """One chart.

    Attributes:
        title: above it.
        x_label: what goes to the right, with its unit.
        y_label: what goes up, with its unit.
        series: what is drawn; bars take the first one alone.
        kind: lines, or bars.
        marks: ``(y, text)`` of horizontal lines, as for a limit.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    kind: Literal["lines", "bars"] = "lines"
    marks: Sequence[tuple[float, str]] = ()


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from about ``low`` to ``high``: steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    if not (span > 0 and math.isfinite(span)):
        return [low]
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(f * power for f in (1, 2, 5, 10) if span / (f * power) <= most)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def render(panels: Sequence[Panel]) -> str:
    """One SVG document, a panel below the other."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT * len(panels)}">',
        f'<style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>',
    ]
    for number, panel in enumerate(panels):
        parts.append(f'<g transform="translate(0,{number * HEIGHT})">{_panel(panel)}</g>')
    return "\n".join([*parts, "</svg>"]) + "\n"


@dataclass(frozen=True)
class _Scale:
    """From values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low
        share = (value - self.low) / span if span else 0.5
        return round(self.start + share * (self.end - self.start), 1)


def _scales(panel: Panel) -> tuple[_Scale, _Scale]:
    points = [point for series in panel.series for point in series.points()]
    xs = [x for x, _ in points] or [0.0, 1.0]
    ys = [0.0, *(y for _, y in points), *(y for y, _ in panel.marks if math.isfinite(y))]
    half = 0.5 if panel.kind == "bars" else 0.0
    x = _Scale(min(xs) - half, max(xs) + half, LEFT, WIDTH - RIGHT)
    return x, _Scale(min(ys), max(ys) * 1.05 or 1.0, HEIGHT - BOTTOM, TOP)


def _panel(panel: Panel) -> str:
    x, y = _scales(panel)
    centre, middle = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    parts = [
        f'<text class="title" x="{LEFT}" y="20">{escape(panel.title)}</text>',
        _text(f'x="{centre}" y="{HEIGHT - 8}"', panel.x_label),
        _text(f'transform="translate(14,{middle}) rotate(-90)"', panel.y_label),
        *_axes(x, y),
    ]
    for at, text in panel.marks:
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(at)}" y2="{y(at)}" stroke="#888" '
            f'stroke-dasharray="5 4"/><text x="{WIDTH - RIGHT}" y="{y(at) - 4}" '
            f'text-anchor="end">{escape(text)}</text>'
        )
    parts += _bars(panel, x, y) if panel.kind == "bars" else _lines(panel, x, y)
    return "\n".join(parts)


def _text(place: str, text: str) -> str:
    return f'<text {place} text-anchor="middle">{escape(text)}</text>'


def _axes(x: _Scale, y: _Scale) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for value in ticks(y.low, y.high):
        at = y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4}" text-anchor="end">{value:g}</text>')
    for value in ticks(x.low, x.high, 10):
        at = x(value)
        parts.append(f'<line class="axis" x1="{at}" x2="{at}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text x="{at}" y="{bottom + 18}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}" fill="none"/>')
    return parts


def _lines(panel: Panel, x: _Scale, y: _Scale) -> list[str]:
    parts = []
    for number, series in enumerate(panel.series):
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join(f"{x(a)},{y(b)}" for a, b in series.points())
        parts.append(f'<polyline class="line" stroke="{colour}" points="{points}"/>')
        if series.name:
            top = TOP + 6 + 16 * number
            parts.append(
                f'<rect x="{LEFT + 10}" y="{top}" width="14" height="4" fill="{colour}"/>'
                f'<text x="{LEFT + 30}" y="{top + 6}">{escape(series.name)}</text>'
            )
    return parts


def _bars(panel: Panel, x: _Scale, y: _Scale) -> list[str]:
    points = panel.series[0].points()
    width = max(1.0, 0.8 * (WIDTH - LEFT - RIGHT) / max(1.0, x.high - x.low))
    return [
        f'<rect x="{round(x(a) - width / 2, 1)}" y="{y(b)}" width="{width:.1f}" '
        f'height="{round(y(y.low) - y(b), 1)}" fill="{COLOURS[0]}"/>'
        for a, b in points
    ]
