"""Small plots as SVG text: lines, bars, and points, with axes that a person can read. Pure.

Colours come from the page's style sheet through classes, so that a plot follows its theme.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 16, 14, 46
_TICKS = 6


@dataclass(frozen=True)
class Series:
    """Points of one kind.

    Attributes:
        name: in the legend.
        points: x and y.
        labels: what each point is called when the pointer is on it; empty: its values.
    """

    name: str
    points: Sequence[tuple[float, float]]
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        title: with the unit.
        log: whether it is logarithmic; values must then be above 0.
        ticks: where to write numbers; empty: at round ones.
    """

    title: str
    log: bool = False
    ticks: Sequence[float] = ()


@dataclass(frozen=True)
class _Scale:
    """Values of an axis -> pixels."""

    axis: Axis
    low: float
    high: float
    begin: float
    end: float

    def __call__(self, value: float) -> float:
        low, high = self._plain(self.low), self._plain(self.high)
        share = (self._plain(value) - low) / ((high - low) or 1.0)
        return self.begin + share * (self.end - self.begin)

    def _plain(self, value: float) -> float:
        return math.log10(max(value, 1e-30)) if self.axis.log else value

    def ticks(self) -> list[float]:
        inside = [t for t in self.axis.ticks if self.low <= t <= self.high]
        return inside or round_ticks(self.low, self.high, log=self.axis.log)


@dataclass
class Plot:
    """A plot that is filled and then written out.

    Args:
        x: the horizontal axis.
        y: the vertical one.
        span: smallest and largest x and y that are shown.
    """

    x: Axis
    y: Axis
    span: tuple[float, float, float, float]
    _body: list[str] = field(default_factory=list)
    _legend: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        left, right, low, high = self.span
        self._x = _Scale(self.x, left, right, _LEFT, WIDTH - _RIGHT)
        self._y = _Scale(self.y, low, high, HEIGHT - _BOTTOM, _TOP)

    def __repr__(self) -> str:
        return f"<Plot of {len(self._body)} shapes>"

    def lines(self, series: Sequence[Series]) -> None:
        """Each series as a line with a dot at each point."""
        for number, each in enumerate(series):
            path = " ".join(f"{self._x(x):.1f},{self._y(y):.1f}" for x, y in each.points)
            self._body.append(f'<polyline class="line s{number}" points="{path}"/>')
            self.dots(each, number)

    def dots(self, series: Series, number: int) -> None:
        """A series as dots that tell what they are."""
        labels = series.labels or [f"{series.name}: {_short(x)}, {_short(y)}"
                                   for x, y in series.points]  # fmt: skip
        for (x, y), label in zip(series.points, labels, strict=True):
            self._body.append(
                f'<circle class="dot s{number}" cx="{self._x(x):.1f}" cy="{self._y(y):.1f}" r="4">'
                f"<title>{escape(label)}</title></circle>"
            )
        self._legend.append((f"s{number}", series.name))

    def area(self, edges: Sequence[float], heights: Sequence[float]) -> None:
        """Bars without gaps; ``edges`` has one more entry than ``heights``."""
        floor = HEIGHT - _BOTTOM
        steps = [f"M{self._x(edges[0]):.1f},{floor}"]
        for (left, right), height in zip(pairwise(edges), heights, strict=True):
            top = min(self._y(height), floor) if height > 0 else floor
            steps.append(f"L{self._x(left):.1f},{top:.1f}L{self._x(right):.1f},{top:.1f}")
        steps.append(f"L{self._x(edges[-1]):.1f},{floor}Z")
        self._body.append(f'<path class="area s0" d="{"".join(steps)}"/>')

    def rule(self, x: float, text: str) -> None:
        """A vertical line with a word."""
        at = self._x(x)
        side = "end" if at > WIDTH / 2 else "start"
        shift = -6 if side == "end" else 6
        self._body.append(
            f'<line class="rule" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>'
            f'<text class="ruled" x="{at + shift:.1f}" y="{_TOP + 12}" text-anchor="{side}">'
            f"{escape(text)}</text>"
        )

    def path(self, points: Sequence[tuple[float, float]], text: str) -> None:
        """A line without dots, such as a roof, with a word at its end."""
        path = " ".join(f"{self._x(x):.1f},{self._y(y):.1f}" for x, y in points)
        x, y = points[-1]
        self._body.append(
            f'<polyline class="roof" points="{path}"/>'
            f'<text class="ruled" x="{self._x(x) - 4:.1f}" y="{self._y(y) - 6:.1f}" '
            f'text-anchor="end">{escape(text)}</text>'
        )

    def svg(self, name: str) -> str:
        """The whole picture.

        Args:
            name: what it shows, for who cannot see it.
        """
        return (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}">'
            f"{self._frame()}{''.join(self._body)}{self._names()}</svg>"
        )

    def _frame(self) -> str:
        floor, parts = HEIGHT - _BOTTOM, []
        for value in self._x.ticks():
            at = f"{self._x(value):.1f}"
            parts.append(
                f'<line class="grid" x1="{at}" x2="{at}" y1="{_TOP}" y2="{floor}"/>'
                f'<text class="tick" x="{at}" y="{floor + 16}" text-anchor="middle">'
                f"{_short(value)}</text>"
            )
        for value in self._y.ticks():
            at = f"{self._y(value):.1f}"
            parts.append(
                f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at}" y2="{at}"/>'
                f'<text class="tick" x="{_LEFT - 6}" y="{float(at) + 4:.1f}" text-anchor="end">'
                f"{_short(value)}</text>"
            )
        middle = (_LEFT + WIDTH - _RIGHT) / 2
        height = (_TOP + floor) / 2
        parts.append(
            f'<text class="title" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">'
            f"{escape(self.x.title)}</text>"
            f'<text class="title" transform="translate(14 {height}) rotate(-90)" '
            f'text-anchor="middle">{escape(self.y.title)}</text>'
        )
        return "".join(parts)

    def _names(self) -> str:
        if len(self._legend) < 2:
            return ""
        return "".join(
            f'<g transform="translate({_LEFT + 10} {_TOP + 6 + 17 * at})">'
            f'<rect class="dot {kind}" width="10" height="10" rx="2"/>'
            f'<text class="name" x="15" y="9">{escape(name)}</text></g>'
            for at, (kind, name) in enumerate(self._legend)
        )


