"""Whatever arrives, the decoder ends in a request or in an error that has a wire code."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged import protocol, v2
from edged.errors import ClientError
from edged.recipe import InputSpec, OutputSpec
from edged.serve.decode import Decoder, Limits, ModelSpec
from edged.serve.request import Arrival, Receipt, Request

TOPICS = protocol.Topics("edged/v1", "d")
TENSOR = cast(
    ModelSpec,
    SimpleNamespace(
        input=(
            InputSpec(name="a", datatype="FP16", shape=(2,)),
            InputSpec(name="b", datatype="BOOL", shape=()),
        ),
        output=(OutputSpec(name="y", shape=(3,)),),
        slo_ms=100.0,
        freshness="latest",
        postprocessor=None,
    ),
)
IMAGE = cast(
    ModelSpec,
    SimpleNamespace(
        input=(InputSpec(name="p", datatype="UINT8", shape=(4, 4, 3), image="RGB"),),
        output=TENSOR.output,
        slo_ms=100.0,
        freshness="latest",
        postprocessor=None,
    ),
)
MODELS = {"t": TENSOR, "i": IMAGE}
DECODER = Decoder(
    TOPICS, MODELS.get, limits=Limits(4096, 4, 10.0), reply_prefixes=("x/",), wall=lambda: 1e9
)
BODY, LENGTH = v2.write_request(
    v2.InferRequest(
        (
            v2.Tensor("a", np.ones((2, 2), np.float16)),
            v2.Tensor("b", np.array([True, False])),
        ),
        (v2.RequestedOutput("y"),),
        "id",
        {"timeout": 5000, "priority": 1},
    )
)
SOUND = Arrival(
    topic=TOPICS.infer("t"),
    payload=BODY,
    receipt=Receipt(1, 1, 1, 1),
    received=50.0,
    response_topic=TOPICS.reply("c"),
    correlation=b"1",
    content_type=protocol.OCTET_STREAM,
    user={protocol.HEADER_LENGTH: str(LENGTH)},
)

WORDS = st.text(max_size=20) | st.integers().map(str) | st.floats().map(str)
PROPERTY_NAMES = (
    protocol.HEADER_LENGTH, protocol.PRIORITY, protocol.DEADLINE_MS, protocol.CLASSIFICATION,
    *protocol.TRACE_PROPERTIES,
)  # fmt: skip
ANYTHING: dict[str, st.SearchStrategy[Any]] = {
    "topic": WORDS.map(TOPICS.infer) | WORDS | st.just(TOPICS.infer("i")),
    "payload": st.binary(max_size=300) | st.just(b"\x89PNG\r\n\x1a\n") | st.just(b"{}"),
    "response_topic": WORDS | WORDS.map(TOPICS.reply) | WORDS.map("x/{}".format),
    "correlation": st.none() | st.binary(max_size=20) | st.just(b"x" * 2000),
    "content_type": WORDS | st.sampled_from(protocol.REQUEST_CONTENT_TYPES),
    "expiry_s": st.none() | st.integers(0, 2**32 - 1),
    "user": st.dictionaries(st.sampled_from(PROPERTY_NAMES) | WORDS, WORDS),
    "retained": st.booleans(),
}


def sound(request: Request, arrival: Arrival) -> None:
    """Checks what everything behind the decoder relies on."""
    model = MODELS[request.model]
    assert 1 <= request.samples <= 4
    assert set(request.tensors) == {spec.name for spec in model.input}
    for spec in model.input:
        tensor = request.tensors[spec.name]
        assert tensor.shape == (request.samples, *spec.shape)
        assert v2.datatype_of(tensor.dtype) == spec.datatype
    assert request.deadline <= arrival.received + 10
    assert request.outputs
    assert not set("+#") & set(request.reply_to.topic)
    assert request.reply_to.topic.startswith(("edged/v1/", "x/"))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_anything_is_decoded_or_refused(data: st.DataObject) -> None:
    """A sound arrival with any parts replaced by anything: a sound request, or a ClientError."""
    fields = data.draw(st.sets(st.sampled_from(sorted(ANYTHING)), max_size=4))
    arrival = replace(SOUND, **{field: data.draw(ANYTHING[field]) for field in sorted(fields)})
    try:
        request = DECODER.decode(arrival)
    except ClientError as err:
        assert err.message.isprintable()  # noqa: PT017 - either way of ending is right
        assert len(err.message) < 2000  # noqa: PT017
    else:
        sound(request, arrival)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(BODY) - 1), st.integers(0, 255), st.integers(0, len(BODY)))
def test_one_changed_byte_is_decoded_or_refused(at: int, value: int, end: int) -> None:
    """One byte changed, and the body cut somewhere: a sound request, or a ClientError."""
    payload = (BODY[:at] + bytes([value]) + BODY[at + 1 :])[: end or None]
    arrival = replace(SOUND, payload=payload)
    try:
        request = DECODER.decode(arrival)
    except ClientError as err:
        assert err.message.isprintable()  # noqa: PT017 - either way of ending is right
    else:
        sound(request, arrival)


def test_sound_arrival_is_decoded() -> None:
    """The arrival that the others are made of is a request; else they would prove nothing."""
    sound(DECODER.decode(SOUND), SOUND)


def test_every_cut_is_refused() -> None:
    """Cut at any byte, the sound arrival is refused, with its header length and without."""
    for end in range(len(BODY)):
        for user in (SOUND.user, {}):
            with pytest.raises(ClientError):
                DECODER.decode(replace(SOUND, payload=BODY[:end], user=user))
