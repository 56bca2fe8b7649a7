"""The client and a broker that is played packet by packet: windows, repetitions, nonsense."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import pytest

from edged.client.endpoint import Delivery, Endpoint, Publication
from edged.client.link import Link
from edged.errors import BrokerError
from tests.doubles.observed_link import wait_until
from tests.doubles.packets import publish_body
from tests.doubles.scripted_broker import RESUMED, Peer, ScriptedBroker

TOPIC = "edged/v1/double/infer/m"
WINDOW_OF_2 = bytes.fromhex("20 06 00 00 03 21 0002")


class Told:
    """What the link handed over."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self.rejected: Future[tuple[bytes, int]] = Future()

    def reject(self, correlation: bytes, reason: int) -> None:
        """The broker said no."""
        self.rejected.set_result((correlation, reason))


@contextmanager
def linked() -> Iterator[tuple[ScriptedBroker, Link, Told, Future[None]]]:
    """A link that begins to connect, and its broker."""
    told = Told()
    with ScriptedBroker() as broker:
        endpoint = Endpoint("double", broker.host, broker.port)
        link = Link(endpoint, "me", ("reply",), told.deliveries.append, 10, told.reject)
        try:
            yield broker, link, told, link.start()
        finally:
            broker.hang_up()
            link.close()


def publish(link: Link, number: int) -> None:
    """Hands one message over."""
    link.publish(Publication(TOPIC, b"%d" % number, "r", b"c%d" % number, "x/y"))


def let_in(broker: ScriptedBroker, answer: bytes = WINDOW_OF_2) -> Peer:
    """Takes the next connection and grants what it asks for."""
    peer = broker.accept()
    peer.accept_client(answer)
    peer.grant()
    return peer


def number_of(taken: tuple[int, bytes, bytes]) -> bytes:
    """The last byte of a PUBLISH: the number that `publish` gave it."""
    return taken[2][-1:]


def test_the_brokers_receive_maximum_is_kept() -> None:
    """Of four requests two are on the wire; each PUBACK lets the next one out, in order."""
    with linked() as (broker, link, _, connected):
        peer = let_in(broker)
        connected.result(10)
        for number in range(4):
            publish(link, number)
        first, second = peer.take(), peer.take()
        assert [number_of(first), number_of(second)] == [b"0", b"1"]
        peer.send(0x40, second[1])
        assert number_of(peer.take()) == b"2"
        peer.send(0x40, first[1])
        assert number_of(peer.take()) == b"3"


def test_what_was_not_acknowledged_is_sent_again_first() -> None:
    """After a loss: SUBSCRIBE, then what the broker may have seen, marked, then what is new."""
    with linked() as (broker, link, _, connected):
        peer = let_in(broker)
        connected.result(10)
        publish(link, 0)
        seen = peer.take()
        peer.close()
        assert wait_until(lambda: not link.is_up)
        publish(link, 1)
        peer = let_in(broker, RESUMED)
        again, new = peer.take(), peer.take()
        assert (again[0], again[1], number_of(again)) == (seen[0] | 8, seen[1], b"0")
        assert (new[0] & 8, number_of(new)) == (0, b"1")


def test_a_refusal_is_handed_over_with_its_correlation() -> None:
    """The broker takes the packet and says that it does not pass it on."""
    with linked() as (broker, link, told, connected):
        peer = let_in(broker)
        connected.result(10)
        publish(link, 7)
        peer.send(0x40, peer.take()[1] + b"\x97\x00")
        assert told.rejected.result(10) == (b"c7", 0x97)


def test_a_malformed_reply_does_not_come_for_ever() -> None:
    """The connection ends, with the reason, and the next one starts clean: the broker forgets."""
    with linked() as (broker, link, told, connected):
        peer = let_in(broker)
        connected.result(10)
        publish(link, 0)
        peer.take()
        peer.send(0x32, publish_body(b"reply\xff", mid=1))
        assert peer.read() == (0xE0, b"\x81")
        peer = broker.accept()
        first, asked = peer.read()
        assert (first, asked[7] & 2) == (0x10, 2)
        peer.send(0x20, b"\x00\x00\x00")
        peer.grant()
        assert number_of(peer.take()) == b"0"
        peer.send(0x32, publish_body(b"reply", payload=b"good", mid=1))
        assert peer.read() == (0x40, b"\x00\x01")
        assert wait_until(lambda: [each.payload for each in told.deliveries] == [b"good"])


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (bytes.fromhex("20 03 00 87 00"), "Not authorized"),
        (bytes.fromhex("90 03 00 01 01"), "out of turn"),
        (bytes.fromhex("20 01 00"), "malformed packet"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "did not let us in"),
    ],
)
def test_nonsense_instead_of_an_answer_is_said(answer: bytes, why: str) -> None:
    """Connecting fails with a reason, whatever listens there."""
    with linked() as (broker, _, _, connected):
        peer = broker.accept()
        peer.accept_client(answer)
        peer.close()
        with pytest.raises(BrokerError, match=why):
            connected.result(10)


def test_a_client_that_leaves_ends_its_session() -> None:
    """DISCONNECT with a session expiry of 0: the broker keeps nothing for it."""
    with linked() as (broker, link, _, connected):
        peer = let_in(broker)
        connected.result(10)
        link.close()
        assert peer.read() == (0xE0, bytes.fromhex("00 05 11 00000000"))
