"""Bodies of requests and replies as the client writes and reads them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged import protocol, v2
from edged.client import image_message, tensor_message
from edged.client.messages import read_reply
from edged.errors import BadDatatypeError, BadParameterError, ReplyError


def test_tensor_message_is_read_back_as_sent() -> None:
    """What is written is what a server reads, whatever byte order and layout the arrays have."""
    inputs = {
        "a": np.arange(6, dtype=">f4").reshape(2, 3),
        "b": np.asfortranarray(np.arange(8, dtype=np.uint8).reshape(2, 2, 2)),
        "c": np.arange(8, dtype=np.int64)[::4].reshape(2, 1),
    }
    message = tensor_message(inputs, outputs=["y"], classes=2)
    assert message.content_type == protocol.OCTET_STREAM
    request = v2.parse_request(message.payload, message.header_length)
    for tensor in request.inputs:
        np.testing.assert_array_equal(tensor.data, inputs[tensor.name])
    assert [(output.name, output.classes) for output in request.outputs] == [("y", 2)]


def test_array_without_a_v2_datatype_is_refused() -> None:
    """Complex numbers have no V2 datatype; the message names the dtype."""
    with pytest.raises(BadDatatypeError, match="complex64"):
        tensor_message({"x": np.zeros((1, 2), np.complex64)})


def test_negative_classes_are_refused() -> None:
    """Neither arrays nor images can ask for a negative number of classes."""
    with pytest.raises(BadParameterError, match="-1"):
        tensor_message({"x": np.zeros((1, 2))}, outputs=["y"], classes=-1)
    with pytest.raises(BadParameterError, match="-1"):
        image_message(b"", protocol.PNG, classes=-1)


@given(
    status=st.integers(400, 599),
    payload=st.one_of(
        st.binary(max_size=64),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["error", "code", "retryable", "retry_after_ms"]), inner
                )
            ),
            max_leaves=8,
        ).map(lambda value: json.dumps(value).encode()),
    ),
)
@settings(max_examples=100)
def test_any_error_body_becomes_a_reply_error(status: int, payload: bytes) -> None:
    """Whatever a device sends with an error status, the caller gets a ReplyError of that status."""
    with pytest.raises(ReplyError) as caught:
        read_reply(payload, protocol.JSON, {protocol.STATUS: str(status)})
    error = caught.value
    assert error.status == status
    assert isinstance(error.code, str)
    assert isinstance(error.retryable, bool)
    assert error.retry_after_ms is None or isinstance(error.retry_after_ms, int)


@given(payload=st.binary(max_size=200), length=st.none() | st.text(max_size=6) | st.just("12"))
@settings(max_examples=100)
def test_garbage_is_a_reply_error_and_nothing_else(payload: bytes, length: str | None) -> None:
    """Bytes that are no V2 response never raise anything but ReplyError."""
    user = {} if length is None else {protocol.HEADER_LENGTH: length}
    with pytest.raises(ReplyError):
        read_reply(payload, "", user)


def test_truncated_reply_is_refused_at_every_length() -> None:
    """A reply that was cut anywhere is refused as unreadable, never read as less."""
    payload, length = v2.write_response(
        v2.InferResponse("m", "1", (v2.Tensor("y", np.arange(4, dtype=np.float32)),))
    )
    user = {protocol.STATUS: "200", protocol.HEADER_LENGTH: str(length)}
    np.testing.assert_array_equal(
        read_reply(payload, protocol.OCTET_STREAM, user).outputs["y"], np.arange(4)
    )
    for end in range(len(payload)):
        with pytest.raises(ReplyError):
            read_reply(payload[:end], protocol.OCTET_STREAM, user)
