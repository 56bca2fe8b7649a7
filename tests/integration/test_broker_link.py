"""`BrokerLink` against a real mosquitto: connects, receives, acknowledges, publishes; limits."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from edged.metrics import Metrics
from edged.serve.request import Reply
from tests.doubles.broker import Mosquitto
from tests.doubles.observed_link import STATUS, TOPIC, running, subscribed, wait_until
from tests.doubles.wire import WAIT_S, Ask, WireClient


def test_it_connects_subscribes_and_is_born(broker: Mosquitto) -> None:
    """LinkUp with epoch 1, the retained birth, and requests on both forms of topic arrive."""
    with WireClient(broker) as client, subscribed(broker) as (link, heard):
        (up,) = heard.ups()
        assert (up.epoch, up.session_present) == (1, False)
        assert link.alive()
        assert "connected, connection 1" in repr(link)
        assert client.wait_message(STATUS).json() == {"state": "online", "session": 1}
        client.publish(Ask(TOPIC, b"one"))
        client.publish(Ask(f"{TOPIC}/rq/plc/7", b"two"))
        assert [arrival.topic for arrival in heard.wait_arrivals(2)] == [
            TOPIC,
            f"{TOPIC}/rq/plc/7",
        ]


def test_an_arrival_has_every_property(broker: Mosquitto) -> None:
    """Topic, payload, QoS, all MQTT 5 properties and the time reach the handler as sent."""
    with WireClient(broker) as client, subscribed(broker) as (_, heard):
        before = time.monotonic()
        client.publish(
            Ask(
                TOPIC, b"\x00body", reply="edged/v1/dev/reply/me", correlation=b"\x00\xff",
                content_type="image/png", expiry_s=70,
                user=(("priority", "urgent"), ("x", "1"), ("x", "2")),
            )
        )  # fmt: skip
        client.publish(Ask(TOPIC, b"bare", qos=0))
        full, bare = heard.wait_arrivals(2)
        assert full.topic == TOPIC
        assert full.payload == b"\x00body"
        assert (full.receipt.epoch, full.receipt.order, full.receipt.qos) == (1, 1, 1)
        assert before <= full.received <= time.monotonic()
        assert full.response_topic == "edged/v1/dev/reply/me"
        assert full.correlation == b"\x00\xff"
        assert full.content_type == "image/png"
        assert full.expiry_s is not None
        assert 0 < full.expiry_s <= 70
        assert full.user == {"priority": "urgent", "x": "2"}
        assert not full.retained
        assert (bare.receipt.qos, bare.receipt.order) == (0, 0)
        assert (bare.response_topic, bare.correlation, bare.content_type) == ("", None, "")
        assert (bare.expiry_s, dict(bare.user)) == (None, {})


def test_qos_2_arrives_as_qos_1(broker: Mosquitto) -> None:
    """The subscription is QoS 1, so a QoS 2 request needs one acknowledgement like any other."""
    with WireClient(broker) as client, subscribed(broker) as (link, heard):
        client.publish(Ask(TOPIC, b"x", qos=2))
        (arrival,) = heard.wait_arrivals(1)
        assert arrival.receipt.qos == 1
        assert link.acknowledge(arrival.receipt)


def test_a_retained_request_is_marked(broker: Mosquitto) -> None:
    """What the broker sends because it was retained is told apart from what is published now."""
    with WireClient(broker) as client:
        client.publish(Ask(TOPIC, b"old", retain=True))
        client.flush()
        with subscribed(broker) as (_, heard):
            (arrival,) = heard.wait_arrivals(1)
            assert arrival.retained


def test_the_brokers_receive_maximum_bounds_the_window(tmp_path: Path) -> None:
    """The window told to the publisher is the smaller of our setting and the broker's limit."""
    with Mosquitto(tmp_path, ["max_inflight_messages 7"]) as broker:
        with running(broker) as (_, heard):
            heard.wait(lambda: bool(heard.ups()))
            assert heard.ups()[0].window == 7
        with running(broker, client_id="other", send_window=3) as (_, heard):
            heard.wait(lambda: bool(heard.ups()))
            assert heard.ups()[0].window == 3


def test_the_brokers_packet_limit_is_passed_on(tmp_path: Path) -> None:
    """Largest packet that the broker takes; 0 where it names none."""
    with (
        Mosquitto(tmp_path, ["max_packet_size 5000"]) as broker,
        running(broker) as (_, heard),
    ):
        heard.wait(lambda: bool(heard.ups()))
        assert heard.ups()[0].max_packet_bytes == 5000


def test_our_receive_maximum_holds_the_broker_back(broker: Mosquitto) -> None:
    """With 3 allowed, the broker sends the fourth only after an acknowledgement."""
    with WireClient(broker) as client, subscribed(broker, receive_maximum=3) as (link, heard):
        for body in (b"1", b"2", b"3", b"4", b"5"):
            client.publish(Ask(TOPIC, body))
        client.publish(Ask(TOPIC, b"qos 0 is not held back", qos=0))
        first = heard.wait_arrivals(4)
        assert [arrival.payload for arrival in first[:3]] == [b"1", b"2", b"3"]
        assert first[3].receipt.qos == 0
        assert link.acknowledge(first[0].receipt)
        # mosquitto 2.0.11 now sends not one but up to three more.
        assert heard.wait_arrivals(5)[4].payload == b"4"


