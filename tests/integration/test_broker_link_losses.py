"""`BrokerLink` and a connection that ends: lost, taken over, stopped, killed, and back again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edged.metrics import Metrics
from edged.serve.request import LinkDown, LinkUp, Reply
from tests.doubles.broker import Mosquitto
from tests.doubles.observed_link import STATUS, TOPIC, running, subscribed, wait_until
from tests.doubles.wire import Ask, WireClient


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
from edged.serve.link_handlers import LinkHandlers
from edged.serve.mqtt import BrokerLink
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
