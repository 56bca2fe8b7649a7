"""The protocol as an AsyncAPI 3 document, made of the definitions that the service goes by. Pure.

Seen from the device: it receives requests and sends answers. `make asyncapi` writes
docs/asyncapi.json; a test fails if that is out of date.

Source: the AsyncAPI Specification 3.0.0, and version 0.2.0 of its MQTT bindings.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from edged import payload_schemas as schemas
from edged import protocol
from edged.payload_schemas import Schema

Document: TypeAlias = dict[str, Any]
TOPICS = protocol.Topics("{root}", "{device}")
POOL = protocol.PoolTopics("{root}", "{pool}")
BINDING_VERSION = "0.2.0"
REQUESTS, CONTROL = "requests", "controlPlane"

_REQUESTS = ("inferBinary", "inferJson", "inferPng", "inferJpeg")
_REPLIES = ("replyBinary", "replyJson", "error")

PARAMETERS: dict[str, Document] = {
    "root": {"description": "First one or two levels, the same for a whole fleet.",
             "default": protocol.DEFAULT_ROOT},
    "device": {"description": "The device's name."},
    "pool": {"description": "A pool of devices that share the requests of one queue."},
    "model": {"description": "A model that is served."},
    "class": {"description": "Priority of the request.", "enum": list(protocol.PRIORITIES)},
    "client": {"description": "The requester's name."},
    "request": {"description": "The request's name, chosen by the requester."},
    "kind": {"description": "What it is."},
    "stream": {"description": "A stream of reports.", "enum": list(protocol.STREAMS)},
    "name": {"description": "A command.", "enum": list(protocol.COMMANDS)},
}  # fmt: skip


@dataclass(frozen=True)
class Channel:
    """A topic, and what the device does with it.

    Attributes:
        key: its name in the document.
        address: the topic with its parameters in braces.
        description: what it is for.
        action: what the device does; None: it is a place for answers only.
        messages: what travels there.
        qos: of a message there; None: 0 or 1 as the sender likes.
        retain: whether the broker keeps it.
        server: which broker.
        reply: key of the channel of the answers, "" for none.
    """

    key: str
    address: str
    description: str
    action: Literal["send", "receive"] | None
    messages: Sequence[str]
    qos: int | None = None
    retain: bool = False
    server: str = REQUESTS
    reply: str = ""


CHANNELS = (
    Channel("infer", TOPICS.infer("{model}"), "Requests for a model.", "receive", _REQUESTS,
            reply="reply"),
    Channel("inferClass", TOPICS.infer_class("{model}", "{class}"),
            "Requests of one class for a model.", "receive", _REQUESTS, reply="reply"),
    Channel("reply", TOPICS.reply("{client}"),
            "Answers: the usual Response Topic of a request. A requester may name another below "
            "`reply/`, or one that the device's `serve.reply_prefixes` allow.", None, _REPLIES),
    Channel("inferV3", TOPICS.infer_v3("{model}", "{client}", "{request}"),
            "Requests of MQTT 3.1.1 clients, which have no Response Topic.", "receive",
            ("inferJson",), reply="replyV3"),
    Channel("replyV3", TOPICS.reply_v3("{model}", "{client}", "{request}"),
            "Answers to MQTT 3.1.1 clients, with the status in the body.", None,
            ("replyJson", "error")),
    Channel("poolInfer", POOL.infer("{model}"), "Requests for a model of a pool's devices.",
            "receive", _REQUESTS, reply="poolReply"),
    Channel("poolInferClass", POOL.infer_class("{model}", "{class}"),
            "Requests of one class for a model of a pool's devices.", "receive", _REQUESTS,
            reply="poolReply"),
    Channel("poolReply", POOL.reply("{client}"),
            "Answers of a pool's devices: the usual Response Topic there.", None, _REPLIES),
    Channel("status", TOPICS.status, "Whether the device is there: birth, will and farewell.",
            "send", ("status",), 1, retain=True),
    Channel("telemetry", TOPICS.telemetry("{kind}"), "Metrics and state at an interval.", "send",
            ("telemetry",), 0),
    Channel("event", TOPICS.event("{kind}"), "What happened, as CloudEvents.", "send",
            ("event",), 0),
    Channel("dead", TOPICS.dead, "Requests that nobody could be answered for.", "send",
            ("deadLetter",), 0),
    Channel("report", TOPICS.report("{stream}"), "Batches of reports.", "send", ("batch",), 1,
            server=CONTROL),
    Channel("ack", TOPICS.ack, "Which batch the control plane has stored.", "receive", ("ack",), 1,
            server=CONTROL),
    Channel("uplink", TOPICS.uplink, "Whether the device is connected to the control plane.",
            "send", ("status",), 1, retain=True, server=CONTROL),
    Channel("configDesired", TOPICS.config_desired, "Settings that the control plane wants.",
            "receive", ("desired",), 1, retain=True, server=CONTROL),
    Channel("configReported", TOPICS.config_reported,
            "Settings in effect, and what became of those desired.", "send", ("reported",), 1,
            retain=True, server=CONTROL),
    Channel("command", TOPICS.command("{name}"), "Commands of the control plane.", "receive",
            ("command",), 1, server=CONTROL, reply="commandReply"),
    Channel("commandReply", "", "The Response Topic that the command names.", None,
            ("commandReply", "error"), server=CONTROL),
)  # fmt: skip
"""`rollout/desired` and `rollout/reported` are kept free, and not in use yet."""


def asyncapi_document() -> Document:
    """The whole document; the same for every device and version of the program."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "edged",
            "version": f"{protocol.PROTOCOL_VERSION}.0.0",
            "description": "Inference over MQTT: how a program asks a device and what it gets "
            "back, what the device tells of itself, and how a control plane speaks to it. "
            "docs/protocol.md says the same in words.",
            "license": {"name": "Apache-2.0",
                        "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": protocol.JSON,
        "servers": {
            REQUESTS: _server("The broker of requests."),
            CONTROL: _server("The control plane's broker, which may be the same one."),
        },
        "channels": {each.key: _channel(each) for each in CHANNELS},
        "operations": {
            f"{each.action}{each.key[0].upper()}{each.key[1:]}": _operation(each)
            for each in CHANNELS
            if each.action is not None
        },
        "components": {"messages": _messages(), "schemas": _schemas()},
    }  # fmt: skip


