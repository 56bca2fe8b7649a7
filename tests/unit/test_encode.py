"""The encoder: answers and errors in the form that the requester can read."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edged import protocol, v2
from edged.errors import BuildError, EdgedError, QueueFullError, UnknownModelError
from edged.serve.encode import classify, dead_letter, encode, packet_bytes
from edged.serve.request import (
    Arrival,
    Outcome,
    OutputChoice,
    Receipt,
    Reply,
    ReplyTo,
    Timings,
)

TO = ReplyTo("edged/v1/d/reply/me", b"\1\2", 1, {"traceparent": "00-1-2-01"})
SCORES = np.array([[0.1, 0.7, 0.2]], np.float32)
DONE = Outcome(
    receipt=Receipt(1, 1, 1, 1),
    reply_to=TO,
    model="digits",
    id="7",
    outputs={"scores": SCORES, "code": np.array([[5, 6]], np.int64)},
    choices=(OutputChoice("scores"), OutputChoice("code")),
    received=90.0,
    deadline=102.5,
    timings=Timings(0.0015, 0.002, 4, "full"),
    samples=1,
)


def failed(error: EdgedError, to: ReplyTo = TO) -> Outcome:
    """An outcome that is an error, found before there was a deadline."""
    return Outcome(DONE.receipt, to, "digits", id="7", error=error)


def read(reply: Reply) -> v2.InferResponse:
    """A reply's body, read as a client reads it."""
    length = dict(reply.user).get(protocol.HEADER_LENGTH)
    return v2.parse_response(reply.payload, None if length is None else int(length))


def test_answer_carries_outputs_and_what_they_cost() -> None:
    """Outputs in the order asked for, in binary form, with timings and the engine's version."""
    reply = encode(DONE, now=100.0, version="0123456789ab")
    assert (reply.topic, reply.qos, reply.correlation) == (TO.topic, 1, b"\1\2")
    assert reply.content_type == protocol.OCTET_STREAM
    assert reply.expiry_s == 3
    user = dict(reply.user)
    assert user["status"] == "200"
    assert user["traceparent"] == "00-1-2-01"
    body = read(reply)
    assert (body.model_name, body.model_version, body.id) == ("digits", "0123456789ab", "7")
    assert body.parameters == {
        "queue_us": 1500, "compute_us": 2000, "batch_size": 4, "batch_reason": "full",
    }  # fmt: skip
    assert [tensor.name for tensor in body.outputs] == ["scores", "code"]
    np.testing.assert_array_equal(body["scores"], SCORES)
    np.testing.assert_array_equal(body["code"], [[5, 6]])


def test_only_chosen_outputs_are_answered_in_their_order() -> None:
    """Outputs that nobody asked for stay away; each comes in its own form."""
    choices = (OutputChoice("code", binary=False), OutputChoice("scores"))
    body = read(encode(replace(DONE, choices=choices), now=100.0))
    assert [(tensor.name, tensor.binary) for tensor in body.outputs] == [
        ("code", False), ("scores", True),
    ]  # fmt: skip
    only = read(encode(replace(DONE, choices=choices[:1]), now=100.0))
    assert [tensor.name for tensor in only.outputs] == ["code"]


def test_answer_without_binary_output_is_plain_json() -> None:
    """No header length, content type JSON: any JSON reader can take it."""
    choices = (OutputChoice("code", binary=False),)
    reply = encode(replace(DONE, choices=choices), now=100.0)
    assert reply.content_type == protocol.JSON
    assert protocol.HEADER_LENGTH not in dict(reply.user)
    assert json.loads(reply.payload)["outputs"] == [
        {"name": "code", "shape": [1, 2], "datatype": "INT64", "data": [5, 6]}
    ]


def test_mqtt_3_answer_is_json_with_the_status_in_it() -> None:
    """A requester without properties gets JSON even where it asked for binary data."""
    reply = encode(replace(DONE, reply_to=replace(TO, json_only=True)), now=100.0)
    document = json.loads(reply.payload)
    assert document["parameters"]["status"] == 200
    assert document["id"] == "7"
    assert [output["name"] for output in document["outputs"]] == ["scores", "code"]


