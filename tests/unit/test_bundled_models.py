"""The bundled models are what their recipes and datasets say they are."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest

from edged.build.dataset import Dataset, Split, load_dataset, model_inputs
from edged.build.dataset_files import file_digest
from edged.recipe import Recipe, load_recipe

ROOT = Path(__file__).resolve().parents[2]
FLOORS = {"digits": 0.99, "watch": 0.89}
"""FP32 accuracy on the held-out split that each model must reach."""

Floats = npt.NDArray[np.float32]

pytestmark = pytest.mark.parametrize("name", sorted(FLOORS))


def recipe_of(name: str) -> Recipe:
    """The model's recipe."""
    return load_recipe(ROOT / "engines" / name)


@cache
def dataset_of(name: str) -> Dataset:
    """The model's samples."""
    return load_dataset(ROOT / "calib" / name, recipe_of(name).input)


@cache
def session_of(name: str) -> onnxruntime.InferenceSession:
    """The model in ONNX Runtime, on one core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    path = str(recipe_of(name).model_path)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def answers(name: str, split: Split, size: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    """The model's outputs and the labels of a split, in batches of ``size``."""
    outputs, labels = [], []
    for batch in split.batches(size):
        outputs.append(session_of(name).run(None, model_inputs(batch, recipe_of(name).input)))
        labels.append(batch.labels if batch.labels is not None else np.empty(0, np.int64))
    return np.concatenate([found[0] for found in outputs]), np.concatenate(labels)


def test_model_is_the_recipes(name: str) -> None:
    """The file has the recipe's digest, is under 1 MB, and takes and gives what the recipe says."""
    recipe = recipe_of(name)
    assert file_digest(recipe.model_path) == recipe.model.sha256
    assert recipe.model_path.stat().st_size < 1_000_000
    found = {
        item.name: (item.shape[0], tuple(item.shape[1:])) for item in session_of(name).get_inputs()
    }
    assert found == {item.name: ("batch", item.model_shape) for item in recipe.input}
    found = {
        item.name: (item.shape[0], tuple(item.shape[1:])) for item in session_of(name).get_outputs()
    }
    assert found == {item.name: ("batch", item.shape) for item in recipe.output}


def test_model_can_be_quantized(name: str) -> None:
    """Opset 17, every node named once, and enough linear layers with constant weights inside."""
    model = onnx.load(recipe_of(name).model_path)
    assert [(item.domain, item.version) for item in model.opset_import] == [("", 17)]
    names = [node.name for node in model.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    constants = {item.name for item in model.graph.initializer}
    linear = [
        node
        for node in model.graph.node
        if node.op_type in {"Conv", "Gemm", "MatMul"} and node.input[1] in constants
    ]
    assert len(linear) >= 7


def test_batches_do_not_change_answers(name: str) -> None:
    """A sample's outputs are the same alone and among max_batch others, within rounding."""
    recipe = recipe_of(name)
    (batch,) = dataset_of(name).heldout.batches(10_000, limit=recipe.engine.max_batch)
    inputs = model_inputs(batch, recipe.input)
    (together,) = session_of(name).run(None, inputs)
    for row in range(len(batch)):
        (alone,) = session_of(name).run(None, {k: v[row : row + 1] for k, v in inputs.items()})
        np.testing.assert_allclose(alone[0], together[row], rtol=1e-4, atol=1e-4)


def test_held_out_accuracy(name: str) -> None:
    """The FP32 model reaches its floor on unseen samples, and the documents say its figure."""
    outputs, labels = answers(name, dataset_of(name).heldout, 32)
    assert len(labels) >= 360
    accuracy = float(np.mean(outputs.argmax(axis=1) == labels))
    assert accuracy >= FLOORS[name]
    for document in (recipe_of(name).folder / "recipe.toml", ROOT / "engines" / "README.md"):
        assert f"{accuracy:.4f}" in document.read_text(encoding="utf-8")


def test_labels_are_classes_of_the_output(name: str) -> None:
    """Every class of the output has held-out samples, and no label is beyond them."""
    classes = len(recipe_of(name).output[0].labels)
    for split in (dataset_of(name).calibration, dataset_of(name).heldout):
        labels = [batch.labels for batch in split.batches(64) if batch.labels is not None]
        assert sorted(set(np.concatenate(labels).tolist())) == list(range(classes))


def test_splits_share_no_sample(name: str) -> None:
    """No sample is twice in a split, or in both: 256 calibrate, the rest is never seen."""
    calibration, heldout = (
        [
            b"".join(values[row].tobytes() for values in batch.inputs.values())
            for batch in split.batches(64)
            for row in range(len(batch))
        ]
        for split in (dataset_of(name).calibration, dataset_of(name).heldout)
    )
    assert len(set(calibration)) == len(calibration) == 256
    assert len(set(heldout)) == len(heldout)
    assert not set(calibration) & set(heldout)
    assert dataset_of(name).warnings == ()
