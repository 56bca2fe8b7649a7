"""Bytes -> `InferRequest` or `InferResponse`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np

from edged.errors import (
    BadDatatypeError,
    BadHeaderError,
    BadParameterError,
    BadShapeError,
    BadTensorError,
    TruncatedBodyError,
)
from edged.v2.header import entries_of, load, parameters_of, show, text_of
from edged.v2.tensors import (
    BYTES,
    DATATYPES,
    Array,
    Dtype,
    InferRequest,
    InferResponse,
    RequestedOutput,
    Tensor,
    string_array,
)

REMEMBERED_BYTES = 1024
"""Headers of requests up to this size are remembered, the last few hundred of them."""
MAX_RANK = 16
MAX_DIMENSION = 2**31 - 1


def parse_request(body: bytes | memoryview, header_length: int | None = None) -> InferRequest:
    """Reads a request.

    Args:
        body: header and tensors; the returned arrays are views of it.
        header_length: bytes of the header; None: all of it is header.

    Raises:
        BadHeaderError: the header is no JSON object of the form that V2 asks for.
        TruncatedBodyError: the tensors are longer or shorter than the header says.
        BadDatatypeError, BadShapeError, BadTensorError: an input is not what it declares to be.
        BadParameterError: a parameter has a value that is not allowed.
    """
    text, tail = _split(body, header_length)
    declared = _remembered(text) if len(text) <= REMEMBERED_BYTES else _declare(text)
    return InferRequest(
        inputs=_tensors(declared.inputs, tail),
        outputs=declared.outputs,
        id=declared.id,
        parameters=declared.parameters,
    )


def parse_response(body: bytes | memoryview, header_length: int | None = None) -> InferResponse:
    """Reads an answer that is no error document.

    ``null`` in a JSON list of floats is NaN: JSON has no word for it.

    Args:
        body: header and tensors; the returned arrays of fixed-size datatypes in binary form are
            views of it.
        header_length: bytes of the header; None: all of it is header.

    Raises:
        BadHeaderError, TruncatedBodyError, BadTensorError: as `parse_request`.
    """
    text, tail = _split(body, header_length)
    header = load(text)
    return InferResponse(
        model_name=text_of(header, "model_name", ""),
        model_version=text_of(header, "model_version", ""),
        outputs=_tensors(_declared(header, "outputs", answer=True), tail),
        id=text_of(header, "id", ""),
        parameters=parameters_of(header, "the response"),
    )


def _split(body: bytes | memoryview, header_length: int | None) -> tuple[bytes, memoryview]:
    if header_length is not None and header_length < 1:
        raise BadHeaderError(f"header length {header_length} must be at least 1")
    if header_length is not None and header_length > len(body):
        raise TruncatedBodyError(
            f"the header should have {header_length} bytes, but the whole body has {len(body)}"
        )
    end = len(body) if header_length is None else header_length
    return bytes(body[:end]), memoryview(body)[end:]


@dataclass(frozen=True, slots=True)
class _Declared:
    """A tensor as the header declares it; with ``data`` if they stand in the header too."""

    name: str
    what: str
    datatype: str
    shape: tuple[int, ...]
    size: Any
    data: Array | None


@dataclass(frozen=True, slots=True)
class _RequestHeader:
    inputs: tuple[_Declared, ...]
    outputs: tuple[RequestedOutput, ...]
    id: str
    parameters: Mapping[str, Any]


def _declare(text: bytes) -> _RequestHeader:
    header = load(text)
    parameters = parameters_of(header, "the request")
    if not isinstance(parameters.get("binary_data_output", False), bool):
        raise BadParameterError(
            f"binary_data_output {show(parameters['binary_data_output'])} must be true or false"
        )
    return _RequestHeader(
        _declared(header, "inputs", answer=False),
        _requested(header),
        text_of(header, "id", ""),
        parameters,
    )


_remembered = lru_cache(256)(_declare)
"""The same requester sends the same header again and again: what it says is found out once."""


def _requested(header: Mapping[str, Any]) -> tuple[RequestedOutput, ...]:
    if "outputs" not in header:
        return ()
    outputs = []
    for name, entry in entries_of(header, "outputs"):
        given = parameters_of(entry, f"output {show(name)}")
        binary, classes = given.get("binary_data"), given.get("classification", 0)
        if not isinstance(binary, (bool, type(None))):
            raise BadParameterError(f"binary_data {show(binary)} must be true or false")
        if type(classes) is not int or classes < 0:
            raise BadParameterError(
                f"classification {show(classes)} must be a whole number from 0 on"
            )
        outputs.append(RequestedOutput(name, binary, classes))
    return tuple(outputs)


def _declared(header: Mapping[str, Any], key: str, *, answer: bool) -> tuple[_Declared, ...]:
    declared = []
    for name, entry in entries_of(header, key):
        what = f"{key[:-1]} {show(name)}"
        datatype, shape = _datatype(entry, what, answer=answer), _shape(entry, what)
        size = parameters_of(entry, what).get("binary_data_size")
        if (size is None) == ("data" not in entry):
            raise BadTensorError(
                f"{what} must have either data or parameters.binary_data_size, and not both"
            )
        data = None
        if size is None:
            values = _flat(entry["data"], shape, what)
            data = _from_json(values, datatype, what, nulls=answer).reshape(shape)
            data.flags.writeable = False  # it may be remembered
        declared.append(_Declared(name, what, datatype, shape, size, data))
    return tuple(declared)


def _tensors(declared: tuple[_Declared, ...], tail: memoryview) -> tuple[Tensor, ...]:
    tensors, at = [], 0
    for each in declared:
        data = each.data
        if data is None:
            raw = _take(tail, at, each.size, each.what)
            data = _from_bytes(raw, each.datatype, each.shape, each.what).reshape(each.shape)
            at += each.size
        tensors.append(Tensor(each.name, data, binary=each.data is None))
    if at != len(tail):
        raise TruncatedBodyError(
            f"{len(tail)} bytes follow the header, but its tensors have {at} in all"
        )
    return tuple(tensors)


def _datatype(entry: Mapping[str, Any], what: str, *, answer: bool) -> str:
    name = entry.get("datatype")
    if name == BYTES and not answer:
        raise BadDatatypeError(
            f"{what} has datatype BYTES, which is taken in answers only; send numbers, "
            "or one PNG or JPEG image as the whole body"
        )
    if not isinstance(name, str) or (name not in DATATYPES and name != BYTES):
        raise BadDatatypeError(
            f"{what} has datatype {show(name)}; it must be one of {', '.join(DATATYPES)}"
        )
    return name


def _shape(entry: Mapping[str, Any], what: str) -> tuple[int, ...]:
    shape = entry.get("shape")
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_RANK
        or any(type(size) is not int or not 1 <= size <= MAX_DIMENSION for size in shape)
    ):
        raise BadShapeError(
            f"{what} has shape {show(shape)}; it must be a list of at most {MAX_RANK} "
            f"whole numbers from 1 to {MAX_DIMENSION}"
        )
    return tuple(shape)


def _take(tail: memoryview, at: int, size: object, what: str) -> memoryview:
    if type(size) is not int or size < 0:
        raise BadTensorError(
            f"binary_data_size {show(size)} of {what} must be a whole number from 0 on"
        )
    if size > len(tail) - at:
        raise TruncatedBodyError(
            f"{what} should have {show(size)} bytes, but only {len(tail) - at} are left "
            f"of the {len(tail)} that follow the header"
        )
    return tail[at : at + size]


def _from_bytes(raw: memoryview, datatype: str, shape: tuple[int, ...], what: str) -> Array:
    count = math.prod(shape)
    if datatype == BYTES:
        return _strings_from_bytes(raw, count, what)
    dtype = DATATYPES[datatype]
    if len(raw) != count * dtype.itemsize:
        raise BadTensorError(
            f"{what} has {len(raw)} bytes, but {datatype} {show(list(shape))} takes "
            f"{show(count * dtype.itemsize)}"
        )
    data: Array = np.frombuffer(raw, dtype=dtype)
    if dtype.kind == "b" and data.view(np.uint8).max() > 1:
        raise BadTensorError(f"{what} is BOOL and has a byte above 1; send 0 or 1")
    return data


def _strings_from_bytes(raw: memoryview, count: int, what: str) -> Array:
    """Each string as its length in 4 little-endian bytes, then its bytes."""
    strings, at = [], 0
    while at + 4 <= len(raw):
        size = int.from_bytes(raw[at : at + 4], "little")
        strings.append(bytes(raw[at + 4 : at + 4 + size]))
        at += 4 + size
    if at != len(raw) or len(strings) != count:
        raise BadTensorError(
            f"{what} has {len(raw)} bytes that are not the {count} strings of its shape"
        )
    return string_array(strings)


def _flat(data: object, shape: tuple[int, ...], what: str) -> list[Any]:
    """The entries of a JSON list that is flat, or nested as the shape says."""
    if not isinstance(data, list):
        raise BadTensorError(f"data of {what} must be a list, not {show(data)}")
    values: list[Any] = data
    if data and type(data[0]) is list:
        values = [data]
        for size in shape:
            if any(type(part) is not list or len(part) != size for part in values):
                raise BadShapeError(
                    f"data of {what} is nested otherwise than its shape {list(shape)}; "
                    "nest it so, or send one flat list"
                )
            values = list(chain.from_iterable(values))
    if len(values) != math.prod(shape):
        raise BadShapeError(
            f"data of {what} has {len(values)} entries, but shape {show(list(shape))} "
            f"has {show(math.prod(shape))}"
        )
    return values


_JSON_TYPES: dict[str, set[type]] = {
    "b": {bool}, "u": {int}, "i": {int}, "f": {int, float}, "O": {str},
}  # fmt: skip


def _from_json(values: list[Any], datatype: str, what: str, *, nulls: bool) -> Array:
    dtype = DATATYPES.get(datatype, np.dtype(object))
    allowed = _JSON_TYPES[dtype.kind] | ({type(None)} if nulls and dtype.kind == "f" else set())
    wrong = set(map(type, values)) - allowed
    if wrong:
        raise BadTensorError(
            f"data of {what} holds {', '.join(sorted(kind.__name__ for kind in wrong))}; "
            f"{datatype} takes {' or '.join(sorted(kind.__name__ for kind in allowed))} only"
        )
    if dtype.kind == "O":
        return string_array([text.encode("utf-8") for text in values])
    if dtype.kind in "ui":
        info = np.iinfo(dtype)
        if min(values) < info.min or max(values) > info.max:
            raise BadTensorError(
                f"data of {what} is outside {datatype}'s range {info.min} to {info.max}"
            )
        return np.array(values, dtype=dtype)
    return _floats(values, dtype, what, nulls=nulls)


def _floats(values: list[Any], dtype: Dtype, what: str, *, nulls: bool) -> Array:
    try:
        wide = np.array(values, dtype=np.bool_ if dtype.kind == "b" else np.float64)
    except OverflowError as err:
        raise BadTensorError(f"data of {what} holds a number beyond FP64") from err
    with np.errstate(over="ignore", under="ignore"):
        data = wide.astype(dtype)
    if not nulls and not np.isfinite(data).all():
        raise BadTensorError(f"data of {what} holds a number beyond what {dtype} can hold")
    return data