def asyncapi_json() -> str:
    """The document as it stands in docs/asyncapi.json."""
    return json.dumps(asyncapi_document(), indent=1, ensure_ascii=False) + "\n"


def _server(description: str) -> Document:
    return {
        "host": "{host}:{port}",
        "protocol": "mqtt",
        "protocolVersion": "5.0",
        "description": description,
        "variables": {
            "host": {"default": "localhost"},
            "port": {"default": "1883", "examples": ["1883", "8883"]},
        },
    }


def _ref(*path: str) -> Document:
    return {"$ref": "#/" + "/".join(path)}


def _channel(channel: Channel) -> Document:
    named = [name for name in PARAMETERS if f"{{{name}}}" in channel.address]
    parameters = {name: PARAMETERS[name] for name in named}
    if channel.key == "telemetry":
        parameters["kind"] = parameters["kind"] | {"enum": list(protocol.TELEMETRY_KINDS)}
    elif channel.key == "event":
        parameters["kind"] = parameters["kind"] | {"enum": list(schemas.event_kinds())}
    return {
        "address": channel.address or None,
        "description": channel.description,
        "servers": [_ref("servers", channel.server)],
        **({"parameters": parameters} if parameters else {}),
        "messages": {name: _ref("components", "messages", name) for name in channel.messages},
    }


def _operation(channel: Channel) -> Document:
    mqtt: Document = {"retain": channel.retain, "bindingVersion": BINDING_VERSION}
    if channel.qos is not None:
        mqtt["qos"] = channel.qos
    operation: Document = {
        "action": channel.action,
        "channel": _ref("channels", channel.key),
        "summary": channel.description,
        "messages": [_ref("channels", channel.key, "messages", name) for name in channel.messages],
        "bindings": {"mqtt": mqtt},
    }
    if channel.reply:
        answers = next(each for each in CHANNELS if each.key == channel.reply)
        operation["reply"] = {
            "channel": _ref("channels", answers.key),
            "messages": [
                _ref("channels", answers.key, "messages", name) for name in answers.messages
            ],
        }
        if not answers.address:
            operation["reply"]["address"] = {
                "description": "MQTT 5's Response Topic of the command.",
                "location": "$message.header#/responseTopic",
            }
    return operation


# ------------------------------------------------------------------ messages

_TEXT_COUNT = {"type": "string", "pattern": "^[0-9]{1,9}$"}
_TRACE = {
    protocol.TRACEPARENT: schemas.TEXT | {"description": "W3C Trace Context."},
    protocol.TRACESTATE: schemas.TEXT | {"description": "W3C Trace Context."},
}
_LENGTH = {
    protocol.HEADER_LENGTH: _TEXT_COUNT
    | {"description": "Bytes of the JSON header before the binary tensors."}
}
_ASKED = {
    protocol.DEADLINE_MS: {
        "type": "string",
        "pattern": r"^[0-9]{1,9}(\.[0-9]{1,6})?$",
        "description": "Milliseconds from the arrival; it is not started later.",
    },
    protocol.PRIORITY: schemas.one_of(protocol.PRIORITIES),
    protocol.SOURCE: {
        "type": "string",
        "maxLength": protocol.MAX_SOURCE_CHARS,
        "description": "Camera or sensor, for models that serve the latest of each.",
    },
    **_TRACE,
}
_CLASSES = {
    protocol.CLASSIFICATION: _TEXT_COUNT
    | {"description": "Answer so many best entries of each output."}
}
_ANSWERED = {
    protocol.STATUS: {"type": "string", "pattern": "^[1-5][0-9]{2}$"},
    protocol.DEVICE: schemas.TEXT
    | {"description": "Of an answer to a pool's request: which device answers."},
    **_TRACE,
}
_BATCH = {
    protocol.STREAM: schemas.one_of(protocol.STREAMS),
    protocol.EPOCH: schemas.TEXT,
    protocol.FIRST_SEQ: _TEXT_COUNT,
    protocol.BATCH: _TEXT_COUNT,
    protocol.BOOT_ID: schemas.TEXT,
    protocol.MODE: schemas.one_of(protocol.MODES),
    protocol.CONTENT_ENCODING: schemas.one_of((protocol.ZSTD,)),
}
_BYTES: Schema = {"type": "string", "format": "binary"}


