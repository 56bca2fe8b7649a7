"""The same round trips through mosquitto and through the embedded broker, by foreign clients."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paho.mqtt.enums import MQTTProtocolVersion

from edged import protocol
from edged.client import Endpoint, InferClient
from edged.embedded_broker import EmbeddedBroker
from tests.doubles import digits
from tests.doubles.broker import Mosquitto
from tests.doubles.daemon import TOPICS, Daemon, wait_online
from tests.doubles.wire import Address, Ask, WireClient

IMAGES = digits.images()[:70]
REPLY = TOPICS.reply("wire")
only_mosquitto = pytest.mark.parametrize("running", ["mosquitto"], indirect=True)
"""rumqttd 0.20 closes the connection of an MQTT 3.1.1 subscriber at any PUBLISH that has MQTT 5
properties, so answers do not reach one through the embedded broker."""


def same(found: digits.Logits, wanted: digits.Logits) -> None:
    """Equal shapes, and numbers that differ by less than a batch of another size may change."""
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@dataclass
class At:
    """An address."""

    host: str
    port: int


@dataclass(frozen=True)
class Running:
    """A daemon behind a broker, and what its engine computes."""

    broker: Address
    old: Address
    """Where MQTT 3.1.1 is spoken."""
    client: WireClient
    logits: digits.Logits
    embedded: bool


@pytest.fixture(scope="module", params=["mosquitto", "embedded"])
def running(
    request: pytest.FixtureRequest, served_engines: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """One daemon behind each broker."""
    home = tmp_path_factory.mktemp(request.param)
    with ExitStack() as stack:
        if request.param == "embedded":
            embedded = stack.enter_context(EmbeddedBroker(home))
            new, old = At(embedded.host, embedded.port), At(embedded.host, embedded.port_v3)
        else:
            mosquitto = stack.enter_context(Mosquitto(home / "broker"))
            new = old = At(mosquitto.host, mosquitto.port)
        client = stack.enter_context(WireClient(new))
        daemon = stack.enter_context(Daemon(home, served_engines, new))
        wait_online(client)
        yield Running(
            new, old, client, digits.logits(served_engines, IMAGES), request.param == "embedded"
        )
        assert daemon.stop() == 0, daemon.log()


def document(image: int, **more: object) -> bytes:
    """One image as V2 JSON."""
    return digits.json_body(IMAGES[image : image + 1], **more)


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_binary_round_trip(running: Running, qos: int) -> None:
    """The engine's numbers come back as bytes, at the request's QoS but never above 1.

    rumqttd 0.20 delivers QoS 0 as QoS 1 to whoever subscribed with that.
    """
    mark = b"binary qos %d" % qos
    running.client.publish(digits.binary_ask(TOPICS, IMAGES[:3], mark, qos=qos))
    reply = running.client.wait_reply(mark)
    assert reply.status == "200"
    assert reply.content_type == protocol.OCTET_STREAM
    assert reply.qos == min(qos, 1) or (running.embedded and reply.qos == 1)
    assert reply.expiry_s is not None
    same(digits.binary_logits(reply), running.logits[:3])


def test_json_round_trip(running: Running) -> None:
    """Plain JSON in, plain JSON out, with id and trace context."""
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    running.client.publish(
        Ask(
            TOPICS.infer("digits"), document(5, id="frame 5"), REPLY, b"json", protocol.JSON,
            user=[("traceparent", trace), ("other", "is not copied")],
        )
    )  # fmt: skip
    reply = running.client.wait_reply(b"json")
    assert reply.json()["id"] == "frame 5"
    assert dict(reply.user) == {"status": "200", "traceparent": trace}
    same(digits.json_logits(reply.payload), running.logits[5:6])


def test_the_class_may_stand_in_the_topic(running: Running) -> None:
    """Requests of each class arrive by their topics; one that does not exist is answered so."""
    for name in (*protocol.PRIORITIES, "soon"):
        topic, mark = TOPICS.infer_class("digits", name), name.encode()
        running.client.publish(Ask(topic, document(5), REPLY, mark, protocol.JSON))
    for name in protocol.PRIORITIES:
        reply = running.client.wait_reply(name.encode())
        same(digits.json_logits(reply.payload), running.logits[5:6])
    refused = running.client.wait_reply(b"soon")
    assert (refused.status, refused.json()["code"]) == ("400", "bad_parameter")


def test_png_is_answered_with_its_best_classes(running: Running) -> None:
    """A PNG of 8 x 8 grey pixels gives the same classes as its pixels."""
    running.client.publish(
        Ask(
            TOPICS.infer("digits"), digits.png(IMAGES[7]), REPLY, b"png", protocol.PNG,
            user=[("classification", "2")],
        )
    )  # fmt: skip
    (output,) = running.client.wait_reply(b"png").json()["outputs"]
    best = np.argsort(running.logits[7])[::-1][:2]
    assert [text.split(":")[1:] for text in output["data"]] == [[str(n), str(n)] for n in best]


def test_a_request_of_70_samples_keeps_their_order(running: Running) -> None:
    """More than two batches of 32: one answer, each row where its sample was."""
    running.client.publish(digits.binary_ask(TOPICS, IMAGES, b"many"))
    reply = running.client.wait_reply(b"many")
    same(digits.binary_logits(reply), running.logits)


def test_our_own_client(running: Running) -> None:
    """`edged.client` gets the same numbers, and the error of a wrong model as an exception."""
    endpoint = Endpoint(TOPICS.device, running.broker.host, running.broker.port)
    with InferClient(endpoint) as client:
        result = client.infer("digits", {"image": IMAGES[:2]})
        assert result.status == 200
        same(result.outputs["logits"], running.logits[:2])


@only_mosquitto
@pytest.mark.parametrize("image", [False, True], ids=["json", "png"])
def test_mqtt_3_1_1(running: Running, *, image: bool) -> None:
    """Without any property: topic and body say it all, and the answer is JSON with its status."""
    name = "png" if image else "json"
    there, back = (form("digits", "plc-7", name) for form in (TOPICS.infer_v3, TOPICS.reply_v3))
    body = digits.png(IMAGES[9]) if image else document(9, parameters={"binary_data_output": True})
    with WireClient(running.old, protocol=MQTTProtocolVersion.MQTTv311, filters=[back]) as client:
        client.publish(Ask(there, body))
        answer = client.wait_message(back)
    assert answer.json()["parameters"]["status"] == 200
    same(digits.json_logits(answer.payload), running.logits[9:10])


@only_mosquitto
def test_mqtt_3_1_1_errors_have_their_status_in_the_body(running: Running) -> None:
    """Nothing else could carry it."""
    there, back = (form("nobody", "plc-7", "1") for form in (TOPICS.infer_v3, TOPICS.reply_v3))
    with WireClient(running.old, protocol=MQTTProtocolVersion.MQTTv311, filters=[back]) as client:
        client.publish(Ask(there, b"{}"))
        answer = client.wait_message(back).json()
    assert (answer["status"], answer["code"]) == (404, "unknown_model")


def rr(address: Address, *arguments: str) -> str:
    """Runs mosquitto_rr to its answer."""
    where = ["-h", address.host, "-p", str(address.port), "-q", "1", "-W", "20"]
    ended = subprocess.run(
        ["mosquitto_rr", *where, *arguments], capture_output=True, text=True, check=True, timeout=30
    )
    return ended.stdout


def test_mosquitto_rr_mqtt_5(running: Running) -> None:
    """The request/response tool of mosquitto, as docs/protocol.md shows it."""
    said = rr(
        running.broker, "-V", "5", "-t", TOPICS.infer("digits"), "-e", TOPICS.reply("rr"),
        "-D", "publish", "user-property", "deadline-ms", "20000", "-F", "%P %p",
        "-m", document(11).decode(),
    )  # fmt: skip
    status, _, answer = said.partition(" ")
    assert status == "status:200"
    same(digits.json_logits(answer.encode()), running.logits[11:12])


@only_mosquitto
def test_mosquitto_rr_mqtt_3_1_1(running: Running) -> None:
    """The same tool with the older protocol."""
    said = rr(
        running.old, "-V", "311", "-t", TOPICS.infer_v3("digits", "rr", "1"),
        "-e", TOPICS.reply_v3("digits", "rr", "1"), "-m", document(12).decode(),
    )  # fmt: skip
    assert json.loads(said)["parameters"]["status"] == 200
    same(digits.json_logits(said.encode()), running.logits[12:13])


def test_many_at_once_are_answered_once_each(running: Running) -> None:
    """200 requests as fast as they go out: each has exactly one answer, with its own numbers."""
    for n in range(200):
        fields: dict[str, Any] = {"reply": TOPICS.reply("load")}
        running.client.publish(
            digits.binary_ask(TOPICS, IMAGES[n % 70 : n % 70 + 1], b"load %d" % n, **fields)
        )
    replies = running.client.wait_messages(TOPICS.reply("load"), 200)
    running.client.flush()
    assert len(running.client.messages(TOPICS.reply("load"))) == 200
    found = {reply.correlation: reply for reply in replies}
    for n in range(200):
        row = digits.binary_logits(found[b"load %d" % n])
        same(row, running.logits[n % 70 : n % 70 + 1])
