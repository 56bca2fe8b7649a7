"""The JSON header of a V2 body, read so that nothing in it can hurt."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from edged.errors import BadHeaderError, BadParameterError, BadTensorError

MAX_DEPTH = 8
MAX_CONTAINERS = 1_000_000
"""Lists and objects in one header; a parsed list takes over ten times its text in memory."""
MAX_ID_BYTES = 1024

_HINT = "if tensors follow it, send its length in bytes with the request"
_show = reprlib.Repr()
_show.maxstring = _show.maxother = _show.maxlong = 80


def show(value: object) -> str:
    """A value from outside as an error message may hold it: short, and no control characters."""
    return _show.repr(value)


def load(text: bytes) -> dict[str, Any]:
    """Parses the header; what the json module would let through or choke on is refused.

    Raises:
        BadHeaderError: no UTF-8, no JSON object, too deep, a name twice in an object, NaN or
            Infinity, half a surrogate pair, or an integer of thousands of digits.
    """
    _check_nesting(text)
    try:
        decoded = text.decode("utf-8")
        header = json.loads(decoded, object_pairs_hook=_unique, parse_constant=_no_constant)
        if b"\\u" in text:  # the only way in for half a surrogate pair: it fails to encode
            json.dumps(header, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as err:
        raise BadHeaderError(
            f"the header is not valid UTF-8 ({err.reason} at byte {err.start}); {_HINT}"
        ) from err
    except UnicodeEncodeError as err:
        raise BadHeaderError(
            "the header holds half of a surrogate pair (\\ud800 to \\udfff)"
        ) from err
    except json.JSONDecodeError as err:
        raise BadHeaderError(
            f"the header is no JSON: {err.msg} at character {err.pos} of {len(decoded)}; {_HINT}"
        ) from err
    except (ValueError, RecursionError) as err:  # Python refuses integers above 4300 digits
        raise BadHeaderError("the header holds a number or nesting beyond all limits") from err
    if not isinstance(header, dict):
        raise BadHeaderError(f"the header must be a JSON object, not {show(header)}")
    return header


def _check_nesting(text: bytes) -> None:
    opened = text.count(b"[") + text.count(b"{")
    if opened <= MAX_DEPTH:
        return
    depth, containers = _nesting(text)
    if depth > MAX_DEPTH or containers > MAX_CONTAINERS:
        raise BadHeaderError(
            f"the header nests {depth} deep with {containers} lists and objects; {MAX_DEPTH} and "
            f"{MAX_CONTAINERS} are allowed; send data as one flat list, or in binary form"
        )


_MARKS = b'"[]{}'
_NO_MARKS = bytes(code for code in range(256) if code not in _MARKS)


def _nesting(text: bytes) -> tuple[int, int]:
    """Deepest nesting and number of lists and objects, strings left out, without parsing.

    A backslash outside a string can mislead the count, but json.loads stops at that very byte.
    """
    plain = text.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NO_MARKS)
    marks = np.frombuffer(plain, dtype=np.uint8)
    inside = np.bitwise_xor.accumulate((marks == ord('"')).view(np.uint8)).view(np.bool_)
    opens = ((marks == ord("[")) | (marks == ord("{"))) & ~inside
    closes = ((marks == ord("]")) | (marks == ord("}"))) & ~inside
    depth = np.cumsum(opens.astype(np.int8) - closes.astype(np.int8), dtype=np.int32)
    return int(depth.max(initial=0)), int(np.count_nonzero(opens))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise BadHeaderError(f"a name stands twice in one object: {show([k for k, _ in pairs])}")
    return made


def _no_constant(literal: str) -> NoReturn:
    raise BadHeaderError(f"{literal} is no JSON number; send the tensor in binary form")


def text_of(header: Mapping[str, Any], key: str, default: str) -> str:
    """A short string of the header; BadHeaderError if it is none."""
    value = header.get(key, default)
    if not isinstance(value, str) or len(value.encode("utf-8")) > MAX_ID_BYTES:
        raise BadHeaderError(
            f"{key} {show(value)} must be a string of at most {MAX_ID_BYTES} bytes"
        )
    return value


def parameters_of(holder: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The ``parameters`` of a request, answer or tensor; BadParameterError if they are wrong."""
    value = holder.get("parameters", {})
    if not isinstance(value, dict):
        raise BadParameterError(f"parameters of {what} must be an object, not {show(value)}")
    if "shared_memory_region" in value:
        raise BadParameterError(
            f"{what} asks for shared memory, which is not offered; send the bytes in the body"
        )
    return value


def entries_of(header: Mapping[str, Any], key: str) -> list[tuple[str, dict[str, Any]]]:
    """The objects listed under ``key`` with their names.

    Raises:
        BadHeaderError: it is no list of objects with names.
        BadTensorError: a name stands there twice.
    """
    listed = header.get(key)
    if not isinstance(listed, list):
        raise BadHeaderError(f"{key} must be a list of objects, not {show(listed)}")
    named: dict[str, dict[str, Any]] = {}
    for entry in listed:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name:
            raise BadHeaderError(f"each of {key} must be an object with a name")
        if name in named:
            raise BadTensorError(f"{key} name {show(name)} twice; each may be named once")
        named[name] = entry
    return list(named.items())
