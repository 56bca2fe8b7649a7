"""`BrokerLink` against a real mosquitto: connects, receives, acknowledges, is lost, comes back."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from edged.backoff import Backoff
from edged.metrics import Metrics
from edged.serve.mqtt import BrokerLink, LinkHandlers
from edged.serve.request import Arrival, LinkDown, LinkUp, Reply
from edged.settings import BrokerSettings
from tests.doubles.broker import Mosquitto
from tests.doubles.wire import WAIT_S, Ask, WireClient

TOPIC = "edged/v1/dev/infer/m"
FILTERS = ("edged/v1/dev/infer/+", "edged/v1/dev/infer/+/rq/+/+")
STATUS = "edged/v1/dev/status"


class Heard:
    """Whom the link tells: keeps everything, and wakes whoever waits for it."""

    def __init__(self) -> None:
        self.arrivals: list[Arrival] = []
        self.delivered: list[int] = []
        self.changes: list[tuple[float, LinkUp | LinkDown]] = []
        self.fail = False
        self._changed = threading.Condition()

    def handlers(self) -> LinkHandlers:
        """As the link wants them."""
        return LinkHandlers(self.arrived, self._delivered, self._link, self._status)

    def arrived(self, arrival: Arrival) -> bool:
        """Keeps it, or fails if it was told to."""
        if self.fail:
            raise RuntimeError("a fault in a handler")
        return self._keep(self.arrivals.append, arrival)

    def _delivered(self, mid: int) -> None:
        self._keep(self.delivered.append, mid)

    def _link(self, change: LinkUp | LinkDown) -> None:
        self._keep(self.changes.append, (time.monotonic(), change))

    def _keep(self, append: Callable[..., None], item: object) -> bool:
        with self._changed:
            append(item)
            self._changed.notify_all()
        return True

    @staticmethod
    def _status(state: str, session: int) -> bytes:
        return json.dumps({"state": state, "session": session}).encode()

    def wait(self, condition: Callable[[], bool]) -> None:
        """Waits until something that was heard makes the condition true."""
        with self._changed:
            assert self._changed.wait_for(condition, WAIT_S), (self.arrivals, self.changes)

    def wait_arrivals(self, count: int) -> list[Arrival]:
        """The arrivals, once there are so many."""
        self.wait(lambda: len(self.arrivals) >= count)
        return self.arrivals

    def ups(self) -> list[LinkUp]:
        """Connections so far."""
        return [change for _, change in self.changes if isinstance(change, LinkUp)]

    def downs(self) -> list[LinkDown]:
        """Losses so far."""
        return [change for _, change in self.changes if isinstance(change, LinkDown)]


def settings(broker: Mosquitto, **more: object) -> BrokerSettings:
    """Short pauses; everything else as by default."""
    values = {"host": broker.host, "port": broker.port, "backoff_min_s": 0.05, "backoff_max_s": 0.2}
    return BrokerSettings.model_validate(values | more)


@contextmanager
def running(
    broker: Mosquitto, metrics: Metrics | None = None, *, client_id: str = "edged-dev",
    **more: object,
) -> Iterator[tuple[BrokerLink, Heard]]:  # fmt: skip
    """A link that was started; stopped in order at the end."""
    heard = Heard()
    link = BrokerLink(
        settings(broker, **more), client_id, STATUS, FILTERS, heard.handlers(), metrics or Metrics()
    )
    link.start()
    try:
        yield link, heard
    finally:
        link.stop(b'{"state":"offline"}')


@contextmanager
def subscribed(broker: Mosquitto, **more: object) -> Iterator[tuple[BrokerLink, Heard]]:
    """A link whose subscriptions stand: the broker acknowledged the birth that follows them."""
    with running(broker, **more) as (link, heard):  # type: ignore[arg-type]  # passed on
        heard.wait(lambda: len(heard.delivered) >= 1)
        yield link, heard


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


def test_what_was_not_acknowledged_comes_again(broker: Mosquitto) -> None:
    """After a new connection the broker redelivers exactly what had no acknowledgement.

    1. Four requests arrive, the first two are acknowledged.
    2. The link is cut without a farewell and a new one of the same name connects.
    3. The last two arrive again, numbered from 1 on, with the new epoch's session.
    """
    with WireClient(broker) as client:
        with subscribed(broker) as (link, heard):
            for body in (b"a", b"b", b"c", b"d"):
                client.publish(Ask(TOPIC, body))
            arrivals = heard.wait_arrivals(4)
            assert [arrival.receipt.order for arrival in arrivals] == [1, 2, 3, 4]
            assert all(link.acknowledge(arrival.receipt) for arrival in arrivals[:2])
        with running(broker) as (_, again):
            repeated = again.wait_arrivals(2)
            assert [arrival.payload for arrival in repeated] == [b"c", b"d"]
            assert [arrival.receipt.order for arrival in repeated] == [1, 2]
            assert again.ups()[0].session_present
            client.publish(Ask(TOPIC, b"e"))
            assert [arrival.payload for arrival in again.wait_arrivals(3)] == [b"c", b"d", b"e"]


def test_a_broker_that_goes_and_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """LinkDown, LinkUp with the next epoch, old acknowledgements void, requests delivered again."""
    metrics = Metrics()
    with (
        Mosquitto(tmp_path, persistent=True) as broker,
        WireClient(broker) as client,
        running(broker, metrics) as (link, heard),
    ):
        heard.wait(lambda: len(heard.delivered) >= 1)
        client.publish(Ask(TOPIC, b"kept"))
        (old,) = heard.wait_arrivals(1)
        broker.stop()
        heard.wait(lambda: len(heard.downs()) == 1)
        assert heard.downs()[0].epoch == 1
        assert not link.connected.is_set()
        assert not link.acknowledge(old.receipt)
        broker.start()
        heard.wait(lambda: len(heard.ups()) == 2)
        assert heard.ups()[1].epoch > 1
        assert heard.ups()[1].session_present
        again = heard.wait_arrivals(2)[1]
        assert again.payload == b"kept"
        assert again.receipt.epoch == heard.ups()[1].epoch
        assert not link.acknowledge(old.receipt)
        assert link.acknowledge(again.receipt)
        assert [type(change) for _, change in heard.changes] == [LinkUp, LinkDown, LinkUp]
    assert metrics.value("broker_losses_total") == 1
    assert metrics.value("sessions_lost_total") == 0
    assert sum("no broker at" in record.message for record in caplog.records) == 1


def test_a_session_that_was_not_kept_is_counted_and_subscribed_anew(tmp_path: Path) -> None:
    """A broker without persistence comes back empty: requests still arrive, and it is counted."""
    metrics = Metrics()
    with (
        Mosquitto(tmp_path) as broker,
        WireClient(broker) as client,
        running(broker, metrics) as (_, heard),
    ):
        heard.wait(lambda: len(heard.delivered) >= 1)
        broker.kill()
        broker.start()
        heard.wait(lambda: len(heard.ups()) == 2 and len(heard.delivered) >= 2)
        client.wait_connections(2)
        client.publish(Ask(TOPIC, b"new"))
        assert heard.wait_arrivals(1)[0].payload == b"new"
    assert metrics.value("sessions_lost_total") == 1


def test_a_broker_that_is_down_at_start_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning however many attempts fail, and the broker is picked up when it appears."""
    broker = Mosquitto(tmp_path)
    with running(broker, backoff_max_s=0.05) as (link, heard):
        assert wait_until(lambda: link.epoch >= 4)
        assert not link.connected.is_set()
        broker.start()
        heard.wait(lambda: bool(heard.ups()))
        assert heard.downs() == []
    broker.stop()
    warned = [r for r in caplog.records if "no broker at" in r.message]
    assert len(warned) == 1
    assert f"{broker.host}:{broker.port}" in warned[0].message


