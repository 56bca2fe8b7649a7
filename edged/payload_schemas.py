"""JSON Schemas of what travels, made of the definitions that write and read it. Pure.

Names of members are those of `edged.protocol`, `edged.control_plane`, `edged.events` and
`edged.v2`; a test validates real documents of all of them. Draft 7, as AsyncAPI 3 wants it.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, TypeAlias, Union, get_args, get_origin, get_type_hints

from edged import protocol, v2
from edged.control_plane import KEY_STATUSES, TWIN_STATUSES
from edged.errors import ClientError, EdgedError, ServiceError
from edged.events import EVENTS, Event, Telemetry

Schema: TypeAlias = dict[str, Any]

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
FLAG: Schema = {"type": "boolean"}
FREE: Schema = {"type": "object"}


def listed(items: Schema) -> Schema:
    """A list of one sort of thing."""
    return {"type": "array", "items": items}


def one_of(values: tuple[str, ...], description: str = "") -> Schema:
    """One of these words."""
    return {"type": "string", "enum": list(values)} | described(description)


def described(description: str) -> Schema:
    """What a description adds to a schema; nothing without one."""
    return {"description": description} if description else {}


def record(
    properties: Mapping[str, Schema], *, optional: tuple[str, ...] = (), description: str = ""
) -> Schema:
    """An object with these members and no others."""
    return {
        "type": "object",
        **described(description),
        "properties": dict(properties),
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


def or_null(schema: Schema) -> Schema:
    """A member that may be null."""
    return schema | {"type": [schema["type"], "null"]}


# ------------------------------------------------------------------ errors


def wire_errors() -> dict[str, type[EdgedError]]:
    """Every code that a reply can carry, sorted, with a class that has it."""
    found: dict[str, type[EdgedError]] = {}
    for base in (ClientError, ServiceError):
        for kind in _below(base):
            if kind.__module__ == "edged.errors":
                found.setdefault(kind.code, kind)
    return dict(sorted(found.items()))


def _below(kind: type[EdgedError]) -> Iterator[type[EdgedError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from _below(each)


def error_schema() -> Schema:
    """Body of an error reply; the codes with their statuses are in ``x-errors``."""
    known = wire_errors()
    schema = record(
        {
            "error": TEXT | described("For a person: what, which value, what was allowed."),
            "code": one_of(tuple(known)),
            "retryable": FLAG | described("Whether the same request may succeed later."),
            "retry_after_ms": COUNT,
            "id": TEXT | described("The request's, where it could be read."),
            "status": COUNT | described("In answers to MQTT 3.1.1, which has no user properties."),
        },
        optional=("retry_after_ms", "id", "status"),
    )
    schema["x-errors"] = [
        {
            "code": code,
            "status": kind.status,
            "retryable": kind.retryable,
            "description": (kind.__doc__ or "").partition("\n")[0],
        }
        for code, kind in known.items()
    ]
    return schema


# ------------------------------------------------------------------ Open Inference Protocol V2

_SHAPE = listed(COUNT)
_DATATYPE = one_of((*v2.DATATYPES, v2.BYTES))


def _tensor() -> Schema:
    return record(
        {
            "name": TEXT,
            "datatype": _DATATYPE,
            "shape": _SHAPE | described("Number of samples first."),
            "data": {"type": "array"} | described("Flat or nested; instead of bytes."),
            "parameters": FREE
            | {"properties": {"binary_data_size": COUNT | described("Bytes after the header.")}},
        },
        optional=("data", "parameters"),
    )


def infer_request_schema() -> Schema:
    """The header of a V2 request, which is the whole body with JSON tensors."""
    output = record(
        {
            "name": TEXT,
            "parameters": FREE | {"properties": {"binary_data": FLAG, "classification": COUNT}},
        },
        optional=("parameters",),
    )
    parameters = {
        "binary_data_output": FLAG,
        "timeout": COUNT | described("Deadline in microseconds from the arrival; 0: none."),
        "deadline_unix_ms": COUNT | described("Deadline as a date, Unix milliseconds."),
        "priority": {"type": ["string", "integer"]},
    }
    return {
        "type": "object",
        "properties": {
            "id": TEXT,
            "inputs": listed(_tensor()),
            "outputs": listed(output),
            "parameters": FREE | {"properties": parameters},
        },
        "required": ["inputs"],
    }


def infer_reply_schema() -> Schema:
    """The header of a V2 answer, which is the whole body with JSON tensors."""
    parameters = record(
        {
            "queue_us": COUNT | described("From the arrival to the start of its first batch."),
            "compute_us": COUNT | described("Of its slowest batch on the device."),
            "batch_size": COUNT | described("Samples in the largest batch it was part of."),
            "batch_reason": TEXT | described("Why that batch was closed."),
            "status": COUNT | described("In answers to MQTT 3.1.1."),
        },
        optional=("status",),
    )
    return record(
        {
            "id": TEXT,
            "model_name": TEXT,
            "model_version": TEXT | described("Which engine answered."),
            "parameters": parameters | {"additionalProperties": True},
            "outputs": listed(_tensor()),
        },
        optional=("id", "model_version"),
    )


# ------------------------------------------------------------------ status, events, telemetry


def status_schema() -> Schema:
    """The retained status: birth, will and farewell."""
    return record(
        {
            "protocol": COUNT,
            "state": one_of(protocol.STATES),
            "boot_id": TEXT | described("Identifies one run of the service."),
            "session": COUNT | described("Counts the connections of that run."),
            "version": TEXT,
            "ts": NUMBER | described("Unix seconds."),
            "models": listed(TEXT),
            "engines": FREE | described("Model -> engine, precision, notes."),
            "progress": TEXT,
        },
        optional=("engines", "progress"),
    )


def event_kinds() -> tuple[str, ...]:
    """Kinds of the events that are published one by one."""
    return tuple(kind.kind for kind in EVENTS if kind is not Telemetry)


def event_schema() -> Schema:
    """An event as a CloudEvent; ``type`` says which of the forms ``data`` has."""
    forms = [kind for kind in EVENTS if kind is not Telemetry]
    return record(
        {
            "specversion": {"const": "1.0"},
            "id": TEXT,
            "source": TEXT,
            "type": one_of(tuple(f"edged.{kind.kind}" for kind in forms)),
            "time": TEXT | {"format": "date-time"},
            "datacontenttype": {"const": protocol.JSON},
            "data": {"anyOf": [_event_data(kind) for kind in forms]},
        }
    )


def telemetry_schema() -> Schema:
    """Metrics and state of one moment."""
    schema = _event_data(Telemetry)
    schema["properties"] = {"time": NUMBER | described("Unix seconds.")} | schema["properties"]
    schema["required"] = ["time", *schema["required"]]
    return schema


def _event_data(kind: type[Event]) -> Schema:
    hints = get_type_hints(kind)
    members = {
        each.name: _of_type(hints[each.name]) for each in fields(kind) if each.name != "time"
    }
    title = (kind.__doc__ or "").partition("\n")[0]
    return {"title": f"edged.{kind.kind}"} | record(members, description=title)


def _of_type(hint: Any) -> Schema:
    """The schema of a dataclass field's type, as JSON has it."""
    plain = {str: TEXT, bool: FLAG, int: {"type": "integer"}, float: NUMBER, Any: {}}
    if hint in plain:
        return dict(plain[hint])
    origin, inner = get_origin(hint), get_args(hint)
    if origin is tuple:
        return listed(_of_type(inner[0]))
    if origin is dict:
        return FREE | {"additionalProperties": _of_type(inner[1])}
    if origin in {Union, types.UnionType}:
        return or_null(_of_type(next(each for each in inner if each is not type(None))))
    raise TypeError(f"{hint!r} has no JSON Schema here; add it to edged/payload_schemas.py")


