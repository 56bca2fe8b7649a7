"""Post-processing of a batch: who asked for it, who gets an error, what is answered of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edged import v2
from edged.errors import BadTensorError, InternalError
from edged.postprocess import Derived, OutputForm, Rows, prepare
from edged.postprocess.options import ClassesOptions, DetectionOptions
from edged.recipe import OutputSpec
from edged.serve.deriving import derive
from edged.serve.encode import encode
from edged.serve.request import Outcome, OutputChoice, Part, Receipt, ReplyTo
from edged.serve.request_outputs import choices_of
from tests.doubles.around_device import part

TOP = prepare(ClassesOptions(kind="classes", k=1), {"y": OutputForm((2,))}, None)
BOXES = prepare(
    DetectionOptions(kind="detection", boxes="y", size=(9, 9), max_detections=7),
    {"y": OutputForm((2, 5))},
    None,
)
SPECS = (OutputSpec(name="y", shape=(2,)),)


def asking(samples: int, *names: str) -> Part:
    """A part of a request that asks for these outputs."""
    made = part(*range(1, samples + 1))
    made.request.outputs = tuple(OutputChoice(name) for name in names)  # type: ignore[misc]
    return made


def test_nothing_is_made_for_nobody() -> None:
    """Where all parts ask for raw outputs, where the batch failed, and of a model without it."""
    outputs = {"y": np.ones((1, 2), np.float32)}

    assert derive(TOP, [asking(1, "y")], outputs).outputs == outputs
    assert derive(TOP, [asking(1, "top_scores")], {}).outputs == {}
    assert derive(None, [asking(1, "y")], outputs).outputs == outputs


def test_only_parts_that_ask_for_it_hear_of_nan() -> None:
    """Others get the raw values as they are; sound parts of the batch get their answer."""
    outputs = {"y": np.array([[0, 1], [np.nan, 0], [1, 0], [np.inf, 0]], np.float32)}
    parts = [asking(2, "top_scores"), asking(1, "top_scores"), asking(1, "y")]

    found = derive(TOP, parts, outputs)

    assert found.nonfinite == (0,)
    assert found.error is None
    assert found.outputs["top_classes"][2].tolist() == [0]
    assert found.outputs["y"] is outputs["y"]


def test_a_fault_of_ours_is_an_error_of_the_batch(caplog: pytest.LogCaptureFixture) -> None:
    """It is answered and logged; nothing dies of it."""

    class Broken:
        names: tuple[str, ...] = ("top_scores",)
        counted: Mapping[str, str] = {}

        def run(self, outputs: Mapping[str, Any], rows: Rows) -> Derived:
            raise IndexError(f"{len(outputs)} {rows.count}")

    found = derive(Broken(), [asking(1, "top_scores")], {"y": np.ones((1, 2), np.float32)})

    assert isinstance(found.error, InternalError)
    assert "could not be post-processed" in caplog.text


def asked(*outputs: v2.RequestedOutput) -> v2.InferRequest:
    """A request for these outputs."""
    return v2.InferRequest((), outputs)


def test_what_is_answered_without_a_word_and_by_name() -> None:
    """Post-processed outputs, or whichever are named; of boxes only those that were found."""
    assert [choice.name for choice in choices_of(asked(), SPECS, TOP, binary=True)] == [
        "top_classes", "top_scores",
    ]  # fmt: skip
    chosen = choices_of(
        asked(v2.RequestedOutput("y", classes=1), v2.RequestedOutput("detection_boxes")),
        SPECS,
        BOXES,
        binary=False,
    )
    assert chosen == (
        OutputChoice("y", binary=False, classes=1),
        OutputChoice("detection_boxes", binary=False, counted="num_detections"),
    )  # fmt: skip
    assert [choice.name for choice in choices_of(asked(), SPECS, binary=True)] == ["y"]


@pytest.mark.parametrize(
    ("output", "why"),
    [
        (v2.RequestedOutput("z"), "has no output 'z'; it has y, top_classes, top_scores"),
        (v2.RequestedOutput("top_scores", classes=2), "classification is for y"),
    ],
)
def test_outputs_that_cannot_be_had_are_refused(output: v2.RequestedOutput, why: str) -> None:
    """Unknown ones, and the classes of classes."""
    with pytest.raises(BadTensorError, match=why):
        choices_of(asked(output), SPECS, TOP, binary=True)


def test_an_answer_has_as_many_boxes_as_its_fullest_sample() -> None:
    """The rest of the room for boxes is left out; of none at all one empty place stays."""
    rows = np.array([[[0, 0, 1, 1, 0.9], [4, 4, 6, 6, 0.8]], [[0, 0, 1, 1, 0.9]] * 2], np.float32)
    blank = Outcome(Receipt(1, 1, 1, 1), ReplyTo("t", None, 1, json_only=True), "m")

    for scale, boxes in ((1, 2), (0, 1)):
        made = BOXES.run({"y": rows * np.float32(scale)}, Rows(2)).outputs
        choices = choices_of(asked(), SPECS, BOXES, binary=True)
        reply = encode(replace(blank, outputs=made, choices=choices), now=0.0)

        shapes = {t.name: t.shape for t in v2.parse_response(reply.payload).outputs}
        assert shapes == {
            "num_detections": (2,), "detection_boxes": (2, boxes, 4),
            "detection_scores": (2, boxes), "detection_classes": (2, boxes),
        }  # fmt: skip
