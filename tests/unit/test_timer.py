"""The batch timer by example: which rule closes a batch, and what it prints."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from edged.latency import LatencyCurve
from edged.serve.timer import BatchTimer, Decision, Reason, Waiting

# A batch of b takes 10 ms + 1 ms b.
CURVE = LatencyCurve((1, 2, 4, 8, 16), (0.011, 0.012, 0.014, 0.018, 0.026))
NOW = 100.0


def warm(price: float, rate: float = 200.0, seconds: float = 2.0) -> BatchTimer:
    """A timer that has seen steady arrivals up to `NOW`."""
    timer = BatchTimer(CURVE, 16, price=price)
    for number in range(int(rate * seconds), -1, -1):
        timer.arrived(NOW - number / rate, 1)
    return timer


def queue(samples: int, *, age: float = 0.0, left: float = 60.0) -> Waiting:
    """So many normal samples that came at one time."""
    came = NOW - age
    return Waiting(samples, float(samples), samples * came, came, NOW + left)


def test_nothing_waits_nothing_closes() -> None:
    """An empty queue arms no time."""
    decision = warm(10).decide(NOW, Waiting(0, 0.0, 0.0, -math.inf, math.inf))

    assert (decision.samples, decision.at) == (0, math.inf)


def test_the_count_closes_a_batch() -> None:
    """At 200 samples/s and c = 2, M is round(sqrt(2 x 2 x 0.01 x 200 x 0.8)) = 3."""
    timer = warm(2)

    assert timer.limit(NOW) == 3
    assert timer.decide(NOW, queue(2)).samples == 0
    assert timer.decide(NOW, queue(3)) == Decision(3, NOW, Reason.COUNT)


def test_a_full_batch_closes_and_leaves_the_rest() -> None:
    """With 20 samples and a cap of 16, 16 are run."""
    decision = warm(0).decide(NOW, queue(20))

    assert (decision.samples, decision.at, decision.reason) == (16, NOW, Reason.CAP)


def test_an_urgent_request_closes_a_batch() -> None:
    """What waits beside an urgent request goes with it."""
    decision = warm(10).decide(NOW, replace(queue(2), urgent=True))

    assert (decision.samples, decision.reason) == (2, Reason.URGENT)


def test_the_deadline_guard_keeps_room_for_one_more() -> None:
    """It closes the cautious time of a batch of n + 1, and the slack, before the deadline."""
    timer = warm(10)
    expected = NOW + 0.025 - timer.cautious_s(2) - timer.slack_s

    decision = timer.decide(NOW, queue(1, left=0.025))

    assert (decision.samples, decision.reason) == (0, Reason.DEADLINE)
    assert decision.at == pytest.approx(expected)
    assert timer.decide(expected, queue(1, left=0.025)).reason is Reason.DEADLINE
    assert timer.decide(expected, queue(1, left=0.025)).samples == 1


def test_the_gap_guard_gives_up_on_company() -> None:
    """Three mean gaps without an arrival close the batch, however long is left."""
    timer = warm(10)

    decision = timer.decide(NOW, queue(1))

    assert (decision.samples, decision.reason) == (0, Reason.GAP)
    assert decision.at == pytest.approx(NOW + 3 / 200, rel=1e-4)
    assert timer.decide(decision.at + 1e-9, queue(1)).samples == 1


def test_the_budget_guard_closes_what_has_cost_enough() -> None:
    """Two samples that have waited 2 c alpha together have spent what a setup is worth."""
    timer = warm(2)
    came = (NOW - 0.030, NOW - 0.005)
    state = Waiting(2, 2.0, sum(came), max(came), NOW + 60)

    decision = timer.decide(NOW, state)

    assert (decision.samples, decision.reason) == (0, Reason.BUDGET)
    assert decision.at == pytest.approx(NOW + (2 * 2 * 0.01 - 0.030 - 0.005) / 2)
    assert timer.decide(decision.at + 1e-9, state).samples == 2
    assert timer.decide(decision.at + 1e-9, state).reason is Reason.BUDGET


def test_too_few_arrivals_are_not_trusted() -> None:
    """Before 20 samples were seen the rate is unknown and nothing waits."""
    timer = BatchTimer(CURVE, 16, price=10)
    for number in range(19):
        timer.arrived(NOW - 0.19 + number / 100, 1)

    assert timer.rate(NOW) == 0
    assert timer.decide(NOW, queue(1)).samples == 1
    timer.arrived(NOW, 1)
    assert timer.rate(NOW) > 0


def test_a_slower_device_makes_larger_batches() -> None:
    """Twice the service time raises phi, and with it M."""
    timer = warm(2, rate=100)
    before = timer.limit(NOW)
    for _ in range(60):
        timer.completed(4, 2 * CURVE(4))

    assert timer.phi == pytest.approx(2, rel=0.02)
    assert timer.service_s(8) == pytest.approx(2 * CURVE(8), rel=0.02)
    assert timer.limit(NOW) > before


def test_cautious_is_above_expected() -> None:
    """The time that a batch rarely exceeds is longer than the expected one, and noise widens it."""
    timer = BatchTimer(CURVE, 16)
    quiet, noisy = BatchTimer(CURVE, 16), BatchTimer(CURVE, 16)
    for number in range(50):
        quiet.completed(4, CURVE(4))
        noisy.completed(4, CURVE(4) * (0.9 if number % 2 else 1.1))

    assert timer.cautious_s(4) > timer.service_s(4)
    assert quiet.cautious_s(4) < noisy.cautious_s(4) < 1.6 * noisy.service_s(4)


def test_repr_is_a_sentence() -> None:
    """The log shows what the timer knows."""
    timer = BatchTimer(CURVE, 16, price=2.5)
    timer.arrived(NOW, 3)

    assert repr(timer) == "<BatchTimer price 2.5, phi 1.00, 3 samples seen, cap 16>"
