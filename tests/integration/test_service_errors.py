"""Every error that a sender can cause, over the wire: its code, its status, and life goes on."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edged import errors, protocol
from tests.doubles import digits
from tests.doubles.broker import Mosquitto
from tests.doubles.daemon import TOPICS, Daemon, wait_online
from tests.doubles.wire import Ask, Message, WireClient

REPLY = TOPICS.reply("wire")
RETAINED = b"retained before the service was there"
IMAGE = digits.images()[:1]
LIMITS = {
    "serve__max_request_bytes": "40000",
    "serve__max_request_samples": "400",
    "serve__queue_samples": "300",
    "serve__models": '["digits", "picker", "strict", "unproven", "foreign", "absent"]',
}


@dataclass
class Service:
    """A daemon, its broker and a client."""

    daemon: Daemon
    client: WireClient
    number: int = field(default=0)

    def ask(self, payload: bytes, *, model: str = "digits", **fields: Any) -> Message:
        """Sends one request and waits for its answer."""
        self.number += 1
        correlation = b"error %d" % self.number
        values = {"reply": REPLY, "correlation": correlation, "content_type": protocol.JSON}
        self.client.publish(Ask(TOPICS.infer(model), payload, **(values | fields)))
        return self.client.wait_reply(fields.get("correlation", correlation))

    def goes_on(self) -> None:
        """A sound request is answered, by the same process."""
        assert self.ask(digits.json_body(IMAGE)).status == "200"
        assert self.daemon.process.poll() is None


@pytest.fixture(scope="module")
def service(served_engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One daemon for all of this module, on a broker that takes packets of 45 KB at most."""
    home = tmp_path_factory.mktemp("errors")
    with (
        Mosquitto(home / "broker", ["max_packet_size 45000"]) as broker,
        WireClient(broker) as client,
        Daemon(home, served_engines, broker, **LIMITS) as daemon,
    ):
        client.publish(
            Ask(TOPICS.infer("digits"), digits.json_body(IMAGE), REPLY, RETAINED, retain=True)
        )
        wait_online(client)
        yield Service(daemon, client)
        assert daemon.stop() == 0
        assert daemon.said("Traceback") == 0, daemon.log()


def check(reply: Message, code: str) -> dict[str, Any]:
    """The documented form of an error; its document."""
    document: dict[str, Any] = reply.json()
    wanted = by_code()[code]
    assert (document["code"], reply.status) == (code, str(wanted.status)), document
    assert document["retryable"] is wanted.retryable
    assert reply.content_type == protocol.JSON
    assert len(document["error"]) > 20
    assert "/tmp" not in document["error"]  # noqa: S108  # the point: no path is told
    assert "Traceback" not in document["error"]
    return document


def by_code() -> dict[str, type[errors.EdgedError]]:
    """Every error that may reach a requester."""
    found: dict[str, type[errors.EdgedError]] = {}
    waiting: list[type[errors.EdgedError]] = [errors.ClientError, errors.ServiceError]
    while waiting:
        each = waiting.pop()
        found.setdefault(each.code, each)
        waiting += each.__subclasses__()
    return found


def tensor(**changes: object) -> bytes:
    """One JSON request with some members of its tensor changed."""
    document = json.loads(digits.json_body(IMAGE))
    document["inputs"][0].update(changes)
    return json.dumps(document).encode()


BODY, LENGTH = digits.binary(IMAGE)
MANY = np.zeros((500, 8, 8, 1), np.uint8)


def binary(payload: bytes, length: object = LENGTH, **fields: Any) -> dict[str, Any]:
    """Fields of a binary request with this stated header length."""
    user = [(protocol.HEADER_LENGTH, str(length))]
    return {"payload": payload, "content_type": protocol.OCTET_STREAM, "user": user, **fields}


def samples(count: int, **more: Any) -> dict[str, Any]:
    """A sound binary request of so many samples."""
    payload, length = digits.binary(MANY[:count], **more)
    return binary(payload, length)


