"""V2 bodies: what is read, what is written, and what is refused with which error."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from edged import v2
from edged.errors import (
    BadDatatypeError,
    BadHeaderError,
    BadParameterError,
    BadShapeError,
    BadTensorError,
    ClientError,
    TruncatedBodyError,
)


def tensor(**changes: Any) -> dict[str, Any]:
    """One JSON input, FP32 [1, 2], with some members changed; None takes a member away."""
    made = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2.5]} | changes
    return {key: value for key, value in made.items() if value is not None}


def body(*inputs: dict[str, Any], **members: Any) -> bytes:
    """A request body in plain JSON."""
    return json.dumps({"inputs": list(inputs), **members}).encode()


def binary(size: object = 8, tail: bytes = b"\0" * 8, **changes: Any) -> tuple[bytes, int]:
    """A request body with one binary input, and its header length."""
    header = body(tensor(data=None, parameters={"binary_data_size": size}, **changes))
    return header + tail, len(header)


def test_binary_tensor_is_a_view_of_the_body() -> None:
    """The payload is not copied: the array looks into the body itself."""
    data = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    payload, length = v2.write_request(v2.InferRequest((v2.Tensor("x", data),)))
    parsed = v2.parse_request(payload, length).inputs[0]
    np.testing.assert_array_equal(parsed.data, data)
    assert np.shares_memory(parsed.data, np.frombuffer(payload, np.uint8))
    assert (parsed.datatype, parsed.shape, parsed.binary) == ("FP32", (1, 2, 3), True)


def test_tensors_lie_in_declared_order() -> None:
    """The second tensor starts where the first one ends, whatever their alignment."""
    first, second = np.array([1, 2, 3], np.uint8), np.array([1.5], np.float64)
    request = v2.InferRequest((v2.Tensor("b", first), v2.Tensor("a", second)))
    payload, length = v2.write_request(request)
    assert length is not None
    assert payload[length:] == first.tobytes() + second.tobytes()
    parsed = v2.parse_request(payload, length)
    assert [t.name for t in parsed.inputs] == ["b", "a"]
    assert parsed.inputs[1].data == 1.5


def test_big_endian_and_strided_arrays_travel_little_endian_in_row_order() -> None:
    """What the sender's memory looks like does not show on the wire."""
    data = np.arange(6, dtype=">i4").reshape(2, 3).T
    payload, length = v2.write_request(v2.InferRequest((v2.Tensor("x", data),)))
    assert payload[length:] == np.array([0, 3, 1, 4, 2, 5], "<i4").tobytes()


@pytest.mark.parametrize("data", [[1, 2, 3, 4], [[1, 2], [3, 4]]])
def test_json_data_may_be_flat_or_nested(data: list[Any]) -> None:
    """Both forms of a [2, 2] tensor are the same tensor."""
    parsed = v2.parse_request(body(tensor(shape=[2, 2], datatype="INT16", data=data)))
    np.testing.assert_array_equal(parsed.inputs[0].data, np.array([[1, 2], [3, 4]], np.int16))
    assert not parsed.inputs[0].binary


def test_everything_else_of_a_request_is_read() -> None:
    """Id, parameters and the choice of outputs arrive as they were sent."""
    outputs = [{"name": "y", "parameters": {"binary_data": False, "classification": 3}}]
    parsed = v2.parse_request(
        body(tensor(), id="é7", outputs=outputs, parameters={"timeout": 5, "other": "kept"})
    )
    assert parsed.id == "é7"
    assert parsed.outputs == (v2.RequestedOutput("y", binary=False, classes=3),)
    assert parsed.parameters == {"timeout": 5, "other": "kept"}
    assert parsed.binary_output is None


HEADERS: dict[str, bytes] = {
    "empty": b"",
    "no JSON": b"hello",
    "a list": b"[]",
    "invalid UTF-8": b'{"id":"\xff"}',
    "UTF-16": '{"id":"x"}'.encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf{}",
    "deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nine deep": b'{"a":' + b"[" * 8 + b"]" * 8 + b"}",
    "unclosed and deep": b"[" * 100_000,
    "many lists": b'{"a":[' + b"[]," * 1_000_001 + b"1]}",
    "long integer": b'{"a":' + b"9" * 100_000 + b"}",
    "NaN": b'{"a":NaN}',
    "Infinity": b'{"a":-Infinity}',
    "a name twice": b'{"id":"a","id":"b"}',
    "half a surrogate pair": b'{"id":"\\ud800"}',
    "trailing bytes": b"{} {}",
    "inputs missing": b"{}",
    "inputs no list": b'{"inputs":{}}',
    "input no object": b'{"inputs":[1]}',
    "input without name": b'{"inputs":[{}]}',
    "id no string": b'{"inputs":[],"id":5}',
    "id too long": b'{"inputs":[],"id":"' + b"x" * 1025 + b'"}',
}