def _messages() -> dict[str, Document]:
    answer = (protocol.STATUS,)
    binary, png, jpeg = protocol.OCTET_STREAM, protocol.PNG, protocol.JPEG
    packed = "A V2 header in JSON (see schema {}), then raw little-endian tensors in its order."
    return {
        "inferBinary": _message(
            "A request with binary tensors.",
            _BYTES | {"description": packed.format("inferRequest")},
            kind=binary, headers=_LENGTH | _ASKED, required=(protocol.HEADER_LENGTH,), asks=True),
        "inferJson": _message(
            "A request in plain JSON.", "inferRequest", headers=_ASKED, asks=True),
        "inferPng": _message(
            "One PNG image.", _BYTES, kind=png, headers=_ASKED | _CLASSES, asks=True),
        "inferJpeg": _message(
            "One JPEG image.", _BYTES, kind=jpeg, headers=_ASKED | _CLASSES, asks=True),
        "replyBinary": _message(
            "An answer with binary tensors.",
            _BYTES | {"description": packed.format("inferReply")},
            kind=binary, headers=_LENGTH | _ANSWERED,
            required=(protocol.HEADER_LENGTH, *answer), correlates=True),
        "replyJson": _message(
            "An answer in plain JSON.", "inferReply", headers=_ANSWERED, correlates=True),
        "error": _message(
            "An error, with its code.", "error", headers=_ANSWERED, correlates=True),
        "status": _message("Retained status.", "status"),
        "telemetry": _message("Metrics and state of one moment.", "telemetry"),
        "event": _message("What happened.", "event"),
        "deadLetter": _message("A request that nobody could be answered for.", "deadLetter"),
        "batch": _message("Reports; compressed where the properties say so.", "batch",
                          headers=_BATCH, required=(protocol.STREAM, protocol.BATCH)),
        "ack": _message("What of a batch is stored.", "ack"),
        "desired": _message("Desired settings.", "desired"),
        "reported": _message("Settings in effect.", "reported"),
        "command": _message("A command: its body is empty, or an object without members.",
                            schemas.FREE | {"maxProperties": 0}, asks=True),
        "commandReply": _message("What a command came to.", "commandReply",
                                 headers={protocol.STATUS: _ANSWERED[protocol.STATUS]},
                                 required=answer, correlates=True),
    }  # fmt: skip


def _message(
    summary: str,
    payload: str | Schema,
    *,
    kind: str = protocol.JSON,
    headers: dict[str, Schema] | None = None,
    required: Sequence[str] = (),
    asks: bool = False,
    correlates: bool = False,
) -> Document:
    """One message; ``headers`` are its user properties."""
    mqtt: Document = {"contentType": kind, "bindingVersion": BINDING_VERSION}
    if asks:
        mqtt["responseTopic"] = {
            "type": "string", "maxLength": protocol.MAX_RESPONSE_TOPIC_BYTES,
        }  # fmt: skip
    if asks or correlates:
        mqtt["correlationData"] = {
            "type": "string", "maxLength": protocol.MAX_CORRELATION_BYTES,
            "description": "Copied to the answer untouched.",
        }  # fmt: skip
    message: Document = {
        "summary": summary,
        "contentType": kind,
        "payload": _ref("components", "schemas", payload) if isinstance(payload, str) else payload,
        "bindings": {"mqtt": mqtt},
    }
    if headers:
        message["headers"] = {"type": "object", "properties": headers, "required": list(required)}
    return message


def _schemas() -> dict[str, Schema]:
    return {
        "inferRequest": schemas.infer_request_schema(),
        "inferReply": schemas.infer_reply_schema(),
        "error": schemas.error_schema(),
        "status": schemas.status_schema(),
        "telemetry": schemas.telemetry_schema(),
        "event": schemas.event_schema(),
        "deadLetter": schemas.dead_letter_schema(),
        "batch": schemas.batch_schema(),
        "ack": schemas.ack_schema(),
        "desired": schemas.desired_schema(),
        "reported": schemas.reported_schema(),
        "commandReply": schemas.command_reply_schema(),
    }
