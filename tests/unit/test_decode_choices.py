"""What a request may choose besides its tensors: class by topic, source, and length."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged import protocol, v2
from edged.errors import BadParameterError, BadShapeError, EdgedError, UnknownModelError
from edged.postprocess import Postprocessor
from edged.recipe import InputSpec, LengthSpec, OutputSpec
from edged.serve.decode import Decoder
from edged.serve.request import Arrival, Priority, Receipt, Request
from edged.serve.request_inputs import check_inputs, describe

TOPICS = protocol.Topics("edged/v1", "dev1")


@dataclass(frozen=True)
class Model:
    """A served model."""

    input: tuple[InputSpec, ...] = (InputSpec(name="x", datatype="FP32", shape=(2,)),)
    output: tuple[OutputSpec, ...] = (OutputSpec(name="y", shape=(4,)),)
    slo_ms: float = 500.0
    freshness: Literal["all", "latest"] = "latest"
    postprocessor: Postprocessor | None = None


TOKENS = InputSpec(
    name="tokens", datatype="FP32", shape=(2, 12), length=LengthSpec(axis=1, buckets=(4,))
)
TYPES = InputSpec(
    name="types", datatype="FP32", shape=(12,), length=LengthSpec(axis=0, buckets=(4,))
)
SCALAR = InputSpec(name="scalar", datatype="FP32", shape=())
DECODER = Decoder(TOPICS, {"m": Model(), "all": Model(freshness="all")}.get)
BODY = json.dumps(
    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}]}
)


def decode(**changes: Any) -> Request:
    """A request for the model ``m``, with other fields of its arrival."""
    made = Arrival(
        topic=TOPICS.infer("m"),
        payload=BODY.encode(),
        receipt=Receipt(1, 1, 1, 1),
        received=100.0,
        response_topic=TOPICS.reply("me"),
    )
    return DECODER.decode(replace(made, **changes))


# ------------------------------------------------------------------ class and source


@pytest.mark.parametrize("name", protocol.PRIORITIES)
def test_the_topic_names_the_class(name: str) -> None:
    """Where no property does; a property wins, and the body's word loses."""
    topic = TOPICS.infer_class("m", name)
    body = BODY[:-1] + ', "parameters": {"priority": 2}}'

    assert decode(topic=topic).priority is Priority[name.upper()]
    assert decode(topic=topic, payload=body.encode()).priority is Priority[name.upper()]
    assert decode(topic=topic, user={"priority": "normal"}).priority is Priority.NORMAL


def test_a_class_that_does_not_exist_is_said() -> None:
    """The message names those that do; a topic without the name is no request topic."""
    with pytest.raises(BadParameterError, match="priority 'soon' must be one of urgent, normal"):
        decode(topic=TOPICS.infer_class("m", "soon"))
    with pytest.raises(UnknownModelError):
        decode(topic=TOPICS.infer_class("m", ""))


def test_the_source_is_a_property_or_the_client_of_an_old_request() -> None:
    """For models that serve the latest; the others have none."""
    old = TOPICS.infer_v3("m", "plc-7", "42")

    assert decode(user={"source": "cam"}).source == "cam"
    assert decode().source == ""
    assert decode(topic=old).source == "plc-7"
    assert decode(topic=old, user={"source": "cam"}).source == "cam"
    assert decode(topic=TOPICS.infer("all"), user={"source": "cam"}).source == ""


def test_a_source_has_a_length_limit() -> None:
    """It is kept as long as its request waits."""
    assert len(decode(user={"source": "c" * 128}).source) == 128
    with pytest.raises(BadParameterError, match="has 129 characters, at most 128"):
        decode(user={"source": "c" * 129})


# ------------------------------------------------------------------ length


def body(**shapes: tuple[int, ...]) -> v2.InferRequest:
    """Zeros of these shapes."""
    tensors = [v2.Tensor(name, np.zeros(shape, np.float32)) for name, shape in shapes.items()]
    return v2.InferRequest(inputs=tuple(tensors))


@pytest.mark.parametrize(("length", "padded"), [(1, 4), (4, 4), (5, 12), (12, 12)])
def test_a_request_is_of_the_smallest_bucket_that_holds_it(length: int, padded: int) -> None:
    """All inputs of variable length count together, on whichever axis."""
    found = check_inputs(
        body(tokens=(3, 2, length), types=(3, length), scalar=(3,)), (TOKENS, TYPES, SCALAR)
    )

    assert (found.samples, found.length, found.unpadded) == (3, padded, length)
    assert found.tensors["tokens"].shape == (3, 2, length)


@pytest.mark.parametrize(
    ("shapes", "why"),
    [
        ({"tokens": (1, 2, 13), "types": (1, 13)}, r"has length 13, .* 1 to 12 \(max_length\)"),
        ({"tokens": (1, 2, 5), "types": (1, 6)}, "inputs hold different lengths"),
        ({"tokens": (1, 3, 5), "types": (1, 5)}, r"takes tokens FP32 \[n,2,1\.\.12\]"),
        ({"tokens": (2, 2, 5), "types": (1, 5)}, "inputs hold different numbers of samples"),
        ({"tokens": (1, 10), "types": (1, 5)}, "but this model takes"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(shapes: dict[str, Any], why: str) -> None:
    """Each says what is wrong and what the model takes."""
    with pytest.raises(BadShapeError, match=why):
        check_inputs(body(**shapes), (TOKENS, TYPES))


@given(shape=st.lists(st.integers(1, 14), max_size=4))
def test_any_shape_is_taken_whole_or_refused(shape: list[int]) -> None:
    """What is taken is within its bucket, and its bucket within the limits."""
    try:
        found = check_inputs(body(tokens=tuple(shape)), (TOKENS,))
    except EdgedError:
        assert len(shape) != 3 or shape[1] != 2 or shape[2] > 12
        return
    assert found.samples == shape[0]
    assert 1 <= found.unpadded == shape[2] <= found.length <= 12


def test_a_person_reads_which_axis_is_free() -> None:
    """As it stands in error messages."""
    assert describe(TOKENS) == "tokens FP32 [n,2,1..12]"
    assert describe(SCALAR) == "scalar FP32 [n]"
