"""The vectorised decoders against plain loops that say the same thing slowly."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edged.postprocess import OutputForm, Rows, prepare
from edged.postprocess.nms import iou, suppress
from edged.postprocess.options import ClassesOptions, CtcOptions, DetectionOptions
from edged.postprocess.scores import largest, softmax

Array = Any

# Few different values: ties, touching and identical boxes are what goes wrong.
COORDINATES = st.integers(0, 6).map(float)
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


def boxes_of(most: int) -> st.SearchStrategy[Array]:
    """Corners ``[n, 4]``, some of them turned over."""
    shape = st.tuples(st.integers(0, most), st.just(4))
    return shape.flatmap(lambda s: hnp.arrays(np.float64, s, elements=COORDINATES))


def slow_iou(a: Array, b: Array) -> float:
    """One pair."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = sum(max(c[2] - c[0], 0.0) * max(c[3] - c[1], 0.0) for c in (a, b))
    return float(shared / (areas - shared)) if areas - shared > 0 else 0.0


def slow_nms(boxes: Array, classes: Array | None, threshold: float, most: int) -> list[int]:
    """Box by box, best first."""
    kept: list[int] = []
    for at in range(len(boxes)):
        rivals = [k for k in kept if classes is None or classes[k] == classes[at]]
        if all(slow_iou(boxes[k], boxes[at]) <= threshold for k in rivals):
            kept.append(at)
    return kept[:most]


@given(boxes_of(24), st.data(), st.sampled_from([0.0, 0.2, 0.5, 0.99]), st.integers(1, 30))
def test_nms_is_the_greedy_loop(
    boxes: Array, data: st.DataObject, threshold: float, most: int
) -> None:
    """The same boxes stay, whether or not classes count, at any threshold and limit."""
    numbers = st.lists(st.integers(0, 2), min_size=len(boxes), max_size=len(boxes))
    classes = data.draw(st.none() | numbers.map(np.array))

    kept = suppress(boxes, classes, iou_threshold=threshold, most=most)

    assert kept.tolist() == slow_nms(boxes, classes, threshold, most)


@given(st.integers(0, 2**32 - 1), st.integers(100, 300))
def test_nms_of_many_boxes_is_the_greedy_loop(seed: int, count: int) -> None:
    """More boxes than are compared at once, in chains that overlap."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 60, (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(1, 20, (count, 2))], axis=1)

    kept = suppress(boxes, None, iou_threshold=0.4, most=count)

    assert kept.tolist() == slow_nms(boxes, None, 0.4, count)


@given(boxes_of(8), boxes_of(8))
def test_iou_of_each_pair(one: Array, other: Array) -> None:
    """All pairs at once are the pairs one by one."""
    expected = np.array([[slow_iou(a, b) for b in other] for a in one]).reshape(
        len(one), len(other)
    )

    np.testing.assert_allclose(iou(one, other), expected, rtol=1e-12)


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 12)),
        elements=st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, -math.inf, 3e38, -3e38, 1e-45]),
    ),
    st.integers(1, 12),
)
def test_the_largest_entries_are_those_of_a_stable_sort(rows: Array, k: int) -> None:
    """Descending, and equal ones by their index."""
    k = min(k, rows.shape[1])
    expected = [sorted(range(len(row)), key=lambda i: (-row[i], i))[:k] for row in rows]

    assert largest(rows, k).tolist() == expected


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 6)), elements=FINITE))
def test_softmax_of_any_finite_logits_is_a_distribution(rows: Array) -> None:
    """Whatever their size; the order is kept."""
    found = softmax(rows)

    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-5)
    assert (found >= 0).all()
    assert (found[np.arange(len(rows)), rows.argmax(axis=1)] == found.max(axis=1)).all()


def slow_ctc(row: Array, letters: dict[int, str], blank: int, length: int) -> tuple[str, float]:
    """Step by step."""
    text, chances, before = "", [], -1
    for step in row[:length]:
        best = int(np.argmax(step))
        if best not in (blank, before):
            text += letters[best]
            chances.append(float(step[best]))
        before = best
    return text, sum(chances) / len(chances) if chances else 0.0


@given(st.data())
def test_ctc_is_the_loop_over_steps(data: st.DataObject) -> None:
    """Any blank, alphabet and length."""
    count, steps, classes = (data.draw(st.integers(1, most)) for most in (4, 12, 5))
    blank = data.draw(st.integers(0, classes - 1))
    grid = st.sampled_from([0.0, 0.25, 0.5, 1.0])
    rows = data.draw(hnp.arrays(np.float32, (count, steps, classes), elements=grid))
    lengths = data.draw(st.lists(st.integers(1, steps), min_size=count, max_size=count))
    alphabet = ("a", "é", "ab", " ")[: classes - 1]
    options = CtcOptions(kind="ctc", blank=blank, alphabet=alphabet)
    made = prepare(options, {"y": OutputForm((steps, classes), length_axis=0)}, None)
    letters = dict(zip((c for c in range(classes) if c != blank), alphabet, strict=True))

    found = made.run({"y": rows}, Rows(count, lengths))

    expected = [
        slow_ctc(row, letters, blank, length) for row, length in zip(rows, lengths, strict=True)
    ]
    assert [text.decode() for text in found.outputs["text"]] == [text for text, _ in expected]
    np.testing.assert_allclose(found.outputs["text_confidence"], [c for _, c in expected])
    assert not found.bad.any()


def slow_detect(output: Array, threshold: float, most: int) -> list[tuple[Array, float, int]]:
    """One sample of YOLO's columns: corners, score, class."""
    found = []
    for column in output.T:
        best = int(np.argmax(column[4:]))
        if column[4 + best] >= np.float32(threshold):
            x, y, w, h = (float(value) for value in column[:4])
            corners = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
            found.append((corners, float(column[4 + best]), best))
    found.sort(key=lambda entry: -entry[1])
    numbers = np.array([number for _, _, number in found], np.int64)
    boxes = np.array([corners for corners, _, _ in found]).reshape(-1, 4)
    return [found[at] for at in slow_nms(boxes, numbers, 0.4, most)]


