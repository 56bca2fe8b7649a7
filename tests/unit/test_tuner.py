"""Shadow replay: what it chooses, when it changes its mind, and what it costs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.serve.batch_size import control_limit
from edged.serve.tuner import GREEDY, Setting, Task, candidates, due, tune
from tests.doubles.simulated_device import fixed_count, linear, poisson

CURVE = linear(0.002, 0.00025)
IDLE = (0.0, *(CURVE(size) for size in range(1, 33)))


def task(trace: tuple[float, ...], price: float = 0.0, slo_s: float = math.inf) -> Task:
    """On the device of the published comparison."""
    return Task(
        trace=trace,
        idle_s=IDLE,
        phi=1.0,
        line=(0.002, 0.00025),
        sizes=tuple(range(33)),
        price=price,
        slo_s=slo_s,
        guard_s=0.0005,
        caution=1.0,
    )


def cameras(count: int = 16, window_s: float = 0.0005, fps: float = 30.0) -> tuple[float, ...]:
    """Cameras on a common trigger; their frames come evenly within a window."""
    return tuple(
        frame / fps + camera * window_s / count for frame in range(38) for camera in range(count)
    )


def test_a_trace_that_is_too_short_tells_nothing() -> None:
    """Neither does one without duration, nor a price that is none."""
    assert tune(task(tuple(poisson(1000, 99, 1)))) is None
    assert tune(task((1.0,) * 600)) is None
    assert tune(task(tuple(poisson(1000, 600, 1)), price=math.inf)) is None


def test_steady_random_arrivals_leave_the_closed_form() -> None:
    """At c = 0 that is greedy, at c = 10 and 30 % load the count 5; a greedy costs a fifth more."""
    trace = tuple(poisson(960, 600, 3))

    free, dear = tune(task(trace)), tune(task(trace, 10.0))

    assert free is not None
    assert dear is not None
    assert free.setting == GREEDY
    assert dear.setting == Setting(5)
    assert dear.greedy.cost_s > 1.1 * dear.predicted.cost_s
    assert dear.rate == pytest.approx(960, rel=0.1)


def test_cameras_on_a_trigger_are_waited_for() -> None:
    """16 frames within half a millisecond: waiting beats greedy by a sixth at least."""
    choice = tune(task(cameras()))

    assert choice is not None
    assert choice.setting.limit > 1
    assert choice.predicted.cost_s < 0.84 * choice.greedy.cost_s


def test_greedy_replayed_is_the_greedy_recursion() -> None:
    """The virtual queue gives what the exact recursion over the same arrivals gives."""
    trace = tuple(poisson(1500, 600, 5))
    choice = tune(task(trace))

    assert choice is not None
    assert choice.greedy.cost_s == pytest.approx(fixed_count(CURVE, 1, trace, 0), rel=1e-9)


def test_what_misses_the_slo_is_not_chosen() -> None:
    """A price at which waiting for long would pay, under an SLO that it would break."""
    trace = tuple(poisson(320, 600, 5))
    choice = tune(task(trace, 50.0, slo_s=0.012))

    assert choice is not None
    assert choice.predicted.missed <= 0.01
    assert choice.predicted.p99_s <= 0.0121


def test_a_choice_stays_while_nothing_is_surely_better() -> None:
    """On steady arrivals the setting is one and the same over thirty rounds."""
    for price in (0.0, 2.0, 10.0):
        arrivals = poisson(1600, 600 * 31, 11)
        last, seen = None, set()
        for number in range(30):
            trace = tuple(arrivals[600 * number : 600 * (number + 1)])
            last = tune(replace(task(trace, price), last=last))
            assert last is not None
            seen.add(last.setting)
        assert len(seen) == 1, price


def test_a_change_of_pattern_is_followed() -> None:
    """From random arrivals to cameras: the count is given up within a few rounds."""
    last = None
    for seed in range(5):
        last = tune(replace(task(tuple(poisson(480, 600, seed))), last=last))
    assert last is not None
    assert last.setting == GREEDY
    for _ in range(20):
        last = tune(replace(task(cameras()), last=last))
    assert last is not None
    assert last.setting.limit > 1


@pytest.mark.parametrize("price", [2.0, 10.0])
def test_a_rate_that_grows_slowly_is_followed(price: float) -> None:
    """In half a minute from 80 to 640 a second: the count of the quiet morning is given up."""
    arrivals, at = [], 0.0
    for gap in np.diff(poisson(1.0, 12_000, 5)):
        at += gap / (80 * 8 ** (at / 30))
        arrivals.append(at)
    last, limits = None, []
    for second in range(5, 31):
        trace = tuple(came for came in arrivals if came <= second)[-600:]
        last = tune(replace(task(trace, price), last=last))
        assert last is not None
        limits.append(last.setting.limit)

    assert limits[0] < limits[-1]
    assert limits[-1] >= control_limit(price, (0.002, 0.00025), 320, 32)


def test_it_is_due_at_its_time_or_after_a_change() -> None:
    """Every second, or when the rate or the device moved by a quarter."""
    came = poisson(1000, 700, 1)
    choice, steady = tune(task(tuple(came[:600]))), task(tuple(came[100:]))

    assert due(None, steady, 0.0, 1.0)
    assert not due(choice, steady, 0.5, 1.0)
    assert due(choice, steady, 1.0, 1.0)
    assert due(choice, replace(steady, phi=1.3), 0.5, 1.0)
    assert due(choice, task(tuple(poisson(1500, 600, 1))), 0.5, 1.0)


def test_it_is_not_due_without_news() -> None:
    """After the same last arrival never; after a few more only where the price is another one."""
    came = poisson(1000, 630, 1)
    before = task(tuple(came[:600]), 2.0)
    choice, after = tune(before), task(tuple(came[30:]), 2.0)

    assert not due(choice, replace(before, phi=2.0), 60.0, 1.0)
    assert not due(choice, after, 60.0, 1.0)
    assert due(choice, replace(after, price=10.0), 60.0, 1.0)
    assert not due(None, replace(after, trace=after.trace[:99]), 60.0, 1.0)


def test_the_caller_may_pause_between_candidates() -> None:
    """So that one thread does not keep the others for long."""
    pauses: list[int] = []
    steady = task(tuple(poisson(1000, 600, 1)))

    tune(steady, pause=lambda: pauses.append(1))

    assert len(pauses) >= len(candidates(steady)) > 50


@settings(max_examples=25)
@given(
    st.lists(st.floats(0, 0.05), min_size=100, max_size=200),
    st.sampled_from([0.0, 2.0, 50.0]),
    st.sampled_from([0.005, 0.025, math.inf]),
    st.integers(1, 32),
)
def test_any_trace_gives_a_setting_that_can_be_gone_by(
    gaps: list[float], price: float, slo_s: float, cap: int
) -> None:
    """A count from 1 to the cap, a timer that is no NaN, and a cost that was really replayed."""
    trace, now = [], 0.0
    for gap in gaps:
        now += gap
        trace.append(now)
    whole = replace(
        task(tuple(trace), price, slo_s), idle_s=IDLE[: cap + 1], sizes=tuple(range(cap + 1))
    )

    choice = tune(whole)

    if choice is not None:
        assert 1 <= choice.setting.limit <= cap
        assert choice.setting.hold_s >= 0
        assert choice.predicted.cost_s > 0
        assert choice.greedy.cost_s > 0


def test_a_count_that_the_trace_never_reaches_is_not_chosen() -> None:
    """With a cap beyond the trace and a price that asks for it, something replayable is chosen."""
    seconds = (0.0, *(0.5 + 1e-6 * size for size in range(1, 1025)))
    trace = tuple(number / 1000 for number in range(150))
    huge = replace(task(trace, 100.0), idle_s=seconds, line=(0.5, 1e-6), sizes=tuple(range(1025)))

    last = None
    for _ in range(6):
        last = tune(replace(huge, last=last))

    assert last is not None
    assert math.isfinite(last.predicted.cost_s)
    assert all(math.isfinite(seen.mean) for seen in last.seen.values())
