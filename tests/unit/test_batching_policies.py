"""The re-implemented rules of other servers do what those servers do."""

from __future__ import annotations

import numpy as np
import pytest

from edged.latency import LatencyCurve
from edged.simulate.arrivals import Arrivals, poisson
from edged.simulate.device import Device, Policy, Rules, Run, simulate
from edged.simulate.summary import Summary, summarize
from tests.doubles.batching_policies import (
    Clipper,
    Cork,
    DeferredLatest,
    FixedDelay,
    Greedy,
    PickUp,
    SkiRental,
)

CAP = 32
SIZES = (1, 2, 4, 8, 16, 32)
LINEAR = LatencyCurve(SIZES, tuple(0.002 + 0.00025 * size for size in SIZES))
RATE = CAP / LINEAR(CAP)


def _run(policy: Policy, *times: float, slo_s: float = 1.0) -> Run:
    came = Arrivals(np.asarray(times, np.float64), np.zeros(len(times), np.int64))
    return simulate(policy, came, Device(LINEAR), Rules(slo_s=slo_s))


def _figures(policy: Policy, load: float, count: int = 40_000) -> Summary:
    return summarize(simulate(policy, poisson(load * RATE, count, 2), Device(LINEAR)))


def test_a_fixed_delay_counts_from_the_oldest() -> None:
    """Two close at the count of 2; one alone when it has waited for the delay."""
    ran = _run(FixedDelay(CAP, 2, 0.005), 1.0, 1.001, 2.0)

    assert ran.closed.tolist() == pytest.approx([1.001, 2.005])


def test_a_pick_up_timer_counts_from_the_look() -> None:
    """What came during a batch waits for the whole delay after it, however old it is."""
    ran = _run(PickUp(CAP, 0.005), 1.0, 1.006)

    assert ran.closed.tolist() == pytest.approx([1.005, 1.00725 + 0.005])


def test_aimd_shrinks_under_a_tight_target_and_collapses() -> None:
    """With a target below what large batches take, the cap falls, and with it the capacity."""
    fine, tight = _figures(Clipper(CAP, 0.025), 0.6), _figures(Clipper(CAP, 0.0024), 0.6)

    assert fine.mean_ms == pytest.approx(_figures(Greedy(CAP), 0.6).mean_ms, rel=0.01)
    assert max(tight.histogram) < 4
    assert tight.mean_ms > 100 * fine.mean_ms


def test_polling_costs_latency_at_every_load() -> None:
    """CORK's tick costs 10 to 20 % of the mean latency up to 70 % load, as published."""
    for load in (0.1, 0.3, 0.5, 0.7):
        extra = _figures(Cork(CAP), load).mean_ms / _figures(Greedy(CAP), load).mean_ms - 1

        assert 0.08 < extra < 0.22


def test_published_means_are_reproduced() -> None:
    """Fixed 2 ms, pick-up 2 ms and ski rental at c = 2: the published means at 10 and 50 % load."""
    published = {
        0.1: {"fixed": 4.14, "pick-up": 4.79, "ski": 4.61},
        0.5: {"fixed": 5.42, "pick-up": 8.36, "ski": 5.38},
    }
    for load, means in published.items():
        found = {
            "fixed": _figures(FixedDelay(CAP, CAP, 0.002), load).mean_ms,
            "pick-up": _figures(PickUp(CAP, 0.002), load).mean_ms,
            "ski": _figures(SkiRental(CAP, 0.002, 2.0), load).mean_ms,
        }

        assert found == pytest.approx(means, rel=0.015)


def test_ski_rental_spends_its_budget_and_no_more() -> None:
    """Two wait together until their waits sum up to the price of a setup."""
    ran = _run(SkiRental(CAP, 0.002, 2.0), 1.0, 1.001)

    waits = ran.closed[0] - np.asarray([1.0, 1.001])
    assert float(waits.sum()) == pytest.approx(0.004)


def test_deferred_latest_ends_just_in_time() -> None:
    """A lone request starts so that one more would still have been in time."""
    ran = _run(DeferredLatest(CAP, LINEAR), 1.0, slo_s=0.025)

    assert ran.closed[0] == pytest.approx(1.0 + 0.025 - LINEAR(2) - 0.0005)
