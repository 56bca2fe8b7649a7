"""Whole runs of the batch timer on a simulated device."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.latency import LatencyCurve
from edged.serve.timer import BatchTimer
from tests.doubles.simulated_device import cost, fixed_count, linear, poisson, simulate

curves = st.builds(
    linear, alpha=st.floats(1e-4, 0.05), beta=st.one_of(st.just(0.0), st.floats(1e-6, 5e-3))
)
prices = st.sampled_from([0.5, 2.0, 10.0, 100.0])


@given(
    curves,
    st.one_of(st.just(0.0), prices),
    st.integers(1, 48),
    st.floats(0.05, 0.9),
    st.integers(0, 10**6),
    st.sampled_from([0.6, 1.0, 3.0]),
)
def test_whole_runs_keep_the_promises(
    curve: LatencyCurve, price: float, cap: int, load: float, seed: int, slow: float
) -> None:
    """Everything is served once, in order, within the cap, and waits no more than it may save."""
    arrivals = poisson(load * cap / curve(cap), 150, seed)
    timer = BatchTimer(curve, cap, price=price)

    ran = simulate(timer, arrivals, slow)

    assert [came for batch in ran for came in batch.arrivals] == arrivals
    for batch in ran:
        assert 1 <= len(batch.arrivals) <= cap
        assert batch.voluntary_s <= 2 * price * batch.alpha + 1e-9
        if price == 0:
            assert batch.closed == max(batch.free, batch.arrivals[0])


@given(curves, prices, st.floats(0.05, 0.5), st.integers(0, 10**6))
def test_waiting_alone_misses_no_deadline(
    curve: LatencyCurve, price: float, load: float, seed: int
) -> None:
    """No batch that the timer held back on a free device ends after its earliest deadline."""
    timer = BatchTimer(curve, 32, price=price)
    slo = 3 * curve(32)

    ran = simulate(timer, poisson(load * 32 / curve(32), 150, seed), slo=slo)

    for batch in ran:
        if batch.closed > max(batch.free, batch.arrivals[-1]):
            assert batch.closed + batch.service_s <= batch.arrivals[0] + slo


@given(prices, st.integers(0, 10**6), st.integers(1, 99))
def test_the_future_changes_no_decision(price: float, seed: int, cut: int) -> None:
    """Two runs with the same past decide the same, whatever comes later."""
    curve = linear(0.002, 0.00025)
    arrivals = poisson(1000, 100, seed)
    other = arrivals[:cut] + [came + 0.05 for came in arrivals[cut:]]

    one = simulate(BatchTimer(curve, 32, price=price), arrivals)
    two = simulate(BatchTimer(curve, 32, price=price), other)

    until = arrivals[cut]
    past = [batch for batch in one if batch.closed < until]
    assert past == [batch for batch in two if batch.closed < until]


# The device of the published comparison: 2 ms + 0.25 ms a sample, 32 at most, at 30 % load.
DEVICE = linear(0.002, 0.00025)
BUSY = poisson(0.3 * 32 / DEVICE(32), 20_000, seed=7)


def test_a_price_is_worth_its_wait() -> None:
    """At c = 10 and 30 % load it beats greedy, and comes close to the best fixed count."""
    costs = {count: fixed_count(DEVICE, count, BUSY, 10) for count in range(1, 13)}

    priced = cost(simulate(BatchTimer(DEVICE, 32, price=10), BUSY), 10)

    assert priced < 0.95 * costs[1]
    assert priced < 1.03 * min(costs.values())


def test_price_zero_is_greedy() -> None:
    """At c = 0 it runs exactly as a server that takes whatever waits."""
    free = cost(simulate(BatchTimer(DEVICE, 32), BUSY), 0)

    assert free == pytest.approx(fixed_count(DEVICE, 1, BUSY, 0), rel=1e-12)
