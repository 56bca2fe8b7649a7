"""What may be on its way to the control plane's broker at once, and what waits to be said."""

from __future__ import annotations

from edged.metrics import Metrics
from edged.report.draft import Position, Row
from edged.report.link_messages import Connected, Delivered, Outgoing
from edged.report.sending import Batch
from edged.report.window import MOST_WAITING, Window, wire_bytes
from edged.report_settings import UplinkSettings

STATUS = 1
BATCH = Batch((Row(1, Position("event", "0" * 16, 1), "k", "", 1.0, 0.0, b"{}"),), "live")


class Link:
    """Notes what is published; packet identifiers go on from the status's."""

    def __init__(self, receive_maximum: int = 5, most_bytes: int = 0) -> None:
        self.published: list[Outgoing] = []
        self.stands = True
        self.metrics = Metrics()
        self.window = Window(UplinkSettings(), self._publish, self.metrics)
        self.window.connected(Connected(1, receive_maximum, most_bytes, STATUS))

    def _publish(self, message: Outgoing, epoch: int) -> int | None:
        assert epoch == 1
        self.published.append(message)
        return STATUS + len(self.published) if self.stands else None

    def answers(self, *mids: int, epoch: int = 1) -> list[object]:
        """The broker answers messages."""
        return [self.window.delivered(Delivered(epoch, mid, 0)) for mid in mids]


def answer(number: int = 0, *, retain: bool = False) -> Outgoing:
    """An answer, or with ``retain`` a reported document."""
    return Outgoing("t", b"%d" % number, retain=retain)


def test_answers_and_status_count_in_the_receive_maximum() -> None:
    """Of 5 the status has one and the farewell keeps one; the rest waits in its order."""
    link = Link(receive_maximum=5)
    for number in range(8):
        link.window.say(answer(number))

    assert not link.window.flush()
    assert [each.payload for each in link.published] == [b"0", b"1", b"2"]
    assert link.answers(STATUS, 2) == [None, None]
    assert not link.window.flush()
    assert [each.payload for each in link.published] == [b"0", b"1", b"2", b"3", b"4"]
    link.answers(3, 4, 5, 6)
    assert link.window.flush()
    assert len(link.published) == 8
    assert link.window.busy


def test_a_broker_that_takes_one_at_a_time_is_served() -> None:
    """Nothing is kept back for a farewell then."""
    link = Link(receive_maximum=1)
    link.window.say(answer())

    assert not link.window.flush()
    assert link.published == []
    link.answers(STATUS)
    assert not link.window.flush()
    assert len(link.published) == 1


def test_a_batch_comes_back_with_its_number_once_and_on_its_connection() -> None:
    """What another connection's broker says of the same packet identifier is not meant."""
    link = Link()

    assert link.window.send(answer(), (7, BATCH))
    assert link.answers(2, epoch=2) == [None]
    assert link.answers(2, 2) == [(7, BATCH), None]


def test_a_reported_document_takes_the_place_of_the_one_before() -> None:
    """Of one topic the last one is said; answers are all said, up to a number."""
    link = Link(receive_maximum=10)
    link.window.say(answer(1, retain=True))
    link.window.say(answer(2))
    link.window.say(answer(3, retain=True))
    link.window.flush()
    assert [each.payload for each in link.published] == [b"2", b"3"]

    for _ in range(MOST_WAITING + 3):
        link.window.say(answer())
    assert link.metrics.total("uplink_unsaid_total") == 3


def test_what_is_larger_than_the_broker_takes_is_dropped_and_counted() -> None:
    """It would end the connection; topic and properties count."""
    exact = Outgoing("t" * 10, b"x" * 100, user=(("name", "value"),), correlation=b"1")
    link = Link(most_bytes=wire_bytes(exact))
    assert wire_bytes(exact) == 13 + 10 + (3 + 16) + (5 + 4 + 5) + 4 + 100

    link.window.say(exact)
    link.window.say(Outgoing("t" * 10, b"x" * 101, user=exact.user, correlation=b"1"))
    link.window.flush()

    assert link.published == [exact]
    assert link.metrics.total("uplink_unsaid_total") == 1


def test_a_connection_that_is_gone_takes_its_messages_with_it() -> None:
    """What waited is not said on the next one, and without one nothing waits."""
    link = Link()
    link.window.say(answer())
    link.stands = False
    assert not link.window.flush()
    link.window.lost()
    link.window.say(answer())

    assert link.window.full
    assert not link.window.busy
    assert not link.window.send(answer(), (7, BATCH))
