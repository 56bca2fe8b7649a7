"""Replies and acknowledgements by example: what goes out when, in which order."""

from __future__ import annotations

from edged.serve.duplicates import Duplicates
from edged.serve.publish import AckQueue, Publisher, PublisherPorts
from edged.serve.request import Outcome, Receipt, Reply


class Link:
    """A broker link that writes down what it is told."""

    def __init__(self) -> None:
        self.said: list[tuple[str, object]] = []
        self.takes = True
        self._mid = 0
        ports = PublisherPorts(self._send, self._acknowledge, self._ended, self._repeated)
        self.publisher = Publisher(ports, Duplicates())

    def _send(self, reply: Reply) -> int | None:
        if not self.takes:
            return None
        self._mid += 1
        self.said.append(("send", reply.topic))
        return self._mid

    def _acknowledge(self, receipt: Receipt) -> bool:
        self.said.append(("acknowledge", receipt.order))
        return True

    def _ended(self, outcome: Outcome, sent: bool) -> None:  # noqa: FBT001  # the interface
        self.said.append(("ended" if sent else "unsent", outcome.receipt.order))

    def _repeated(self, how: str) -> None:
        self.said.append((how, ""))

    def take_said(self) -> list[tuple[str, object]]:
        """What was said since the last call."""
        said, self.said = self.said, []
        return said

    def reply(self, order: int, *, qos: int = 1, epoch: int = 1) -> None:
        """Answers arrival number ``order`` on the topic of that name."""
        outcome = Outcome(Receipt(epoch, order, order, qos), None, "m")
        self.publisher.reply(outcome, Reply(str(order), b"", qos))


def test_a_request_is_acknowledged_only_after_its_reply_is_with_the_broker() -> None:
    """The reply's own acknowledgement releases the request's, in the order of arrival.

    An end is told after the acknowledgements it releases: a drain that has seen them all may go.
    """
    link = Link()
    link.publisher.connected(1, 10)

    link.reply(2)
    link.reply(1)
    assert link.take_said() == [("send", "2"), ("send", "1")]

    link.publisher.delivered(1)  # the reply to arrival 2, which is not the first
    assert link.take_said() == [("ended", 2)]

    link.publisher.delivered(2)
    assert link.take_said() == [("acknowledge", 1), ("acknowledge", 2), ("ended", 1)]


def test_replies_in_flight_stay_within_the_window() -> None:
    """The broker's receive maximum holds replies back until it has acknowledged others."""
    link = Link()
    link.publisher.connected(1, 2)
    for order in (1, 2, 3):
        link.reply(order)

    assert link.take_said() == [("send", "1"), ("send", "2")]
    assert link.publisher.backlog == 1
    assert repr(link.publisher) == "<Publisher connected, 2 of 2 in flight, 1 wait>"
    link.publisher.delivered(1)
    assert link.take_said() == [("acknowledge", 1), ("ended", 1), ("send", "3")]


def test_without_a_connection_qos_1_waits_and_qos_0_is_dropped() -> None:
    """QoS 1 replies go out after the reconnection, in order; QoS 0 ones end unsent."""
    link = Link()
    link.publisher.connected(1, 10)
    link.publisher.disconnected()
    link.reply(1)
    link.reply(7, qos=0)
    link.reply(2)
    assert link.take_said() == [("unsent", 7)]
    assert repr(link.publisher) == "<Publisher not connected, 0 of 10 in flight, 2 wait>"

    link.publisher.connected(2, 10)

    assert link.take_said() == [("send", "1"), ("send", "2")]


def test_acknowledgements_of_an_older_connection_are_void() -> None:
    """After a reconnection packet identifiers start again, so nothing old is acknowledged."""
    link = Link()
    link.publisher.connected(1, 10)
    link.reply(1)
    link.publisher.disconnected()
    link.publisher.connected(2, 10)
    link.take_said()

    link.publisher.delivered(1)
    assert link.take_said() == [("ended", 1)]

    link.reply(1, epoch=2)
    link.publisher.delivered(2)
    assert link.take_said() == [("send", "1"), ("acknowledge", 1), ("ended", 1)]


def test_what_has_no_reply_does_not_hold_up_the_order() -> None:
    """A dropped arrival, an unanswerable one and one that the link refuses are acknowledged."""
    link = Link()
    link.publisher.connected(1, 10)
    link.publisher.dropped(Receipt(1, 1, 1, 1))
    link.publisher.reply(Outcome(Receipt(1, 2, 2, 1), None, "m"), None)
    link.takes = False
    link.reply(3)

    assert link.take_said() == [
        ("acknowledge", 1), ("acknowledge", 2), ("unsent", 2), ("acknowledge", 3), ("unsent", 3),
    ]  # fmt: skip


def test_a_delivery_of_something_else_is_no_end() -> None:
    """Reports of ours are acknowledged by the broker too."""
    link = Link()
    link.publisher.connected(1, 10)
    link.reply(1)
    link.take_said()

    link.publisher.delivered(99)

    assert link.take_said() == []


def test_an_arrival_may_end_before_its_connection_is_told_of() -> None:
    """Its acknowledgement is given, and `connected` does not void what came after it."""
    acks = AckQueue()
    acks.connected(1)

    assert acks.finished(Receipt(2, 1, 7, 1)) == [Receipt(2, 1, 7, 1)]
    acks.connected(2)
    assert acks.finished(Receipt(1, 1, 7, 1)) == []
    assert acks.finished(Receipt(2, 2, 8, 1)) == [Receipt(2, 2, 8, 1)]
    assert acks.finished(Receipt(4, 1, 7, 1)) == [Receipt(4, 1, 7, 1)]
    acks.connected(3)  # told of late, and gone already
    acks.connected(4)
    assert acks.finished(Receipt(4, 2, 8, 1)) == [Receipt(4, 2, 8, 1)]


def test_ack_queue_says_what_it_waits_for() -> None:
    """The log shows the next number and how many wait behind it."""
    acks = AckQueue()
    acks.connected(3)
    second = Receipt(3, 2, 8, 1)

    assert acks.finished(second) == []
    assert repr(acks) == "<AckQueue next 1, 1 wait for it>"
    assert acks.finished(Receipt(3, 0, 0, 0)) == []
    assert acks.finished(Receipt(2, 1, 7, 1)) == []
    assert acks.finished(Receipt(3, 1, 7, 1)) == [Receipt(3, 1, 7, 1), second]


def test_a_reply_that_the_broker_rejects_counts_as_lost() -> None:
    """It ends unsent, makes room in the window, and does not hold up the acknowledgements."""
    link = Link()
    link.publisher.connected(1, 1)
    link.reply(1)
    link.reply(2)
    assert link.take_said() == [("send", "1")]

    link.publisher.rejected(1)

    assert link.take_said() == [("acknowledge", 1), ("unsent", 1), ("send", "2")]
