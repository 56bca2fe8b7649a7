"""Arrival rate and trace by example."""

from __future__ import annotations

import math

import pytest

from edged.serve.arrivals import MIN_ARRIVALS, TRACE, Arrivals, mean_rate


def steady(rate: float, count: int) -> Arrivals:
    """So many single samples at a steady rate, from second 0."""
    arrivals = Arrivals()
    for number in range(count):
        arrivals.add(number / rate, 1)
    return arrivals


def test_a_steady_rate_is_found() -> None:
    """Fast or slow, the estimate is near the rate once enough was seen."""
    for rate in (0.5, 20.0, 1000.0):
        assert steady(rate, 200).rate(199 / rate) == pytest.approx(rate, rel=0.1)


def test_the_rate_falls_while_nothing_comes() -> None:
    """Silence is evidence."""
    arrivals = steady(1000, 500)

    assert arrivals.rate(1.5) < 0.01 * arrivals.rate(0.499)
    assert arrivals.long_rate(5.0) == pytest.approx(100, rel=0.01)


def test_too_few_are_not_trusted() -> None:
    """Before `MIN_ARRIVALS` samples the rate is 0."""
    assert steady(100, MIN_ARRIVALS - 1).rate(0.2) == 0
    assert steady(100, MIN_ARRIVALS).rate(0.2) > 0


def test_the_trace_keeps_the_last_samples() -> None:
    """One entry a sample, the newest `TRACE`; a large request counts as many."""
    arrivals = steady(100, TRACE)
    arrivals.add(100.0, 10)
    arrivals.add(101.0, 5 * TRACE)

    assert arrivals.trace() == (101.0,) * TRACE
    assert len(steady(100, 30).trace()) == 30


def test_a_clock_that_jumps_back_starts_anew() -> None:
    """Nothing of the other clock's times stays."""
    arrivals = steady(100, 500)
    arrivals.add(1.0, 2)

    assert (arrivals.seen, arrivals.last, arrivals.trace()) == (2, 1.0, (1.0, 1.0))


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
def test_a_time_that_is_none_is_ignored(junk: float) -> None:
    """It changes nothing."""
    arrivals = steady(100, 50)
    arrivals.add(junk, 1)

    assert arrivals.seen == 50


def test_the_mean_rate_of_a_trace() -> None:
    """Gaps over their sum; nothing can be said of fewer than two times, or of one instant."""
    assert mean_rate((0.0, 1.0, 2.0)) == 1.0
    assert mean_rate(()) == mean_rate((1.0,)) == mean_rate((1.0, 1.0)) == 0


def test_repr_is_a_sentence() -> None:
    """The log shows what is known."""
    assert repr(steady(10, 3)) == "<Arrivals 3 samples seen, 3 to replay>"
