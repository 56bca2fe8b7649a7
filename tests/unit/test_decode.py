"""The decoder: every request that is served, and every one that is refused, with its own error."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from edged import protocol, v2
from edged.errors import (
    BadDatatypeError,
    BadHeaderError,
    BadImageError,
    BadParameterError,
    BadResponseTopicError,
    BadShapeError,
    BadTensorError,
    EdgedError,
    ModelUnavailableError,
    NoResponseTopicError,
    PayloadTooLargeError,
    TruncatedBodyError,
    UnknownModelError,
    UnsupportedContentTypeError,
)
from edged.postprocess import Postprocessor
from edged.recipe import InputSpec, OutputSpec
from edged.serve.decode import Decoder, Limits, ModelSpec
from edged.serve.request import Arrival, OutputChoice, Priority, Receipt

TOPICS = protocol.Topics("edged/v1", "dev1")
REPLY = TOPICS.reply("me")
WALL = 1_700_000_000.0
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@dataclass(frozen=True)
class Model:
    """A served model, as a manifest describes it."""

    input: tuple[InputSpec, ...]
    output: tuple[OutputSpec, ...]
    slo_ms: float = 500.0
    freshness: Literal["all", "latest"] = "all"
    postprocessor: Postprocessor | None = None


PAIR = Model(
    (
        InputSpec(name="a", datatype="FP32", shape=(2,)),
        InputSpec(name="b", datatype="UINT8", shape=(1, 3)),
    ),
    (OutputSpec(name="y", shape=(4,)), OutputSpec(name="z", shape=(1,))),
)
IMAGE = Model(
    (InputSpec(name="pixels", datatype="UINT8", shape=(8, 8, 1), image="L"),),
    (OutputSpec(name="y", shape=(10,)),),
)
MODELS: dict[str, ModelSpec] = {"pair": PAIR, "image": IMAGE}
LIMITS = Limits(max_request_bytes=10_000, max_request_samples=8, max_deadline_s=60)
DECODER = Decoder(
    TOPICS,
    MODELS.get,
    limits=LIMITS,
    reply_prefixes=("site/",),
    unavailable={"broken"},
    wall=lambda: WALL,
    clock=lambda: 100.5,
)


def pair_body(samples: int = 2, **changes: Any) -> tuple[bytes, int | None]:
    """A binary request for the model ``pair``."""
    inputs = (
        v2.Tensor("a", np.ones((samples, 2), np.float32)),
        v2.Tensor("b", np.ones((samples, 1, 3), np.uint8)),
    )
    return v2.write_request(replace(v2.InferRequest(inputs), **changes))


def arrive(payload: bytes, length: int | None = None, **changes: Any) -> Arrival:
    """An arrival for the model ``pair`` with a response topic."""
    user: dict[str, str] = dict(changes.pop("user", {}))
    if length is not None:
        user.setdefault(protocol.HEADER_LENGTH, str(length))
    made = Arrival(
        topic=TOPICS.infer("pair"),
        payload=payload,
        receipt=Receipt(1, 1, 1, 1),
        received=100.0,
        response_topic=REPLY,
        correlation=b"\0\xff",
        user=user,
    )
    return replace(made, **changes)


def image(form: str = "PNG", size: tuple[int, int] = (8, 8)) -> bytes:
    """An encoded grey image with a gradient."""
    pixels = np.arange(size[0] * size[1], dtype=np.uint8).reshape(size)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def test_binary_request_is_decoded_whole() -> None:
    """Every field of the request comes from where the protocol says."""
    payload, length = pair_body(3, id="r1")
    user = {"traceparent": PARENT, "priority": "urgent", "other": "x"}
    request = DECODER.decode(arrive(payload, length, user=user, content_type=protocol.OCTET_STREAM))
    assert (request.model, request.id, request.samples) == ("pair", "r1", 3)
    assert {name: array.shape for name, array in request.tensors.items()} == {
        "a": (3, 2),
        "b": (3, 1, 3),
    }
    assert request.outputs == (OutputChoice("y"), OutputChoice("z"))
    assert request.deadline == pytest.approx(100.5)
    assert request.priority is Priority.URGENT
    assert request.reply_to.topic == REPLY
    assert request.reply_to.correlation == b"\0\xff"
    assert request.reply_to.qos == 1
    assert request.reply_to.trace == {"traceparent": PARENT}
    assert not request.reply_to.json_only


def test_tensors_are_views_of_the_payload() -> None:
    """Nothing is copied between the broker's bytes and the staging buffer."""
    payload, length = pair_body()
    request = DECODER.decode(arrive(payload, length))
    for array in request.tensors.values():
        assert np.shares_memory(array, np.frombuffer(payload, np.uint8))


