"""Several models and classes in one waiting room: who goes first, how large, who is refused."""

from __future__ import annotations

import math

import pytest

from edged.errors import LateError, QueueFullError
from edged.latency import LatencyCurve
from edged.serve.request import Batch, Part, Priority
from edged.serve.timer import BatchTimer
from tests.doubles.simulated_device import linear, poisson
from tests.doubles.stepped_room import StepwiseRoom, make_request

CAP = 8
CURVE = LatencyCurve((1, 8), (0.010, 0.017))


def room(*models: str, price: float = 0.0, queue_samples: int = 100) -> StepwiseRoom:
    """One device that serves these models."""
    made = StepwiseRoom({name: BatchTimer(CURVE, CAP) for name in models}, queue_samples)
    made.room.add_device("a", 1, {name: BatchTimer(CURVE, CAP, price=price) for name in models})
    return made


def put(made: StepwiseRoom, model: str, samples: int = 1, **more: float | Priority) -> Part:
    """A request arrives; what a batch of it alone would hold."""
    request = make_request(made.now, samples, model=model, **more)  # type: ignore[arg-type]  # left_s, priority
    made.room.put(request)
    return Part(request, 0, samples)


def take(made: StepwiseRoom) -> Batch:
    """The batch that the device gets now."""
    work = made.take("a")
    assert work is not None
    assert work.batch is not None
    return work.batch


def end(made: StepwiseRoom, batch: Batch, after_s: float = 0.010) -> None:
    """A batch comes back."""
    made.now += after_s
    made.room.completed("a", batch.queue, batch.samples, 0.0)


# ------------------------------------------------------------------ which model


def test_the_earliest_closing_time_goes_first() -> None:
    """Not the earliest deadline: a model with strict deadlines does not starve the others."""
    made = room("strict", "patient")
    running = take_first(made, "strict")
    made.now += 0.001
    put(made, "patient", left_s=5.0)
    made.now += 0.001
    put(made, "strict", left_s=0.5)
    end(made, running)

    second = take(made)
    end(made, second)

    assert (second.model, take(made).model) == ("patient", "strict")


def test_saturated_models_take_turns() -> None:
    """What is left of a model after a batch closes then, so the others come before it."""
    made = room("x", "y")
    running = take_first(made, "x")
    for model in ("x", "y"):
        put(made, model, 3 * CAP, left_s=9.0)
        made.now += 0.001
    order = []
    while made.room.samples:
        end(made, running)
        running = take(made)
        order.append(running.model)

    assert order == ["x", "y", "x", "y", "x", "y"]


def test_equal_closing_times_go_by_deadline() -> None:
    """Requests that came in the same instant."""
    made = room("x", "y")
    running = take_first(made, "x")
    put(made, "x", left_s=2.0)
    put(made, "y", left_s=1.0)
    end(made, running)

    assert take(made).model == "y"


def test_an_urgent_request_goes_before_other_models() -> None:
    """Whenever the others closed."""
    made = room("x", "y")
    running = take_first(made, "x")
    put(made, "x", left_s=1.0)
    made.now += 0.005
    urgent = put(made, "y", left_s=9.0, priority=Priority.URGENT)
    end(made, running)

    assert take(made).parts == (urgent,)


def test_deadlines_leave_time_for_another_models_batch() -> None:
    """A request that waits for company is run earlier by the batch that may be in its way."""
    alone, beside = room("x", price=math.inf), room("x", "y", price=math.inf)
    for made in (alone, beside):
        for _ in range(200):
            for timer in made.room._devices["a"].timers.values():
                timer.arrived(made.now, 1)
            made.now += 0.005
        put(made, "x", left_s=0.050)
        assert made.take("a") is None

    earlier = (alone.asleep["a"] - alone.now) - (beside.asleep["a"] - beside.now)
    assert earlier == pytest.approx(CURVE(CAP))


# ------------------------------------------------------------------ how large


def test_an_urgent_request_takes_others_along() -> None:
    """It is first in the batch, and others fill it up while it stays in time."""
    made = room("x")
    put(made, "x", 5, priority=Priority.BACKGROUND, left_s=9.0)
    urgent = put(made, "x", 1, priority=Priority.URGENT, left_s=9.0)

    batch = take(made)

    assert batch.samples == 6
    assert batch.parts[0] == urgent


def test_others_do_not_make_an_urgent_request_late() -> None:
    """Only as many ride along as its deadline bears."""
    made = room("x")
    put(made, "x", 7, left_s=9.0)
    put(made, "x", 1, priority=Priority.URGENT, left_s=0.0165)

    timer = made.room._devices["a"].timers["x"]
    batch = take(made)

    assert 1 <= batch.samples < 8
    assert timer.cautious_s(batch.samples) <= 0.0165
    assert timer.cautious_s(batch.samples + 1) > 0.0165


