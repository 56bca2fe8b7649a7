"""The batch timer by example: which rule closes a batch, and what it prints."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from edged.latency import LatencyCurve
from edged.serve.timer import BatchTimer, Decision, Reason, Waiting
from edged.serve.tuner import Choice, Replayed, Setting

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


# ------------------------------------------------------------------ the tuner, modes, and harm


def chosen(timer: BatchTimer, setting: Setting, **replayed: float) -> Choice:
    """A choice of this setting for the rate, device and price of a timer at `NOW`."""
    found = Replayed(0.02, 0.004, 0.05)
    greedy = replace(found, **replayed)
    return Choice(setting, found, greedy, 200.0, timer.phi, timer.price)


def test_the_tuner_s_count_and_timer_close_a_batch() -> None:
    """While the choice is fresh: the count, or the time since the oldest came."""
    timer = warm(2)
    timer.tuned(NOW, chosen(timer, Setting(5, 0.030)))
    waits = replace(queue(2, age=0.010), oldest=NOW - 0.010)

    assert timer.limit(NOW) == 5
    decision = timer.decide(NOW, waits)
    assert (decision.samples, decision.reason) == (0, Reason.TUNER)
    assert decision.at == pytest.approx(NOW + 0.020)
    five = replace(queue(5), oldest=NOW)
    assert timer.decide(NOW, five) == Decision(5, NOW, Reason.COUNT)


def test_a_count_without_a_timer_is_not_waited_for_without_end() -> None:
    """Four times as long as collecting it takes on average, then the gap is what closes it."""
    timer = warm(2)
    timer.tuned(NOW, chosen(timer, Setting(5)))

    decision = timer.decide(NOW, replace(queue(2), oldest=NOW))

    assert decision.reason is Reason.GAP
    assert decision.at == pytest.approx(NOW + 4 * 5 / 200)


def test_without_the_oldest_the_closed_form_decides() -> None:
    """The tuner's timer runs from the oldest request; unknown, it is not used."""
    timer = warm(2)
    timer.tuned(NOW, chosen(timer, Setting(5, 0.030)))

    assert timer.decide(NOW, queue(3)) == Decision(3, NOW, Reason.COUNT)


@pytest.mark.parametrize("rate", [45.0, 900.0])
def test_a_choice_for_another_rate_is_not_gone_by(rate: float) -> None:
    """Arrivals that moved by more than a factor of two need another one."""
    timer = warm(2)
    timer.tuned(NOW, replace(chosen(timer, Setting(5)), rate=rate))

    assert timer.setting(NOW) is None
    assert timer.limit(NOW) == 3


def test_use_the_slo_waits_for_the_deadline_guard_alone() -> None:
    """At an infinite price the batch closes when it is full, or as late as the deadline allows."""
    timer = warm(math.inf)

    assert timer.limit(NOW) == 16
    assert timer.tuning(NOW) is None
    decision = timer.decide(NOW, queue(12, left=0.2))
    assert (decision.samples, decision.reason) == (0, Reason.DEADLINE)
    assert decision.at == pytest.approx(NOW + 0.2 - timer.cautious_s(13) - timer.slack_s)


def test_a_stepped_curve_takes_full_buckets() -> None:
    """Of 5 that wait 4 are run where the fifth would cost as much as 8; of 7, all."""
    curve = LatencyCurve((1, 2, 4, 8, 16), (0.005, 0.005, 0.006, 0.01, 0.018), stepped=True)
    timer = BatchTimer(curve, 16)

    assert timer.decide(NOW, queue(5)) == Decision(4, NOW, Reason.COUNT)
    assert timer.decide(NOW, queue(7)) == Decision(7, NOW, Reason.COUNT)