def test_a_packet_above_our_maximum_is_not_delivered(broker: Mosquitto) -> None:
    """The broker keeps a message back that is larger than we take; the next one comes."""
    with WireClient(broker) as client, subscribed(broker, max_packet_bytes=2048) as (_, heard):
        client.publish(Ask(TOPIC, bytes(4000)))
        client.publish(Ask(TOPIC, b"small"))
        assert heard.wait_arrivals(1)[0].payload == b"small"


def test_nagles_algorithm_is_off(broker: Mosquitto) -> None:
    """The connection has TCP_NODELAY set, or small replies would be held back up to 40 ms."""
    with subscribed(broker) as (link, _):
        connection = link._out.connection
        assert connection is not None
        sock = getattr(connection._stream, "_socket", None)
        assert isinstance(sock, socket.socket)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def test_a_fault_in_a_handler_does_not_end_the_thread(
    broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged and counted; later messages arrive, numbered so that none is waited for."""
    metrics = Metrics()
    with WireClient(broker) as client, running(broker, metrics) as (link, heard):
        heard.wait(lambda: len(heard.delivered) >= 1)
        heard.fail = True
        client.publish(Ask(TOPIC, b"lost"))
        assert wait_until(lambda: metrics.value("callback_failures_total") == 1)
        heard.fail = False
        client.publish(Ask(TOPIC, b"next"))
        (arrival,) = heard.wait_arrivals(1)
        assert arrival.payload == b"next"
        assert arrival.receipt.order == 1
        assert link.alive()
        assert link.acknowledge(arrival.receipt)
    assert "a fault in a handler" in caplog.text


def test_replies_are_published_with_every_property(broker: Mosquitto) -> None:
    """What the requester reads is what was handed over; `delivered` names the packet."""
    with WireClient(broker) as client, subscribed(broker) as (link, heard):
        reply = Reply(
            "edged/v1/dev/reply/me", b"\x00answer", 1, b"\x00\x01", "application/json", 50,
            (("status", "200"), ("status", "again"), ("träce", "ü")),
        )  # fmt: skip
        mid = link.publish(reply)
        got = client.wait_message("edged/v1/dev/reply/me")
        assert got.payload == b"\x00answer"
        assert got.correlation == b"\x00\x01"
        assert got.content_type == "application/json"
        assert got.expiry_s is not None
        assert 0 < got.expiry_s <= 50
        assert got.user == list(reply.user)
        assert got.qos == 1
        heard.wait(lambda: mid in heard.delivered)


@pytest.mark.parametrize("topic", ["edged/#", "edged/+/x", ""])
def test_a_topic_that_cannot_be_published_to_is_not_taken(broker: Mosquitto, topic: str) -> None:
    """A wildcard or nothing: refused with None, and the connection stays."""
    with subscribed(broker) as (link, heard):
        assert link.publish(Reply(topic, b"x", 1)) is None
        mid = link.publish(Reply("edged/v1/dev/reply/me", b"x", 1))
        heard.wait(lambda: mid in heard.delivered)
        assert len(heard.ups()) == 1


def test_many_threads_may_publish_and_acknowledge(broker: Mosquitto) -> None:
    """Four threads at once: every message arrives once and whole, none is torn by another."""
    bodies = {b"%d:" % n + bytes([n % 251]) * (1 + 37 * n) for n in range(200)}
    todo = sorted(bodies)
    with WireClient(broker) as client, subscribed(broker) as (link, heard):

        def publish(number: int) -> None:
            for body in todo[number::4]:
                assert link.publish(Reply("edged/v1/dev/reply/me", body, 1)) is not None

        threads = [threading.Thread(target=publish, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        got = client.wait_messages("edged/v1/dev/reply/me", len(bodies))
        assert sorted(message.payload for message in got) == todo
        assert len(heard.ups()) == 1


def test_what_the_broker_does_not_take_is_not_sent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A packet above the broker's limit would end the connection: it is refused before."""
    with (
        Mosquitto(tmp_path, ["max_packet_size 2000"]) as broker,
        running(broker) as (link, heard),
    ):
        heard.wait(lambda: len(heard.delivered) >= 1)
        assert link.publish(Reply("edged/v1/dev/reply/me", bytes(2000), 1)) is None
        fits = 2000 - 7 - len("edged/v1/dev/reply/me") - 3
        mid = link.publish(Reply("edged/v1/dev/reply/me", bytes(fits), 1))
        heard.wait(lambda: mid in heard.delivered)
        assert heard.downs() == []
    assert "at most 2000" in caplog.text