def dead_letter_schema() -> Schema:
    """A request that nobody could be answered for: its headers and the reason."""
    return record(
        {
            "protocol": COUNT,
            "ts": NUMBER | described("Unix seconds."),
            "code": one_of(tuple(wire_errors())),
            "reason": TEXT,
            "topic": TEXT,
            "response_topic": TEXT,
            "correlation_hex": TEXT,
            "content_type": TEXT,
            "user_properties": FREE | {"additionalProperties": TEXT},
            "payload_bytes": COUNT,
            "qos": COUNT,
            "retained": FLAG,
        }
    )


# ------------------------------------------------------------------ control plane


def batch_schema() -> Schema:
    """Reports on their way up."""
    row = record({"seq": COUNT, "time": NUMBER, "kind": TEXT, "body": FREE})
    return record(
        {
            "protocol": COUNT,
            "stream": one_of(protocol.STREAMS),
            "epoch": TEXT | described("Sequence numbers count within this."),
            "boot_id": TEXT,
            "batch": COUNT | described("Number of the batch in that run."),
            "mode": one_of(protocol.MODES),
            "first_seq": COUNT,
            "records": listed(row),
        }
    )


def ack_schema() -> Schema:
    """What of a batch is stored, and what never will be."""
    refused = record({"seq": COUNT, "reason": TEXT})
    return record({"protocol": COUNT, "boot_id": TEXT, "batch": COUNT, "refused": listed(refused)})


def desired_schema() -> Schema:
    """Settings that the control plane wants."""
    config = FREE | {"additionalProperties": FREE} | described("Section -> setting -> value.")
    return record({"protocol": COUNT, "version": COUNT, "config": config})


def reported_schema() -> Schema:
    """Settings in effect, and what became of those desired."""
    key = record({"path": TEXT, "status": one_of(KEY_STATUSES), "reason": TEXT})
    return record(
        {
            "protocol": COUNT,
            "boot_id": TEXT,
            "ts": NUMBER | described("Unix seconds."),
            "desired_version": or_null(COUNT),
            "applied_version": or_null(COUNT),
            "digest": TEXT,
            "status": one_of(TWIN_STATUSES),
            "keys": listed(key),
            "config": FREE | {"additionalProperties": FREE},
            "models": FREE | {"additionalProperties": TEXT},
        }
    )


def command_reply_schema() -> Schema:
    """Answer to a command that was carried out."""
    return record({"command": one_of(protocol.COMMANDS), "result": FREE})
