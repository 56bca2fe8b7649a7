"""What is made of outputs: classes, boxes, text; and declarations that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from edged.errors import ConfigError
from edged.image_frame import letterboxed, stretched
from edged.postprocess import Options, OutputForm, Postprocessor, Rows, prepare
from edged.postprocess.answer import Said, documents, meaning_of, only_derived, said
from edged.recipe import load_recipe

FLAT = {"logits": OutputForm((3,), ("cat", "dog", "eel"))}
PLANES = {"y": OutputForm((6, 5)), "s": OutputForm((5, 2)), "one": OutputForm((5,))}
MAPS = {"heat": OutputForm((1, 4, 4)), "wh": OutputForm((2, 4, 4)), "at": OutputForm((2, 4, 4))}


def made(outputs: dict[str, OutputForm], size: Any = None, **fields: Any) -> Postprocessor:
    """What runs a declaration."""
    options: Any = TypeAdapter(Options).validate_python(fields)
    return prepare(options, outputs, size)


# ------------------------------------------------------------------ classes


def test_the_best_classes_come_with_labels_and_probabilities() -> None:
    """Largest first; equal ones by their index; the labels are the output's own."""
    logits = np.array([[0, 2, 2], [5, 0, 0]], np.float32)

    found = made(FLAT, kind="classes", activation="softmax", k=2).run({"logits": logits}, Rows(2))

    assert found.outputs["top_labels"].tolist() == [[b"dog", b"eel"], [b"cat", b"dog"]]
    assert found.outputs["top_classes"].tolist() == [[1, 2], [0, 1]]
    expected = np.exp(2) / (1 + 2 * np.exp(2))
    np.testing.assert_allclose(found.outputs["top_scores"][0], expected, rtol=1e-6)
    assert documents(found.outputs) == [
        [
            {"label": "dog", "class": 1, "score": 0.468311},
            {"label": "eel", "class": 2, "score": 0.468311},
        ],
        [
            {"label": "cat", "class": 0, "score": 0.986703},
            {"label": "dog", "class": 1, "score": 0.006648},
        ],
    ]


def test_more_classes_than_there_are_is_all_of_them() -> None:
    """As with the classification extension."""
    plain = {"y": OutputForm((1, 2))}

    found = made(plain, kind="classes").run({"y": np.array([[[0.1, 0.9]]], np.float16)}, Rows(1))

    assert found.outputs["top_classes"].tolist() == [[1, 0]]
    assert "top_labels" not in found.outputs


@pytest.mark.parametrize(
    ("row", "bad"),
    [
        ((np.nan, 0, 0), True),
        ((np.inf, 0, 0), True),
        ((-np.inf, -np.inf, -np.inf), True),
        ((-np.inf, 0, -np.inf), False),
        ((3e38, -3e38, 0), False),
    ],
)
def test_a_sample_that_tells_nothing_is_pointed_at(row: Any, *, bad: bool) -> None:
    """NaN and infinity; a class that is ruled out and huge logits are fine."""
    logits = np.array([row, (1, 2, 3)], np.float32)

    found = made(FLAT, kind="classes", activation="softmax").run({"logits": logits}, Rows(2))

    assert found.bad.tolist() == [bad, False]
    assert np.isfinite(found.outputs["top_scores"]).all()


# ------------------------------------------------------------------ detection


def detected(postprocessor: Postprocessor, rows: Rows, **outputs: Any) -> list[Any]:
    """The readable form of what was detected."""
    arrays = {name: np.asarray(value, np.float32) for name, value in outputs.items()}
    return documents(postprocessor.run(arrays, rows).outputs)