def serve(timer: BatchTimer, batches: int, samples: int, *, late: bool = False) -> None:
    """So many batches that had been held back; they end in time, or late by what they take more."""
    for _ in range(batches):
        cautious = timer.cautious_s(samples)
        waiting = replace(queue(samples, left=1.001 * cautious if late else 60.0), oldest=NOW)
        timer.started(NOW, waiting, Decision(samples, NOW, Reason.TUNER))
        timer.completed(samples, 1.01 * cautious if late else CURVE(samples))


def test_waiting_that_does_not_pay_ends() -> None:
    """Larger batches were promised and did not come, the tail is longer: a minute of greedy."""
    timer = warm(2)
    serve(timer, 400, 1)
    choice = chosen(timer, Setting(5, 0.030), device_s=0.011, p99_s=0.02)
    for _ in range(4):
        assert not timer.distrusted(NOW)
        timer.tuned(NOW, choice)

    assert timer.distrusted(NOW)
    decision = timer.decide(NOW, replace(queue(1), oldest=NOW))
    assert decision == Decision(1, NOW, Reason.FALLBACK)
    assert not timer.distrusted(NOW + 61)


def test_waiting_that_pays_goes_on() -> None:
    """The batches are as large as promised: a longer tail is what the price buys."""
    timer = warm(2)
    serve(timer, 400, 4)
    for _ in range(10):
        timer.tuned(NOW, chosen(timer, Setting(5, 0.030), device_s=0.011, p99_s=0.02))

    assert not timer.distrusted(NOW)


def test_holding_batches_past_their_deadline_ends() -> None:
    """Seven in a row that were held back and ended late are enough."""
    timer = warm(2)
    serve(timer, 6, 1, late=True)
    assert not timer.distrusted(NOW)
    serve(timer, 3, 1, late=True)

    assert timer.distrusted(NOW)


def test_a_deadline_that_nobody_could_meet_is_no_harm() -> None:
    """At 11 ms a batch, 1 ms is too short with or without waiting: waiting goes on."""
    timer = warm(math.inf)
    waiting = replace(queue(1, left=0.001), oldest=NOW)
    for _ in range(50):
        timer.started(NOW, waiting, Decision(1, NOW, Reason.DEADLINE))
        timer.completed(1, CURVE(1))

    assert not timer.distrusted(NOW)


def test_a_choice_lives_until_the_tuner_can_be_back() -> None:
    """5 seconds, or twice the time that it took the last time; never more than two minutes."""
    timer = warm(2)
    timer.tuned(NOW - 10, chosen(timer, Setting(5)))
    assert timer.setting(NOW) is None
    timer.tuned(NOW, chosen(timer, Setting(5)))  # after 10 s, so it is good for 20
    for number in range(1, 19 * 200):
        timer.arrived(NOW + number / 200, 1)

    assert timer.setting(NOW + 19) is not None
    assert timer.setting(NOW + 20.1) is None


def test_late_alarms_are_allowed_for() -> None:
    """What is kept free before a deadline grows with lateness; too much of it ends waiting."""
    timer = BatchTimer(CURVE, 16, price=10, slo_s=0.1)
    for _ in range(32):
        timer.woke(0.010)

    assert timer.kept_free_s == pytest.approx(0.011)
    for _ in range(300):
        timer.woke(0.030)
    serve(timer, 1, 1)
    assert timer.distrusted(NOW)


def test_the_state_says_why() -> None:
    """Setting, what it promises, what came of it, and how often each rule closed a batch."""
    timer = warm(2)
    serve(timer, 400, 4)
    timer.tuned(NOW, chosen(timer, Setting(5, 0.030)))

    state = timer.state(NOW)

    assert (state["limit"], state["hold_ms"], state["tuned"], state["fallback"]) == (5, 30.0, 1, 0)
    assert (state["predicted_ms"], state["greedy_ms"]) == (20.0, 20.0)
    assert state["achieved_ms"] == pytest.approx(1e3 * (CURVE(4) + 2 * CURVE(4) / 4))
    assert (state["closed_tuner"], state["closed_count"]) == (400, 0)
    assert math.isnan(warm(2).state(NOW)["predicted_ms"])
