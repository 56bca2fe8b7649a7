"""The client against a real mosquitto, with a device that is scripted to misbehave."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edged import protocol
from edged.client import Endpoint, InferClient, image_message, tensor_message
from edged.errors import (
    BadParameterError,
    BrokerError,
    PayloadTooLargeError,
    QueueFullError,
    ReplyError,
)
from tests.doubles.broker import Mosquitto, free_port
from tests.doubles.listeners import TRANSPORTS, listening
from tests.doubles.responder import Asked, Responder, Said, doubled

SAMPLE = {"x": np.arange(6, dtype=np.float32).reshape(1, 6)}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    """One mosquitto for all tests of this module that do not take it away."""
    with Mosquitto(tmp_path_factory.mktemp("mosquitto")) as running:
        yield running


def endpoint(broker: Mosquitto) -> Endpoint:
    """The scripted device on that broker."""
    return Endpoint("double", broker.host, broker.port)


def test_answer_carries_outputs_parameters_and_latency(broker: Mosquitto) -> None:
    """A request is answered with the device's arrays and what it says about the batch."""
    with Responder(broker.host, broker.port), InferClient(endpoint(broker)) as client:
        result = client.infer("double", SAMPLE)
    np.testing.assert_array_equal(result.outputs["x"], SAMPLE["x"] * 2)
    assert result.status == 200
    assert result.model_version == "1"
    assert result.parameters["batch_reason"] == "alone"
    assert result.latency_s > 0


def test_request_says_what_the_protocol_asks_for(broker: Mosquitto) -> None:
    """Response topic, correlation, content type, header length, priority, deadline and expiry."""
    with Responder(broker.host, broker.port) as device, InferClient(endpoint(broker)) as client:
        client.infer("double", SAMPLE, priority="urgent", deadline_ms=250, timeout_s=20)
    asked = device.asked[0]
    assert asked.topic == "edged/v1/double/infer/double"
    assert asked.response_topic == f"edged/v1/double/reply/{client.client_id}"
    assert asked.content_type == protocol.OCTET_STREAM
    assert asked.user[protocol.PRIORITY] == "urgent"
    assert asked.user[protocol.DEADLINE_MS] == "250"
    assert 1 <= len(asked.correlation) <= protocol.MAX_CORRELATION_BYTES
    assert asked.expiry_s in {20, 21}
    header = json.loads(asked.payload[: int(asked.user[protocol.HEADER_LENGTH])])
    assert header["inputs"][0]["shape"] == [1, 6]


def test_image_travels_untouched(broker: Mosquitto) -> None:
    """An image's bytes are the whole body, with its content type and the wanted classes."""
    image = b"\x89PNG\r\n\x1a\n and whatever follows"
    with Responder(broker.host, broker.port, _empty) as device:  # noqa: SIM117
        with InferClient(endpoint(broker)) as client:
            client.infer_image("double", image, protocol.PNG)
            future = client.submit("double", image_message(image, protocol.PNG, classes=3))
            client.wait(future, "double", 10)
    assert [asked.payload for asked in device.asked] == [image, image]
    assert device.asked[0].content_type == protocol.PNG
    assert protocol.CLASSIFICATION not in device.asked[0].user
    assert device.asked[1].user[protocol.CLASSIFICATION] == "3"


def _empty(asked: Asked) -> list[Said]:
    """An answer without outputs, in JSON."""
    return [Said(asked, b'{"model_name":"double","outputs":[]}', {"status": "200"})]


def test_many_outstanding_requests_get_their_own_answers(broker: Mosquitto) -> None:
    """300 requests at once, answered backwards when all are there: each future has its own."""
    waiting: list[Asked] = []

    def backwards(asked: Asked) -> list[Said]:
        waiting.append(asked)
        if len(waiting) < 300:
            return []
        return [said for each in reversed(waiting) for said in doubled(each)]

    with Responder(broker.host, broker.port, backwards), InferClient(endpoint(broker)) as client:
        futures = [
            client.submit("double", tensor_message({"x": np.array([[number]], dtype=np.int32)}))
            for number in range(300)
        ]
        answers = [client.wait(future, "double", 60).outputs["x"].item() for future in futures]
        assert repr(client).endswith(": 0 requests outstanding>")
    assert answers == [2 * number for number in range(300)]


