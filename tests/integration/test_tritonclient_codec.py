"""Triton's own Python client as an independent encoder and decoder of our bodies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

from edged import protocol, v2
from edged.postprocess import Postprocessor
from edged.recipe import Datatype, InputSpec, OutputSpec
from edged.serve.decode import Decoder
from edged.serve.encode import encode
from edged.serve.request import Arrival, Outcome, OutputChoice, Receipt, ReplyTo, Request

TOPICS = protocol.Topics("edged/v1", "dev1")
TO = ReplyTo(TOPICS.reply("triton"), b"1", 1)
DATATYPES = sorted(v2.DATATYPES)


@dataclass(frozen=True)
class Model:
    """A served model of one input for each name, all [n, 2, 3], and two outputs."""

    input: tuple[InputSpec, ...]
    output: tuple[OutputSpec, ...] = (
        OutputSpec(name="y", shape=(4,)),
        OutputSpec(name="z", shape=(2,)),
    )
    slo_ms: float = 500.0
    freshness: Literal["all", "latest"] = "all"
    postprocessor: Postprocessor | None = None


def numbers(datatype: str, samples: int = 2) -> np.ndarray[Any, np.dtype[Any]]:
    """Entries that use the datatype's range, ``[samples, 2, 3]``."""
    dtype = v2.DATATYPES[datatype]
    rng = np.random.default_rng(7)
    raw = rng.integers(0, 256, size=(samples, 2, 3, dtype.itemsize), dtype=np.uint8)
    if dtype.kind == "b":
        return (raw % 2).astype(bool)[..., 0]
    if dtype.kind == "f":
        return rng.normal(size=(samples, 2, 3)).astype(dtype)
    return raw.view(dtype)[..., 0]


def triton_input(
    name: str, data: np.ndarray[Any, np.dtype[Any]], *, binary: bool = True
) -> InferInput:
    """The client's description of a tensor."""
    made = InferInput(name, list(data.shape), v2.datatype_of(data.dtype))
    made.set_data_from_numpy(data, binary_data=binary)
    return made


def decode(body: bytes, length: int | None, model: Model) -> Request:
    """Sends what the client wrote through the daemon's decoder."""
    user = {} if length is None else {protocol.HEADER_LENGTH: str(length)}
    content_type = protocol.JSON if length is None else protocol.OCTET_STREAM
    arrival = Arrival(
        topic=TOPICS.infer("m"),
        payload=body,
        receipt=Receipt(1, 1, 1, 1),
        received=0.0,
        response_topic=TO.topic,
        content_type=content_type,
        user=user,
    )
    return Decoder(TOPICS, {"m": model}.get).decode(arrival)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("datatype", DATATYPES)
def test_clients_request_is_decoded(datatype: str, binary: bool) -> None:  # noqa: FBT001 - a case
    """Every datatype, as bytes and as JSON numbers, arrives bit by bit."""
    data = numbers(datatype)
    model = Model((InputSpec(name="x", datatype=cast(Datatype, datatype), shape=(2, 3)),))
    body, length = InferenceServerClient.generate_request_body(
        [triton_input("x", data, binary=binary)], request_id="r7", priority=1, timeout=250_000
    )
    assert (length is not None) == binary
    request = decode(body, length, model)
    assert request.tensors["x"].tobytes() == data.tobytes()
    assert (request.id, request.samples, request.priority) == ("r7", 2, 0)
    assert request.deadline == pytest.approx(0.25)
    assert request.outputs == (OutputChoice("y"), OutputChoice("z"))


def test_clients_several_inputs_and_outputs_are_decoded() -> None:
    """Inputs of both forms in one body, outputs with their own forms and classes."""
    model = Model(
        (
            InputSpec(name="a", datatype="UINT8", shape=(2, 3)),
            InputSpec(name="b", datatype="INT64", shape=(2, 3)),
            InputSpec(name="c", datatype="FP16", shape=(2, 3)),
        )
    )
    sent = {"a": numbers("UINT8"), "b": numbers("INT64"), "c": numbers("FP16")}
    body, length = InferenceServerClient.generate_request_body(
        [triton_input(name, data, binary=name != "b") for name, data in sent.items()],
        outputs=[
            InferRequestedOutput("z", binary_data=False),
            InferRequestedOutput("y", binary_data=True, class_count=3),
        ],
    )
    request = decode(body, length, model)
    for name, data in sent.items():
        np.testing.assert_array_equal(request.tensors[name], data)
    assert request.outputs == (OutputChoice("z", binary=False), OutputChoice("y", classes=3))


