"""docs/protocol.md says what the code says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edged import protocol, v2
from edged.control_plane import (
    KEY_STATUSES,
    TWIN_STATUSES,
    BatchHead,
    KeyReport,
    Record,
    Twin,
    ack_document,
    batch_json,
    desired_document,
    reported_document,
)
from edged.errors import ClientError, EdgedError, ServiceError, UnknownModelError
from edged.serve.encode import ERROR_EXPIRY_S, dead_letter
from edged.serve.request import Arrival, Receipt
from edged.serve.timer import Reason
from edged.trace_context import MAX_TRACESTATE_CHARS
from edged.v2.header import MAX_CONTAINERS, MAX_DEPTH, MAX_ID_BYTES

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
TOPICS = protocol.Topics("{root}", "{device}")


def section(title: str) -> str:
    """The text under a heading, up to the next one of any level."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found, f"no section {title!r}"
    return found[1]


def first_cells(text: str) -> list[str]:
    """What stands between backquotes at the beginning of table rows."""
    return re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)


def errors(base: type[EdgedError]) -> Iterator[type[EdgedError]]:
    """A class of errors and all below it."""
    yield base
    for below in base.__subclasses__():
        if below.__module__ == "edged.errors":
            yield from errors(below)


WIRE_ERRORS = [*errors(ClientError), *errors(ServiceError)]


def test_error_table_is_what_the_classes_say() -> None:
    """Each code that can reach a requester stands once, with its status and its advice."""
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (yes|no) \|", section("Errors"), re.MULTILINE)
    told = {code: (int(status), retry == "yes") for code, status, retry in rows}
    assert len(rows) == len(told)
    assert told == {one.code: (one.status, one.retryable) for one in WIRE_ERRORS}


def test_errors_of_one_code_agree() -> None:
    """Two classes with the same code mean the same to a requester."""
    for one in WIRE_ERRORS:
        for other in WIRE_ERRORS:
            if one.code == other.code:
                assert (one.status, one.retryable) == (other.status, other.retryable)


def test_every_topic_is_listed() -> None:
    """The table has each topic that `Topics` makes, and no other."""
    made = {
        TOPICS.infer("{model}"),
        TOPICS.infer_class("{model}", "{class}"),
        TOPICS.infer_v3("{model}", "{client}", "{request}"),
        TOPICS.reply_v3("{model}", "{client}", "{request}"),
        TOPICS.reply("{client}"),
        TOPICS.status,
        TOPICS.telemetry("{kind}"),
        TOPICS.event("{kind}"),
        TOPICS.report("{stream}"),
        TOPICS.ack,
        TOPICS.uplink,
        TOPICS.config_desired,
        TOPICS.config_reported,
        TOPICS.rollout_desired,
        TOPICS.rollout_reported,
        TOPICS.command("{name}"),
        TOPICS.dead,
    }
    assert set(first_cells(section("Topics"))) == made
    for subscribed in (*TOPICS.subscriptions, *TOPICS.uplink_subscriptions):
        assert f"`{subscribed}`" in section("Topics")


def test_every_topic_of_a_pool_is_listed() -> None:
    """The table of pools has each topic that `PoolTopics` makes, and the filters it subscribes."""
    pool = protocol.PoolTopics("{root}", "{pool}")
    made = {
        pool.infer("{model}"),
        pool.infer_class("{model}", "{class}"),
        pool.reply("{client}"),
    }
    assert set(first_cells(section("Pools"))) == made
    assert all(f"`{subscribed}`" in section("Pools") for subscribed in pool.subscriptions)


def test_topics_has_no_member_that_this_test_does_not_know() -> None:
    """A new topic has to be added to the page and to the test above."""
    public = {name for name in dir(TOPICS) if not name.startswith("_")}
    topics = {
        "infer", "infer_class", "infer_v3", "reply_v3", "reply", "status", "telemetry", "event",
        "dead", "report", "ack", "uplink", "config_desired", "config_reported", "rollout_desired",
        "rollout_reported", "command",
    }  # fmt: skip
    others = {"root", "device", "base", "subscriptions", "uplink_subscriptions"}
    assert public == topics | others | {"parse_request", "parse_command"}


