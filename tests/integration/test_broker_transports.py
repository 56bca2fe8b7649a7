"""`BrokerLink` over every transport and both versions of MQTT, against a real mosquitto."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edged.errors import BrokerError
from edged.mqtt.address import Address, open_stream
from edged.serve.request import Reply
from tests.doubles.broker import Mosquitto, free_port
from tests.doubles.observed_link import TOPIC, running, wait_until
from tests.doubles.wire import Ask, WireClient

REPLY = "edged/v1/dev/reply/me"
SIZES = (0, 1, 1000, 20_000, 300_000, 3_000_000)


def certificates(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself, and its key."""
    folder.mkdir()
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
            "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate),
        ],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    return certificate, key


@contextmanager
def listening(folder: Path, transport: str) -> Iterator[tuple[Mosquitto, dict[str, Any]]]:
    """A broker with a second listener, and the settings for that one."""
    lines, port = [], free_port()
    settings: dict[str, Any] = {"port": port, "host": "127.0.0.1"}
    if transport == "unix":
        path = folder / "mqtt.sock"
        lines = [f"listener 0 {path}"]
        settings = {"host": str(path), "transport": "unix"}
    elif transport != "tcp":
        lines = [f"listener {port} 127.0.0.1"]
    if transport.startswith("websockets"):
        lines.append("protocol websockets")
        settings["transport"] = "websockets"
    if transport.endswith("tls"):
        certificate, key = certificates(folder / "tls")
        lines += [f"certfile {certificate}", f"keyfile {key}"]
        settings |= {"host": "localhost", "tls": True, "ca_file": certificate}
    with Mosquitto(folder / "broker", lines) as broker:
        if transport == "tcp":
            settings["port"] = broker.port
        yield broker, settings


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
