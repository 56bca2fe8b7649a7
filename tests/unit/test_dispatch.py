"""Order and size of batches among several models and classes, by numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.latency import LatencyCurve
from edged.serve.dispatch import (
    URGENT_MEMORY_S,
    Prospect,
    UrgentTraffic,
    beside_urgent,
    blocking_cap,
    largest_within,
    limited,
    stable_size,
    starts_in_s,
)
from edged.serve.timer import Decision, Reason, Waiting

LINE = LatencyCurve((1, 32), (0.00225, 0.010))  # 2 ms and 0.25 ms a sample
NOW = 50.0


def test_background_is_kept_as_short_as_an_urgent_request_can_bear() -> None:
    """2 ms of setup and 0.25 ms a sample: 4 ms leave room for 8 samples."""
    assert blocking_cap(LINE, 32, 0.0040001, rate=0.0) == 8
    assert blocking_cap(LINE, 32, 1.0, rate=0.0) == 32
    assert blocking_cap(LINE, 32, 0.0023, rate=0.0) == 1


def test_an_urgent_request_that_nobody_could_meet_caps_nothing() -> None:
    """Not even a batch of one leaves it time: smaller batches would help nobody."""
    assert blocking_cap(LINE, 32, 0.0022, rate=0.0) == 32
    assert blocking_cap(LINE, 32, -1.0, rate=0.0) == 32


def test_a_cap_never_lets_requests_pile_up() -> None:
    """At 70 % load a cap of 8 does 2 samples/ms while 2.24 come: it is raised."""
    rate = 0.7 * 32 / LINE(32)
    cap = blocking_cap(LINE, 32, 0.004, rate)

    assert cap > 8
    assert cap >= 1.1 * rate * LINE(cap)
    assert blocking_cap(LINE, 32, 0.004, rate=1e9) == 32


def test_without_urgent_requests_nothing_is_capped() -> None:
    """The memory of them fades after a minute."""
    traffic = UrgentTraffic()
    assert math.isinf(traffic.bears_s(NOW, LINE, 0.0))

    traffic.arrived(NOW, 1, 0.010)

    assert traffic.bears_s(NOW + URGENT_MEMORY_S, LINE, 0.002) == pytest.approx(0.00575)
    assert math.isinf(traffic.bears_s(NOW + URGENT_MEMORY_S + 1, LINE, 0.002))


def test_a_harder_need_counts_at_once_and_a_milder_one_slowly() -> None:
    """One relaxed request among strict ones does not open the cap."""
    traffic = UrgentTraffic()
    traffic.arrived(NOW, 1, 0.100)
    traffic.arrived(NOW, 4, 0.010)
    assert (traffic.allowance_s, traffic.samples) == (0.010, 4)

    traffic.arrived(NOW, 1, 0.110)

    assert traffic.allowance_s == pytest.approx(0.020)
    assert traffic.samples == pytest.approx(3.7)


def test_others_ride_along_while_the_urgent_ones_are_in_time() -> None:
    """As many as fit before the urgent deadline, and never fewer than are urgent."""
    whole = Decision(32, NOW, Reason.CAP)

    assert beside_urgent(whole, 1, LINE, 0.0060001).samples == 16
    assert beside_urgent(whole, 1, LINE, 1.0).samples == 32
    assert beside_urgent(whole, 3, LINE, 0.001).samples == 3
    assert beside_urgent(Decision(2, NOW, Reason.URGENT), 3, LINE, 1.0).samples == 2


def test_a_cap_below_the_engines_closes_a_batch() -> None:
    """What the timer would let wait for company is run once the cap is reached."""
    waits = Decision(0, NOW + 1, Reason.BUDGET)

    assert limited(waits, waiting(8), 8, NOW) == Decision(8, NOW, Reason.CAP)
    assert limited(waits, waiting(7), 8, NOW) == waits
    assert limited(Decision(20, NOW, Reason.COUNT), waiting(20), 8, NOW).samples == 8


def test_a_start_is_foretold_from_what_is_before_it() -> None:
    """One device: what runs, then the full batches before; two of them share."""
    one = Prospect(slots=1, opens_s=0.004, busy_s=0.004, batch_s=0.010)

    assert starts_in_s(0, [one]) == pytest.approx(0.004)
    assert starts_in_s(3, [one]) == pytest.approx(0.034)
    assert starts_in_s(3, [one, one]) == pytest.approx(0.014)
    assert starts_in_s(9, []) == 0.0


@given(
    batches=st.integers(0, 30),
    devices=st.lists(st.tuples(st.floats(0, 1), st.floats(0.001, 1)), min_size=1, max_size=4),
)
def test_nothing_starts_before_it_was_foretold(
    batches: int, devices: list[tuple[float, float]]
) -> None:
    """Devices that run full batches one after the other, whoever is free first: never earlier."""
    foretold = starts_in_s(batches, [Prospect(1, busy, busy, each) for busy, each in devices])
    free = [busy for busy, _ in devices]
    for _ in range(batches):
        first = free.index(min(free))
        free[first] += devices[first][1]

    assert foretold <= min(free) + 1e-9


@given(cap=st.integers(1, 64), budget_s=st.floats(-0.01, 0.03), rate=st.floats(0, 20_000))
def test_sizes_are_those_of_a_search_through_all(cap: int, budget_s: float, rate: float) -> None:
    """The bisections find what trying every size finds."""
    sizes = range(1, cap + 1)
    within = max((size for size in sizes if LINE(size) <= budget_s), default=0)
    stable = next((size for size in sizes if size >= 1.1 * rate * LINE(size)), cap)

    assert largest_within(LINE, cap, budget_s) == within
    assert stable_size(LINE, cap, rate) == stable


def waiting(samples: int) -> Waiting:
    """So many normal samples."""
    return Waiting(samples, float(samples), samples * NOW, NOW, NOW + 1)
