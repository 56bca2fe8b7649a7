"""The intake: what is decoded at once and what on threads, in the order of arrival."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from edged.errors import ExpiredError, QueueFullError
from edged.protocol import HEADER_LENGTH, JPEG, JSON, OCTET_STREAM
from edged.serve.intake import ARRIVALS, CHEAP_BYTES, Ended, Intake, IntakePorts, is_cheap
from edged.serve.request import Arrival, Outcome, Receipt, ReplyTo, Request, Unanswerable
from tests.doubles.stepped_room import make_request

PATIENCE_S = 30.0


def tensors(length: str) -> Arrival:
    """A large binary body behind a header of a length."""
    receipt = Receipt(1, 0, 1, 1)
    return Arrival("t", bytes(10**6), receipt, 0.0, user={HEADER_LENGTH: length})


def arrival(payload: bytes = b"{}", content_type: str = JSON, qos: int = 1) -> Arrival:
    """A request; its payload is its name."""
    return Arrival("t", payload, Receipt(1, 0, 1, qos), 0.0, content_type=content_type)


class Desk:
    """Everything around an intake: decodes by a function, keeps what is admitted and what ends."""

    def __init__(self, decode: Callable[[Arrival], None] = lambda _arrival: None) -> None:
        self.admitted: list[bytes] = []
        self.ended: list[tuple[Ended, bool]] = []
        self.woken: list[bool] = []
        self.full = False
        self.changed = threading.Condition()
        self.threads: set[str] = set()
        self._decode = decode
        self.busy: dict[str, float] = {}
        ports = IntakePorts(self.reply_to, self.decode, self.put, self.letter, self.end)
        self.intake = Intake(ports, self.busy, threads=3)

    def reply_to(self, arrival: Arrival) -> ReplyTo:
        """Where every answer goes."""
        if arrival.topic == "nowhere":
            raise ExpiredError("nobody to answer")
        return ReplyTo("r", None, 1)

    def decode(self, arrival: Arrival, _to: ReplyTo) -> Request:
        """As it was told to."""
        self.threads.add(threading.current_thread().name)
        self._decode(arrival)
        request = make_request(0.0)
        request.tensors["x"].flags.writeable = False
        self.names[id(request)] = bytes(arrival.payload)
        self.kept.append(request)
        return request

    names: dict[int, bytes] = {}  # noqa: RUF012  # one for all: identities are unique
    kept: list[Request] = []  # noqa: RUF012  # so that they stay so

    def put(self, request: Request, call: bool) -> None:  # noqa: FBT001  # the interface
        """Admits unless it is full."""
        if self.full:
            raise QueueFullError("full")
        with self.changed:
            self.admitted.append(self.names[id(request)])
            self.woken.append(call)
            self.changed.notify_all()

    def letter(self, arrival: Arrival, error: Exception) -> Unanswerable:
        """Ends it without an answer."""
        return Unanswerable(arrival.receipt, str(error))

    def end(self, item: Ended, wait: bool) -> None:  # noqa: FBT001  # the interface
        """Keeps it."""
        with self.changed:
            self.ended.append((item, wait))
            self.changed.notify_all()

    def wait(self, count: int) -> None:
        """Waits until so many were admitted or have ended."""
        with self.changed:
            assert self.changed.wait_for(
                lambda: len(self.admitted) + len(self.ended) >= count, PATIENCE_S
            )


@pytest.mark.parametrize(
    ("made", "cheap"),
    [
        (arrival(), True),
        (arrival(bytes(CHEAP_BYTES + 1)), False),
        (arrival(b"x", JPEG), False),
        (Arrival("t", bytes(10**6), Receipt(1, 0, 1, 1), 0.0, user={HEADER_LENGTH: "151"}), True),
        (
            Arrival("t", bytes(10**6), Receipt(1, 0, 1, 1), 0.0, user={HEADER_LENGTH: "9" * 5}),
            False,
        ),
    ],
)
def test_small_json_and_tensors_are_cheap(made: Arrival, cheap: bool) -> None:  # noqa: FBT001  # a case
    """Images and large headers are not, however small or large the rest is."""
    assert is_cheap(made) is cheap


def test_what_is_cheap_is_admitted_at_once_and_wakes_nobody() -> None:
    """On the caller's thread; the caller wakes the devices for all of its turn."""
    desk = Desk()
    assert desk.intake.take(arrival(b"a"), at_once=True)
    assert desk.admitted == [b"a"]
    assert desk.woken == [False]
    assert desk.threads == {threading.current_thread().name}


def test_no_request_overtakes_another() -> None:
    """Slow ones first, on three threads that end in the opposite order: admitted as they came."""
    gates = {b"%d" % n: threading.Event() for n in range(3)}
    started = threading.Semaphore(0)

    def decode(made: Arrival) -> None:
        gate = gates.get(bytes(made.payload))
        started.release()
        if gate is not None:
            assert gate.wait(PATIENCE_S)

    desk = Desk(decode)
    desk.intake.start()
    for n in range(3):
        assert desk.intake.take(arrival(b"%d" % n, JPEG), at_once=True)
    for _ in range(3):
        assert started.acquire(timeout=PATIENCE_S)
    assert desk.intake.take(arrival(b"cheap"), at_once=True)
    assert desk.admitted == []
    for n in (2, 1, 0):
        gates[b"%d" % n].set()
    desk.wait(4)
    assert desk.admitted == [b"0", b"1", b"2", b"cheap"]
    assert set(desk.woken) == {True}
    desk.intake.stop(PATIENCE_S)
    assert desk.intake.waiting == 0
    assert desk.busy == {}
    assert all(name.startswith("intake-") for name in desk.threads)


def test_what_cannot_be_decoded_or_admitted_ends() -> None:
    """With the error and where to answer it; without a trace that would keep the body alive."""

    def decode(made: Arrival) -> None:
        if made.payload == b"bad":
            raise ExpiredError("bad")
        if made.payload == b"fault":
            raise RuntimeError("a fault of ours")

    desk = Desk(decode)
    desk.intake.take(arrival(b"bad"), at_once=True)
    desk.intake.take(arrival(b"fault"), at_once=True)
    desk.full = True
    desk.intake.take(arrival(b"one too many"), at_once=True)
    errors = [item.error for item, _ in desk.ended if isinstance(item, Outcome)]
    assert [error.code if error else "" for error in errors] == [
        "expired",
        "internal",
        "queue_full",
    ]
    assert all(error is not None and error.__traceback__ is None for error in errors)
    assert [wait for _, wait in desk.ended] == [False] * 3


def test_what_nobody_can_be_answered_for_ends_too() -> None:
    """With a letter in the place of an answer."""
    desk = Desk()
    desk.intake.take(Arrival("nowhere", b"{}", Receipt(1, 0, 1, 1), 0.0), at_once=True)
    assert [item for item, _ in desk.ended] == [
        Unanswerable(Receipt(1, 0, 1, 1), "nobody to answer")
    ]


def test_the_queue_is_bounded_for_qos_0() -> None:
    """Before the threads start nothing leaves it; QoS 1 is bounded by the broker."""
    desk = Desk()
    for _ in range(ARRIVALS):
        assert desk.intake.take(arrival(b"x", OCTET_STREAM, 0), at_once=False)
    assert not desk.intake.take(arrival(b"x", OCTET_STREAM, 0), at_once=False)
    assert desk.intake.take(arrival(b"x"), at_once=False)
    assert repr(desk.intake) == f"<Intake {ARRIVALS + 1} wait to be decoded>"
    desk.intake.start()
    desk.intake.stop(PATIENCE_S)
    assert len(desk.admitted) == ARRIVALS + 1