def test_classes_come_with_their_labels() -> None:
    """The largest entries of each sample, as value, index and label, in both forms."""
    labels = {"scores": ("zero", "one", "café")}
    for binary in (True, False):
        choices = (OutputChoice("scores", binary=binary, classes=2),)
        tensor = read(encode(replace(DONE, choices=choices), now=0, labels=labels)).outputs[0]
        assert (tensor.datatype, tensor.shape) == ("BYTES", (1, 2))
        assert [item.decode() for item in tensor.data.ravel()] == [
            "0.700000:1:one", "0.200000:2:café",
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "dtype", "expected"),
    [
        ([1, 3, 2], np.int8, ["3:1", "2:2", "1:0"]),
        ([0, 255, 255], np.uint8, ["255:1", "255:2", "0:0"]),
        ([0, 2**64 - 1, 1], np.uint64, [f"{2**64 - 1}:1", "1:2", "0:0"]),
        ([np.nan, -1, np.inf], np.float32, ["inf:2", "-1.000000:1", "nan:0"]),
        ([False, True, False], np.bool_, ["1:1", "0:0", "0:2"]),
    ],
)
def test_classes_are_sorted_and_ties_keep_their_order(
    row: list[Any], dtype: type[np.generic], expected: list[str]
) -> None:
    """Descending values of any kind; equal ones by index, NaN last; never more than there are."""
    found = classify(np.array([row], dtype), 9)
    assert [item.decode() for item in found[0]] == expected


def test_labels_name_the_last_axis() -> None:
    """An output with more axes is counted through flat, and labelled by its last axis."""
    found = classify(np.array([[[1, 4], [3, 2]]], np.int8), 2, ("left", "right"))
    assert found.tolist() == [[b"4:1:right", b"3:2:left"]]


def test_error_says_code_and_whether_to_retry() -> None:
    """The status is a property, code and advice are in the body."""
    reply = encode(failed(QueueFullError("1024 samples wait", retry_after_ms=40)), now=100.0)
    assert dict(reply.user) == {"status": "429", "traceparent": "00-1-2-01"}
    assert (reply.content_type, reply.correlation) == (protocol.JSON, b"\1\2")
    assert reply.expiry_s == 60
    assert json.loads(reply.payload) == {
        "error": "1024 samples wait", "code": "queue_full", "retryable": True,
        "retry_after_ms": 40, "id": "7",
    }  # fmt: skip


def test_mqtt_3_error_has_its_status_in_the_body() -> None:
    """A requester without properties reads the status in the JSON."""
    reply = encode(failed(UnknownModelError("no"), replace(TO, json_only=True)), now=0)
    assert json.loads(reply.payload)["status"] == 404


def test_errors_that_may_hold_paths_are_not_told() -> None:
    """An error of files or builds reaches a requester as an internal one only."""
    reply = encode(failed(BuildError("/var/lib/secret is missing")), now=0)
    assert b"secret" not in reply.payload
    assert json.loads(reply.payload)["code"] == "internal"
    assert dict(reply.user)["status"] == "500"


def test_expiry_is_never_below_one_second() -> None:
    """A reply after its deadline still has a second to arrive."""
    assert encode(DONE, now=1000.0).expiry_s == 1


@pytest.mark.parametrize("spare", [0, -1])
def test_answer_above_the_brokers_limit_becomes_an_error_that_fits(spare: int) -> None:
    """At the limit the answer is sent, one byte above it the requester is told."""
    big = replace(DONE, outputs={"scores": np.zeros((1, 5000), np.float32)}, choices=())
    whole = encode(big, now=100.0)
    limit = packet_bytes(whole) + spare
    reply = encode(big, now=100.0, max_packet_bytes=limit)
    if spare == 0:
        assert reply == whole
    else:
        assert json.loads(reply.payload)["code"] == "reply_too_large"
        assert dict(reply.user)["status"] == "413"
        assert packet_bytes(reply) <= limit


def test_missing_output_is_an_internal_error() -> None:
    """An engine that does not give what its manifest promises is answered for."""
    reply = encode(replace(DONE, outputs={"scores": SCORES}), now=0)
    assert json.loads(reply.payload)["code"] == "internal"


def test_outcome_without_address_is_a_fault_of_the_caller() -> None:
    """There is no reply to encode for it; it belongs on the dead topic."""
    with pytest.raises(ValueError, match="no reply address"):
        encode(replace(DONE, reply_to=None), now=0)


def test_dead_letter_has_headers_but_no_payload_and_stays_small() -> None:
    """Hostile headers are cut and escaped, and the payload is not passed on."""
    arrival = Arrival(
        topic="edged/v1/d/infer/" + "m" * 60_000,
        payload=b"secret",
        receipt=Receipt(1, 1, 1, 1),
        received=0.0,
        response_topic="$SYS/\n\x1b[31m" + "x" * 60_000,
        correlation=b"\xff" * 60_000,
        user={f"name{n}": "v" * 60_000 for n in range(1000)},
    )
    letter = dead_letter(arrival, UnknownModelError("no model"), ts=1.23456)
    assert len(letter) < 10_000
    assert b"secret" not in letter
    assert b"\n" not in letter
    document = json.loads(letter)
    assert (document["code"], document["reason"]) == ("unknown_model", "no model")
    assert document["payload_bytes"] == 6
    assert document["ts"] == 1.235
