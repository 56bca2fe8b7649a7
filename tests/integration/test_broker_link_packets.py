"""`BrokerLink` and a broker that is played packet by packet: what is on the wire, and when."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from edged.metrics import Metrics
from edged.mqtt import codec
from edged.serve.mqtt import BrokerLink
from edged.serve.request import Reply
from tests.doubles.observed_link import Heard, running, wait_until
from tests.doubles.packets import field, publish_body
from tests.doubles.scripted_broker import RESUMED, ScriptedBroker

TOPIC = b"edged/v1/dev/infer/m"


@contextmanager
def linked(
    metrics: Metrics | None = None, **more: object
) -> Iterator[tuple[ScriptedBroker, BrokerLink, Heard]]:
    """A link and its broker."""
    with ScriptedBroker() as broker, running(broker, metrics, **more) as (link, heard):  # type: ignore[arg-type]
        yield broker, link, heard
        broker.hang_up()


def reply(number: int) -> Reply:
    """One of QoS 1."""
    return Reply("r", b"%d" % number, 1)


def test_unacknowledged_replies_are_sent_again_in_order_within_the_window() -> None:
    """Four replies, a window of two, a lost connection: nothing is lost, and the birth comes last.

    1. With two on the wire, the third goes out when the first is acknowledged.
    2. The connection is lost; the broker has kept the session.
    3. The second and third come again, marked with DUP; then the fourth, which is new.
    """
    with linked(send_window=2, backoff_max_s=0.05) as (broker, link, heard):
        peer = broker.accept()
        peer.accept_client()
        peer.grant()
        _, birth, _ = peer.take()
        peer.send(0x40, birth)
        heard.wait(lambda: len(heard.delivered) == 1)
        mids = [link.publish(reply(n)) for n in range(4)]
        first, second = peer.take(), peer.take()
        assert [first[2], second[2]] == [b"0", b"1"]
        peer.send(0x40, first[1])
        third = peer.take()
        assert third[2] == b"2"
        peer.close()

        peer = broker.accept()
        peer.accept_client(RESUMED)
        again = [peer.take(), peer.take()]
        assert again == [(second[0] | 8, *second[1:]), (third[0] | 8, *third[1:])]
        peer.grant()
        for _, mid, _ in again:
            peer.send(0x40, mid)
        last = peer.take()
        assert (last[0], last[2]) == (0x32, b"3")
        assert peer.take()[2] == b'{"state": "online", "session": 2}'
        peer.send(0x40, last[1])
        heard.wait(lambda: set(mids) <= set(heard.delivered))


def test_a_broker_that_takes_less_after_a_reconnection_gets_no_more_at_once() -> None:
    """Four replies are on the wire when the connection is lost; the next takes one at a time."""
    one_at_a_time = bytes.fromhex("2006010003210001")
    with linked() as (broker, link, heard):
        peer = broker.accept()
        peer.accept_client()
        peer.grant()
        mids = [link.publish(reply(n)) for n in range(4)]
        birth, *_ = [peer.take() for _ in range(5)]
        peer.send(0x40, birth[1])
        heard.wait(lambda: len(heard.delivered) == 1)
        peer.close()

        peer = broker.accept()
        peer.accept_client(one_at_a_time)
        first = peer.take()
        peer.grant()  # comes next: not the second reply, which has to wait
        peer.send(0x30, publish_body(TOPIC, b"", b"x", 0))
        heard.wait_arrivals(1)
        assert heard.ups()[1].window == 1
        found = [first]
        for _ in range(4):
            peer.send(0x40, found[-1][1])
            found.append(peer.take())
        assert [body for _, _, body in found[:4]] == [b"0", b"1", b"2", b"3"]
        assert b"online" in found[4][2]
        heard.wait(lambda: set(mids) <= set(heard.delivered))


def test_the_birth_counts_in_the_window() -> None:
    """With a window of one, no reply goes out before the broker has taken the birth."""
    with linked(send_window=1) as (broker, link, heard):
        peer = broker.accept()
        peer.accept_client()
        peer.grant()
        heard.wait(lambda: bool(heard.ups()))
        assert link.publish(reply(1)) is not None
        _, birth, body = peer.take()
        assert b"online" in body
        peer.send(0x40, birth)
        assert peer.take()[2] == b"1"


def test_all_of_a_turn_is_sent_at_once_and_in_order() -> None:
    """What handlers acknowledge and publish for arrivals of one turn comes in their order."""
    with linked() as (broker, link, heard):
        peer = broker.accept()
        peer.accept_client()
        peer.grant()
        peer.take()
        for mid in (1, 2, 3):
            peer.send(0x32, publish_body(TOPIC, b"", b"x", mid))
        for arrival in heard.wait_arrivals(3):
            assert link.acknowledge(arrival.receipt)
        assert [peer.read() for _ in range(3)] == [(0x40, bytes((0, n))) for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("first", "body", "reason"),
    [
        (0x30, field(b"\xff") + b"\x00", 0x81),
        (0x34, publish_body(TOPIC, b"", b"x", 1), 0x82),
        (0x40, b"\x00", 0x81),
        (0x10, b"", 0x82),
    ],
)
def test_a_broker_that_breaks_the_rules_is_told_why(first: int, body: bytes, reason: int) -> None:
    """DISCONNECT with the reason code, and a new connection."""
    with linked(backoff_max_s=0.05) as (broker, _, heard):
        peer = broker.accept()
        peer.accept_client()
        peer.grant()
        peer.take()
        peer.send(first, body)
        assert peer.read() == (0xE0, bytes((reason,)))
        broker.accept().accept_client()
        heard.wait(lambda: len(heard.ups()) == 2)


def test_a_malformed_message_does_not_come_back_for_ever() -> None:
    """The second time it is an empty request: it gets its answer, and so its acknowledgement."""
    bad = publish_body(TOPIC, b"\x03\x00\x01\xff", b"x", 5)
    with linked(backoff_max_s=0.05) as (broker, link, heard):
        for dup in (0, 8):
            peer = broker.accept()
            peer.accept_client(RESUMED)
            peer.grant()
            peer.send(0x40, peer.take()[1])
            peer.send(0x32 | dup, bad)
            if not dup:
                assert peer.read() == (0xE0, b"\x81")
        (arrival,) = heard.wait_arrivals(1)
        assert (arrival.topic, arrival.payload, arrival.receipt.order) == ("", b"", 1)
        assert link.acknowledge(arrival.receipt)
        assert peer.read() == (0x40, b"\x00\x05")


def test_a_message_that_trips_over_a_fault_of_ours_is_answered_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the codec raises: counted, a new connection, and then it is an empty request."""
    metrics = Metrics()

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(codec, "decode_publish", fail)
    with linked(metrics, backoff_max_s=0.05) as (broker, link, heard):
        for number in (1, 2):
            peer = broker.accept()
            peer.accept_client(RESUMED)
            peer.grant()
            _, birth, _ = peer.take()
            peer.send(0x40, birth)
            peer.send(0x3A, publish_body(TOPIC, b"", b"x", 5))
            if number == 1:
                assert peer.read() == (0xE0, b"\x80")
        (arrival,) = heard.wait_arrivals(1)
        assert (arrival.topic, arrival.payload) == ("", b"")
        assert link.acknowledge(arrival.receipt)
        assert peer.read() == (0x40, b"\x00\x05")
        assert link.alive()
    assert metrics.value("callback_failures_total") == 2


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00" * 40, b"\xff" * 40, b"GET / HTTP/1.1\r\n\r\n", b"\x32\x03\x00\x09a",
        b"\x20\x03\x00\x00\x00", b"\x62\x02\x00\x01", b"\x90\x00", b"\xd0\x01x",
        b"\x30\xff\xff\xff\x7f", b"\x40\x02\x12\x34" * 1000,
    ],
)  # fmt: skip
def test_garbage_in_mid_connection_is_survived(garbage: bytes) -> None:
    """Noise, another protocol, packets out of place or of a false length, stray acknowledgements.

    Whatever the link makes of it, the next connection works, and the thread lives.
    """
    with linked(backoff_max_s=0.05) as (broker, link, heard):
        peer = broker.accept()
        peer.accept_client()
        peer.grant()
        _, birth, _ = peer.take()
        peer.send(0x40, birth)
        heard.wait(lambda: len(heard.delivered) == 1)
        peer.send_raw(garbage)
        peer.finish()
        peer = broker.accept()
        peer.accept_client(RESUMED)
        peer.grant()
        peer.take()
        peer.send(0x32, publish_body(TOPIC, b"", b"sound", 7))
        (arrival,) = heard.wait_arrivals(1)
        assert bytes(arrival.payload) == b"sound"
        assert link.acknowledge(arrival.receipt)
        assert peer.read() == (0x40, b"\x00\x07")


