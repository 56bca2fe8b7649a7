"""docs/asyncapi.json is what the code says, is sound, and fits what is really sent."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import jsonschema
import numpy as np
import pytest

from edged import protocol, v2
from edged.asyncapi import CHANNELS, asyncapi_document, asyncapi_json
from edged.control_plane import (
    BatchHead,
    KeyReport,
    Record,
    Twin,
    ack_document,
    batch_json,
    command_document,
    desired_document,
    reported_document,
)
from edged.errors import QueueFullError, UnknownModelError
from edged.events import EVENTS, Event, Telemetry, cloud_event, json_bytes
from edged.payload_schemas import wire_errors
from edged.report.status import Status
from edged.serve.encode import dead_letter, encode
from edged.serve.request import Arrival, Outcome, Receipt, ReplyTo, Timings

ROOT = Path(__file__).parents[2]
DOCUMENT = asyncapi_document()
PAGE = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")


def test_the_file_is_up_to_date() -> None:
    """`make asyncapi` writes it; whoever changes the protocol runs that."""
    written = (ROOT / "docs" / "asyncapi.json").read_text(encoding="utf-8")
    assert written == asyncapi_json(), "run make asyncapi, and commit what it writes"


def references(node: Any) -> Iterator[str]:
    """Every ``$ref`` in a part of the document."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for each in node.values():
            yield from references(each)
    elif isinstance(node, list):
        for each in node:
            yield from references(each)


def at(reference: str) -> Any:
    """What a reference points at."""
    node: Any = DOCUMENT
    for step in reference.removeprefix("#/").split("/"):
        node = node[step]
    return node


def test_every_reference_leads_somewhere() -> None:
    """And every message and schema is used."""
    used = set(references(DOCUMENT))
    for reference in used:
        assert at(reference)
    for sort in ("messages", "schemas"):
        for name in DOCUMENT["components"][sort]:
            by_name = f"schema {name})" in json.dumps(DOCUMENT)  # of a header before bytes
            assert f"#/components/{sort}/{name}" in used or by_name


