"""Recipes: what is allowed, what is said when it is not, and that the docs name every field."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from edged.build_options import CalibrateOptions, EngineOptions, QuantizeOptions, VerifyOptions
from edged.errors import ConfigError
from edged.postprocess.options import ClassesOptions, CtcOptions, DetectionOptions
from edged.recipe import InputSpec, LengthSpec, ModelInfo, OutputSpec, Recipe, load_recipe

ROOT = Path(__file__).resolve().parents[2]
DIGEST = "0" * 64
MINIMAL = f"""\
[model]
sha256 = "{DIGEST}"

[[input]]
name = "image"
datatype = "UINT8"
shape = [8, 6, 3]

[[output]]
name = "logits"
shape = [2]
"""


def recipe(folder: Path, text: str = MINIMAL, more: str = "") -> Recipe:
    """Writes a recipe and reads it."""
    (folder / "recipe.toml").write_text(text + more)
    return load_recipe(folder)


def changed(old: str, new: str) -> str:
    """The minimal recipe with one change."""
    assert old in MINIMAL
    return MINIMAL.replace(old, new)


def test_minimal_recipe_has_the_defaults(tmp_path: Path) -> None:
    """Three tables are enough; the folder's name is the model's."""
    found = recipe(tmp_path)
    assert found.name == tmp_path.name
    assert found.model_path == tmp_path / "model.onnx"
    assert found.engine.warm_sizes == (1, 2, 4, 8, 16)
    assert (found.calibrate.method, found.verify.max_drop) == ("mse", 0.01)


@pytest.mark.parametrize("name", ["digits", "watch"])
def test_bundled_recipes_are_valid(name: str) -> None:
    """They name the model file that is committed beside them."""
    found = load_recipe(ROOT / "engines" / name)
    assert found.model_path.is_file()


def test_preprocessing_gives_the_models_shape_and_datatype(tmp_path: Path) -> None:
    """A scale makes float32, a transposition moves the axes; one number stands for all channels."""
    text = changed("shape = [8, 6, 3]", "shape = [8, 6, 3]\nscale = 0.5\ntranspose = [2, 0, 1]")
    (spec,) = recipe(tmp_path, text).input
    assert spec.preprocessed
    assert (spec.scale, spec.model_shape, spec.model_datatype) == ((0.5,), (3, 8, 6), "FP32")
    assert spec.sample_bytes == 144


def test_without_preprocessing_the_sample_goes_in_as_it_is(tmp_path: Path) -> None:
    """Shape and datatype stay."""
    (spec,) = recipe(tmp_path).input
    assert not spec.preprocessed
    assert (spec.model_shape, spec.model_datatype) == ((8, 6, 3), "UINT8")


def test_batch_sizes_always_hold_one_and_the_largest(tmp_path: Path) -> None:
    """A single request and a full batch are warmed whatever else is."""
    more = "[engine]\nmax_batch = 12\nbatch_sizes = [5]"
    assert recipe(tmp_path, more=more).engine.warm_sizes == (1, 5, 12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (changed("[8, 6, 3]", "[0, 6, 3]"), r"has an entry below 1; leave the batch axis out"),
        (changed("[8, 6, 3]", "[8, 6, 3]\nscale = [1, 2]"), "scale has 2 entries, but must have 1"),
        (changed("[8, 6, 3]", "[8, 6, 3]\ntranspose = [0, 1]"), r"transpose \[0, 1\] is no order"),
        (changed("[8, 6, 3]", '[8, 6, 3]\nimage = "L"'), r'image = "L" needs datatype UINT8'),
        (changed('"UINT8"', '"STRING"'), r"input.0.datatype: .*'UINT8'"),
        (changed("[2]", '[2]\nlabels = ["a"]'), r"1 labels for output shape \[2\]"),
        (changed(DIGEST, "abc"), "model.sha256"),
        (changed("[model]", "[model]\ncolour = 1"), "model.colour: Extra inputs"),
        (MINIMAL + "[engine]\nmax_batch = 0", "engine.max_batch: .*greater than or equal to 1"),
        (MINIMAL + "[engine]\nbatch_sizes = [64]", r"batch_sizes \[64\] must lie within 1 and"),
        (MINIMAL + '[calibrate]\nmethod = "magic"', r"calibrate.method: .*'mse'.*not 'magic'"),
        (MINIMAL + "[calibrate]\npercentile = nan", "calibrate.percentile"),
        (MINIMAL + "[verify]\nmax_drop = 2", "verify.max_drop: .*less than or equal to 1"),
        ("[model]\n", "input: Field required; output: Field required"),
        ("[model", "is not valid TOML"),
    ],
)
def test_wrong_fields_are_named_with_what_was_allowed(
    tmp_path: Path, text: str, message: str
) -> None:
    """Each message says which field, which value, and what is allowed."""
    with pytest.raises(ConfigError, match=message):
        recipe(tmp_path, text)


def test_missing_recipe_is_named(tmp_path: Path) -> None:
    """It says where to read on."""
    with pytest.raises(ConfigError, match=r"no recipe for model 'gone'.*docs/engines.md"):
        load_recipe(tmp_path / "gone")


def test_image_needs_a_single_input(tmp_path: Path) -> None:
    """One PNG cannot fill two inputs."""
    text = changed("[8, 6, 3]", '[8, 6, 3]\nimage = "RGB"')
    more = '[[input]]\nname = "other"\ndatatype = "FP32"\nshape = [1]'
    with pytest.raises(ConfigError, match="single input"):
        recipe(tmp_path, text, more)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    """Bytes that are no TOML are refused like any other damage."""
    (tmp_path / "recipe.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        load_recipe(tmp_path)


SECTIONS: dict[str, type[BaseModel]] = {
    "[model]": ModelInfo,
    "[[input]]": InputSpec,
    "[[output]]": OutputSpec,
    "[engine]": EngineOptions,
    "[calibrate]": CalibrateOptions,
    "[quantize]": QuantizeOptions,
    "[verify]": VerifyOptions,
}
KINDS: dict[str, type[BaseModel]] = {
    "classes": ClassesOptions,
    "detection": DetectionOptions,
    "ctc": CtcOptions,
}


@pytest.mark.parametrize("section", SECTIONS)
def test_docs_list_exactly_the_fields_of_each_section(section: str) -> None:
    """docs/engines.md has one table row for each field, and none for what does not exist."""
    text = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")
    heading = f"### `{section}`"
    assert heading in text
    table = re.split(r"\n#{2,3} ", text.split(heading, 1)[1])[0]
    rows = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert sorted(rows) == sorted(SECTIONS[section].model_fields)


def test_docs_have_every_section_of_a_recipe() -> None:
    """A new section of the recipe must be documented too."""
    known = {section.strip("[]") for section in SECTIONS}
    assert known == set(Recipe.model_fields) - {"name", "folder", "postprocess"}


@pytest.mark.parametrize("kind", KINDS)
def test_docs_list_exactly_the_fields_of_each_kind_of_postprocessing(kind: str) -> None:
    """docs/engines.md has one table for each kind."""
    text = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")
    section = text.split("### `[postprocess]`\n", 1)[1].split("\n### ", 1)[0]
    table = section.split(f'#### `kind = "{kind}"`\n', 1)[1].split("\n#### ", 1)[0]
    rows = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert ["kind", *rows] == list(KINDS[kind].model_fields)


def test_docs_list_the_fields_of_an_input_of_variable_length() -> None:
    """The table below the heading has each of them."""
    text = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")
    table = re.split(r"\n#{2,3} ", text.split("### `[input.length]`", 1)[1])[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(LengthSpec.model_fields)


def variable(**more: Any) -> InputSpec:
    """An input with an axis of variable length."""
    fields: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": (16, 4), "length": {}}
    return InputSpec(**(fields | more))


def test_lengths_are_padded_to_buckets() -> None:
    """By default an eighth, a quarter and half of the largest length; the smallest that fits."""
    assert variable().buckets == (2, 4, 8, 16)
    assert variable(length=LengthSpec(buckets=(5,))).buckets == (5, 16)
    assert [variable().bucket(length) for length in (1, 2, 3, 9, 16)] == [2, 2, 4, 16, 16]
    assert variable(length=LengthSpec(axis=1)).buckets == (1, 2, 4)
    assert variable(length=None).buckets == ()
    assert variable(transpose=(1, 0)).model_axis == 1


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"length": {"axis": 2}}, "length needs an axis"),
        ({"length": {"buckets": (0, 4)}}, "must lie within 1 and max_length 16"),
        ({"length": {"buckets": (17,)}}, "must lie within 1 and max_length 16"),
        ({"length": {"axis": 1}, "scale": (1.0, 2.0, 3.0, 4.0)}, "cannot differ along the axis"),
    ],
)
def test_lengths_that_make_no_sense_are_refused(fields: dict[str, Any], why: str) -> None:
    """The message names the field and what was allowed."""
    with pytest.raises(ValidationError, match=why):
        variable(**fields)


@pytest.mark.parametrize(("axis", "labels"), [(2, ()), (1, ("a", "b"))])
def test_an_output_has_its_length_on_an_axis_without_labels(
    axis: int, labels: tuple[str, ...]
) -> None:
    """One that exists."""
    with pytest.raises(ValidationError, match="length_axis"):
        OutputSpec(name="y", shape=(8, 2), length_axis=axis, labels=labels)