def test_error_reply_is_raised_with_its_code(broker: Mosquitto) -> None:
    """An error reply becomes a ReplyError with code, status, message and what may be retried."""
    document = protocol.error_document(
        "1024 samples wait", "queue_full", retryable=True, retry_after_ms=40
    )

    def refuse(asked: Asked) -> list[Said]:
        return [Said(asked, json.dumps(document).encode(), {"status": "429"}, protocol.JSON)]

    with Responder(broker.host, broker.port, refuse), InferClient(endpoint(broker)) as client:  # noqa: SIM117
        with pytest.raises(ReplyError, match="1024 samples wait") as caught:
            client.infer("double", SAMPLE)
    error = caught.value
    assert (error.code, error.status, error.retryable) == ("queue_full", 429, True)
    assert error.retry_after_ms == 40
    assert isinstance(error, QueueFullError)


def test_unreadable_reply_fails_its_request_only(broker: Mosquitto) -> None:
    """Garbage, a lying header length and a silly status each fail one request; the client lives."""
    bad = [
        (b"\x00\xff", {"status": "200"}),
        (b"{}", {"status": "200", protocol.HEADER_LENGTH: "999"}),
        (b"{}", {"status": "200", protocol.HEADER_LENGTH: "-1"}),
        (b"{}", {"status": "fine"}),
    ]
    left = list(bad)

    def garbage_first(asked: Asked) -> list[Said]:
        return [Said(asked, *left.pop(0))] if left else list(doubled(asked))

    with (
        Responder(broker.host, broker.port, garbage_first),
        InferClient(endpoint(broker)) as client,
    ):
        for _ in bad:
            with pytest.raises(ReplyError, match="cannot be read") as caught:
                client.infer("double", SAMPLE)
            assert caught.value.code == "bad_reply"
        assert client.infer("double", SAMPLE).status == 200


def test_timeout_forgets_the_request_and_counts_the_late_answer(broker: Mosquitto) -> None:
    """No answer in time is a TimeoutError that names the topic; a late answer goes nowhere."""
    answered = threading.Event()

    def late(asked: Asked) -> list[Said]:
        return list(doubled(asked)) if answered.is_set() else []

    with (
        Responder(broker.host, broker.port, late) as device,
        InferClient(endpoint(broker)) as client,
    ):
        with pytest.raises(TimeoutError, match=r"edged/v1/double/infer/double"):
            client.infer("double", SAMPLE, timeout_s=0.05)
        assert "0 requests outstanding" in repr(client)
        answered.set()
        client.infer("double", SAMPLE)  # its answer comes after the first request was delivered
        device.say(doubled(device.asked[0])[0])
        client.infer("double", SAMPLE)
        assert client.unmatched == 1


def test_duplicate_answer_is_counted(broker: Mosquitto) -> None:
    """The second answer to a request is not taken for another's; it is counted."""
    with (
        Responder(broker.host, broker.port, lambda asked: doubled(asked) * 2),
        InferClient(endpoint(broker)) as client,
    ):
        for _ in range(4):
            client.infer("double", SAMPLE)
        assert client.unmatched >= 3  # the last duplicate may still be on its way


def test_status_is_read_and_waited_for(broker: Mosquitto) -> None:
    """The retained status is known after connecting; a change of it ends the wait."""
    topics = protocol.Topics(protocol.DEFAULT_ROOT, "states")
    with Responder(broker.host, broker.port, lambda _asked: [], topics) as device:
        device.say_status(json.dumps(protocol.status_document("draining", "b", 1)).encode())
        with InferClient(replace(endpoint(broker), device="states")) as client:
            assert client.wait_status("draining", 10)["boot_id"] == "b"
            with pytest.raises(TimeoutError, match="'draining'"):
                client.wait_status("online", 0.05)
            device.say_status(json.dumps(protocol.status_document("online", "b", 2)).encode())
            assert client.wait_status("online", 10)["session"] == 2
            device.say_status(b"no JSON")
            device.say_status(json.dumps(protocol.status_document("offline", "b", 2)).encode())
            client.wait_status("offline", 10)
            with pytest.raises(TimeoutError, match="says it is 'offline'"):
                client.infer("double", SAMPLE, timeout_s=0.05)
        device.say_status(b"")


def test_closing_fails_what_is_outstanding(broker: Mosquitto) -> None:
    """A request that was never answered does not hang its future when the client closes."""
    with Responder(broker.host, broker.port, lambda _asked: []):
        with InferClient(endpoint(broker)) as client:
            future = client.submit("double", tensor_message(SAMPLE))
        with pytest.raises(BrokerError, match="closed before"):
            future.result(10)
        client.close()


def test_small_packets_are_not_held_back(broker: Mosquitto) -> None:
    """Nagle's algorithm is off on the client's socket."""
    with InferClient(endpoint(broker)) as client:
        connection = client._link._connection
        assert connection is not None
        sock = connection._stream._socket  # type: ignore[attr-defined]  # a plain one has it
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def test_missing_broker_is_said_in_one_line() -> None:
    """Nobody listening is a BrokerError that names host and port."""
    port = free_port()
    with pytest.raises(BrokerError, match=f"no MQTT broker at 127.0.0.1:{port}"):
        InferClient(Endpoint("double", port=port)).connect()


