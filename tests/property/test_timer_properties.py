"""The batch timer keeps its promises, whatever happened before."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.latency import LatencyCurve
from edged.serve.arrivals import MIN_ARRIVALS, SHORTEST_WINDOW_S
from edged.serve.service_time import PHI_LIMITS
from edged.serve.timer import BatchTimer, Waiting
from edged.serve.tuner import Choice, Replayed, Setting
from tests.doubles.simulated_device import linear, waiting

JUNK = (math.nan, math.inf, -math.inf)


curves = st.builds(
    linear, alpha=st.floats(1e-4, 0.05), beta=st.one_of(st.just(0.0), st.floats(1e-6, 5e-3))
)
prices = st.sampled_from([0.5, 2.0, 10.0, 100.0])
caps = st.integers(1, 48)
histories = st.lists(st.tuples(st.floats(1e-4, 0.3), st.integers(1, 6)), max_size=60)


@st.composite
def situations(draw: st.DrawFn, prices: st.SearchStrategy[float]) -> tuple[BatchTimer, float]:
    """A timer after a history of arrivals and batches, and the time of the last arrival."""
    timer = BatchTimer(draw(curves), draw(caps), price=draw(prices))
    now = 1000.0
    for gap, samples in draw(histories):
        now += gap
        timer.arrived(now, samples)
    for factor in draw(st.lists(st.floats(0.25, 8.0), max_size=6)):
        timer.completed(4, factor * timer.curve(4))
    return timer, now


queues = st.lists(st.floats(0, 0.5), min_size=1, max_size=60)
"""How long ago each waiting sample came, in seconds."""


# ------------------------------------------------------------------ one decision


@given(situations(st.just(0.0)), queues, st.floats(0, 1))
def test_without_a_price_it_never_waits(
    situation: tuple[BatchTimer, float], ages: list[float], later: float
) -> None:
    """With c = 0 whatever waits is run at once, as much of it as fits."""
    timer, now = situation
    now += later

    decision = timer.decide(now, waiting([now - age for age in ages]))

    assert decision.samples == min(len(ages), timer.cap)
    assert decision.at == now


@given(situations(prices), queues, st.floats(0, 1), st.floats(-0.1, 1))
def test_it_never_waits_past_a_guard_and_never_exceeds_the_cap(
    situation: tuple[BatchTimer, float], ages: list[float], later: float, left: float
) -> None:
    """A batch closes now with 1 to cap samples, or later but in time for the earliest deadline."""
    timer, now = situation
    now += later
    state = waiting([now - age for age in ages], deadline=now + left)

    decision = timer.decide(now, state)

    if decision.samples:
        assert decision.samples == min(len(ages), timer.cap)
        assert decision.at == now
        return
    one_more = min(len(ages) + 1, timer.cap)
    assert now < decision.at <= state.deadline - timer.cautious_s(one_more) - timer.slack_s
    alpha = timer.phi * timer.curve.line()[0]
    assert math.fsum(decision.at - now + age for age in ages) <= 2 * timer.price * alpha + 1e-6


@given(situations(prices), queues, st.floats(0, 1))
def test_a_batch_closes_when_it_was_said_to(
    situation: tuple[BatchTimer, float], ages: list[float], later: float
) -> None:
    """Asked again at the time that it named, with nothing new, the timer closes the batch."""
    timer, now = situation
    now += later
    state = waiting([now - age for age in ages], deadline=now + 10)

    first = timer.decide(now, state)
    second = timer.decide(first.at + 1e-9, state)

    assert second.samples == min(len(ages), timer.cap)


@given(situations(prices), queues, queues)
def test_asking_changes_nothing(
    situation: tuple[BatchTimer, float], ages: list[float], others: list[float]
) -> None:
    """A decision depends on what happened alone, not on how often or about what it was asked."""
    timer, now = situation
    state = waiting([now - age for age in ages], deadline=now + 1)

    first = timer.decide(now, state)
    for age in others:
        timer.decide(now + age, waiting([now - other for other in others]))

    assert timer.decide(now, state) == first


@given(situations(prices), st.integers(1, 5))
def test_an_urgent_request_closes_at_once(
    situation: tuple[BatchTimer, float], samples: int
) -> None:
    """Whatever the price, nothing waits together with an urgent request."""
    timer, now = situation

    decision = timer.decide(now, replace(waiting([now] * samples), urgent=True))

    assert decision.samples == min(samples, timer.cap)


@st.composite
def tuned(draw: st.DrawFn) -> tuple[BatchTimer, float]:
    """A timer with a fresh choice of the tuner, whatever it is, and the time of the choice."""
    timer, now = draw(situations(st.sampled_from([0.0, 2.0, 10.0])))
    rate = (timer.tuning(now) or pytest.fail("no task")).trace
    found = Replayed(0.01, 0.001, 0.02, 0.0)
    setting = Setting(draw(st.integers(1, timer.cap)), draw(st.sampled_from([0.0, 1e-3, 0.1, 1e9])))
    known = len(rate) / (now - rate[0]) if rate and now > rate[0] else 1.0
    timer.tuned(now, Choice(setting, found, found, known, timer.phi, timer.price))
    return timer, now


@given(tuned(), queues, st.floats(-0.1, 1))
def test_a_tuned_timer_never_waits_past_a_guard(
    situation: tuple[BatchTimer, float], ages: list[float], left: float
) -> None:
    """A count and a timer from the tuner never outweigh the deadline, nor the tuner's own time."""
    timer, now = situation
    state = waiting([now - age for age in ages], deadline=now + left)
    state = replace(state, oldest=now - max(ages))

    decision = timer.decide(now, state)

    if decision.samples:
        assert (decision.samples, decision.at) == (min(len(ages), timer.cap), now)
        return
    one_more = min(len(ages) + 1, timer.cap)
    assert now < decision.at <= state.deadline - timer.cautious_s(one_more) - timer.slack_s
    setting = timer.setting(now)
    if setting is not None:
        assert len(ages) < setting.limit
        assert decision.at <= state.oldest + setting.hold_s


