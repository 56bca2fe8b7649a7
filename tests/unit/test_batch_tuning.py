"""What the waiting room hands to the tuner, and takes from it."""

from __future__ import annotations

import math

from edged.serve.admit import Admission
from edged.serve.batch import WaitingRoom
from edged.serve.timer import BatchTimer
from edged.serve.tuner import tune
from tests.doubles.simulated_device import linear, poisson

CURVE = linear(0.002, 0.00025)


class Clock:
    """Set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Monotonic seconds."""
        return self.now


def room_with(names: tuple[str, ...], clock: Clock) -> WaitingRoom:
    """A room with one device that serves these queues, each with a second of arrivals."""
    timers = {name: BatchTimer(CURVE, 32) for name in names}
    room = WaitingRoom(timers, Admission(100).refusal, clock)
    room.add_device("gpu", 1, timers)
    for timer in timers.values():
        for came in poisson(960, 900, 3):
            timer.arrived(came, 1)
            clock.now = max(clock.now, came)
    return room


def test_a_price_is_set_for_one_queue_or_all_of_a_device() -> None:
    """Others keep theirs; what each goes by shows in the state."""
    clock = Clock()
    room = room_with(("m", "n"), clock)

    room.set_price("gpu", 10.0)
    room.set_price("gpu", 2.0, "n")

    states = room.timer_states(clock.now)
    assert (states["m"]["gpu"]["price"], states["n"]["gpu"]["price"]) == (10.0, 2.0)
    assert room.scales() == {"gpu": {"m": 1.0, "n": 1.0}}


def test_an_slo_is_set_for_all_timers_of_a_model() -> None:
    """After a reload; models that are not named keep theirs."""
    clock = Clock()
    room = room_with(("m", "m@32", "n"), clock)

    room.set_slos({"m": 0.05})

    told = [task.slo_s for _, task in room.tunings()]
    assert told == [0.05, 0.05, math.inf]


def test_a_choice_made_outside_the_lock_is_gone_by() -> None:
    """A copy goes out for each queue with a finite price, and the choice comes back."""
    clock = Clock()
    room = room_with(("m", "n"), clock)
    room.set_price("gpu", 10.0, "m")
    room.set_price("gpu", math.inf, "n")

    ((timer, task),) = room.tunings()
    room.tuned(timer, tune(task))

    state = room.timer_states(clock.now)["m"]["gpu"]
    assert (state["tuned"], room.timer_states(clock.now)["n"]["gpu"]["tuned"]) == (1, 0)
    assert 4 <= state["limit"] <= 6
    assert state["predicted_ms"] < state["greedy_ms"]