@given(st.data())
def test_detections_are_the_loop_over_boxes(data: st.DataObject) -> None:
    """A batch, boxes on a grid and scores with ties: the same boxes in the same order."""
    count, boxes, most = (data.draw(st.integers(1, limit)) for limit in (3, 10, 5))
    grid = hnp.arrays(np.float32, (count, 4, boxes), elements=COORDINATES)
    levels = st.sampled_from([0.0, 0.2, 0.25, 0.5, 0.75])
    scores = hnp.arrays(np.float32, (count, 3, boxes), elements=levels)
    output = np.concatenate([data.draw(grid), data.draw(scores)], axis=1)
    options = DetectionOptions(
        kind="detection", layout="columns", boxes="y", box_format="cxcywh",
        iou_threshold=0.4, max_detections=most, size=(100, 100),
    )  # fmt: skip
    made = prepare(options, {"y": OutputForm((7, boxes))}, None)

    found = made.run({"y": output}, Rows(count)).outputs

    for row in range(count):
        expected = slow_detect(output[row], 0.25, most)
        assert found["num_detections"][row] == len(expected)
        for at, (corners, score, number) in enumerate(expected):
            np.testing.assert_allclose(found["detection_boxes"][row, at], corners.clip(0, 100))
            assert found["detection_scores"][row, at] == np.float32(score)
            assert found["detection_classes"][row, at] == number
        assert not found["detection_boxes"][row, len(expected) :].any()


ANYTHING = st.floats(width=32)
KINDS = st.sampled_from(
    [
        ClassesOptions(kind="classes", activation="softmax"),
        ClassesOptions(kind="classes", activation="sigmoid"),
        ClassesOptions(kind="classes"),
        CtcOptions(kind="ctc", output="z", alphabet=("a",) * 5),
        CtcOptions(kind="ctc", output="z", alphabet=("a",) * 5, activation="softmax"),
        *(
            DetectionOptions(kind="detection", boxes="z", size=(9, 9), **more)  # type: ignore[arg-type]
            for more in (
                {},
                {"activation": "softmax", "background": 1},
                {"activation": "sigmoid", "objectness": True},
                {"box_format": "cxcywh", "normalised": True, "score_threshold": 0.0},
            )
        ),
    ]
)


@given(
    KINDS,
    hnp.arrays(np.float32, (2, 6), elements=ANYTHING),
    hnp.arrays(np.float32, (2, 4, 6), elements=ANYTHING),
)
def test_whatever_a_model_gives_is_answered_or_pointed_at(
    options: Any, flat: Array, deep: Array
) -> None:
    """NaN, infinity, the largest and the smallest: a sample is bad, or its numbers are numbers."""
    made = prepare(options, {"y": OutputForm((6,)), "z": OutputForm((4, 6))}, None)

    found = made.run({"y": flat, "z": deep}, Rows(2))

    assert set(found.outputs) == set(made.names)
    assert found.bad.shape == (2,)
    for name, values in found.outputs.items():
        if values.dtype == np.float32 and name != "top_scores":
            assert np.isfinite(values[~found.bad]).all()
    if np.isnan(flat).any() and "top_scores" in made.names:
        assert (found.bad == ~np.isfinite(flat.max(axis=1))).all()