def bars(rows: Sequence[tuple[str, float, str]], unit: str) -> str:
    """Horizontal bars, the largest as wide as there is room.

    Args:
        rows: name, value (0 or more), and a class for its colour.
        unit: behind each value.
    """
    if not rows:
        return ""
    step, left, right = 22, 250, 90
    largest = max(value for _, value, _ in rows) or 1.0
    parts = []
    for at, (name, value, kind) in enumerate(rows):
        width = (WIDTH - left - right) * max(value, 0.0) / largest
        shown = name if len(name) <= 38 else f"…{name[-37:]}"
        parts.append(
            f'<g transform="translate(0 {at * step})"><title>{escape(name)}</title>'
            f'<text class="name" x="{left - 8}" y="15" text-anchor="end">{escape(shown)}</text>'
            f'<rect class="bar {escape(kind)}" x="{left}" y="4" width="{max(width, 1):.1f}" '
            f'height="14" rx="2"/>'
            f'<text class="tick" x="{left + width + 6:.1f}" y="15">{_short(value)} {escape(unit)}'
            "</text></g>"
        )
    return (
        f'<svg viewBox="0 0 {WIDTH} {step * len(rows) + 4}" role="img" aria-label="bars">'
        f"{''.join(parts)}</svg>"
    )


def round_ticks(low: float, high: float, *, log: bool) -> list[float]:
    """Round numbers within a range: powers of ten, or multiples of 1, 2 or 5 of one."""
    if log:
        first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
        every = max(1, (last - first) // _TICKS + 1)
        powers = [10.0**power for power in range(first, last + 1, every)]
        # Within one decade there is at most one power: its multiples help then.
        many = [base * 10.0 ** (first - 1) for base in (1, 2, 5, 10, 20, 50, 100)]
        return powers if len(powers) > 2 else [tick for tick in many if low <= tick <= high]
    if high <= low:
        return [low]
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * base for base in (1, 2, 5, 10) if power * base >= rough)
    begin = math.ceil(low / step - 1e-9)
    return [number * step for number in range(begin, math.floor(high / step + 1e-9) + 1)]


def _short(value: float) -> str:
    if value == 0:
        return "0"
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
