"""Arrays or an image file -> the body of a request; the body of a reply -> arrays. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edged import protocol, v2
from edged.client.result import reply_error
from edged.errors import BadParameterError, ClientError, ReplyError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Message:
    """The body of a request and what must be said beside it.

    Attributes:
        payload: the body.
        content_type: one of `edged.protocol.REQUEST_CONTENT_TYPES`.
        header_length: bytes of the V2 header; None: no binary tensors follow it.
        classes: of an image: so many best entries of each output; 0: the outputs themselves.
            (Arrays say it in their V2 header.)
    """

    payload: bytes
    content_type: str
    header_length: int | None = None
    classes: int = 0


@dataclass(frozen=True)
class Reply:
    """A successful reply; see `edged.client.Result`."""

    outputs: Mapping[str, Array]
    parameters: Mapping[str, Any]
    status: int
    model_version: str


def tensor_message(
    inputs: Mapping[str, Array], *, outputs: Sequence[str] = (), classes: int = 0
) -> Message:
    """A V2 request in binary form.

    Args:
        inputs: every input by name, ``[n, *shape]``, of any byte order and memory layout.
        outputs: names of the wanted outputs; empty: all.
        classes: with outputs: the so many best entries as ``value:index[:label]`` instead.

    Raises:
        BadDatatypeError: V2 has no datatype for an input's dtype.
        BadParameterError: classes without outputs, or below 0.
    """
    if classes < 0 or (classes and not outputs):
        raise BadParameterError(
            f"classes is {classes}: it must be at least 0, and needs the names of the outputs"
        )
    request = v2.InferRequest(
        inputs=tuple(v2.Tensor(name, np.asarray(data)) for name, data in inputs.items()),
        outputs=tuple(v2.RequestedOutput(name, binary=True, classes=classes) for name in outputs),
    )
    payload, header_length = v2.write_request(request)
    return Message(payload, protocol.OCTET_STREAM, header_length)


def image_message(image: bytes, content_type: str = "", *, classes: int = 0) -> Message:
    """A request that is one PNG or JPEG file's content.

    Args:
        image: the file's content.
        content_type: `edged.protocol.PNG` or `JPEG`; "": what the image begins like.
        classes: so many best entries of each output as ``value:index[:label]``; 0: the outputs.

    Raises:
        BadParameterError: another content type, or classes below 0.
    """
    if classes < 0:
        raise BadParameterError(f"classes is {classes}: it must be at least 0")
    content_type = content_type or _looks_like(image)
    if content_type not in {protocol.PNG, protocol.JPEG}:
        raise BadParameterError(
            f"content type {content_type!r} must be {protocol.PNG} or {protocol.JPEG}; "
            "send other data as arrays"
        )
    return Message(image, content_type, classes=classes)


def _looks_like(image: bytes) -> str:
    begins = ((b"\x89PNG\r\n\x1a\n", protocol.PNG), (b"\xff\xd8\xff", protocol.JPEG))
    return next((kind for magic, kind in begins if image.startswith(magic)), "unknown")


def read_reply(payload: bytes, content_type: str, user: Mapping[str, str]) -> Reply:
    """Reads a reply.

    Args:
        payload: the body.
        content_type: the reply's Content Type.
        user: its user properties.

    Raises:
        ReplyError: the device answered with an error (its code), or what it sent cannot be read
            (code ``bad_reply``).
    """
    status = _number(user.get(protocol.STATUS, str(protocol.OK)), protocol.STATUS)
    if status != protocol.OK:
        raise _error(payload, status)
    length = user.get(protocol.HEADER_LENGTH)
    header_length = None if length is None else _number(length, protocol.HEADER_LENGTH)
    try:
        response = v2.parse_response(payload, header_length)
    except ClientError as err:
        raise _unreadable(f"{content_type or 'no content type'}: {err.message}") from err
    outputs = {tensor.name: tensor.data for tensor in response.outputs}
    return Reply(outputs, response.parameters, status, response.model_version)


def _error(payload: bytes, status: int) -> ReplyError:
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        return reply_error("the device gave no reason", code="unknown", status=status)
    after = document.get("retry_after_ms")
    return reply_error(
        str(document.get("error", "the device gave no reason")),
        code=str(document.get("code", "unknown")),
        status=status,
        retryable=document.get("retryable") is True,
        retry_after_ms=after if type(after) is int else None,
    )


def _number(text: str, name: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise _unreadable(f"user property {name} is {text[:80]!r}, not a decimal number")
    return int(text)


def _unreadable(why: str) -> ReplyError:
    return ReplyError(
        f"the reply cannot be read ({why}); do both sides have the same edged?",
        code="bad_reply",
        status=502,
    )