def json_body(**members: Any) -> bytes:
    """A plain JSON request for the model ``pair``."""
    inputs = [
        {"name": "a", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]},
        {"name": "b", "datatype": "UINT8", "shape": [1, 1, 3], "data": [[[1, 2, 3]]]},
    ]
    return json.dumps({"inputs": inputs, **members}).encode()


@pytest.mark.parametrize(
    "content_type", ["application/json", "Application/JSON; charset=utf-8", ""]
)
def test_json_request_is_answered_in_json_unless_it_asks(content_type: str) -> None:
    """A JSON request gets JSON outputs by default, and binary ones where it says so."""
    request = DECODER.decode(arrive(json_body(), content_type=content_type))
    assert [choice.binary for choice in request.outputs] == [False, False]
    asked = [{"name": "z", "parameters": {"binary_data": True}}, {"name": "y"}]
    request = DECODER.decode(arrive(json_body(outputs=asked), content_type=content_type))
    assert request.outputs == (OutputChoice("z", binary=True), OutputChoice("y", binary=False))


def test_binary_data_output_is_the_default_of_silent_outputs() -> None:
    """The request's own default goes over the form of the request, the output's over both."""
    outputs = (v2.RequestedOutput("y"), v2.RequestedOutput("z", binary=True))
    payload, length = pair_body(outputs=outputs, parameters={"binary_data_output": False})
    request = DECODER.decode(arrive(payload, length))
    assert [choice.binary for choice in request.outputs] == [False, True]


@pytest.mark.parametrize(
    ("form", "content_type"),
    [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("PNG", ""), ("JPEG", "")],
)
def test_image_is_one_sample(form: str, content_type: str) -> None:
    """A PNG or JPEG body is one sample, with or without a content type."""
    arrival = arrive(image(form), topic=TOPICS.infer("image"), content_type=content_type)
    request = DECODER.decode(arrival)
    assert request.samples == 1
    assert request.tensors["pixels"].shape == (1, 8, 8, 1)
    assert request.outputs == (OutputChoice("y", binary=False),)
    if form == "PNG":
        np.testing.assert_array_equal(request.tensors["pixels"].ravel(), np.arange(64))


def test_image_may_ask_for_classes_by_property() -> None:
    """An image has no header: the classification count comes as a user property."""
    arrival = arrive(image(), topic=TOPICS.infer("image"), user={"classification": "3"})
    assert DECODER.decode(arrival).outputs == (OutputChoice("y", binary=False, classes=3),)


Change = Mapping[str, Any]
DEADLINES: dict[str, tuple[Change, Change, float]] = {
    "model's": ({}, {}, 0.5),
    "expiry": ({"expiry_s": 7}, {}, 7),
    "deadline-ms": ({"user": {"deadline-ms": "12.5"}}, {}, 0.0125),
    "timeout in microseconds": ({}, {"timeout": 250_000}, 0.25),
    "no timeout": ({}, {"timeout": 0}, 0.5),
    # Half a second went by between arrival and decoding.
    "date": ({}, {"deadline_unix_ms": int(WALL * 1000) + 3000}, 3.5),
    "date that passed": ({}, {"deadline_unix_ms": int(WALL * 1000) - 3000}, -2.5),
    "earliest": ({"expiry_s": 7, "user": {"deadline-ms": "900"}}, {"timeout": 800_000}, 0.8),
    "cut": ({"expiry_s": 4_000_000_000}, {}, 60),
}


@pytest.mark.parametrize("name", DEADLINES)
def test_deadline_is_the_earliest_that_is_stated(name: str) -> None:
    """Whichever way a deadline is stated, the earliest counts; without any, the model's."""
    changes, parameters, seconds = DEADLINES[name]
    payload, length = pair_body(parameters=parameters)
    request = DECODER.decode(arrive(payload, length, **changes))
    assert request.deadline == pytest.approx(100 + seconds)


PRIORITIES: list[tuple[Change, Change, Priority]] = [
    ({}, {}, Priority.NORMAL),
    ({"priority": "background"}, {"priority": 1}, Priority.BACKGROUND),
    ({}, {"priority": 0}, Priority.NORMAL),
    ({}, {"priority": 1}, Priority.URGENT),
    ({}, {"priority": 2}, Priority.NORMAL),
    ({}, {"priority": 9}, Priority.BACKGROUND),
    ({}, {"priority": "urgent"}, Priority.URGENT),
]


@pytest.mark.parametrize(("user", "parameters", "expected"), PRIORITIES)
def test_priority_by_property_by_name_and_by_number(
    user: Change, parameters: Change, expected: Priority
) -> None:
    """The user property wins over the body, which takes names and Triton's numbers."""
    payload, length = pair_body(parameters=parameters)
    assert DECODER.decode(arrive(payload, length, user=user)).priority is expected