@pytest.mark.parametrize("name", HEADERS)
def test_broken_headers_are_refused(name: str) -> None:
    """Each way in which a header can be broken is a BadHeaderError with a short message."""
    with pytest.raises(BadHeaderError) as caught:
        v2.parse_request(HEADERS[name])
    assert 10 < len(caught.value.message) < 400


def test_brackets_in_strings_do_not_count_as_nesting() -> None:
    """An id full of brackets and escaped quotes is an id, not a deep document."""
    name = '[[[[{{{{"\\" [[[[{{{{'
    assert v2.parse_request(body(tensor(), id=name)).id == name


TENSORS: dict[str, tuple[dict[str, Any], type[ClientError]]] = {
    "datatype missing": (tensor(datatype=None), BadDatatypeError),
    "datatype unknown": (tensor(datatype="FLOAT"), BadDatatypeError),
    "datatype no string": (tensor(datatype=[]), BadDatatypeError),
    "BYTES": (tensor(datatype="BYTES", data=["a", "b"]), BadDatatypeError),
    "BF16": (tensor(datatype="BF16"), BadDatatypeError),
    "shape missing": (tensor(shape=None), BadShapeError),
    "shape no list": (tensor(shape=2), BadShapeError),
    "negative": (tensor(shape=[-1, -2]), BadShapeError),
    "zero": (tensor(shape=[0, 2], data=[]), BadShapeError),
    "huge": (tensor(shape=[2**63, 2]), BadShapeError),
    "product overflows": (tensor(shape=[2**31 - 1] * 16), BadShapeError),
    "boolean size": (tensor(shape=[True, 2]), BadShapeError),
    "fractional size": (tensor(shape=[1.0, 2]), BadShapeError),
    "rank": (tensor(shape=[1] * 17), BadShapeError),
    "too few": (tensor(data=[1]), BadShapeError),
    "too many": (tensor(data=[1, 2, 3]), BadShapeError),
    "ragged": (tensor(shape=[2, 2], data=[[1, 2], [3]]), BadShapeError),
    "half nested": (tensor(shape=[2, 2], data=[[1, 2], 3]), BadShapeError),
    "too nested": (tensor(data=[[[1], [2]]]), BadTensorError),
    "no data": (tensor(data=None), BadTensorError),
    "data no list": (tensor(data="ab"), BadTensorError),
    "data and size": (tensor(parameters={"binary_data_size": 8}), BadTensorError),
    "string": (tensor(data=["1", "2"]), BadTensorError),
    "null": (tensor(data=[1, None]), BadTensorError),
    "bool as float": (tensor(data=[1, True]), BadTensorError),
    "float as int": (tensor(datatype="INT8", data=[1, 2.0]), BadTensorError),
    "int as bool": (tensor(datatype="BOOL", data=[1, 0]), BadTensorError),
    "beyond UINT8": (tensor(datatype="UINT8", data=[1, 256]), BadTensorError),
    "below UINT8": (tensor(datatype="UINT8", data=[1, -1]), BadTensorError),
    "beyond UINT64": (tensor(datatype="UINT64", data=[1, 2**64]), BadTensorError),
    "beyond FP16": (tensor(datatype="FP16", data=[1, 70000]), BadTensorError),
    "beyond FP32": (tensor(data=[1, 1e300]), BadTensorError),
    "beyond FP64": (tensor(datatype="FP64", data=[1, 10**400]), BadTensorError),
    "parameters no object": (tensor(parameters=[]), BadParameterError),
    "shared memory": (tensor(parameters={"shared_memory_region": "r"}), BadParameterError),
}


@pytest.mark.parametrize("name", TENSORS)
def test_broken_tensors_are_refused(name: str) -> None:
    """Each way to break an input has its error, with the input's name in the message."""
    entry, error = TENSORS[name]
    with pytest.raises(ClientError) as caught:
        v2.parse_request(body(entry))
    assert type(caught.value) is error
    assert "'x'" in caught.value.message
    assert len(caught.value.message) < 500


def test_name_given_twice_is_refused() -> None:
    """Two inputs of one name are ambiguous."""
    with pytest.raises(BadTensorError, match="twice"):
        v2.parse_request(body(tensor(), tensor()))


SIZES: dict[str, tuple[tuple[bytes, int], type[ClientError]]] = {
    "one byte short": (binary(tail=b"\0" * 7), TruncatedBodyError),
    "one byte more": (binary(tail=b"\0" * 9), TruncatedBodyError),
    "nothing": (binary(tail=b""), TruncatedBodyError),
    "size above shape": (binary(size=12, tail=b"\0" * 12), BadTensorError),
    "size below shape": (binary(size=4, tail=b"\0" * 4), BadTensorError),
    "huge size": (binary(size=2**63), TruncatedBodyError),
    "negative size": (binary(size=-8), BadTensorError),
    "size no number": (binary(size="8"), BadTensorError),
    "size true": (binary(size=True), BadTensorError),
    "shape of petabytes": (binary(shape=[2**31 - 1] * 16), BadTensorError),
    "BOOL of 2": (binary(datatype="BOOL", size=2, tail=b"\1\2"), BadTensorError),
}


