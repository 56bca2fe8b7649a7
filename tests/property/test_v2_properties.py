"""V2 bodies of any content: what is written is read back, and nothing else gets through."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from edged import v2
from edged.errors import ClientError

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
EITHER_FORM = st.booleans()
BINARY = st.sampled_from([True])
SHAPES = npst.array_shapes(min_dims=0, max_dims=4, max_side=4)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)


@st.composite
def tensors(draw: st.DrawFn, *, form: st.SearchStrategy[bool]) -> v2.Tensor:
    """A named tensor of any datatype; without NaN, so that JSON can carry it."""
    dtype = draw(st.sampled_from(sorted(v2.DATATYPES.values(), key=str)))
    elements: dict[str, Any] = {}
    if dtype.kind == "f":
        elements = {"allow_nan": False, "allow_infinity": False}
    data = draw(npst.arrays(dtype, SHAPES, elements=elements))
    return v2.Tensor(draw(NAMES), data, binary=draw(form))


@st.composite
def requests(draw: st.DrawFn, form: st.SearchStrategy[bool] = EITHER_FORM) -> v2.InferRequest:
    """A request whose inputs come in either form."""
    inputs = draw(st.lists(tensors(form=form), max_size=3, unique_by=lambda t: t.name))
    outputs = st.builds(v2.RequestedOutput, NAMES, st.none() | st.booleans(), st.integers(0, 9))
    return v2.InferRequest(
        inputs=tuple(inputs),
        outputs=tuple(draw(st.lists(outputs, max_size=3, unique_by=lambda o: o.name))),
        id=draw(st.just("") | NAMES),
        parameters=draw(st.dictionaries(st.sampled_from("abc"), st.integers() | NAMES)),
    )


def same(one: tuple[v2.Tensor, ...], other: tuple[v2.Tensor, ...]) -> bool:
    """Whether two lists of tensors are equal, bit by bit."""
    return [(t.name, t.datatype, t.shape, t.binary, t.data.tobytes()) for t in one] == [
        (t.name, t.datatype, t.shape, t.binary, t.data.tobytes()) for t in other
    ]


@settings(max_examples=150, deadline=None)
@given(requests())
def test_requests_are_read_as_they_were_written(request: v2.InferRequest) -> None:
    """Names, datatypes, shapes, bits, forms, outputs and parameters all come back."""
    read = v2.parse_request(*v2.write_request(request))
    assert same(read.inputs, request.inputs)
    assert read.outputs == request.outputs
    assert (read.id, read.parameters) == (request.id, request.parameters)


@settings(max_examples=100, deadline=None)
@given(st.lists(tensors(form=EITHER_FORM), max_size=3, unique_by=lambda t: t.name), NAMES)
def test_responses_are_read_as_they_were_written(outputs: list[v2.Tensor], name: str) -> None:
    """An answer goes both ways without loss."""
    written = v2.InferResponse(name, "v", tuple(outputs), id=name, parameters={"n": 1})
    read = v2.parse_response(*v2.write_response(written))
    assert same(read.outputs, written.outputs)
    assert (read.model_name, read.id, read.parameters) == (name, name, {"n": 1})


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=9), min_size=1, max_size=9))
def test_strings_are_read_as_they_were_written(items: list[bytes]) -> None:
    """Any bytes can be an entry of a BYTES tensor in binary form."""
    written = v2.InferResponse("m", "", (v2.Tensor("s", v2.string_array(items)),))
    assert v2.parse_response(*v2.write_response(written))["s"].tolist() == items


@settings(max_examples=25, deadline=None)
@given(requests(form=BINARY), st.binary(min_size=1, max_size=9))
def test_whole_or_refused(request: v2.InferRequest, extra: bytes) -> None:
    """Cut at any byte, or with bytes left over, a body is refused and nothing else happens."""
    body, length = v2.write_request(request)
    for end in range(len(body)):
        with pytest.raises(ClientError):
            v2.parse_request(body[:end], length)
    with pytest.raises(ClientError):
        v2.parse_request(body + extra + b"x", length)


def refused_or_read(body: bytes, length: int | None) -> None:
    """Reads a body as a request and as a response; any error but ClientError fails the test."""
    _refused_or_read(v2.parse_request, body, length)
    _refused_or_read(v2.parse_response, body, length)


def _refused_or_read(
    parse: Callable[[bytes, int | None], object], body: bytes, length: int | None
) -> None:
    try:
        parse(body, length)
    except ClientError as err:
        assert len(err.message) < 2000  # noqa: PT017 - either way of ending is right
        assert err.message.isprintable()  # noqa: PT017


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.none() | st.integers(-2, 210))
def test_garbage_is_refused(body: bytes, length: int | None) -> None:
    """No bytes make the reader fail in another way than by refusing them."""
    refused_or_read(body, length)


@settings(max_examples=150, deadline=None)
@given(DOCUMENTS, st.binary(max_size=16))
def test_any_json_is_refused_or_read(document: object, tail: bytes) -> None:
    """No JSON document makes the reader fail in another way than by refusing it."""
    text = json.dumps(document).encode()
    refused_or_read(text + tail, len(text))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_almost_right_tensors_are_refused_or_read(data: st.DataObject) -> None:
    """A sound tensor with any member replaced by anything is refused or read."""
    entry: dict[str, Any] = {
        "name": "x", "datatype": "FP32", "shape": [1, 2],
        data.draw(st.sampled_from(["data", "none"])): [1, 2],
        "parameters": {"binary_data_size": 8},
    }  # fmt: skip
    member = data.draw(st.sampled_from(sorted(entry)))
    entry[member] = data.draw(DOCUMENTS)
    text = json.dumps({"inputs": [entry], "outputs": [entry], "model_name": "m"}).encode()
    refused_or_read(text + b"\0" * 8, len(text))
    refused_or_read(text, None)


@settings(max_examples=100, deadline=None)
@given(requests(), st.data())
def test_flipped_bytes_are_refused_or_read(request: v2.InferRequest, data: st.DataObject) -> None:
    """A sound body with some bytes changed is refused or read."""
    body, length = v2.write_request(request)
    changed = bytearray(body)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    refused_or_read(bytes(changed), length)


@settings(max_examples=100, deadline=None)
@given(npst.arrays(np.float32, npst.array_shapes(min_dims=1, max_dims=3)))
def test_json_answers_keep_every_finite_number(data: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    """Numbers in JSON are exact; NaN and infinity both read as NaN."""
    written = v2.InferResponse("m", "", (v2.Tensor("y", data, binary=False),))
    read = v2.parse_response(*v2.write_response(written))["y"]
    np.testing.assert_array_equal(read, np.where(np.isfinite(data), data, np.nan))