@pytest.mark.parametrize(
    "word",
    [
        protocol.DEFAULT_ROOT, protocol.HEADER_LENGTH, protocol.STATUS, protocol.PRIORITY,
        protocol.DEADLINE_MS, protocol.DEVICE, protocol.CLASSIFICATION, protocol.SOURCE,
        *protocol.TRACE_PROPERTIES,
        *protocol.PRIORITIES, *protocol.REQUEST_CONTENT_TYPES, *protocol.STATES,
        *protocol.STREAMS, *protocol.COMMANDS, protocol.STREAM, protocol.EPOCH, protocol.FIRST_SEQ,
        protocol.BATCH, protocol.BOOT_ID, protocol.MODE, *protocol.MODES, protocol.ZSTD,
        protocol.CONTENT_ENCODING, *TWIN_STATUSES, *KEY_STATUSES,
        *protocol.TELEMETRY_KINDS, *v2.DATATYPES, v2.BYTES, *(reason.value for reason in Reason),
    ],
)  # fmt: skip
def test_every_word_of_the_wire_is_explained(word: str) -> None:
    """Properties, content types, states, datatypes and reasons stand there as code."""
    assert f"`{word}`" in PAGE


def test_limits_are_the_codes() -> None:
    """Numbers on the page are those that the code compares with."""
    assert f"up to {protocol.MAX_CORRELATION_BYTES} bytes, copied" in PAGE
    assert f"may have up to {protocol.MAX_RESPONSE_TOPIC_BYTES} bytes, no wildcard" in PAGE
    assert f"more than {protocol.MAX_SLASHES} slashes" in PAGE
    assert f"above {MAX_TRACESTATE_CHARS} characters" in PAGE
    assert f"is of, up to {protocol.MAX_SOURCE_CHARS} characters" in PAGE
    assert f"{ERROR_EXPIRY_S} seconds for an error" in PAGE
    assert f"any text up to {MAX_ID_BYTES} bytes" in PAGE
    assert f"at most {MAX_DEPTH} deep" in PAGE
    assert f"at most {MAX_CONTAINERS:,} lists" in PAGE
    assert f"version {protocol.PROTOCOL_VERSION} of the protocol" in PAGE
    assert f"At most {protocol.MAX_DESIRED_BYTES:,} bytes are read" in PAGE


def example(title: str) -> dict[str, Any]:
    """The first JSON block of a section."""
    block = re.search(r"```json\n(.*?)```", section(title), re.DOTALL)
    assert block, f"no JSON in section {title!r}"
    return dict(json.loads(block[1]))


def test_status_example_has_every_member() -> None:
    """The example and the table have what `status_document` writes."""
    members = list(protocol.status_document("online", "b", 1))
    assert list(example("Status")) == members
    assert first_cells(section("Status")) == members


def test_error_example_has_every_member() -> None:
    """The example has what `error_document` writes."""
    document = protocol.error_document("m", "c", retryable=True, retry_after_ms=1)
    assert list(example("Errors")) == list(document)


def test_dead_letter_example_has_every_member() -> None:
    """The example has what `dead_letter` writes."""
    arrival = Arrival("t", b"", Receipt(1, 1, 1, 0), 0.0)
    letter = json.loads(dead_letter(arrival, UnknownModelError("m"), ts=0))
    assert list(example("Dead topic")) == list(letter)


def test_request_and_answer_examples_are_sound() -> None:
    """The V2 examples can be read, given the bytes that they declare."""
    request = json.dumps(example("Body")).encode()
    assert v2.parse_request(request + bytes(128), len(request)).inputs[0].shape == (2, 8, 8, 1)
    answer = example("An answer")
    texts = [b"12.648018:0:0", b"3.000000:6:6", b"1.000000:9:9"] * 2
    output = v2.Tensor("logits", v2.string_array(texts).reshape(2, 3))
    body, length = v2.write_response(
        v2.InferResponse(
            answer["model_name"], answer["model_version"], (output,), answer["id"],
            answer["parameters"],
        )
    )  # fmt: skip
    assert json.loads(body[:length]) == answer


def test_control_plane_examples_have_every_member() -> None:
    """Batch, acknowledgement, desired and reported documents are what the code writes."""
    head = BatchHead("event", "0" * 16, "b", 1, "live")
    twin = Twin(1, 1, "", "applied", [KeyReport("log.level", "applied")], {}, {})
    made: dict[str, dict[str, Any]] = {
        "Batch": json.loads(batch_json(head, [Record(1, 0.0, "k", b"{}")])),
        "Acknowledgement": ack_document("b", 1, {1: "why"}),
        "Desired": desired_document(1, {}),
        "Reported": reported_document(twin, "b", 0.0),
    }
    for title, document in made.items():
        told = example(title)
        assert list(told) == list(document)
        assert first_cells(section(title)) == list(document)
        for member in ("records", "refused", "keys"):
            if member in document:
                assert list(told[member][0]) == list(document[member][0])


def test_every_command_is_listed() -> None:
    """The table of commands has each once."""
    assert first_cells(section("Commands")) == list(protocol.COMMANDS)