def test_background_batches_are_short_while_urgent_requests_come() -> None:
    """Also those of another model; the cap is gone a minute after the last urgent request."""
    made = room("x", "y")
    put(made, "y", 1, priority=Priority.URGENT, left_s=0.035)
    end(made, take(made))
    put(made, "x", 2 * CAP, priority=Priority.BACKGROUND, left_s=500.0)

    short = take(made)
    made.now += 61.0
    end(made, short)

    assert short.samples < CAP
    assert short.reason == "cap"
    assert take(made).samples == CAP


# ------------------------------------------------------------------ who is refused


def test_a_request_that_cannot_be_started_in_time_is_refused() -> None:
    """Three full batches are before it; it is told when it could have been started."""
    made = room("x")
    take_first(made, "x", CAP)
    put(made, "x", 2 * CAP, left_s=9.0)
    with pytest.raises(LateError, match="could be started in 51 ms at the earliest"):
        put(made, "x", 1, left_s=0.050, priority=Priority.BACKGROUND)

    put(made, "x", 1, left_s=0.050)  # before the others by its deadline: it is let in
    assert made.room.samples == 2 * CAP + 1


def test_with_nothing_before_it_a_request_is_let_in() -> None:
    """However slow the device was last seen: else it could never show that it is faster again."""
    made = room("x")
    timer = made.room._devices["a"].timers["x"]
    for _ in range(20):
        timer.completed(1, 1000.0)

    put(made, "x", left_s=0.001)

    assert take(made).samples == 1


def test_a_newer_frame_fits_where_the_older_one_was() -> None:
    """A full queue does not keep a camera from replacing its frame."""
    made = room("x", queue_samples=2)
    older = put_frame(made, "cam")
    put(made, "x", left_s=9.0)
    with pytest.raises(QueueFullError):
        put(made, "x", left_s=9.0)

    newer = make_request(made.now, 1, model="x", left_s=9.0)
    object.__setattr__(newer, "source", "cam")

    assert made.room.put(newer) == (older,)
    assert made.room.samples == 2


def put_frame(made: StepwiseRoom, source: str) -> Part:
    """A frame of a source arrives."""
    request = make_request(made.now, 1, model="x", left_s=9.0)
    object.__setattr__(request, "source", source)
    assert made.room.put(request) == ()
    return Part(request, 0, 1)


def take_first(made: StepwiseRoom, model: str, samples: int = 1) -> Batch:
    """A batch that occupies the device."""
    put(made, model, samples, left_s=math.inf)
    return take(made)


# ------------------------------------------------------------------ all together


def two_classes(load: float, count: int, allowance_s: float) -> tuple[list[float], list[float]]:
    """Latencies of urgent and of background requests; one in twenty is urgent.

    One device with 2 ms of setup and 0.25 ms a sample, most 32 in a batch, Poisson arrivals.
    """
    curve, cap = linear(0.002, 0.00025), 32
    made = StepwiseRoom({"x": BatchTimer(curve, cap)}, 10**6)
    made.room.add_device("a", 1, {"x": BatchTimer(curve, cap)})
    times = [made.now + at for at in poisson(load * cap / curve(cap), count, seed=5)]
    latencies: dict[Priority, list[float]] = {Priority.URGENT: [], Priority.BACKGROUND: []}
    ends, batch, position = math.inf, None, 0
    while position < count or batch is not None:
        came = times[position] if position < count else math.inf
        made.now = min(came, ends)
        if made.now == came:
            urgent = position % 20 == 0
            left_s = allowance_s if urgent else 60.0
            priority = Priority.URGENT if urgent else Priority.BACKGROUND
            put(made, "x", left_s=left_s, priority=priority)
            position += 1
        elif batch is not None:
            made.room.completed("a", "x", batch.samples, curve(batch.samples))
            for part in batch.parts:
                latencies[part.request.priority].append(made.now - part.request.received)
            batch, ends = None, math.inf
        work = made.take("a") if batch is None else None
        if work is not None:
            batch = work.batch
            assert batch is not None
            ends = made.now + curve(batch.samples)
    return sorted(latencies[Priority.URGENT]), sorted(latencies[Priority.BACKGROUND])


def test_urgent_requests_are_fast_beside_background() -> None:
    """At 80 % load their p99 would be 15 ms; told of a need of 10 ms, batches are kept short."""
    urgent, background = two_classes(0.8, 20_000, 0.010)
    careless, _ = two_classes(0.8, 20_000, 60.0)

    assert len(urgent) == 1000
    assert urgent[990] < 0.0101
    assert careless[990] > 0.014
    assert len(background) == 19_000
    assert background[-1] < 1.0  # none is left to starve