def test_mqtt_3_request_is_answered_beside_its_topic_in_json() -> None:
    """Without properties the reply topic comes from the request's, and everything is JSON."""
    arrival = arrive(
        json_body(), topic=TOPICS.infer_v3("pair", "plc-7", "42"),
        response_topic="", correlation=None,
    )  # fmt: skip
    request = DECODER.decode(arrival)
    assert request.reply_to.topic == "edged/v1/dev1/infer/pair/rs/plc-7/42"
    assert request.reply_to.json_only
    assert request.model == "pair"


def test_quality_of_service_of_the_reply_is_the_requests_but_at_most_one() -> None:
    """QoS 0 is answered with 0, 1 and 2 with 1."""
    found = [DECODER.reply_to(arrive(b"", receipt=Receipt(1, 1, 1, qos))).qos for qos in (0, 1, 2)]
    assert found == [0, 1, 1]


RESPONSE_TOPICS = [
    "edged/v1/dev1/reply/+", "edged/v1/dev1/reply/#", "$SYS/broker", "$share/g/x",
    "edged/v1/dev1/status", "edged/v1/dev1/infer/pair", "edged/v1/dev1/reply",
    "edged/v1/dev1/reply/", "elsewhere/x", "edged/v1/dev1/reply/a\0b", "edged/v1/dev1/reply/a\nb",
    "edged/v1/dev1/reply/" + "x" * 65_500, "edged/v1//reply/x", "site/../" + "+", "sit",
]  # fmt: skip


@pytest.mark.parametrize("topic", RESPONSE_TOPICS)
def test_bad_response_topics_are_refused(topic: str) -> None:
    """The daemon never publishes where its own rights would be misused."""
    with pytest.raises(BadResponseTopicError) as caught:
        DECODER.reply_to(arrive(b"x", response_topic=topic))
    assert len(caught.value.message) < 300
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("topic", ["edged/v1/other/reply/x/y", "site/line3/answers"])
def test_good_response_topics_are_taken(topic: str) -> None:
    """Reply topics of the fleet and those under configured prefixes are allowed."""
    assert DECODER.reply_to(arrive(b"x", response_topic=topic)).topic == topic


@pytest.mark.parametrize("client", ["a\x07", "$x", "+", "x" * 129, "a\n", "\x9b"])
def test_mqtt_3_names_that_make_no_topic_are_refused(client: str) -> None:
    """A reply topic made from a request's topic holds no wildcard or control character."""
    with pytest.raises(BadResponseTopicError):
        DECODER.reply_to(arrive(b"x", topic=f"edged/v1/dev1/infer/pair/rq/{client}/1"))


def test_no_response_topic_has_its_own_error() -> None:
    """Without a response topic nobody can be answered; the message says what to set."""
    with pytest.raises(NoResponseTopicError, match="edged/v1/dev1/reply/"):
        DECODER.reply_to(arrive(b"x", response_topic=""))


def test_correlation_data_over_the_limit_is_refused_and_not_echoed() -> None:
    """The error can still be answered, without the 64 KB."""
    arrival = arrive(*pair_body(), correlation=b"x" * 65_535)
    assert DECODER.reply_to(arrival).correlation is None
    with pytest.raises(BadParameterError, match="65535"):
        DECODER.decode(arrival)


def test_invalid_trace_context_is_not_copied() -> None:
    """A tracestate over the limit is left out alone; an invalid traceparent takes it along."""
    arrival = arrive(b"x", user={"traceparent": PARENT, "tracestate": "a=" + "x" * 513})
    assert DECODER.reply_to(arrival).trace == {"traceparent": PARENT}
    arrival = arrive(b"x", user={"traceparent": "00-1-2-01", "tracestate": "a=1"})
    assert DECODER.reply_to(arrival).trace == {}


def tensors(*inputs: v2.Tensor) -> Arrival:
    """An arrival for ``pair`` with these inputs."""
    return arrive(*v2.write_request(v2.InferRequest(inputs)))


A = v2.Tensor("a", np.ones((2, 2), np.float32))
B = v2.Tensor("b", np.ones((2, 1, 3), np.uint8))


def _binary(**changes: Any) -> Arrival:
    return arrive(*pair_body(), **changes)


