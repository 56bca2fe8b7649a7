"""`Outcome` -> `Reply`: the answer or the error, in the form that the requester can read.

An output comes as raw bytes or as a JSON list, as its `OutputChoice` says; a requester that speaks
MQTT 3.1.1 has no property for the header's length and always gets JSON, with the status in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edged import protocol, v2
from edged.errors import (
    ClientError,
    EdgedError,
    InternalError,
    ReplyTooLargeError,
    ServiceError,
)
from edged.serve.request import Array, Arrival, Outcome, OutputChoice, Reply, ReplyTo

ERROR_EXPIRY_S = 60
"""Message expiry of an error that was found before the request had a deadline."""
_DEAD_CHARS = 256
_DEAD_PROPERTIES = 16
_NO_LABELS: Mapping[str, Sequence[str]] = {}


def encode(
    outcome: Outcome,
    *,
    now: float,
    version: str = "",
    labels: Mapping[str, Sequence[str]] = _NO_LABELS,
    max_packet_bytes: int = 0,
) -> Reply:
    """Writes the reply to a request.

    Args:
        outcome: with a `reply_to`; where it has none, see `dead_letter`.
        now: monotonic seconds, for what is left of the deadline.
        version: of the model that answered: the first 12 digits of its engine's key.
        labels: names of an output's entries, by output, where it has any.
        max_packet_bytes: largest packet that the broker takes; 0: it named none. A larger answer
            becomes a `ReplyTooLargeError`.

    Raises:
        ValueError: the outcome has no `reply_to`: a fault of the caller.
    """
    if outcome.reply_to is None:
        raise ValueError(f"a request for {outcome.model!r} has no reply address to encode for")
    error = outcome.error
    if error is None:
        try:
            reply = _answer(outcome, outcome.reply_to, now, version, labels)
        except _MissingOutputError as err:
            error = err
        else:
            if not max_packet_bytes or (size := packet_bytes(reply)) <= max_packet_bytes:
                return reply
            error = ReplyTooLargeError(
                f"the reply would be a packet of {size} bytes, the broker takes at most "
                f"{max_packet_bytes}; ask for fewer outputs or samples, or for binary data"
            )
    return _refusal(outcome, outcome.reply_to, now, error)


def packet_bytes(reply: Reply) -> int:
    """Upper bound of the MQTT 5 PUBLISH packet that carries a reply, in bytes (MQTT 5, 3.3)."""
    size = 5 + 2 + len(reply.topic.encode()) + 2 + 4 + 5 + len(reply.payload)
    size += 3 + len(reply.content_type.encode()) + 3 + len(reply.correlation or b"")
    return size + sum(5 + len(name.encode()) + len(value.encode()) for name, value in reply.user)


def dead_letter(arrival: Arrival, error: EdgedError, *, ts: float) -> bytes:
    """JSON for the ``dead`` topic: why a request could not be answered, and its headers, cut short.

    The payload is not in it.

    Args:
        arrival: the request.
        error: why nobody can be answered, or what it did.
        ts: Unix seconds.
    """
    error = _presentable(error)
    user = list(arrival.user.items())[:_DEAD_PROPERTIES]
    document = {
        "protocol": protocol.PROTOCOL_VERSION,
        "ts": round(ts, 3),
        "code": error.code,
        "reason": error.message,
        "topic": _cut(arrival.topic),
        "response_topic": _cut(arrival.response_topic),
        "correlation_hex": (arrival.correlation or b"")[: _DEAD_CHARS // 2].hex(),
        "content_type": _cut(arrival.content_type),
        "user_properties": {_cut(name): _cut(value) for name, value in user},
        "payload_bytes": len(arrival.payload),
        "qos": arrival.receipt.qos,
        "retained": arrival.retained,
    }
    return json.dumps(document, separators=(",", ":")).encode("ascii")


def _cut(text: str) -> str:
    return text[:_DEAD_CHARS]


# ------------------------------------------------------------------ the answer


class _MissingOutputError(InternalError):
    """The engine gave no output of a name that its manifest has."""


def _answer(
    outcome: Outcome,
    to: ReplyTo,
    now: float,
    version: str,
    labels: Mapping[str, Sequence[str]],
) -> Reply:
    outputs = outcome.outputs
    choices = outcome.choices or tuple(OutputChoice(name) for name in outputs)
    missing = [choice.name for choice in choices if choice.name not in outputs]
    if missing:
        raise _MissingOutputError(f"the engine gave no output {missing[0]!r}")
    payload, header_length = v2.write_response(
        v2.InferResponse(
            model_name=outcome.model,
            model_version=version,
            id=outcome.id,
            parameters=_timings(outcome) | ({"status": protocol.OK} if to.json_only else {}),
            outputs=tuple(
                _output(choice, _filled(choice, outputs), labels, json_only=to.json_only)
                for choice in choices
            ),
        )
    )
    user = [(protocol.STATUS, str(protocol.OK))]
    if header_length is not None:
        user.append((protocol.HEADER_LENGTH, str(header_length)))
    content_type = protocol.JSON if header_length is None else protocol.OCTET_STREAM
    return _reply(outcome, to, now, payload=payload, content_type=content_type, user=user)


def _timings(outcome: Outcome) -> dict[str, Any]:
    timings = outcome.timings
    return {
        "queue_us": round(timings.queue_s * 1e6),
        "compute_us": round(timings.compute_s * 1e6),
        "batch_size": timings.batch_samples,
        "batch_reason": timings.reason,
    }


def _output(
    choice: OutputChoice,
    data: Array,
    labels: Mapping[str, Sequence[str]],
    *,
    json_only: bool,
) -> v2.Tensor:
    if choice.classes:
        data = classify(data, choice.classes, labels.get(choice.name, ()))
    return v2.Tensor(choice.name, data, binary=choice.binary and not json_only)


def _filled(choice: OutputChoice, outputs: Mapping[str, Array]) -> Array:
    """An output without the entries that no sample fills; one stays, since V2 has no empty axis."""
    data = outputs[choice.name]
    if not choice.counted:
        return data
    return data[:, : max(1, int(outputs[choice.counted].max()))]


def classify(data: Array, classes: int, labels: Sequence[str] = ()) -> Array:
    """The largest entries of each sample as ``value:index[:label]`` (Triton's classification).

    Equal values keep the order of their indices; NaN comes last.

    Args:
        data: ``[n, *shape]``, numbers; the index counts through ``shape`` as if it were flat.
        classes: entries for each sample, cut to as many as there are.
        labels: names of the entries of the last axis, or none.

    Returns:
        Object array ``[n, min(classes, entries)]`` of ``bytes`` (UTF-8).
    """
    rows = data.reshape(len(data), math.prod(data.shape[1:]))
    entries = rows.shape[1]
    keys = np.where(np.isnan(rows), -np.inf, rows) if rows.dtype.kind == "f" else rows
    # A stable ascending sort of the mirrored row, mirrored back: descending, ties by index.
    order = (entries - 1 - np.argsort(keys[:, ::-1], axis=1, kind="stable"))[:, ::-1]
    order = order[:, :classes]
    texts = [
        _class_text(rows[row, index], int(index), labels)
        for row in range(len(rows))
        for index in order[row]
    ]
    return v2.string_array(texts).reshape(order.shape)


def _class_text(value: Any, index: int, labels: Sequence[str]) -> bytes:
    number = f"{float(value):f}" if value.dtype.kind == "f" else str(int(value))
    label = f":{labels[index % len(labels)]}" if labels else ""
    return f"{number}:{index}{label}".encode()


# ------------------------------------------------------------------ the error


def _refusal(outcome: Outcome, to: ReplyTo, now: float, error: EdgedError) -> Reply:
    error = _presentable(error)
    document = protocol.error_document(
        error.message, error.code, retryable=error.retryable, retry_after_ms=error.retry_after_ms
    )
    if outcome.id:
        document["id"] = outcome.id
    if to.json_only:
        document["status"] = error.status
    return _reply(
        outcome,
        to,
        now,
        payload=json.dumps(document, separators=(",", ":")).encode("ascii"),
        content_type=protocol.JSON,
        user=[(protocol.STATUS, str(error.status))],
    )


def _presentable(error: EdgedError) -> EdgedError:
    """Errors of files, settings and builds name paths: a requester hears of them as internal."""
    if isinstance(error, (ClientError, ServiceError)):
        return error
    return InternalError("something went wrong inside; the log of the device has the details")


def _who(to: ReplyTo) -> tuple[tuple[str, str], ...]:
    return ((protocol.DEVICE, to.device),) if to.device else ()


def _reply(
    outcome: Outcome,
    to: ReplyTo,
    now: float,
    *,
    payload: bytes,
    content_type: str,
    user: Sequence[tuple[str, str]],
) -> Reply:
    left = ERROR_EXPIRY_S if outcome.deadline is None else math.ceil(outcome.deadline - now)
    return Reply(
        topic=to.topic,
        payload=payload,
        qos=to.qos,
        correlation=to.correlation,
        content_type=content_type,
        expiry_s=max(1, left),
        user=(*user, *_who(to), *to.trace.items()),
    )
