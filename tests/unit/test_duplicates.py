"""Requests that come again, by example."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edged.mqtt.codec import Publish
from edged.serve.duplicates import OVERHEAD_BYTES, Duplicates
from edged.serve.fingerprint import WHOLE_BYTES, fingerprint
from edged.serve.request import Arrival, Receipt, Reply


def arrival(order: int, name: bytes | None = b"c", *, mark: int = 7, **more: object) -> Arrival:
    """Request ``order`` of the only connection."""
    receipt = Receipt(1, order, order, 1, mark)
    made = Arrival("t", b"", receipt, float(order), response_topic="r", correlation=name)
    return replace(made, **more)  # type: ignore[arg-type]  # fields of `Arrival`


def run(duplicates: Duplicates, order: int, name: bytes = b"c", reply: bytes = b"body") -> Reply:
    """A request arrives for the first time, and is answered."""
    first = arrival(order, name)
    assert duplicates.arrived(first) == "new"
    made = Reply("r", reply, 1, name)
    duplicates.answered(first.receipt, made)
    assert duplicates.ended(first.receipt, sent=True) == ()
    return made


def test_what_is_in_hand_is_joined_and_what_was_answered_is_sent_again() -> None:
    """The receipts that joined come back when the first ends; after it the reply does."""
    duplicates = Duplicates()
    first, second, third = (arrival(order) for order in (1, 2, 3))
    assert duplicates.arrived(first) == "new"
    assert duplicates.arrived(second) == "joined"
    reply = Reply("r", b"body", 1, b"c")
    duplicates.answered(first.receipt, reply)
    assert duplicates.arrived(third) == "joined"  # its reply is not with the broker yet
    assert duplicates.ended(first.receipt, sent=True) == (second.receipt, third.receipt)
    assert duplicates.arrived(arrival(4)) is reply


@pytest.mark.parametrize(
    "unknown",
    [
        arrival(2, None), arrival(2, b""), arrival(2, response_topic=""),
        arrival(2, retained=True), arrival(2, receipt=Receipt(1, 0, 0, 0)),
        arrival(2, b"other"), arrival(2, response_topic="elsewhere"), arrival(2, mark=8),
    ],
)  # fmt: skip
def test_what_is_not_surely_the_same_is_run(unknown: Arrival) -> None:
    """No correlation data, QoS 0, a retained message, or anything about it that differs."""
    duplicates = Duplicates()
    assert duplicates.arrived(arrival(1)) == "new"
    assert duplicates.arrived(unknown) == "new"
    duplicates.ended(arrival(1).receipt, sent=True)
    duplicates.ended(unknown.receipt, sent=True)
    run(duplicates, 3)
    assert duplicates.arrived(replace(unknown, received=4.0)) == "new"


def test_only_an_answer_that_went_out_and_would_be_the_same_is_kept() -> None:
    """Not after a retryable error, for which none is told, and not what the broker refused."""
    duplicates = Duplicates()
    for order, sent in ((1, True), (2, False)):
        again = arrival(order)
        assert duplicates.arrived(again) == "new"
        if not sent:
            duplicates.answered(again.receipt, Reply("r", b"", 1))
        duplicates.ended(again.receipt, sent=sent)
    assert duplicates.arrived(arrival(3)) == "new"


def test_replies_are_kept_within_bytes_and_age() -> None:
    """The oldest goes first; one that is larger than all is not kept; 0 keeps nothing."""
    duplicates = Duplicates(2 * OVERHEAD_BYTES + 20, 100.0)
    for order, name in enumerate((b"a", b"b", b"c")):
        run(duplicates, order + 1, name)
    assert duplicates.arrived(arrival(4, b"a")) == "new"
    assert isinstance(duplicates.arrived(arrival(5, b"b")), Reply)
    assert duplicates.arrived(arrival(200, b"c", received=200.0)) == "new"
    run(duplicates, 201, b"large", bytes(5 * OVERHEAD_BYTES))
    assert duplicates.kept_bytes == 0
    none = Duplicates(0)
    run(none, 1)
    assert none.arrived(arrival(2)) == "new"


def test_a_fingerprint_is_of_all_that_makes_a_request() -> None:
    """The same again in every run of the service; another for any other head, size or body."""
    body = bytes(range(256)) * 400
    user = {"priority": "urgent"}
    base = Publish("t", memoryview(body), 1, 5, response_topic="r", correlation=b"c", user=user)
    others = [
        replace(base, topic="t/urgent"),
        replace(base, response_topic="s"),
        replace(base, correlation=b"d"),
        replace(base, content_type="image/png"),
        replace(base, user={"priority": "normal"}),
        replace(base, user=None),
        replace(base, payload=memoryview(body[:-1])),
        replace(base, payload=memoryview(b"x" + body[1:])),
        replace(base, payload=memoryview(body[: WHOLE_BYTES - 1])),
        replace(base, payload=memoryview(body[: len(body) // 2] + bytes(len(body) // 2))),
    ]
    marks = [fingerprint(each) for each in (base, *others)]
    assert len(set(marks)) == len(marks)
    assert fingerprint(replace(base, mid=9, dup=True, expiry_s=3)) == marks[0] == 0x4F45C9BE4C3AAA09