def wait_until(condition: Callable[[], bool]) -> bool:
    """Looks again and again: for what nobody announces."""
    until = time.monotonic() + WAIT_S
    pause = threading.Event()
    while not condition() and time.monotonic() < until:
        pause.wait(0.01)
    return condition()


def test_a_wrong_password_is_said_without_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Refused: one warning with the broker's reason, no password in any log line, no connection."""
    passwords = tmp_path / "passwords"
    passwords.write_text("")
    subprocess.run(
        ["mosquitto_passwd", "-b", str(passwords), "edged", "right"], check=True, timeout=20
    )
    lines = ["allow_anonymous false", f"password_file {passwords}"]
    caplog.set_level(logging.DEBUG)
    with Mosquitto(tmp_path / "broker", lines) as broker:
        wrong = {"username": "edged", "password": SecretStr("wr0ng-secret")}
        with running(broker, **wrong) as (link, heard):  # type: ignore[arg-type]  # settings
            assert wait_until(lambda: link.epoch >= 3)
            assert heard.ups() == []
        right = {"username": "edged", "password": SecretStr("right")}
        with running(broker, **right) as (link, heard):  # type: ignore[arg-type]  # settings
            heard.wait(lambda: bool(heard.ups()))
    warned = [r.message for r in caplog.records if "no broker at" in r.message]
    assert len(warned) == 1
    assert "refuses this client: Not authorized" in warned[0]
    assert "wr0ng-secret" not in caplog.text


