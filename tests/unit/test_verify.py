"""Comparison with the FP32 model, and the gates."""

from __future__ import annotations

import numpy as np
import pytest

from edged.build.verify import LEAST_FLOAT_DB, Comparison, check_float, judge
from edged.build_options import VerifyOptions
from edged.errors import BuildError

LOGITS = np.array([[3, 1, 0], [0, 2, 1], [1, 0, 5], [4, 0, 1]], np.float32)


def compared(
    engine: np.ndarray[tuple[int, ...], np.dtype[np.float32]], labels: list[int] | None
) -> Comparison:
    """A comparison of `LOGITS` with an engine's output."""
    comparison = Comparison("y")
    rows = None if labels is None else np.array(labels)
    comparison.add({"y": LOGITS}, {"y": engine}, rows)
    return comparison


@pytest.mark.parametrize(("precision", "least"), LEAST_FLOAT_DB.items())
def test_a_float_engine_that_is_wrong_is_refused(precision: str, least: float) -> None:
    """However right its answers are; INT8 is left to the recipe's gates."""
    check_float(precision, {"sqnr_db": least})
    with pytest.raises(BuildError, match="computes something else than the model"):
        check_float(precision, {"sqnr_db": least - 0.1})
    check_float("int8", {"sqnr_db": 1.0})


def test_identical_outputs_agree_wholly() -> None:
    """The best case: full agreement, the SQNR limit, cosine 1."""
    metrics = compared(LOGITS.copy(), [0, 1, 2, 1]).metrics()
    assert metrics == {
        "agreement": 1.0, "sqnr_db": 200.0, "cosine": 1.0, "fp32_top1": 0.75, "engine_top1": 0.75,
    }  # fmt: skip


def test_metrics_are_those_of_the_formulas() -> None:
    """SQNR, cosine, agreement and accuracy of outputs that differ, against numpy."""
    engine = LOGITS.copy()
    engine[3] = [0, 4, 1]
    metrics = compared(engine, [0, 1, 2, 0]).metrics()
    error = float(((LOGITS - engine) ** 2).sum())
    assert metrics["sqnr_db"] == pytest.approx(
        10 * np.log10(float((LOGITS**2).sum()) / error), abs=1e-5
    )
    flat = (LOGITS.ravel(), engine.ravel())
    norms = np.linalg.norm(flat[0]) * np.linalg.norm(flat[1])
    assert metrics["cosine"] == pytest.approx(float(flat[0] @ flat[1] / norms), abs=1e-5)
    assert (metrics["agreement"], metrics["fp32_top1"], metrics["engine_top1"]) == (0.75, 1.0, 0.75)


def test_batches_add_up() -> None:
    """The metrics do not depend on how the split is batched."""
    engine = LOGITS + np.float32(0.1)
    whole = compared(engine, [0, 1, 2, 0]).metrics()
    parts = Comparison("y")
    for at in range(4):
        rows = slice(at, at + 1)
        parts.add({"y": LOGITS[rows]}, {"y": engine[rows]}, np.array([[0, 1, 2, 0][at]]))
    assert parts.metrics() == whole
    assert repr(parts) == "<Comparison 4 samples, 4 agreed>"


def test_of_several_outputs_the_worst_counts() -> None:
    """A second output that is wrong shows in SQNR and cosine."""
    comparison = Comparison("y")
    comparison.add({"y": LOGITS, "z": LOGITS}, {"y": LOGITS, "z": -LOGITS})
    metrics = comparison.metrics()
    assert metrics["cosine"] == -1.0
    assert metrics["sqnr_db"] < 0


def test_outputs_that_are_all_zero_are_compared_too() -> None:
    """Zero against zero is equal, against anything else it is not."""
    zeros = np.zeros_like(LOGITS)
    same, other = Comparison("y"), Comparison("y")
    same.add({"y": zeros}, {"y": zeros})
    other.add({"y": zeros}, {"y": LOGITS})
    assert (same.metrics()["cosine"], same.metrics()["sqnr_db"]) == (1.0, 200.0)
    assert (other.metrics()["cosine"], other.metrics()["sqnr_db"]) == (0.0, -200.0)


def test_dense_outputs_agree_only_if_every_answer_does() -> None:
    """A sample with several answers counts as agreed if all of them are the same."""
    reference = np.stack([LOGITS, LOGITS])
    engine = reference.copy()
    engine[1, 3] = [0, 4, 1]
    comparison = Comparison("y")
    comparison.add({"y": reference}, {"y": engine})
    assert comparison.metrics()["agreement"] == 0.5


def test_labels_for_dense_outputs_are_refused() -> None:
    """One label a sample says nothing about an output with several answers."""
    with pytest.raises(BuildError, match="gives 4 answers a sample"):
        Comparison("y").add({"y": LOGITS[None]}, {"y": LOGITS[None]}, np.array([0]))


def test_nan_of_the_engine_is_refused() -> None:
    """NaN is never averaged away."""
    engine = LOGITS.copy()
    engine[0, 0] = np.nan
    with pytest.raises(BuildError, match="'y' of the engine is NaN"):
        compared(engine, None)


def test_shapes_that_differ_are_refused() -> None:
    """Outputs of another shape cannot be compared."""
    with pytest.raises(BuildError, match=r"shape \[4, 2\]"):
        compared(LOGITS[:, :2], None)


def test_no_samples_is_no_verdict() -> None:
    """An engine that was never run is not verified."""
    with pytest.raises(BuildError, match="no samples"):
        Comparison("y").metrics()


def test_engine_within_its_gates_passes() -> None:
    """The limits themselves are allowed."""
    metrics = {"fp32_top1": 0.99, "engine_top1": 0.98, "agreement": 0.97}
    verdict = judge(metrics, 100, VerifyOptions(max_drop=0.01, min_agreement=0.97))
    assert verdict.passed
    assert verdict.reasons == ()


def test_better_than_fp32_is_no_drop() -> None:
    """An engine may happen to be more accurate."""
    metrics = {"fp32_top1": 0.9, "engine_top1": 0.95, "agreement": 1.0}
    assert judge(metrics, 100, VerifyOptions(max_drop=0.0)).passed


def test_each_gate_that_is_not_passed_is_named_with_its_values() -> None:
    """The reasons say what fell, from where to where, and what was allowed."""
    metrics = {"fp32_top1": 0.99, "engine_top1": 0.9, "agreement": 0.91}
    verdict = judge(metrics, 200, VerifyOptions())
    assert not verdict.passed
    accuracy, agreement = verdict.reasons
    assert accuracy == (
        "top-1 accuracy fell from 0.9900 to 0.9000, by 0.0900; max_drop allows 0.01"
    )
    assert agreement == (
        "the engine agrees with the FP32 model on 0.9100 of 200 samples; "
        "min_agreement asks for 0.97"
    )


def test_without_labels_agreement_decides() -> None:
    """The accuracy gate needs labels; agreement needs none."""
    assert judge({"agreement": 1.0}, 10, VerifyOptions()).passed
    assert not judge({"agreement": 0.5}, 10, VerifyOptions()).passed