def test_a_missing_broker_may_be_tried_again(tmp_path: Path) -> None:
    """A client that found nobody connects later, and connecting twice does no harm."""
    broker = Mosquitto(tmp_path)
    client = InferClient(endpoint(broker))
    with pytest.raises(BrokerError, match="no MQTT broker"):
        client.connect()
    with broker, Responder(broker.host, broker.port), client:
        client.connect()
        assert client.infer("double", SAMPLE).status == 200


def test_refused_login_is_said(tmp_path: Path) -> None:
    """A broker that wants a password refuses with its reason, and lets the right one in."""
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), "eve", "secret"], check=True)
    passwords.chmod(0o644)
    lines = ["allow_anonymous false", f"password_file {passwords}"]
    with Mosquitto(tmp_path / "broker", lines) as broker:
        with pytest.raises(BrokerError, match="Not authorized"):
            InferClient(endpoint(broker)).connect()
        with InferClient(replace(endpoint(broker), username="eve", password="secret")) as client:  # noqa: S106
            assert client.status is None


def test_request_beyond_the_brokers_limit_is_refused_here(tmp_path: Path) -> None:
    """What the broker would end the connection for is not sent, and the connection stays."""
    with (
        Mosquitto(tmp_path, ["max_packet_size 4000"]) as broker,
        Responder(broker.host, broker.port),
        InferClient(endpoint(broker)) as client,
    ):
        with pytest.raises(PayloadTooLargeError, match="at most 4000"):
            client.infer("double", {"x": np.zeros((1, 4000), np.uint8)})
        assert client.infer("double", SAMPLE).status == 200
        assert "0 requests outstanding" in repr(client)


def test_client_comes_back_after_the_broker_did(tmp_path: Path) -> None:
    """A broker that went away and came back is picked up with its subscriptions."""
    with (
        Mosquitto(tmp_path) as broker,
        Responder(broker.host, broker.port) as device,
        InferClient(endpoint(broker)) as client,
    ):
        client.infer("double", SAMPLE)
        broker.kill()
        broker.start()
        device.wait_subscribed()
        assert client.infer("double", SAMPLE, timeout_s=30).status == 200


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_transport_carries_requests(tmp_path: Path, transport: str) -> None:
    """TCP, TLS, WebSocket and Unix socket: small and large bodies, there and back."""
    with (
        listening(tmp_path, transport) as (broker, settings),
        Responder(broker.host, broker.port),
        InferClient(Endpoint("double", **settings)) as client,
    ):
        for entries in (1, 3000):
            sample = {"x": np.arange(entries, dtype=np.float32).reshape(1, -1)}
            result = client.infer("double", sample, timeout_s=30)
            np.testing.assert_array_equal(result["x"], sample["x"] * 2)


def test_a_certificate_of_another_is_refused(tmp_path: Path) -> None:
    """The broker's name is checked, and the client says why it does not connect."""
    with listening(tmp_path, "tls") as (_, settings):
        wrong = Endpoint("double", **(settings | {"host": "127.0.0.1"}))
        with pytest.raises(BrokerError, match="certificate verify failed"):
            InferClient(wrong).connect()


@pytest.mark.parametrize("name", ["", "a/b", "#", "+", "$x", "x" * 65])
def test_client_id_must_be_a_topic_level(name: str) -> None:
    """A client id that cannot be the last level of the reply topic is refused at once."""
    if not name:
        assert InferClient(Endpoint("double"), client_id=name).client_id.startswith("edged-client-")
        return
    with pytest.raises(BadParameterError, match="client id"):
        InferClient(Endpoint("double"), client_id=name)


def test_wrong_parameters_are_refused_before_sending(broker: Mosquitto) -> None:
    """Unknown priorities, empty deadlines, odd image types and classes without outputs."""
    with InferClient(endpoint(broker)) as client:
        with pytest.raises(BadParameterError, match="priority 'now'"):
            client.infer("double", SAMPLE, priority="now")
        with pytest.raises(BadParameterError, match="deadline_ms"):
            client.infer("double", SAMPLE, deadline_ms=0)
        with pytest.raises(BadParameterError, match="image/gif"):
            client.infer_image("double", b"GIF89a", "image/gif")
        with pytest.raises(BadParameterError, match="classes"):
            client.infer("double", SAMPLE, classes=3)
        assert "0 requests outstanding" in repr(client)