@contextmanager
def scripted_broker(*answers: bytes) -> Iterator[int]:
    """Answers what each connection sends with these bytes, then closes; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    for answer in answers:
                        connection.recv(4096)
                        connection.sendall(answer)
                    while len(answers) > 1 and connection.recv(4096):
                        pass  # not to close before the last answer is read

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield int(server.getsockname()[1])
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(WAIT_S)


ACCEPTED = bytes.fromhex("2003000000")
REFUSED = bytes.fromhex("9005000100" + "8787")


def test_a_refused_subscription_is_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A SUBACK of 0x87 is said, with the filters to allow, and counted.

    By a scripted broker: mosquitto 2.0 grants what it then does not deliver.
    """
    metrics = Metrics()
    with (
        scripted_broker(ACCEPTED, REFUSED) as port,
        running(Mosquitto(tmp_path, port=port), metrics),
    ):
        assert wait_until(lambda: metrics.value("subscriptions_refused_total") == 1)
    assert "Not authorized" in caplog.text
    assert all(topic in caplog.text for topic in FILTERS)


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
        sock = link._client.socket()
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


def test_publishing_without_a_connection(tmp_path: Path) -> None:
    """QoS 0 is not taken; QoS 1 is kept and goes out with the next connection."""
    broker = Mosquitto(tmp_path)
    with running(broker, backoff_max_s=0.05) as (link, heard):
        assert wait_until(lambda: link.epoch >= 1)
        assert link.publish(Reply("edged/v1/dev/reply/me", b"gone", 0)) is None
        mid = link.publish(Reply("edged/v1/dev/reply/me", b"kept", 1))
        assert mid is not None
        broker.start()
        heard.wait(lambda: mid in heard.delivered)
    broker.stop()


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


def test_a_clean_stop_says_farewell_and_no_will(tmp_path: Path) -> None:
    """The farewell is the retained status; no will follows a clean end, though its delay is 0."""
    with Mosquitto(tmp_path) as broker, WireClient(broker) as client:
        with running(broker, will_delay_s=0) as (link, heard):
            heard.wait(lambda: bool(heard.ups()))
            link.stop(b'{"state":"offline","farewell":true}')
            assert not link.alive()
        client.flush()
        states = [message.json() for message in client.messages(STATUS)]
        assert states == [
            {"state": "online", "session": 1},
            {"state": "offline", "farewell": True},
        ]


