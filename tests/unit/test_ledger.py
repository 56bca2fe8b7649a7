"""What a timer did, and what came of it."""

from __future__ import annotations

import math

import pytest

from edged.serve.ledger import Ledger, Started


def batch(samples: int, waited_s: float = 0.0, *, held: bool = False, left: float = 1.0) -> Started:
    """One that was closed at second 0."""
    return Started(0.0, samples, waited_s, left, held)


def test_reasons_are_counted() -> None:
    """Each batch once."""
    ledger = Ledger()
    for reason in ("count", "count", "tuner"):
        ledger.started(batch(1), reason)

    assert ledger.closed == {"count": 2, "tuner": 1}
    assert repr(ledger) == "<Ledger 3 batches, 3 running>"


def test_the_achieved_cost_is_mean_latency_and_device_time() -> None:
    """Batches of 4 that waited 2 ms a sample and ran 8 ms: 10 ms + c x 2 ms."""
    ledger = Ledger()
    for _ in range(100):
        ledger.started(batch(4, 4 * 0.002), "count")
        ledger.completed(4, 0.008, 0.004)

    assert ledger.cost_s(0) == pytest.approx(0.010)
    assert ledger.cost_s(10) == pytest.approx(0.030)
    assert ledger.idle_s == pytest.approx(0.001)


def test_too_little_is_not_known() -> None:
    """Nor what an infinite price would make of it, nor what never started or failed."""
    ledger = Ledger()
    ledger.completed(4, 0.008, 0.004)
    for _ in range(49):
        ledger.started(batch(4), "count")
        ledger.completed(4, 0.008, 0.004)
    ledger.started(batch(4), "count")
    ledger.completed(4, 0.0, 0.004)

    assert math.isnan(ledger.cost_s(0))
    assert math.isnan(ledger.idle_s)
    ledger.started(batch(4), "count")
    ledger.completed(4, 0.008, 0.004)
    assert ledger.cost_s(0) == pytest.approx(0.008)
    assert math.isnan(ledger.cost_s(math.inf))


def test_held_batches_that_end_late_are_seen() -> None:
    """Those that were not held back are nobody's fault."""
    ledger = Ledger()
    for _ in range(50):
        ledger.started(batch(1, left=0.001), "count")
        ledger.completed(1, 0.002, 0.002)
    assert ledger.held_late == 0
    for _ in range(50):
        ledger.started(batch(1, left=0.001, held=True), "deadline")
        ledger.completed(1, 0.002, 0.002)
    assert ledger.held_late > 0.9
    ledger.forgive()
    assert ledger.held_late == 0


def test_the_lateness_of_alarms_has_a_99th_percentile() -> None:
    """Taken anew every 16 alarms; times that are none are left out."""
    ledger = Ledger()
    for number in range(160):
        ledger.woke(0.001 if number % 20 else 0.005)
        ledger.woke(math.nan)

    assert ledger.late_p99_s == 0.005
