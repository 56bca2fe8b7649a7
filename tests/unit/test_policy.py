"""Which answers are reported, and what is summed up of the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from edged.report.policy import Answered, ResultPolicies, confidence, result
from edged.report_settings import ReportSettings


def answer(*rows: Any, model: str = "digits", status: int = 200) -> Answered:
    """An answer with one output; without rows an error."""
    outputs = {"scores": np.array(rows, np.float32)} if rows else {}
    return Answered(1.0, model, "a", status, len(rows), 2.0, outputs)


def policies(**settings: Any) -> ResultPolicies:
    """Policies under these settings."""
    return ResultPolicies(ReportSettings.model_validate(settings))


SURE, UNSURE = (0.05, 0.95), (0.45, 0.55)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("none", [False, False, False]),
        ("all", [True, True, True]),
        ("uncertain", [False, True, False]),
        ("summary", [False, False, False]),
    ],
)
def test_each_policy_on_a_sure_and_an_unsure_answer_and_an_error(
    policy: str, expected: list[bool]
) -> None:
    """An error has no confidence: it is reported by ``all`` alone."""
    rules = policies(results=policy)
    answers = [answer(SURE), answer(SURE, UNSURE), answer(status=500)]

    assert [rules.reports(each, 0.5) for each in answers] == expected


def test_sampled_goes_by_chance() -> None:
    """A share of ``sample_rate``; 0 is none and 1 is all."""
    assert [policies(results="sampled", sample_rate=0.25).reports(answer(SURE), chance)
            for chance in (0.0, 0.24, 0.25, 0.99)] == [True, True, False, False]  # fmt: skip
    assert not policies(results="sampled", sample_rate=0).reports(answer(SURE), 0.0)


def test_changed_compares_with_the_answer_before_of_the_same_model() -> None:
    """The first one is a change; another class is; another probability of the same is not."""
    rules = policies(results="changed")
    one, other = (0.9, 0.1), (0.1, 0.9)
    seen = [answer(one), answer((0.8, 0.2)), answer(other), answer(status=500), answer(other)]

    assert [rules.reports(each, 0.5) for each in seen] == [True, False, True, False, False]
    assert rules.reports(answer(other, model="watch"), 0.5)
    values = [answer((1.0,)), answer((1.0001,)), answer((1.2,))]
    fresh = policies(results="changed")
    assert [fresh.reports(each, 0.5) for each in values] == [True, False, True]


def test_a_model_has_its_own_policy() -> None:
    """What it does not say is as for the others."""
    rules = policies(
        results="none",
        confidence_below=0.5,
        models={"digits": {"results": "uncertain"}, "watch": {"confidence_below": 0.99}},
    )

    assert rules.policy("digits") == "uncertain"
    assert rules.policy("watch") == "none"
    assert not rules.reports(answer(UNSURE), 0.5)
    rules.settings = ReportSettings.model_validate(
        {"models": {"digits": {"results": "uncertain", "confidence_below": 0.9}}}
    )
    assert rules.reports(answer(UNSURE), 0.5)


def test_a_summary_counts_and_begins_anew() -> None:
    """Requests, errors, samples, classes, confidence; the next one is empty."""
    rules = policies(results="summary")
    for each in (answer(SURE), answer(SURE, UNSURE[::-1]), answer(status=500)):
        rules.reports(each, 0.5)

    (summary,) = rules.summaries(5.0, 10.0)

    assert (summary.requests, summary.errors, summary.samples) == (3, 1, 3)
    assert summary.classes == {"1": 2, "0": 1}
    assert summary.least_confidence == pytest.approx(0.55)
    assert summary.mean_confidence == pytest.approx((0.95 + 0.95 + 0.55) / 3)
    assert rules.summaries(6.0, 1.0) == []


def test_large_outputs_are_left_out_of_a_result() -> None:
    """Up to 256 values are told, more are null."""
    large = Answered(1.0, "m", "", 200, 1, 1.0, {"y": np.zeros((1, 257)), "z": np.zeros((1, 256))})

    outputs = result(large).outputs

    assert outputs["y"] is None
    assert len(outputs["z"][0]) == 256


def tops(label: str, score: float) -> Answered:
    """A post-processed answer of a classifier: one sample, the best of two classes."""
    outputs = {
        "top_labels": np.array([[label.encode(), b"x"]], object),
        "top_classes": np.array([[7, 8]]),
        "top_scores": np.array([[score, 0.0]], np.float32),
    }
    return Answered(1.0, "m", "a", 200, 1, 2.0, outputs)


def boxes(*found: tuple[str, float]) -> Answered:
    """A post-processed answer of a detector: one sample, room for three boxes."""
    outputs = {
        "num_detections": np.array([len(found)]),
        "detection_boxes": np.zeros((1, 3, 4), np.float32),
        "detection_scores": np.zeros((1, 3), np.float32),
        "detection_classes": np.zeros((1, 3), np.int64),
        "detection_labels": np.full((1, 3), b"", object),
    }
    for at, (label, score) in enumerate(found):
        outputs["detection_labels"][0, at] = label.encode()
        outputs["detection_scores"][0, at] = score
    return Answered(1.0, "m", "a", 200, 1, 2.0, outputs)


def test_post_processed_answers_are_judged_by_their_scores() -> None:
    """The best class's, or the least certain box's; where nothing was found there is none."""
    rules = policies(results="uncertain", confidence_below=0.6)
    answers = [tops("a", 0.7), tops("a", 0.5), boxes(("a", 0.9), ("b", 0.5)), boxes()]

    assert [rules.reports(each, 0.5) for each in answers] == [False, True, True, False]


def test_post_processed_answers_change_with_what_they_say() -> None:
    """Another label, another number of boxes; not their order, nor their scores."""
    rules = policies(results="changed")
    answers = [
        tops("a", 0.7), tops("a", 0.5), tops("b", 0.5),
        boxes(("a", 0.9), ("b", 0.8)), boxes(("b", 0.9), ("a", 0.8)), boxes(("a", 0.9)),
    ]  # fmt: skip

    seen = [rules.reports(each, 0.5) for each in answers]

    assert seen == [True, False, True, True, False, True]


def test_a_summary_counts_labels() -> None:
    """Of a classifier the best one, of a detector each box."""
    rules = policies(results="summary")
    for each in (tops("a", 0.75), boxes(("a", 0.5), ("b", 1.0)), boxes()):
        rules.reports(each, 0.5)

    (summary,) = rules.summaries(5.0, 10.0)

    assert summary.classes == {"a": 2, "b": 1}
    assert (summary.mean_confidence, summary.least_confidence) == (0.625, 0.5)


def test_a_result_says_what_was_found() -> None:
    """In a short form, and null where there is too much."""
    assert result(tops("ä", 0.5)).outputs == {
        "classes": [
            [{"label": "ä", "class": 7, "score": 0.5}, {"label": "x", "class": 8, "score": 0.0}]
        ]
    }
    assert result(boxes(("a", 0.5))).outputs == {
        "detections": [[{"label": "a", "class": 0, "score": 0.5, "box": [0.0, 0.0, 0.0, 0.0]}]]
    }
    many = {name: np.repeat(rows, 200, axis=0) for name, rows in tops("a", 0.5).outputs.items()}
    assert result(Answered(1.0, "m", "", 200, 200, 1.0, many)).outputs == {"classes": None}


@given(
    arrays(
        st.sampled_from([np.float32, np.float16, np.int64, np.bool_]),
        array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4),
    ),
    st.sampled_from(["all", "sampled", "uncertain", "changed", "summary"]),
)
def test_any_output_can_be_judged(rows: Any, policy: str) -> None:
    """Of any type, shape and value: a decision, a confidence from 0 to 1 or none, a summary."""
    rules = policies(results=policy)
    found = Answered(1.0, "m", "", 200, len(rows), 1.0, {"y": rows})

    assert rules.reports(found, 0.5) in {True, False}
    least = confidence(found.outputs)
    assert least is None or 0.0 <= least <= 1.0 + 1e-6
    for summary in rules.summaries(2.0, 1.0):
        assert sum(summary.classes.values()) in {0, len(rows)}