@given(tuned(), queues, st.floats(5.01, 100))
def test_a_choice_that_is_old_is_not_gone_by(
    situation: tuple[BatchTimer, float], ages: list[float], later: float
) -> None:
    """After five seconds the closed form decides again: at c = 0 nothing waits."""
    timer, now = situation
    timer.price = 0.0
    now += later

    assert timer.setting(now) is None
    decision = timer.decide(now, replace(waiting([now - age for age in ages]), oldest=now - 1))
    assert decision.samples == min(len(ages), timer.cap)


# ------------------------------------------------------------------ bad values

numbers = st.one_of(st.sampled_from(JUNK), st.floats(-10, 10), st.floats())


@given(
    curves,
    st.sampled_from([0.0, 10.0, math.nan, math.inf]),
    st.lists(st.tuples(st.sampled_from(["arrived", "completed"]), numbers), max_size=60),
    st.lists(numbers, min_size=5, max_size=5),
)
def test_bad_values_never_raise(
    curve: LatencyCurve, price: float, history: list[tuple[str, float]], last: list[float]
) -> None:
    """NaN, infinities and a clock that jumps lead to a decision all the same."""
    timer = BatchTimer(curve, 8, price=price)
    for what, number in history:
        if what == "arrived":
            timer.arrived(number, 2)
        else:
            timer.completed(2, number)
    now, weight, arrival_weight, newest, deadline = last

    decision = timer.decide(now, Waiting(3, weight, arrival_weight, newest, deadline))

    assert decision.samples in {0, 3}
    assert PHI_LIMITS[0] <= timer.phi <= PHI_LIMITS[1]
    assert timer.limit(now) >= 1


def patient() -> tuple[BatchTimer, float, Waiting]:
    """A timer that wants 6 samples and sees 2."""
    timer = BatchTimer(linear(0.01, 0.001), 32, price=4.0)
    now = 1000.0
    for _ in range(200):
        now += 0.002
        timer.arrived(now, 1)
    state = waiting([now - 0.002, now], deadline=now + 10)
    assert timer.decide(now, state).samples == 0
    return timer, now, state


@pytest.mark.parametrize("now", [*JUNK, 0.0, 999.0])
def test_a_clock_that_lies_makes_it_greedy(now: float) -> None:
    """A clock that is no number, or jumped back, makes nothing wait."""
    timer, _, state = patient()

    assert timer.decide(now, state).samples == 2


@pytest.mark.parametrize(
    "bad",
    [
        {"weight": math.nan}, {"weight": 0.0}, {"arrival_weight": math.nan},
        {"newest": math.nan}, {"newest": math.inf}, {"newest": 1e6},
        {"deadline": math.nan}, {"deadline": -math.inf},
    ],
    ids=str,
)  # fmt: skip
def test_a_queue_that_lies_makes_it_greedy(bad: dict[str, float]) -> None:
    """Values that cannot be make nothing wait."""
    timer, now, state = patient()

    assert timer.decide(now, replace(state, **bad)).samples == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("price", [math.nan, -1.0])
def test_a_price_that_is_none_makes_it_greedy(price: float) -> None:
    """A price without meaning counts as 0."""
    timer, now, state = patient()
    timer.price = price

    assert timer.decide(now, state).samples == 2


