"""The queue of one model: order, weights, what is cut and what comes back."""

from __future__ import annotations

import math

import pytest

from edged.serve.model_queue import ModelQueue
from edged.serve.request import Part, Priority
from tests.doubles.stepped_room import make_request

NOW = 1000.0


def part(samples: int = 1, attempt: int = 0, **more: float | Priority) -> Part:
    """All samples of a request."""
    request = make_request(NOW, samples, **more)  # type: ignore[arg-type]  # left_s or priority
    return Part(request, 0, samples, attempt)


def test_it_is_taken_by_class_then_deadline_then_arrival() -> None:
    """The total order of the waiting room."""
    parts = [
        part(priority=Priority.BACKGROUND, left_s=1), part(left_s=9), part(left_s=5),
        part(left_s=5), part(priority=Priority.URGENT, left_s=50),
    ]  # fmt: skip
    queue = ModelQueue(8)
    for number, each in enumerate(parts):
        queue.put(each, number)

    assert queue.take(8) == (parts[4], parts[2], parts[3], parts[1], parts[0])


def test_a_request_is_cut_and_goes_on_where_it_was_cut() -> None:
    """The rest keeps its place, and its attempt."""
    queue = ModelQueue(4)
    whole = part(10, attempt=1)
    queue.put(whole, 0)

    pieces = [queue.take(4), queue.take(4), queue.take(4)]

    assert [(p.start, p.stop, p.attempt) for (p,) in pieces] == [(0, 4, 1), (4, 8, 1), (8, 10, 1)]
    assert queue.samples == 0


def test_a_part_comes_back_before_what_came_later() -> None:
    """A number below all others puts it first among equals, and only its own samples wait."""
    queue = ModelQueue(4)
    first, second = part(6, left_s=5), part(left_s=5)
    queue.put(first, 1)
    queue.put(second, 2)
    (taken,) = queue.take(4)

    queue.put(Part(first.request, 1, 4, 1), -(2**62))

    assert (taken.start, taken.stop) == (0, 4)
    assert [(p.request, p.start, p.stop, p.attempt) for p in queue.take(99)] == [
        (first.request, 1, 4, 1), (first.request, 4, 6, 0), (second.request, 0, 1, 0),
    ]  # fmt: skip


@pytest.mark.parametrize("late", [0.0, 0.5])
def test_what_expires_is_what_had_not_been_taken(late: float) -> None:
    """At the very instant of the deadline, too; what has time left stays."""
    queue = ModelQueue(4)
    soon, later = part(6, left_s=1), part(2, left_s=9)
    queue.put(soon, 0)
    queue.put(later, 1)
    queue.take(4)

    assert [(p.request, p.start, p.stop) for p in queue.expire(NOW + 1 + late)] == [
        (soon.request, 4, 6)
    ]
    assert queue.samples == 2
    assert queue.deadline == NOW + 9


def test_an_urgent_sample_weighs_a_whole_batch() -> None:
    """So that it closes one; the timer is told so."""
    queue = ModelQueue(4)
    queue.put(part(3), 0)
    assert (queue.waiting().weight, queue.waiting().urgent) == (3.0, False)

    queue.put(part(priority=Priority.URGENT), 1)

    assert (queue.waiting().weight, queue.waiting().urgent) == (7.0, True)
    assert repr(queue) == "<ModelQueue 4 samples: 1 urgent, 1 normal, 0 background>"


def test_an_empty_queue_leaves_no_rounding_error() -> None:
    """Weights begin at exactly 0 again."""
    queue = ModelQueue(4)
    for number in range(7):
        queue.put(Part(make_request(0.1 + number / 3), 0, 1), number)
    queue.take(3)
    queue.take(4)

    assert queue.waiting().weight == 0.0
    assert queue.waiting().arrival_weight == 0.0
    assert queue.deadline == math.inf


def test_the_earliest_deadline_is_known_whatever_left_before() -> None:
    """Taken, expired and superseded requests leave no moment behind."""
    queue = ModelQueue(4)
    for number in range(300):
        queue.put(part(left_s=300.0 - number), number)
        queue.take(1)
    queue.put(part(left_s=7.0), 1000)

    assert queue.deadline == NOW + 7
    assert len(queue._deadlines._heap) < 100
    assert queue.expire(NOW + 6) == []


# ------------------------------------------------------------------ ageing


def test_background_that_used_up_half_its_time_goes_among_the_normal_ones() -> None:
    """By its deadline, so that it is not passed by until it expires; urgent ones stay before it."""
    queue = ModelQueue(8)
    old = part(priority=Priority.BACKGROUND, left_s=10)
    normal, urgent = part(left_s=20), part(left_s=90, priority=Priority.URGENT)
    for number, each in enumerate((normal, old, urgent)):
        queue.put(each, number)

    queue.age(NOW + 4.9)
    assert repr(queue) == "<ModelQueue 3 samples: 1 urgent, 1 normal, 1 background>"
    queue.age(NOW + 5)

    assert queue.take(8) == (urgent, old, normal)


def test_background_without_a_deadline_does_not_age() -> None:
    """It can wait for ever."""
    queue = ModelQueue(8)
    queue.put(part(priority=Priority.BACKGROUND), 0)

    queue.age(NOW + 1e9)

    assert repr(queue) == "<ModelQueue 1 samples: 0 urgent, 0 normal, 1 background>"


# ------------------------------------------------------------------ freshness


def frame(source: str, samples: int = 1, left_s: float = 9.0, came: float = NOW) -> Part:
    """A whole request of a source."""
    request = make_request(came, samples, left_s=left_s)
    object.__setattr__(request, "source", source)
    return Part(request, 0, samples)


def test_a_newer_request_supersedes_that_of_its_source() -> None:
    """Only what waits of the same source, as a whole."""
    queue = ModelQueue(8)
    first, other, second = frame("a", 2), frame("b"), frame("a", 3)

    assert queue.put(first, 0) == ()
    assert queue.put(other, 1) == ()
    assert queue.replaceable(second.request) == 2
    assert queue.put(second, 2) == (first,)

    assert queue.samples == 4
    assert queue.take(8) == (second, other)


def test_what_has_begun_is_not_superseded() -> None:
    """Some of its samples run: the rest is run too."""
    queue = ModelQueue(8)
    queue.put(frame("a", 4), 0)
    queue.take(2)
    queue.put(Part(make_request(NOW), 0, 1), 1)

    assert queue.put(frame("a", 1), 2) == ()
    assert queue.samples == 4


def test_what_has_left_is_not_superseded() -> None:
    """Run, expired and returned requests are no older ones of their source."""
    queue = ModelQueue(8)
    run = frame("a")
    queue.put(run, 0)
    queue.take(1)
    queue.put(frame("b", left_s=1.0), 1)
    queue.expire(NOW + 1)
    queue.put(Part(run.request, 0, 1, 1), -5)

    assert queue.put(frame("a"), 2) == ()
    assert queue.put(frame("b"), 3) == ()
    assert queue.samples == 3


def test_a_source_that_sends_often_keeps_its_place() -> None:
    """The newer frame stands where the older one stood, and expires by its own deadline."""
    queue = ModelQueue(8)
    slow, fast = frame("slow", left_s=10.0), frame("fast", left_s=9.0)
    queue.put(slow, 0)
    queue.put(fast, 1)
    newer = frame("fast", left_s=9.0, came=NOW + 5)
    queue.put(newer, 2)

    assert queue.deadline == NOW + 10
    assert queue.expire(NOW + 9.5) == []
    assert queue.take(1) == (newer,)