REFUSED: dict[str, tuple[Callable[[], Arrival], type[EdgedError]]] = {
    "retained": (lambda: _binary(retained=True), BadParameterError),
    "too large": (lambda: arrive(b"x" * 10_001), PayloadTooLargeError),
    "empty": (lambda: arrive(b""), TruncatedBodyError),
    "one byte": (lambda: arrive(b"{"), BadHeaderError),
    "no request topic": (lambda: _binary(topic="edged/v1/dev1/x"), UnknownModelError),
    "unknown model": (lambda: _binary(topic=TOPICS.infer("none")), UnknownModelError),
    "no model": (lambda: _binary(topic=TOPICS.infer("")), UnknownModelError),
    "path": (lambda: _binary(topic=TOPICS.infer("..")), UnknownModelError),
    "path in one level": (lambda: _binary(topic=TOPICS.infer("..%2fpair")), UnknownModelError),
    "look-alike": (lambda: _binary(topic=TOPICS.infer("p\u0430ir")), UnknownModelError),
    "line end": (lambda: _binary(topic=TOPICS.infer("pair\n")), UnknownModelError),
    "10 KB": (lambda: _binary(topic=TOPICS.infer("m" * 10_000)), UnknownModelError),
    "not loaded": (lambda: _binary(topic=TOPICS.infer("broken")), ModelUnavailableError),
    "content type": (lambda: _binary(content_type="text/plain"), UnsupportedContentTypeError),
    "pickle": (lambda: arrive(b"\x80\x05\x95\0\0\0\0"), UnsupportedContentTypeError),
    "image for tensors": (lambda: arrive(image()), UnsupportedContentTypeError),
    "no image": (
        lambda: arrive(b"GIF89a", topic=TOPICS.infer("image"), content_type="image/png"),
        BadImageError,
    ),
    "truncated image": (
        lambda: arrive(image()[:45], topic=TOPICS.infer("image")),
        BadImageError,
    ),
    "header length": (lambda: _binary(user={protocol.HEADER_LENGTH: "-1"}), BadHeaderError),
    "header length in digits": (
        lambda: _binary(user={protocol.HEADER_LENGTH: "\u0661"}),
        BadHeaderError,
    ),
    "header length too long": (
        lambda: _binary(user={protocol.HEADER_LENGTH: "99999"}),
        TruncatedBodyError,
    ),
    "input missing": (lambda: tensors(A), BadTensorError),
    "input unknown": (lambda: tensors(A, B, replace(A, name="c")), BadTensorError),
    "datatype": (lambda: tensors(A, replace(B, data=B.data.astype(np.int8))), BadDatatypeError),
    "shape": (lambda: tensors(replace(A, data=np.ones((2, 3), np.float32)), B), BadShapeError),
    "no batch axis": (lambda: tensors(replace(A, data=np.ones(2, np.float32)), B), BadShapeError),
    "samples differ": (lambda: tensors(A, replace(B, data=B.data[:1])), BadShapeError),
    "samples": (lambda: arrive(*pair_body(9)), PayloadTooLargeError),
    "output": (lambda: arrive(*pair_body(outputs=(v2.RequestedOutput("q"),))), BadTensorError),
    "deadline": (lambda: _binary(user={"deadline-ms": "soon"}), BadParameterError),
    "deadline of 0": (lambda: _binary(user={"deadline-ms": "0"}), BadParameterError),
    "deadline below 0": (lambda: _binary(user={"deadline-ms": "-5"}), BadParameterError),
    "endless deadline": (lambda: _binary(user={"deadline-ms": "inf"}), BadParameterError),
    "timeout": (lambda: arrive(*pair_body(parameters={"timeout": "1"})), BadParameterError),
    "timeout below 0": (lambda: arrive(*pair_body(parameters={"timeout": -1})), BadParameterError),
    "date": (
        lambda: arrive(*pair_body(parameters={"deadline_unix_ms": 10**300})),
        BadParameterError,
    ),
    "priority": (lambda: _binary(user={"priority": "high"}), BadParameterError),
    "priority by number in a property": (
        lambda: _binary(user={"priority": "1"}),
        BadParameterError,
    ),
    "priority below 0": (
        lambda: arrive(*pair_body(parameters={"priority": -1})),
        BadParameterError,
    ),
    "classes": (
        lambda: arrive(image(), topic=TOPICS.infer("image"), user={"classification": "-1"}),
        BadParameterError,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_each_mistake_has_its_own_error(name: str) -> None:
    """A request that cannot be served names what is wrong, shortly and in printable characters."""
    make, error = REFUSED[name]
    with pytest.raises(EdgedError) as caught:
        DECODER.decode(make())
    assert type(caught.value) is error
    assert 20 < len(caught.value.message) < 500
    assert caught.value.message.isprintable()


def test_reply_address_is_checked_before_anything_else() -> None:
    """A request that is wrong everywhere is refused for its reply address."""
    arrival = arrive(b"x" * 99_999, topic=TOPICS.infer("none"), response_topic="$SYS/x")
    with pytest.raises(BadResponseTopicError):
        DECODER.decode(arrival)