def test_boxes_with_scores_of_their_own_and_a_background() -> None:
    """SSD's form: fractions of the input, class 0 is nothing."""
    forms = {"b": OutputForm((3, 4)), "s": OutputForm((3, 3))}
    boxes = [[[0.1, 0.2, 0.5, 0.6], [0.1, 0.2, 0.5, 0.61], [0, 0, 1, 1]]]
    scores = [[[0.1, 0.1, 0.8], [0.1, 0.7, 0.2], [0.9, 0.05, 0.05]]]
    ssd = made(
        forms, (100, 200), kind="detection", boxes="b", scores="s", background=0, normalised=True,
        labels=("nothing", "cup", "jar"),
    )  # fmt: skip

    assert detected(ssd, Rows(1), b=boxes, s=scores) == [
        [
            {"label": "jar", "class": 2, "score": 0.8, "box": [20.0, 20.0, 100.0, 60.0]},
            {"label": "cup", "class": 1, "score": 0.7, "box": [20.0, 20.0, 100.0, 61.0]},
        ]
    ]


def test_classes_may_suppress_each_other() -> None:
    """With class_aware = false the better one of two overlapping boxes stays."""
    rows = [[[0, 0, 10, 10, 0.9, 0.1], [0, 0, 10, 9, 0.1, 0.8]]]
    forms = {"y": OutputForm((2, 6))}

    for aware, count in ((True, 2), (False, 1)):
        both = made(forms, (20, 20), kind="detection", boxes="y", class_aware=aware)
        assert len(detected(both, Rows(1), y=rows)[0]) == count


def test_objectness_multiplies_the_best_class() -> None:
    """YOLOv5's form, with sigmoids still to be taken."""
    rows = [[[5, 5, 4, 2, 0.0, np.log(3.0)]]]
    yolo = made(
        {"y": OutputForm((1, 6))}, (20, 20), kind="detection", boxes="y", objectness=True,
        box_format="cxcywh", activation="sigmoid",
    )  # fmt: skip

    expected = {"class": 0, "score": 0.375, "box": [3.0, 4.0, 7.0, 6.0]}
    assert detected(yolo, Rows(1), y=rows) == [[expected]]


@pytest.mark.parametrize(
    ("form", "box"), [("yxyx", [2, 1, 4, 3]), ("xywh", [1, 2, 4, 6]), ("xyxy", [1, 2, 3, 4])]
)
def test_each_box_format(form: str, box: list[float]) -> None:
    """The same four numbers, read differently."""
    one = made(
        {"y": OutputForm((5, 1))}, (9, 9), kind="detection", layout="columns", boxes="y",
        box_format=form,
    )  # fmt: skip

    assert detected(one, Rows(1), y=[[[1], [2], [3], [4], [0.5]]])[0][0]["box"] == box


def test_boxes_come_back_to_the_pixels_of_the_image() -> None:
    """Letterboxed, stretched or sent as a tensor: each sample by its own frame, cut at the edge."""
    rows = [[[8, 18, 40, 60, 0.9]]] * 3
    frames = (letterboxed((400, 200), (64, 64))[0], stretched((128, 256), (64, 64)), None)
    one = made({"y": OutputForm((1, 5))}, (64, 64), kind="detection", boxes="y")

    read = detected(one, Rows(3, frames=frames), y=rows)

    assert [entries[0]["box"] for entries in read] == [
        [50.0, 12.5, 250.0, 200.0], [16.0, 72.0, 80.0, 240.0], [8.0, 18.0, 40.0, 60.0],
    ]  # fmt: skip


def test_maps_of_centres() -> None:
    """CenterFace's form: the cell, its offset, and the logarithm of the size, y first."""
    heat, wh, at = np.zeros((1, 1, 4, 4)), np.zeros((1, 2, 4, 4)), np.zeros((1, 2, 4, 4))
    heat[0, 0, 1, 2], wh[0, :, 1, 2], at[0, :, 1, 2] = 0.8, np.log([2, 1]), (0.25, -0.5)
    faces = made(
        MAPS, (16, 16), kind="detection", layout="centerface", scores="heat", boxes="wh",
        offsets="at",
    )  # fmt: skip

    # centre y (1 + 0.25 + 0.5) * 4 = 7, x (2 - 0.5 + 0.5) * 4 = 8; height 8, width 4
    assert detected(faces, Rows(1), heat=heat, wh=wh, at=at) == [
        [{"class": 0, "score": 0.8, "box": [6.0, 3.0, 10.0, 11.0]}]
    ]


