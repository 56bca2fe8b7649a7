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
