"""Charts as SVG text."""

from __future__ import annotations

import math
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.svg_plot import Panel, Series, render, ticks

SVG = "{http://www.w3.org/2000/svg}"
numbers = st.floats(-1e6, 1e6)


def _parse(*panels: Panel) -> ET.Element:
    return ET.fromstring(render(panels))  # noqa: S314  # we wrote it


@given(low=numbers, span=st.floats(1, 1e6), most=st.integers(4, 12))
def test_ticks_are_few_and_within(low: float, span: float, most: int) -> None:
    """Evenly spaced, inside the range, no more than asked for."""
    found = ticks(low, low + span, most)

    assert 1 <= len(found) <= most + 1
    assert all(low - 1e-6 * span <= at <= low + span + 1e-6 * span for at in found)


def test_ticks_are_round_numbers() -> None:
    """Steps of 1, 2 or 5 times a power of ten."""
    assert ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10]
    assert ticks(0, 1, 10) == pytest.approx([number / 10 for number in range(11)])
    assert ticks(3, 3) == [3]


def test_a_line_goes_through_its_points_from_left_to_right() -> None:
    """Twice the value is twice as high; the legend names each line."""
    chart = _parse(
        Panel("t", "x", "y", [Series("a", [0, 1, 2], [0, 5, 10]), Series("b", [0], [1])])
    )

    first, _ = chart.iter(f"{SVG}polyline")
    points = [tuple(map(float, p.split(","))) for p in first.attrib["points"].split()]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    heights = [points[0][1] - y for _, y in points]
    assert math.isclose(heights[2], 2 * heights[1], abs_tol=0.2)
    words = [text.text for text in chart.iter(f"{SVG}text")]
    assert {"a", "b", "t", "x", "y"} <= set(words)


def test_bars_stand_on_the_axis() -> None:
    """One bar a value; the largest is the highest."""
    chart = _parse(Panel("t", "x", "y", [Series("", [1, 2, 4], [3, 9, 6])], kind="bars"))

    bars = [r for r in chart.iter(f"{SVG}rect") if "height" in r.attrib and "x" in r.attrib]
    heights = [float(bar.attrib["height"]) for bar in bars]
    assert len(bars) == 3
    assert heights[0] < heights[2] < heights[1]
    assert len({round(float(b.attrib["y"]) + float(b.attrib["height"])) for b in bars}) == 1


@settings(max_examples=25)
@given(
    points=st.lists(st.tuples(numbers, st.one_of(numbers, st.just(math.nan), st.just(math.inf)))),
    name=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])),
)
def test_any_values_and_any_words_make_a_document(
    points: list[tuple[float, float]], name: str
) -> None:
    """Nothing, not-a-numbers and markup in a name: still well formed, and no NaN in it."""
    xs, ys = [x for x, _ in points], [y for _, y in points]

    text = render([Panel(name, "<x>", "&", [Series(name, xs, ys)], marks=[(1.0, name)])])

    assert "nan" not in text.replace(name, "").lower() or "nan" in name.lower()
    assert ET.fromstring(text).tag == f"{SVG}svg"  # noqa: S314  # we wrote it