@pytest.mark.parametrize("name", SIZES)
def test_stated_sizes_must_fit(name: str) -> None:
    """A size is believed only where the shape and the bytes that lie there agree with it."""
    (payload, length), error = SIZES[name]
    with pytest.raises(ClientError) as caught:
        v2.parse_request(payload, length)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("length", "error"), [(0, BadHeaderError), (-1, BadHeaderError), (10**6, TruncatedBodyError)]
)
def test_header_length_must_lie_in_the_body(length: int, error: type[ClientError]) -> None:
    """A header length outside the body is refused."""
    with pytest.raises(error):
        v2.parse_request(body(tensor()), length)


def test_binary_size_without_header_length_says_what_is_missing() -> None:
    """Whoever forgets the header length reads about it in the message."""
    payload, _ = binary()
    with pytest.raises(BadHeaderError, match="send its length"):
        v2.parse_request(payload)


@pytest.mark.parametrize(
    "outputs",
    [
        [{"name": "y", "parameters": {"binary_data": 1}}],
        [{"name": "y", "parameters": {"classification": -1}}],
        [{"name": "y", "parameters": {"classification": True}}],
        [{"name": "y", "parameters": {"classification": "3"}}],
        [{"name": "y", "parameters": {"shared_memory_region": "r"}}],
    ],
)
def test_broken_output_parameters_are_refused(outputs: list[Any]) -> None:
    """Parameters of an output are checked before anything runs."""
    with pytest.raises(BadParameterError):
        v2.parse_request(body(tensor(), outputs=outputs))


def test_binary_data_output_must_be_true_or_false() -> None:
    """A word there would be taken for true by accident."""
    with pytest.raises(BadParameterError, match="binary_data_output"):
        v2.parse_request(body(tensor(), parameters={"binary_data_output": "no"}))


def test_response_goes_both_ways_in_both_forms() -> None:
    """Names, version, id, parameters, numbers and strings come back as they were written."""
    strings = v2.string_array([b"0.5:1:caf\xc3\xa9", b""]).reshape(1, 2)
    for form in (True, False):
        written = v2.InferResponse(
            "m",
            "0123456789ab",
            (v2.Tensor("y", np.array([[1, 2]], np.float32), form), v2.Tensor("s", strings, form)),
            id="7",
            parameters={"queue_us": 3},
        )
        read = v2.parse_response(*v2.write_response(written))
        assert (read.model_name, read.model_version, read.id) == ("m", "0123456789ab", "7")
        assert read.parameters == {"queue_us": 3}
        np.testing.assert_array_equal(read["y"], [[1, 2]])
        assert read["s"].tolist() == strings.tolist()


def test_nan_in_a_json_answer_is_null_and_reads_as_nan() -> None:
    """JSON has no NaN: null stands for it and for infinity, binary form keeps both."""
    data = np.array([np.nan, np.inf, 1.5], np.float32)
    body_, length = v2.write_response(
        v2.InferResponse("m", "", (v2.Tensor("y", data, binary=False),))
    )
    assert length is None
    assert json.loads(body_)["outputs"][0]["data"] == [None, None, 1.5]
    np.testing.assert_array_equal(v2.parse_response(body_)["y"], [np.nan, np.nan, 1.5])
    kept = v2.write_response(v2.InferResponse("m", "", (v2.Tensor("y", data),)))
    np.testing.assert_array_equal(v2.parse_response(*kept)["y"], data)


def test_nan_in_a_json_request_is_refused_when_written() -> None:
    """The sender learns at once that only binary form carries NaN."""
    request = v2.InferRequest((v2.Tensor("x", np.array([np.nan]), binary=False),))
    with pytest.raises(BadTensorError, match="binary"):
        v2.write_request(request)


@pytest.mark.parametrize("tail", [b"\1\0\0\0a", b"\1\0\0\0a\5\0\0\0b", b"\1\0\0\0a\0\0", b""])
def test_broken_strings_are_refused(tail: bytes) -> None:
    """Strings whose lengths do not add up to two strings are refused."""
    outputs = [{"name": "s", "datatype": "BYTES", "shape": [2],
                "parameters": {"binary_data_size": len(tail)}}]  # fmt: skip
    header = json.dumps({"model_name": "m", "outputs": outputs}).encode()
    with pytest.raises(BadTensorError, match="strings"):
        v2.parse_response(header + tail, len(header))


@pytest.mark.parametrize("dtype", ["complex64", "U4", "M8[s]"])
def test_dtypes_without_a_datatype_are_refused(dtype: str) -> None:
    """Numpy knows kinds that V2 has no name for."""
    with pytest.raises(BadDatatypeError, match="convert"):
        v2.datatype_of(np.dtype(dtype))