CASES: list[tuple[v2.InferRequest, Mapping[str, Any]]] = [
    (v2.InferRequest((), parameters={"binary_data_output": True}), {}),
    (v2.InferRequest((), (v2.RequestedOutput("y", binary=True, classes=2),)), {}),
    (v2.InferRequest((), (v2.RequestedOutput("y", binary=False),), "id-7"), {"request_id": "id-7"}),
    (
        v2.InferRequest((), parameters={"priority": 2, "timeout": 9, "binary_data_output": True}),
        {"priority": 2, "timeout": 9},
    ),
]


@pytest.mark.parametrize("datatype", DATATYPES)
@pytest.mark.parametrize(("request_", "options"), CASES)
def test_our_request_is_the_clients_byte_for_byte(
    datatype: str, request_: v2.InferRequest, options: Mapping[str, Any]
) -> None:
    r"""In binary form both writers make the same bytes and the same header length.

    Names are ASCII: writers may differ in the case of the digits of ``\u00e9``.
    """
    data = {"x": numbers(datatype), "two words": numbers("FP32", 1)}
    ours = v2.write_request(
        v2.InferRequest(
            tuple(v2.Tensor(name, one) for name, one in data.items()),
            request_.outputs,
            request_.id,
            request_.parameters,
        )
    )
    outputs = [
        InferRequestedOutput(one.name, binary_data=one.binary, class_count=one.classes)
        for one in request_.outputs
    ]
    theirs = InferenceServerClient.generate_request_body(
        [triton_input(name, one) for name, one in data.items()], outputs=outputs, **options
    )
    assert ours == theirs


def test_our_json_request_is_the_clients_byte_for_byte() -> None:
    """Whole numbers and booleans have one form in JSON only."""
    data = {name: numbers(name) for name in DATATYPES if not name.startswith("FP")}
    ours = v2.write_request(
        v2.InferRequest(
            tuple(v2.Tensor(name, one, binary=False) for name, one in data.items()),
            parameters={"binary_data_output": True},
        )
    )
    theirs = InferenceServerClient.generate_request_body(
        [triton_input(name, one, binary=False) for name, one in data.items()]
    )
    assert ours == theirs


def answer(outputs: Mapping[str, Any], choices: tuple[OutputChoice, ...], **options: Any) -> Any:
    """What the client reads out of the daemon's reply."""
    outcome = Outcome(
        Receipt(1, 1, 1, 1), TO, "m", "r7", outputs, choices=choices, deadline=1.0, samples=2
    )
    reply = encode(outcome, now=0.0, version="0123456789ab", **options)
    length = dict(reply.user).get(protocol.HEADER_LENGTH)
    return InferenceServerClient.parse_response_body(
        reply.payload, header_length=None if length is None else int(length)
    )


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("datatype", DATATYPES)
def test_client_reads_our_answer(datatype: str, binary: bool) -> None:  # noqa: FBT001 - a case
    """Every datatype, as bytes and as JSON numbers, is read bit by bit."""
    data = numbers(datatype)
    result = answer({"y": data}, (OutputChoice("y", binary=binary),))
    read = result.as_numpy("y")
    assert read.dtype == data.dtype
    assert read.tobytes() == data.tobytes()
    document = result.get_response()
    assert (document["model_name"], document["model_version"]) == ("m", "0123456789ab")
    assert document["id"] == "r7"


def test_client_reads_several_outputs_and_classes() -> None:
    """Binary, JSON and class strings in one answer, in an order of the requester's choice."""
    scores = np.array([[0.25, 0.5, 0.125], [1, 3, 2]], np.float32)
    choices = (
        OutputChoice("z", binary=False),
        OutputChoice("scores", classes=2),
        OutputChoice("y"),
    )
    outputs = {"scores": scores, "y": numbers("INT16"), "z": numbers("FP32")}
    result = answer(outputs, choices, labels={"scores": ("a", "b", "ç")})
    np.testing.assert_array_equal(result.as_numpy("z"), outputs["z"])
    np.testing.assert_array_equal(result.as_numpy("y"), outputs["y"])
    classes = [[text.decode() for text in row] for row in result.as_numpy("scores")]
    assert classes == [["0.500000:1:b", "0.250000:0:a"], ["3.000000:1:b", "2.000000:2:ç"]]


def test_client_reads_classes_in_json() -> None:
    """Class strings in plain JSON are text."""
    choices = (OutputChoice("y", binary=False, classes=1),)
    result = answer({"y": np.array([[1, 9]], np.uint8)}, choices)
    assert result.get_output("y")["data"] == ["9:1"]
    assert result.as_numpy("y").shape == (1, 1)