def test_an_infinite_price_without_a_deadline_makes_it_greedy() -> None:
    """There is no end to wait for."""
    timer, now, state = patient()
    timer.price = math.inf

    assert timer.decide(now, replace(state, deadline=math.inf)).samples == 2
    assert timer.decide(now, state).samples == 0


def test_after_a_jump_back_the_rate_is_learned_anew() -> None:
    """The estimate neither freezes nor piles up when the clock begins again."""
    timer, _, _ = patient()
    for count in range(1, 2001):
        timer.arrived(count * 0.01, 1)
        if count < MIN_ARRIVALS:
            assert timer.rate(count * 0.01) == 0

    assert timer.rate(20.005) == pytest.approx(100, rel=0.1)


# ------------------------------------------------------------------ formulas


dense = st.lists(st.tuples(st.floats(1e-4, 0.004), st.integers(1, 6)), min_size=1, max_size=60)


@given(dense, st.floats(1e-3, 1))
def test_rate_is_the_exponential_kernel(history: list[tuple[float, int]], later: float) -> None:
    """Where arrivals are dense the estimate equals the sum over them, corrected for the past."""
    timer = BatchTimer(linear(0.01, 0.001), 8)
    times = list(np.cumsum([gap for gap, _ in history]))
    samples = [count for _, count in history]
    for time, count in zip(times, samples, strict=True):
        timer.arrived(float(time), count)
    now = float(times[-1]) + later

    score = sum(
        count * math.exp(-(now - time) / SHORTEST_WINDOW_S)
        for time, count in zip(times, samples, strict=True)
    )
    seen = -math.expm1(-(now - times[0]) / SHORTEST_WINDOW_S)
    expected = score / (SHORTEST_WINDOW_S * seen) if sum(samples) >= MIN_ARRIVALS else 0

    assert timer.rate(now) == pytest.approx(expected, rel=1e-9)


@given(st.floats(0.01, 3), st.integers(100, 200))
def test_the_rate_of_rare_arrivals_is_seen(gap: float, count: int) -> None:
    """One every few seconds is as well known as a thousand a second: the window follows."""
    timer = BatchTimer(linear(0.01, 0.001), 8)
    for number in range(count):
        timer.arrived(number * gap, 1)

    assert timer.rate((count - 1) * gap) == pytest.approx(1 / gap, rel=0.2)


@given(situations(prices), st.floats(0, 0.3))
def test_limit_is_the_formula(situation: tuple[BatchTimer, float], later: float) -> None:
    """M is the rounded square root of 2 c alpha lambda (1 - lambda beta), from 1 to the cap."""
    timer, now = situation
    rate = timer.rate(now + later)
    curve = timer.curve
    beta, alpha = timer.phi * np.polyfit(curve.sizes, curve.seconds, 1)
    root = math.sqrt(max(0.0, 2 * timer.price * alpha * rate * (1 - rate * beta)))

    limit = timer.limit(now + later)

    assert 1 <= limit <= timer.cap
    # Just at a half either neighbour is right.
    allowed = {min(timer.cap, max(1, round(root + error))) for error in (-1e-6, 0, 1e-6)}
    assert limit in allowed


# ------------------------------------------------------------------ the scale of the curve


@given(curves, st.sampled_from([0.5, 2.0, 4.0]), st.lists(st.integers(1, 32), min_size=5))
def test_phi_follows_a_change_within_a_few_batches(
    curve: LatencyCurve, factor: float, sizes: list[int]
) -> None:
    """When the device gets slower or faster, the expected times follow after five batches."""
    timer = BatchTimer(curve, 32)
    for _ in range(40):
        timer.completed(8, curve(8))
    for size in sizes[:5]:
        timer.completed(size, factor * curve(size))

    assert timer.service_s(16) == pytest.approx(factor * curve(16), rel=0.12)


@given(curves, st.floats(0.9, 1.1))
def test_noise_moves_phi_little(curve: LatencyCurve, noise: float) -> None:
    """One batch that is a tenth off changes the expectation by less than a hundredth."""
    timer = BatchTimer(curve, 32)
    timer.completed(8, noise * curve(8))

    assert timer.phi == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("junk", [0.0, -1.0, math.nan, math.inf, -math.inf])
def test_phi_ignores_junk(junk: float) -> None:
    """A failed batch, or a time that is none, tells nothing."""
    timer = BatchTimer(linear(0.01, 0.001), 32)

    timer.completed(8, junk)

    assert timer.phi == 1.0


@pytest.mark.parametrize(("service", "limit"), [(5e-324, 0.3), (1e300, 20.0)])
def test_phi_is_clamped(service: float, limit: float) -> None:
    """However absurd the times, the scale keeps its bounds."""
    timer = BatchTimer(linear(100.0, 0.0), 32)
    for _ in range(5):
        timer.completed(8, service)

    assert timer.phi == limit