def test_a_box_that_is_no_number_spoils_its_sample_only() -> None:
    """And only where it would have been answered."""
    rows = np.array([[[np.nan, 0, 1, 1, 0.9]], [[np.nan, 0, 1, 1, 0.1]], [[0, 0, 1, 1, 0.9]]])
    one = made({"y": OutputForm((1, 5))}, (9, 9), kind="detection", boxes="y")

    found = one.run({"y": rows.astype(np.float32)}, Rows(3))

    assert found.bad.tolist() == [True, False, False]
    assert found.outputs["num_detections"].tolist() == [0, 0, 1]


# ------------------------------------------------------------------ text


def test_text_is_read_with_its_confidence() -> None:
    """Repetitions are one, a blank parts them; the confidence is of steps that gave a character."""
    steps = [[0.1, 0.9, 0], [0.2, 0.8, 0], [1, 0, 0], [0.3, 0.7, 0], [0.4, 0, 0.6]]
    logits = np.log(np.array([steps, [[1, 1e-9, 1e-9]] * 5], np.float32) + 1e-9)
    reader = made({"y": OutputForm((5, 3))}, kind="ctc", activation="softmax", alphabet=("a", "ß"))

    found = reader.run({"y": logits}, Rows(2))

    assert found.outputs["text"].tolist() == ["aaß".encode(), b""]
    assert documents(found.outputs) == [
        {"text": "aaß", "confidence": pytest.approx((0.9 + 0.7 + 0.6) / 3, abs=1e-5)},
        {"text": "", "confidence": 0.0},
    ]


# ------------------------------------------------------------------ what an answer says


def test_what_an_answer_says_of_each_sample() -> None:
    """The best class of a classifier, all of a detector, the text of a recogniser."""
    logits = np.array([[0, 9, 0]], np.float32)
    found = made(FLAT, kind="classes", activation="softmax").run({"logits": logits}, Rows(1))
    assert said(found.outputs) == [Said(("dog",), ("dog",), 0.999753)]
    assert set(only_derived({"logits": logits, **found.outputs})) == set(found.outputs)
    one = made({"y": OutputForm((2, 6))}, (20, 20), kind="detection", boxes="y")
    rows = np.array([[[0, 0, 5, 5, 0.9, 0], [9, 9, 15, 15, 0, 0.5]], np.zeros((2, 6))], np.float32)
    assert said(one.run({"y": rows}, Rows(2)).outputs) == [
        Said(("0", "1"), ("0", "1"), 0.5), Said((), (), None),
    ]  # fmt: skip
    texts = {"text": np.array([b"a", b""], object), "text_confidence": np.array([0.5, 0.0])}
    assert said(texts) == [Said(("a",), (), 0.5), Said(("",), (), None)]
    assert meaning_of({"logits": logits}) is None
    assert only_derived({"logits": logits}) == {"logits": logits}


# ------------------------------------------------------------------ declarations that do not fit