def test_a_network_thread_that_hangs_is_noticed() -> None:
    """A handler that does not come back is named after its time; waiting for the broker is none."""
    with linked() as (broker, link, heard):
        peer = broker.accept()
        peer.accept_client()
        peer.grant()
        peer.take()
        later = time.monotonic() + 3600
        assert wait_until(lambda: link.stuck(later, 30) is None)
        heard.hold.clear()
        peer.send(0x30, publish_body(TOPIC, b"", b"x", 0))
        assert wait_until(lambda: "mqtt-net" in (link.stuck(later, 30) or ""))
        assert link.stuck(time.monotonic(), 3600) is None
        heard.hold.set()
        assert wait_until(lambda: link.stuck(later, 30) is None)


def test_a_silent_broker_is_pinged_and_left() -> None:
    """After the interval that the broker wants: a ping, then the end of the connection."""
    with linked(keepalive_s=60) as (broker, _, heard):
        peer = broker.accept()
        peer.accept_client(bytes.fromhex("20060000 03 130001"))
        peer.grant()
        peer.take()
        assert peer.read() == (0xC0, b"")
        peer.send(0xD0)
        assert peer.read() == (0xC0, b"")
        heard.wait(lambda: bool(heard.downs()))
        assert heard.downs()[0].reason == "Keep alive timeout"


def test_a_broker_that_never_answers_is_left() -> None:
    """Connected but without a CONNACK: the attempt ends after its time, and the next one begins."""
    with linked(connect_timeout_s=0.2, backoff_max_s=0.05) as (broker, link, heard):
        peers = [broker.accept() for _ in range(3)]
        assert len(peers) == 3
        assert heard.ups() == []
        assert wait_until(lambda: link.epoch >= 3)


def test_qos_0_behind_a_broker_that_reads_nothing_is_not_piled_up() -> None:
    """Some megabytes are kept for a slow broker; then QoS 0 is refused, and QoS 1 still taken."""
    with linked() as (broker, link, heard):
        peer = broker.accept()
        peer.accept_client()
        peer.grant()
        heard.wait(lambda: bool(heard.ups()))
        large = Reply("r", bytes(1 << 20), 0)
        taken = [link.publish(large) for _ in range(64)]
        assert taken[0] == 0
        assert taken[-1] is None
        assert taken.count(0) < 40
        assert link.publish(reply(1)) is not None