PROGRAM = """
import sys, threading
from edged.metrics import Metrics
from edged.serve.mqtt import BrokerLink, LinkHandlers
from edged.settings import BrokerSettings
link = BrokerLink(
    BrokerSettings(port=int(sys.argv[1]), will_delay_s=0), "edged-dev", sys.argv[2], ("a/b",),
    LinkHandlers(lambda a: True, lambda m: None, lambda c: None, lambda s, n: f"{s} {n}".encode()),
    Metrics(),
)
link.start()
threading.Event().wait()
"""


def test_the_will_appears_when_the_process_dies(broker: Mosquitto) -> None:
    """Killed, the broker publishes the will of that connection: `offline` with its number."""
    with WireClient(broker) as client:
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(broker.port), STATUS])
        try:
            assert client.wait_message(STATUS).payload == b"online 1"
        finally:
            process.kill()
            process.wait()
        assert client.wait_messages(STATUS, 2)[1].payload == b"offline 1"


def test_two_links_of_one_name_do_not_storm(broker: Mosquitto) -> None:
    """Each takes the session from the other, but the pauses between the connections grow."""
    longest = 0.4
    with (
        running(broker, backoff_max_s=longest) as (_, one),
        running(broker, backoff_max_s=longest) as (_, two),
    ):
        one.wait(lambda: len(one.ups()) >= 6)
        two.wait(lambda: len(two.ups()) >= 5)
    downs = [when for when, change in one.changes if isinstance(change, LinkDown)]
    ups = [when for when, change in one.changes if isinstance(change, LinkUp)]
    pauses = [up - down for down, up in zip(downs, ups[1:], strict=False)]
    # The least pause is half of the ceiling, which doubles from 0.05 s; a slow machine adds to it.
    for number, pause in enumerate(pauses[:5]):
        assert pause >= 0.5 * min(longest, 0.05 * 2**number)


TAKEN_OVER = bytes.fromhex("e0018e")


def test_a_broker_that_names_the_second_client_is_quoted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """DISCONNECT 0x8E (mosquitto 2.0.11 just closes) becomes a log line that says what to do."""
    with (
        scripted_broker(ACCEPTED, TAKEN_OVER) as port,
        running(Mosquitto(tmp_path, port=port)) as (_, heard),
    ):
        heard.wait(lambda: bool(heard.downs()))
        assert heard.downs()[0].reason == "Session taken over"
    assert "give each its own device.name" in caplog.text


@pytest.mark.parametrize("garbage", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00" * 9, b""])
def test_a_server_that_is_no_broker_is_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, garbage: bytes
) -> None:
    """Garbage instead of a CONNACK: attempts go on with pauses, said once, the thread lives."""
    with scripted_broker(garbage) as port, running(Mosquitto(tmp_path, port=port)) as (link, heard):
        assert wait_until(lambda: link.epoch >= 4)
        assert link.alive()
        assert heard.ups() == []
    assert sum("no broker at" in record.message for record in caplog.records) == 1


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


# ------------------------------------------------------------------ back-off, pure


@given(
    st.floats(0.01, 10), st.floats(1, 10), st.lists(st.floats(0, 1, exclude_max=True), min_size=1)
)
def test_back_off_is_bounded_and_grows(
    shortest: float, factor: float, chances: list[float]
) -> None:
    """Each pause is between half its ceiling and its ceiling, which doubles up to the longest."""
    longest = shortest * factor
    backoff = Backoff(shortest, longest)
    for number, chance in enumerate(chances):
        ceiling = min(longest, shortest * 2.0**number)
        assert ceiling / 2 <= backoff.pause_s(0.0, chance) <= ceiling


def test_back_off_begins_anew_after_a_steady_connection_only() -> None:
    """A connection shorter than twice the longest pause does not reset it; a longer one does."""
    backoff = Backoff(1.0, 8.0)
    pauses = [backoff.pause_s(0.0, 0.0) for _ in range(3)]
    assert pauses == [0.5, 1.0, 2.0]
    backoff.connected(100.0)
    assert backoff.pause_s(115.9, 0.0) == 4.0
    backoff.connected(200.0)
    assert backoff.pause_s(216.0, 0.0) == 0.5
    assert "1 attempts" in repr(backoff)