PICK = '{"inputs": [{"name": "x", "datatype": "INT64", "shape": [1, 1], "data": [%d]}]}'
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("another model", "unknown_model", {"payload": tensor(), "model": "nobody"}),
    ("a path as model", "unknown_model", {"payload": tensor(), "model": "..%2f..%2fetc"}),
    ("a name of 10 KB", "unknown_model", {"payload": tensor(), "model": "m" * 10_000}),
    ("no pass", "model_unavailable", {"payload": tensor(), "model": "unproven"}),
    ("another device's", "model_unavailable", {"payload": tensor(), "model": "foreign"}),
    ("no engine", "model_unavailable", {"payload": tensor(), "model": "absent"}),
    ("wrong shape", "bad_shape", {"payload": tensor(shape=[1, 64], data=[0] * 64)}),
    ("no sample", "bad_shape", {"payload": tensor(shape=[0, 8, 8, 1], data=[])}),
    ("wrong datatype", "bad_datatype", {"payload": tensor(datatype="FP32")}),
    ("unknown datatype", "bad_datatype", {"payload": tensor(datatype="FP31")}),
    ("wrong input", "bad_tensor", {"payload": tensor(name="picture")}),
    ("number out of range", "bad_tensor", {"payload": tensor(data=[256] * 64)}),
    ("unknown output", "bad_tensor",
     {"payload": digits.json_body(IMAGE, outputs=[{"name": "nothing"}])}),
    ("one byte short", "truncated_body", binary(BODY[:-1])),
    ("one byte more", "truncated_body", binary(BODY + b"\0")),
    ("no tensor", "truncated_body", binary(BODY[:LENGTH])),
    ("empty", "truncated_body", {"payload": b""}),
    ("garbage", "bad_header", {"payload": b"\x80\x04\x95\xff" * 20}),
    ("half of the header", "bad_header", binary(BODY, LENGTH // 2)),
    ("no header length", "bad_header", binary(BODY, "eleven")),
    ("not an object", "bad_header", {"payload": b"[1, 2]"}),
    ("NaN literal", "bad_header", {"payload": tensor().replace(b"[[[[", b"[NaN,[[[", 1)}),
    ("nested 10,000 deep", "bad_header", {"payload": b"[" * 10_000}),
    ("name given twice", "bad_header", {"payload": b'{"inputs": [], "inputs": []}'}),
    ("priority", "bad_parameter", {"payload": tensor(), "user": [("priority", "now")]}),
    ("deadline", "bad_parameter", {"payload": tensor(), "user": [("deadline-ms", "soon")]}),
    ("timeout", "bad_parameter",
     {"payload": digits.json_body(IMAGE, parameters={"timeout": -1})}),
    ("content type", "unsupported_content_type",
     {"payload": tensor(), "content_type": "text/html"}),
    ("no content type", "unsupported_content_type",
     {"payload": b"\x00\x01", "content_type": ""}),
    ("image for numbers", "unsupported_content_type",
     {"payload": digits.png(IMAGE[0]), "content_type": protocol.PNG, "model": "picker"}),
    ("half an image", "bad_image",
     {"payload": digits.png(IMAGE[0])[:50], "content_type": protocol.PNG}),
    ("no image", "bad_image", {"payload": b"\x89PNG\r\n\x1a\n", "content_type": protocol.PNG}),
    ("too many bytes", "payload_too_large", {"payload": b"{" + b" " * 40_000}),
    ("too many samples", "payload_too_large", samples(401)),
    ("more than may wait", "payload_too_large", samples(301)),
    ("already late", "expired",
     {"payload": digits.json_body(IMAGE, parameters={"deadline_unix_ms": 1})}),
    ("answer too large", "reply_too_large",
     samples(300, parameters={"binary_data_output": False})),
    ("infinity", "nonfinite_output", {"payload": (PICK % 3).encode(), "model": "strict"}),
    ("engine fails", "engine_failed",
     {"payload": (PICK % 99).encode(), "model": "picker"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "fields"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_each_mistake_has_its_code_and_the_service_goes_on(
    service: Service, code: str, fields: dict[str, Any]
) -> None:
    """The documented code and status, a message for a person, and the next request is answered."""
    check(service.ask(**fields), code)
    service.goes_on()


DEAD: list[tuple[str, str, str]] = [
    ("none", "no_response_topic", ""),
    ("own topic", "bad_response_topic", TOPICS.infer("digits")),
    ("own status", "bad_response_topic", TOPICS.status),
    ("dollar", "bad_response_topic", "$SYS/broker/version"),
    ("foreign", "bad_response_topic", "home/lights/kitchen"),
    ("no client", "bad_response_topic", f"{TOPICS.base}/reply"),
    ("empty level", "bad_response_topic", f"{TOPICS.base}/reply/"),
    ("2000 bytes", "bad_response_topic", f"{TOPICS.base}/reply/" + "x" * 2000),
]


@pytest.mark.parametrize(("code", "reply"), [case[1:] for case in DEAD], ids=[c[0] for c in DEAD])
def test_who_cannot_be_answered_is_named_on_the_dead_topic(
    service: Service, code: str, reply: str
) -> None:
    """Nothing is published where it was asked for; the dead letter says who, what and why."""
    mark = f"dead {code} {len(reply)} {reply[:20]}".encode()
    service.client.publish(Ask(TOPICS.infer("digits"), tensor(), reply, mark))
    letter = service.client.wait_for(
        lambda m: m.topic == TOPICS.dead and m.json()["correlation_hex"] == mark.hex(),
        "dead letter",
    ).json()
    assert letter["code"] == code
    assert letter["topic"] == TOPICS.infer("digits")
    assert letter["response_topic"] == reply[:256]
    assert letter["payload_bytes"] == len(tensor())
    service.goes_on()
    assert not [m for m in service.client.messages() if m.correlation == mark and m.status]


def test_a_retained_request_is_refused(service: Service) -> None:
    """What was retained before the service subscribed is refused instead of run at every start."""
    document = check(service.client.wait_reply(RETAINED), "bad_parameter")
    assert "retain" in document["error"]


def test_correlation_data_above_the_limit_are_not_echoed(service: Service) -> None:
    """64 KB of correlation data: refused, and the answer comes without them."""
    service.client.publish(
        Ask(TOPICS.infer("digits"), tensor(), TOPICS.reply("long"), bytes(40_000))
    )
    reply = service.client.wait_message(TOPICS.reply("long"))
    assert reply.correlation is None
    assert "40000" in check(reply, "bad_parameter")["error"]
    service.goes_on()


def test_every_code_has_a_case_here() -> None:
    """All codes of the protocol are caused above, but for nine.

    ``bad_request`` is only a base, ``internal`` needs a fault of ours, ``device_fault`` a GPU,
    ``draining`` is in test_pipeline.py and in the end-to-end tests, and ``unknown_command`` in
    test_control_plane.py. ``poison`` needs two deaths, as in test_poison.py. ``queue_full``,
    ``late`` and ``superseded`` need a busy device, which test_pipeline.py holds.
    """
    elsewhere = {"bad_request", "internal", "device_fault", "draining", "unknown_command", "poison"}
    elsewhere |= {"queue_full", "late", "superseded"}
    seen = {case[1] for case in CASES} | {case[1] for case in DEAD}
    assert seen == set(by_code()) - elsewhere


def test_broken_settings_at_sighup_change_nothing(
    served_engines: Path, tmp_path: Path, broker: Mosquitto
) -> None:
    """SIGHUP with a file that is wrong: said once, the service goes on with the old settings."""
    file = tmp_path / "edged.toml"
    file.write_text('[log]\nlevel = "info"\n')
    with (
        WireClient(broker) as client,
        Daemon(tmp_path, served_engines, broker, config=str(file)) as daemon,
    ):
        wait_online(client)
        service = Service(daemon, client)
        file.write_text("[broker\nthis is no TOML")
        daemon.signal(signal.SIGHUP)
        daemon.wait_said("settings not reloaded")
        service.goes_on()
        file.write_text('[log]\nlevel = "debug"\n')
        daemon.signal(signal.SIGHUP)
        daemon.wait_said("settings reloaded")
        service.goes_on()
        assert daemon.stop() == 0
