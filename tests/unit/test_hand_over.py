"""The queue between reporters and the outbox's thread: bounds, order, drops."""

from __future__ import annotations

import pytest

from edged.report.draft import Draft
from edged.report.hand_over import HANDOVER_FULL, MAX_BYTES, MAX_ROWS, HandOver
from edged.report.streams import EVENT, RESULT, ROLLOUT, TELEMETRY, streams_from
from edged.settings import OutboxSettings

STREAMS = streams_from(OutboxSettings())


def draft(stream: str, body: bytes = b"x") -> Draft:
    """An event."""
    return Draft(stream, "", "", 1.0, body)


def test_the_most_urgent_stream_is_taken_first_and_order_holds_inside() -> None:
    """Priority between streams, arrival inside one; a limit cuts where it falls."""
    queue = HandOver(STREAMS)
    for stream, body in (
        (TELEMETRY, b"1"), (RESULT, b"2"), (EVENT, b"3"), (ROLLOUT, b"4"), (RESULT, b"5"),
    ):  # fmt: skip
        queue.add(draft(stream, body))

    assert [each.body for each in queue.take(4)] == [b"4", b"3", b"2", b"5"]
    assert repr(queue) == "<HandOver 1 events wait>"
    assert [each.body for each in queue.take(4)] == [b"1"]


@pytest.mark.parametrize(
    ("stream", "body", "limit"),
    [
        (RESULT, b"x", MAX_ROWS),
        (RESULT, bytes(MAX_BYTES // 8), 8),
        (ROLLOUT, b"x", MAX_ROWS),
        (ROLLOUT, bytes(MAX_BYTES // 8), 8),
    ],
)
def test_a_full_queue_drops_by_the_streams_policy(stream: str, body: bytes, limit: int) -> None:
    """By number or by bytes: the oldest goes, or with reject_new the new one; it is counted."""
    queue = HandOver(STREAMS)
    for _ in range(limit):
        assert queue.add(draft(stream, body)) is None
    first, new = queue._lanes[stream][0], draft(stream, bytes(len(body)))

    dropped = queue.add(new)

    assert dropped is (new if stream == ROLLOUT else first)
    assert queue.rows == limit
    assert queue.take_lost() == {(stream, HANDOVER_FULL): 1}
    assert not queue.take_lost()
    assert queue.add(draft(EVENT)) is None, "another stream has room of its own"


def test_room_is_there_again_after_taking() -> None:
    """Bytes are given back exactly, for bodies that are made later too."""
    queue = HandOver(STREAMS)
    for _ in range(3):
        queue.add(Draft(RESULT, "", "", 1.0, bytes))
        queue.add(draft(RESULT, bytes(1000)))
    queue.take(100)

    assert queue._bytes[RESULT] == 0
    assert queue.rows == 0


def test_an_event_larger_than_the_queue_is_dropped_itself() -> None:
    """There is nothing older to make room with."""
    queue = HandOver(STREAMS)
    huge = draft(RESULT, bytes(MAX_BYTES + 1))

    assert queue.add(huge) is huge
    assert queue.rows == 0


def test_an_unknown_stream_is_a_fault_of_the_caller() -> None:
    """It is not dropped in silence."""
    with pytest.raises(KeyError):
        HandOver(STREAMS).add(draft("metrics"))
