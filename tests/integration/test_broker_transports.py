"""`BrokerLink` over every transport and both versions of MQTT, against a real mosquitto."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from edged.errors import BrokerError
from edged.mqtt.address import Address, open_stream
from edged.serve.request import Reply
from tests.doubles.broker import Mosquitto
from tests.doubles.listeners import listening
from tests.doubles.observed_link import TOPIC, running, wait_until
from tests.doubles.wire import Ask, WireClient

REPLY = "edged/v1/dev/reply/me"
SIZES = (0, 1, 1000, 20_000, 300_000, 3_000_000)


@pytest.mark.parametrize("version", ["5", "3.1.1"])
@pytest.mark.parametrize("transport", ["tcp", "tls", "websockets", "websockets-tls", "unix"])
def test_messages_of_any_size_go_both_ways(tmp_path: Path, transport: str, version: str) -> None:
    """From nothing to some megabytes: in whole, acknowledged, and out whole, acknowledged."""
    with (
        listening(tmp_path, transport) as (broker, settings),
        WireClient(broker) as client,
        running(broker, mqtt_version=version, **settings) as (link, heard),
    ):
        heard.wait(lambda: len(heard.delivered) >= 1)
        bodies = [bytes(range(251)) * (size // 251) + b"\x07" * (size % 251) for size in SIZES]
        # mosquitto 2.0.11 sends 4 KB of a WebSocket in each turn of its own, ten times a second.
        inward = bodies[:4] if transport.startswith("websockets") else bodies
        for body in inward:
            client.publish(Ask(TOPIC, body, reply=REPLY, correlation=b"c"))
        arrivals = heard.wait_arrivals(len(inward))
        for arrival, body in zip(arrivals, inward, strict=True):
            assert hashlib.sha256(arrival.payload).digest() == hashlib.sha256(body).digest()
            assert arrival.response_topic == (REPLY if version == "5" else "")
            assert link.acknowledge(arrival.receipt)
        mids = [link.publish(Reply(REPLY, body, 1, b"c", "x/y", 60)) for body in bodies[1:]]
        got = client.wait_messages(REPLY, len(mids))
        assert [message.payload for message in got] == bodies[1:]
        assert got[0].content_type == ("x/y" if version == "5" else "")
        heard.wait(lambda: set(mids) <= set(heard.delivered))
        assert heard.downs() == []


def test_a_certificate_of_another_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The broker's name is checked: no connection, said once, no password sent."""
    with (
        listening(tmp_path, "tls") as (broker, settings),
        running(broker, **(settings | {"host": "127.0.0.1"}), backoff_max_s=0.05) as (link, heard),
    ):
        assert wait_until(lambda: link.epoch >= 3)
        assert heard.ups() == []
    assert sum("certificate verify failed" in record.message for record in caplog.records) == 1


def test_a_server_without_websockets_is_told_apart(tmp_path: Path) -> None:
    """Plain MQTT, where a WebSocket was expected: an error that names the settings."""
    with Mosquitto(tmp_path) as broker, pytest.raises((BrokerError, OSError)):
        open_stream(Address(broker.host, broker.port, "websockets"), 5)


def test_a_session_is_kept_with_mqtt_3(broker: Mosquitto) -> None:
    """What was not acknowledged comes again on the next connection of the same name."""
    with WireClient(broker) as client:
        with running(broker, mqtt_version="3.1.1") as (_, heard):
            heard.wait(lambda: len(heard.delivered) >= 1)
            client.publish(Ask(TOPIC, b"kept"))
            heard.wait_arrivals(1)
        with running(broker, mqtt_version="3.1.1") as (_, again):
            assert again.wait_arrivals(1)[0].payload == b"kept"
            assert again.ups()[0].session_present
