"""The link to the control plane's broker: transports, refusals, what is no MQTT."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.broker import Mosquitto, free_port
from tests.doubles.cloud import Cloud
from tests.doubles.reporting import TOPICS, Line, numbers
from tests.doubles.scripted_broker import ScriptedBroker


@pytest.mark.parametrize("transport", ["websockets", "unix"])
def test_the_broker_of_the_requests_is_reached_by_its_own_transport(
    tmp_path: Path, transport: str
) -> None:
    """Reports go up and settings come down over what ``broker.transport`` says."""
    port, path = free_port(), tmp_path / "mqtt.sock"
    reached: dict[str, Any] = {"host": "127.0.0.1", "port": port}
    lines = [f"listener {port} 127.0.0.1", "protocol websockets"]
    if transport == "unix":
        reached, lines = {"host": str(path)}, [f"listener 0 {path}"]
    with (
        Mosquitto(tmp_path / "broker", lines) as broker,
        Cloud(broker, TOPICS) as cloud,
        Line(tmp_path, broker, broker={**reached, "transport": transport}) as line,
    ):
        line.emit(*range(20))
        assert numbers(cloud.wait_records("event", "stopping", 20)) == list(range(20))
        cloud.desire(1, serve={"drain_s": 7})
        cloud.wait_reported(lambda document: document["applied_version"] == 1)

    assert line.line.configuration.effective.serve.drain_s == 7


def test_a_broker_of_its_own_is_reached_by_tcp(broker: Mosquitto, tmp_path: Path) -> None:
    """``broker.transport`` is that of the requests' broker alone."""
    elsewhere = {"host": str(tmp_path / "none.sock"), "transport": "unix"}
    own = {"host": broker.host, "port": broker.port, "tls": False}
    with (
        Cloud(broker, TOPICS) as cloud,
        Line(tmp_path, broker, broker=elsewhere, uplink=own) as line,
    ):
        line.emit(1)
        assert numbers(cloud.wait_records("event", "stopping")) == [1]


@pytest.mark.parametrize(
    "answer",
    [b"\x20\x03\x00\x87\x00", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xd0\x00", b"\x20\x7f"],
    ids=["refused", "no MQTT", "out of turn", "cut"],
)
def test_a_broker_that_will_not_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, answer: bytes
) -> None:
    """It is said once, and a later connection that stands sends what waited."""
    caplog.set_level(logging.WARNING)
    with (
        ScriptedBroker() as server,
        Line(tmp_path, server, uplink={"require_subscriber": False}) as line,
    ):
        line.emit(1)
        for _ in range(2):
            peer = server.accept()
            peer.accept_client(answer)
            peer.close()
        peer = server.accept()
        peer.accept_client()
        first, body = peer.read()
        assert first == 0x82
        peer.send(0x90, body[:2] + b"\x00" + b"\x01" * len(TOPICS.uplink_subscriptions))
        taken: list[bytes] = []
        while not any(TOPICS.report("event").encode() in each for each in taken):
            first, body = peer.read()
            assert first & 0xF6 == 0x32
            taken.append(body)
            at = 2 + int.from_bytes(body[:2], "big")
            peer.send(0x40, body[at : at + 2])

    warned = [each.message for each in caplog.records if "no uplink to" in each.message]
    assert len(warned) == 1


def test_a_malformed_message_ends_the_connection_alone(tmp_path: Path) -> None:
    """The device says so in its DISCONNECT, and comes again."""
    with ScriptedBroker() as server, Line(tmp_path, server):
        peer = server.accept()
        peer.accept_client()
        peer.read()
        peer.send(0x32, b"\x00\x03a/#\x00\x01\x00")
        first, body = peer.read()
        while first & 0xF0 != 0xE0:
            first, body = peer.read()
        assert body[0] >= 0x80
        peer.close()
        server.accept().accept_client()


def test_a_server_that_says_nothing_is_left(tmp_path: Path) -> None:
    """After ``connect_timeout_s`` another connection is tried."""
    with (
        ScriptedBroker() as server,
        Line(tmp_path, server, uplink={"connect_timeout_s": 1.0}) as line,
    ):
        silent = server.accept()
        again = server.accept()
        assert silent.read()[0] == again.read()[0] == 0x10
        assert line.line.numbers()["connected"] is False