@pytest.mark.parametrize(
    ("outputs", "fields", "why"),
    [
        (FLAT, {"kind": "classes", "output": "y"}, "output = 'y' is no output .* it has logits"),
        (PLANES, {"kind": "classes"}, r"'y' has shape \[6, 5\] .* needs one axis"),
        (FLAT, {"kind": "classes", "labels": ("a",)}, "1 labels for the 3 classes of output"),
        (FLAT, {"kind": "ctc"}, r"has shape \[3\] .* needs \[steps, classes\]"),
        (PLANES, {"kind": "ctc"}, "the alphabet has 0 entries, but output 'y' has 5 classes"),
        (
            PLANES, {"kind": "ctc", "alphabet": ("a", "b", "c", "d"), "blank": 5},
            "blank 5 must be one of the 5",
        ),
        (PLANES, {"kind": "detection", "boxes": "y", "size": None}, "give size = "),
        (PLANES, {"kind": "detection", "boxes": "x"}, "boxes = 'x' is no output"),
        (PLANES, {"kind": "detection", "boxes": "one"}, "boxes of layout 'rows' needs two axes"),
        (PLANES, {"kind": "detection", "boxes": "s"}, "2 entries for each box, but 4 and"),
        (PLANES, {"kind": "detection", "boxes": "y", "scores": "s"}, "6 boxes of 5 entries"),
        (
            PLANES, {"kind": "detection", "boxes": "y", "labels": ("a", "b")},
            "2 labels for the 1 classes",
        ),
        (PLANES, {"kind": "detection", "boxes": "y", "background": 1}, "background 1 must be"),
        (PLANES, {"kind": "detection", "boxes": "y", "offsets": "s"}, "offsets are for"),
        (
            PLANES,
            {"kind": "detection", "layout": "centerface", "boxes": "y", "scores": "s",
             "offsets": "s"},
            r"needs scores \[1, h, w\], .* not scores \[5, 2\]",
        ),
        (
            {"top_scores": OutputForm((3,))}, {"kind": "classes"},
            "an output 'top_scores' of its own",
        ),
    ],
)  # fmt: skip
def test_a_declaration_that_does_not_fit_its_model_says_why(
    outputs: dict[str, OutputForm], fields: Any, why: str
) -> None:
    """Unknown outputs, shapes, labels and alphabets."""
    with pytest.raises(ValueError, match=why):
        made(outputs, **({"size": (9, 9)} if fields["kind"] == "detection" else {}) | fields)


RECIPE = """
[model]
sha256 = "{digest}"
[[input]]
name = "x"
datatype = "FP32"
shape = [2]
[[output]]
name = "y"
shape = [2]
[postprocess]
kind = "classes"
"""


def recipe(folder: Path, more: str) -> Any:
    """A recipe with this in ``[postprocess]``."""
    text = RECIPE.format(digest="0" * 64) + more
    (folder / "recipe.toml").write_text(text, encoding="utf-8")
    return load_recipe(folder)


def test_labels_are_read_from_a_file(tmp_path: Path) -> None:
    """A label a line, with or without a line feed at the end; other separators belong to it."""
    for text in ("Käse\r\nx\u2028y\n", "Käse\nx\u2028y"):
        (tmp_path / "labels.txt").write_bytes(text.encode())
        found = recipe(tmp_path, 'labels_file = "labels.txt"')

        assert found.postprocess.labels == ("Käse", "x\u2028y")


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ('labels_file = "none.txt"', "labels_file .*none.txt' cannot be read .No such file"),
        ('labels_file = "latin.txt"', "cannot be read .no UTF-8"),
        ('labels_file = "one.txt"', "postprocess: 1 labels for the 2 classes of output 'y'"),
        ('labels_file = "one.txt"\nlabels = ["a", "b"]', "labels and labels_file; give one"),
        ('output = "z"', "postprocess: output = 'z' is no output of the model; it has y"),
        ("k = 0", "postprocess.*greater than or equal to 1"),
        ("iou = 1", "iou: Extra inputs are not permitted"),
    ],
)
def test_a_recipe_with_a_wrong_declaration_is_refused(tmp_path: Path, more: str, why: str) -> None:
    """With the file and the field that is wrong."""
    (tmp_path / "one.txt").write_text("a\n")
    (tmp_path / "latin.txt").write_bytes(b"\xe9\n")

    with pytest.raises(ConfigError, match=f"recipe.toml: .*{why}"):
        recipe(tmp_path, more)