def test_the_structure_is_that_of_asyncapi_3() -> None:
    """What the specification requires of each object, and MQTT bindings of one version."""
    assert DOCUMENT["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= set(DOCUMENT["info"])
    for server in DOCUMENT["servers"].values():
        assert {"host", "protocol"} <= set(server)
    for channel in DOCUMENT["channels"].values():
        named = set(re.findall(r"\{(\w+)\}", channel["address"] or ""))
        assert set(channel.get("parameters", {})) == named
        assert channel["messages"]
    for operation in DOCUMENT["operations"].values():
        assert operation["action"] in {"send", "receive"}
        channel = operation["channel"]["$ref"]
        for message in operation["messages"]:
            assert message["$ref"].startswith(f"{channel}/messages/")
        if (answer := operation.get("reply")) is not None:
            for message in answer["messages"]:
                assert message["$ref"].startswith(f"{answer['channel']['$ref']}/messages/")
            # An address that is found at run time goes with a channel that has none.
            assert ("address" in answer) == (at(answer["channel"]["$ref"])["address"] is None)
    for message in DOCUMENT["components"]["messages"].values():
        assert message["bindings"]["mqtt"]["contentType"] == message["contentType"]


@pytest.mark.parametrize("name", list(DOCUMENT["components"]["schemas"]))
def test_schemas_are_json_schemas(name: str) -> None:
    """Each is a valid schema of draft 7."""
    jsonschema.Draft7Validator.check_schema(DOCUMENT["components"]["schemas"][name])


def test_every_topic_has_its_channel() -> None:
    """The table of docs/protocol.md has the same ones, with QoS and retained as here."""
    rows = re.findall(
        r"^\| `(\{root\}/[^`]+)` \| ([^|]+) \| ([^|]+) \| (yes|no) \|", PAGE, re.MULTILINE
    )
    told = {topic: (qos.strip(), kept == "yes") for topic, _, qos, kept in rows}
    reserved = {topic for topic in told if "/rollout/" in topic}
    channels = {each.address: each for each in CHANNELS if each.address}
    assert set(told) - reserved == set(channels)
    for topic, channel in channels.items():
        qos, kept = told[topic]
        assert kept == channel.retain
        assert channel.action is None or qos == (
            "0 or 1" if channel.qos is None else str(channel.qos)
        )


def test_every_error_code_is_listed_with_its_status() -> None:
    """As in docs/protocol.md, which is tested against the classes."""
    listed = DOCUMENT["components"]["schemas"]["error"]["x-errors"]
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (yes|no) \|", PAGE, re.MULTILINE)
    assert {(each["code"], each["status"], each["retryable"]) for each in listed} == {
        (code, int(status), retry == "yes") for code, status, retry in rows
    }
    assert all(each["description"].endswith(".") for each in listed)


def test_every_user_property_is_described() -> None:
    """Of requests, answers and batches."""
    headers = {
        name
        for message in DOCUMENT["components"]["messages"].values()
        for name in message.get("headers", {}).get("properties", {})
    }
    assert headers == {
        protocol.HEADER_LENGTH, protocol.STATUS, protocol.PRIORITY, protocol.DEADLINE_MS,
        protocol.CLASSIFICATION, protocol.SOURCE, *protocol.TRACE_PROPERTIES, protocol.DEVICE,
        protocol.STREAM, protocol.FIRST_SEQ, protocol.EPOCH, protocol.BATCH, protocol.BOOT_ID,
        protocol.MODE, protocol.CONTENT_ENCODING,
    }  # fmt: skip


# ------------------------------------------------------------------ against real documents

VALUES: dict[Any, Any] = {str: "x", bool: True, int: 3, float: 0.5}


def event_of(kind: type[Event], *, nulls: bool) -> Event:
    """An event with something in each field; with null where that is allowed."""
    made: dict[str, Any] = {}
    for each in fields(kind):
        hint = str(get_type_hints(kind)[each.name])
        plain = get_type_hints(kind)[each.name]
        if "tuple" in hint:
            made[each.name] = ("a", "b")
        elif "dict" in hint:
            made[each.name] = {"k": 1} if "int" in hint else {"k": 0.5}
        elif "None" in hint:
            made[each.name] = None if nulls else 1
        else:
            made[each.name] = VALUES[plain]
    return kind(**made)


def reply_of(outcome: Outcome) -> Any:
    """The body of a reply in plain JSON."""
    return json.loads(encode(outcome, now=0.0, version="0123456789ab").payload)


def real_documents() -> Iterator[tuple[str, Any]]:
    """Name of the schema, and a document that our own code wrote."""
    status = Status(lambda: ("m",), lambda: {"m": {"engine": "e", "notes": []}})
    status.change("online", "half")
    yield "status", json.loads(status.document("online", 1))
    yield "status", json.loads(status.document("offline", 1))
    for kind in EVENTS:
        for nulls in (False, True):
            event = event_of(kind, nulls=nulls)
            if isinstance(event, Telemetry):
                yield "telemetry", json.loads(json_bytes(event.__dict__))
            else:
                yield "event", json.loads(cloud_event(event, "/edged/v1/d"))
    arrival = Arrival("t", b"", Receipt(1, 1, 1, 0), 0.0, user={"a": "b"})
    yield "deadLetter", json.loads(dead_letter(arrival, UnknownModelError("m"), ts=0))
    yield "batch", json.loads(batch_json(BatchHead("event", "0", "b", 1, "live"),
                                         [Record(1, 0.0, "k", b"{}")]))  # fmt: skip
    yield "ack", ack_document("b", 1, {1: "why"})
    yield "desired", desired_document(1, {"log": {"level": "info"}})
    for version in (None, 1):
        twin = Twin(version, version, "", "none", [KeyReport("a.b", "applied")], {}, {"m": "v"})
        yield "reported", reported_document(twin, "b", 0.0)
    yield "commandReply", command_document("drain", {"state": "draining"})
    receipt, timings = Receipt(1, 1, 1, 1), Timings(0.1, 0.2, 3, "count")
    for json_only in (False, True):
        to = ReplyTo("t", None, 1, json_only=json_only)
        outputs = {"y": np.zeros((1, 2), np.float32)}
        good = Outcome(receipt, to, "m", "id", outputs, timings=timings)
        if json_only:
            yield "inferReply", reply_of(good)
        error = QueueFullError("full", retry_after_ms=3)
        yield "error", reply_of(Outcome(receipt, to, "m", "id", error=error))
    tensor = v2.Tensor("x", np.zeros((1, 2), np.float32), binary=False)
    wanted = v2.RequestedOutput("y", binary=True, classes=3)
    body, _ = v2.write_request(v2.InferRequest((tensor,), (wanted,), "id", {"timeout": 3}))
    yield "inferRequest", json.loads(body)


DOCUMENTS = list(real_documents())


@pytest.mark.parametrize(("name", "document"), DOCUMENTS, ids=[name for name, _ in DOCUMENTS])
def test_what_is_sent_fits_its_schema(name: str, document: Any) -> None:
    """Documents of the code that writes them are valid, and lack nothing that is required."""
    jsonschema.validate(document, DOCUMENT["components"]["schemas"][name])


def test_every_schema_was_held_against_a_document() -> None:
    """None of them was left out above."""
    assert {name for name, _ in DOCUMENTS} == set(DOCUMENT["components"]["schemas"])


@pytest.mark.parametrize(("name", "document"), DOCUMENTS, ids=[name for name, _ in DOCUMENTS])
def test_a_schema_refuses_something_else(name: str, document: Any) -> None:
    """A member that is not known, or a missing one, is told apart where the schema is closed."""
    schema = DOCUMENT["components"]["schemas"][name]
    broken = {key: value for key, value in document.items() if key != schema["required"][0]}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema)


def test_codes_are_those_that_can_reach_a_requester() -> None:
    """No code of files, builds or the outbox is among them."""
    assert "queue_full" in wire_errors()
    assert not {"config", "broker", "outbox", "build_failed", "reply"} & set(wire_errors())
