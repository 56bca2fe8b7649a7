"""The latency curve: isotonic fit, interpolation, line."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.latency import LatencyCurve, fit_line

points = st.dictionaries(st.integers(1, 64), st.floats(1e-5, 10.0), min_size=1, max_size=12).map(
    lambda found: list(found.items())
)


@given(points)
def test_a_measured_curve_never_falls(measured: list[tuple[int, float]]) -> None:
    """Sizes ascend, times do not fall, and their sum is kept: noise is averaged, not clipped."""
    curve = LatencyCurve.measured(measured)

    assert list(curve.sizes) == sorted(size for size, _ in measured)
    assert all(a <= b for a, b in itertools.pairwise(curve.seconds))
    assert sum(curve.seconds) == pytest.approx(sum(seconds for _, seconds in measured))


@given(points)
def test_the_fit_is_the_isotonic_regression(measured: list[tuple[int, float]]) -> None:
    """It equals the max-min formula of isotonic regression at every point."""
    curve = LatencyCurve.measured(measured)
    times = [seconds for _, seconds in sorted(measured)]
    count = len(times)

    for at, fitted in enumerate(curve.seconds):
        expected = max(
            min(np.mean(times[low : high + 1]) for high in range(at, count))
            for low in range(at + 1)
        )
        assert fitted == pytest.approx(expected, rel=1e-9)


@given(points, st.integers(1, 200))
def test_reading_the_curve(measured: list[tuple[int, float]], size: int) -> None:
    """Measured sizes give their time, others lie between their neighbours, none is shorter."""
    curve = LatencyCurve.measured(measured)

    if size in curve.sizes:
        assert curve(size) == curve.seconds[curve.sizes.index(size)]
    elif size < curve.sizes[0]:
        assert curve(size) == curve.seconds[0]
    elif size < curve.sizes[-1]:
        expected = np.interp(size, curve.sizes, curve.seconds)
        assert curve(size) == pytest.approx(expected, rel=1e-9)
    assert 0 < curve(size) <= curve(size + 1) * (1 + 1e-12)


def test_beyond_the_last_size_the_slope_goes_on() -> None:
    """A batch larger than measured costs what the last step suggests."""
    assert LatencyCurve((2, 4), (1.0, 1.5))(8) == pytest.approx(2.5)
    assert LatencyCurve((4,), (2.0,))(8) == pytest.approx(4.0)
    assert LatencyCurve((4,), (2.0,))(1) == pytest.approx(2.0)


@given(points.filter(lambda found: len(found) > 1))
def test_the_line_is_least_squares(measured: list[tuple[int, float]]) -> None:
    """Alpha and beta are numpy's where numpy's are not negative, and never negative."""
    curve = LatencyCurve.measured(measured)
    beta, alpha = np.polyfit(curve.sizes, curve.seconds, 1)

    found = curve.line()

    assert min(found) >= 0
    scale = max(curve.seconds)
    assert found[1] == pytest.approx(max(0.0, beta), abs=1e-8 * scale)
    assert found[0] == pytest.approx(max(0.0, alpha), abs=1e-6 * scale)


@given(points, st.integers(1, 64))
def test_a_stepped_curve_has_the_time_of_the_next_size(
    measured: list[tuple[int, float]], size: int
) -> None:
    """An engine that pads a batch takes as long as for the size that it is padded to."""
    curve = LatencyCurve.measured(measured, stepped=True)

    larger = [at for at in curve.sizes if at >= size]
    if larger:
        assert curve(size) == curve(larger[0]) == curve.seconds[curve.sizes.index(larger[0])]
    assert curve(size) <= curve(size + 1) * (1 + 1e-12)


def test_one_size_is_all_setup() -> None:
    """From one point no slope can be told."""
    assert fit_line([4], [0.5]) == (0.5, 0.0)


@pytest.mark.parametrize(
    ("sizes", "seconds", "message"),
    [
        ((), (), "0 sizes and 0 times"),
        ((1, 2), (0.1,), "2 sizes and 1 times"),
        ((2, 1), (0.1, 0.2), "must ascend, got \\(2, 1\\)"),
        ((1, 1), (0.1, 0.2), "must ascend, got \\(1, 1\\)"),
        ((0, 1), (0.1, 0.2), "must be positive, got \\(0, 1\\)"),
        ((1, 2), (0.0, 0.2), "must be positive"),
        ((1, 2), (-0.1, 0.2), "must be positive"),
    ],
)
def test_a_curve_that_is_none_is_refused(
    sizes: tuple[int, ...], seconds: tuple[float, ...], message: str
) -> None:
    """The message says what was given."""
    with pytest.raises(ValueError, match=message):
        LatencyCurve(sizes, seconds)
