"""`BrokerLink` and a server that refuses it: the password, a topic, the name, or all of MQTT."""

from __future__ import annotations

import logging
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr

from edged.metrics import Metrics
from tests.doubles.broker import Mosquitto
from tests.doubles.observed_link import FILTERS, running, wait_until
from tests.doubles.wire import WAIT_S


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
