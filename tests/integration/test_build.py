"""The whole build line on real files, with ONNX Runtime."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from edged.build.pipeline import build_model
from edged.build.ranges import Ranges, parse_ranges
from edged.engine_store import EngineStore
from edged.errors import BuildError, ConfigError, EdgedError
from edged.runners import fingerprint, load, run_batch
from edged.runners.onnx import FloatGraph
from tests.doubles import onnx_models
from tests.doubles.build_folders import BuildFolders, toy

_BUILD_ALONE = """
import sys
from pathlib import Path
from edged.build.pipeline import build_model
root = Path(sys.argv[1])
result = build_model("toy", engines=root / "engines", calib=root / "calib", runner="onnx")
print(result.changed, "onnx" in sys.modules, "onnxruntime" in sys.modules)
"""


@pytest.fixture
def folders(tmp_path: Path) -> BuildFolders:
    """A model that builds."""
    return toy(tmp_path)


def ranges_of(folders: BuildFolders) -> Ranges:
    """What the build wrote."""
    return parse_ranges((folders.calib / "ranges.json").read_text())


def test_build_installs_an_engine_that_can_be_served(folders: BuildFolders) -> None:
    """Samples in, an INT8 engine out: it passed, is usable here, and answers as it should."""
    told: list[tuple[str, float]] = []
    result = folders.build(progress=lambda sentence, share: told.append((sentence, share)))
    assert result.changed
    engine = EngineStore(folders.root / "engines").usable("toy", fingerprint("onnx"))
    manifest = engine.manifest
    assert engine == result.engine
    assert manifest.verdict.passed
    assert manifest.verdict.samples == 100
    assert manifest.verdict.metrics["fp32_top1"] == 1.0
    assert manifest.quantized == ("middle",)
    assert sorted(manifest.latency_ms) == ["1", "2", "4"]
    runner = load(engine)
    try:
        rows = np.random.default_rng(1).normal(size=(3, 12)).astype(np.float32)
        assert run_batch(runner, {"x": rows}).outputs["last_out"].shape == (3, 3)
    finally:
        runner.close()
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_report_lies_beside_the_manifest(folders: BuildFolders) -> None:
    """It names the INT8 layers with their ranges, the float ones with their reason, the times."""
    result = folders.build()
    report = json.loads((result.engine.path.parent / "report.json").read_text())
    assert [layer["node"] for layer in report["int8"]] == ["middle"]
    assert report["int8"][0]["threshold"] > 0
    assert report["float"] == {"first": "first linear layer", "last": "last linear layer"}
    assert report["verdict"]["passed"] is True
    assert {"calibrate", "quantize", "verify", "measure"} <= set(report["seconds"])


def test_second_run_does_nothing_and_says_so(folders: BuildFolders) -> None:
    """Without a change nothing is built: same engine, same files."""
    first = folders.build()
    told: list[str] = []
    second = folders.build(progress=lambda sentence, _share: told.append(sentence))
    assert not second.changed
    assert second.engine == first.engine
    assert told == ["engine of toy is up to date, nothing to do"]


def test_second_run_loads_neither_onnx_nor_its_runtime(folders: BuildFolders) -> None:
    """Finding out that nothing changed is cheap: no heavy import."""
    folders.build()
    found = subprocess.run(
        [sys.executable, "-c", _BUILD_ALONE, str(folders.root)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert found.stdout.split() == ["False", "False", "False"]


def test_force_builds_again_and_gives_the_same(folders: BuildFolders) -> None:
    """Calibration and quantization are deterministic: same ranges, same engine bytes."""
    first = folders.build()
    ranges = (folders.calib / "ranges.json").read_bytes()
    second = folders.build(force=True)
    assert second.changed
    assert second.engine.path != first.engine.path
    assert second.engine.manifest.sha256 == first.engine.manifest.sha256
    assert second.engine.manifest.key == first.engine.manifest.key
    assert (folders.calib / "ranges.json").read_bytes() == ranges


def test_damaged_engine_is_built_again(folders: BuildFolders) -> None:
    """Nothing changed in the sources, but the installed file is not what was built."""
    result = folders.build()
    result.engine.path.write_bytes(b"damaged")
    assert folders.build().changed


def test_ranges_are_used_again_while_their_sources_hold(folders: BuildFolders) -> None:
    """A change that ranges do not depend on builds without calibrating."""
    folders.build()
    recipe = folders.engine / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("max_batch = 4", "max_batch = 2"))
    told: list[str] = []
    assert folders.build(progress=lambda sentence, _share: told.append(sentence)).changed
    assert not [sentence for sentence in told if "calibrat" in sentence]


def test_reviewed_ranges_are_taken_as_they_are(folders: BuildFolders) -> None:
    """An edited threshold is used, and is a change that builds again."""
    first = folders.build()
    ranges = ranges_of(folders)
    ((name, found),) = ranges.tensors.items()
    edited = ranges.model_copy(update={"tensors": {name: found.model_copy(
        update={"threshold": found.amax * 1.25})}})  # fmt: skip
    (folders.calib / "ranges.json").write_text(edited.to_json())
    second = folders.build()
    assert second.changed
    assert second.engine.manifest.sha256 != first.engine.manifest.sha256
    assert ranges_of(folders) == edited


def test_other_samples_calibrate_again(folders: BuildFolders) -> None:
    """New calibration samples make new ranges."""
    folders.build()
    before = ranges_of(folders)
    rng = np.random.default_rng(8)
    rows = rng.normal(size=(64, 12)).astype(np.float32)
    folders.write_samples(rows * 2, rows, np.zeros(64, np.int64))
    folders.write_model(onnx_models.mlp(), "[verify]\nmax_drop = 1.0\nmin_agreement = 0.5")
    assert folders.build().changed
    assert ranges_of(folders).sources.dataset != before.sources.dataset
    assert ranges_of(folders).tensors != before.tensors


@pytest.mark.parametrize("method", ["mse", "percentile", "minmax"])
def test_each_method_builds_an_engine_that_passes(tmp_path: Path, method: str) -> None:
    """The recipe chooses the method; it stands in ranges.json."""
    folders = toy(tmp_path, more=f'[calibrate]\nmethod = "{method}"')
    assert folders.build().engine.manifest.verdict.passed
    assert ranges_of(folders).method == method


@pytest.mark.parametrize(
    "model",
    [onnx_models.residual_net(), onnx_models.hidden_weights()],
    ids=["residual", "hidden weights"],
)
def test_convolutional_models_build_through(tmp_path: Path, model: onnx.ModelProto) -> None:
    """Residual, concat and depthwise layers, folded weights and an old opset."""
    if model.graph.output[0].name == "y":
        # The test model has placeholder dimensions, which toy() cannot read the shape from.
        for item, shape in ((model.graph.input[0], (4, 8, 8)), (model.graph.output[0], (3,))):
            for dim, size in zip(item.type.tensor_type.shape.dim[1:], shape, strict=True):
                dim.dim_value = size
    result = toy(tmp_path, model).build()
    assert result.engine.manifest.verdict.metrics["sqnr_db"] > 25


@pytest.mark.parametrize("corrected", ["true", "false"])
def test_both_rules_for_weights_are_tried_where_the_recipe_says_so(
    tmp_path: Path, corrected: str
) -> None:
    """Each form is scored on samples that were held back, and the best one is taken and told."""
    folders = toy(tmp_path)
    more = f'[quantize]\nweights = "auto"\nbias_correction = {corrected}\n'
    folders.write_model(onnx_models.mlp(), more)
    told: list[str] = []
    folders.build(progress=lambda sentence, _share: told.append(sentence))
    (line,) = [sentence for sentence in told if " is taken: " in sentence]
    taken, _, rows = line.partition(" is taken: ")
    scores = dict(row.removesuffix(" dB").rsplit(" ", 1) for row in re.split(r"(?<=dB), ", rows))
    assert len(scores) == (4 if corrected == "true" else 2)
    assert float(scores[taken]) == max(float(score) for score in scores.values())


def ruin_ranges(folders: BuildFolders, rest_of_recipe: str) -> None:
    """Calibrates on samples a thousand times smaller than those that are to be answered."""
    rows = np.random.default_rng(9).normal(size=(100, 12)).astype(np.float32)
    labels = answers_of(folders, rows * 1000)
    folders.write_samples(rows / 1000, rows * 1000, labels)
    folders.write_model(onnx_models.mlp(), rest_of_recipe)


def answers_of(folders: BuildFolders, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """What the float model answers."""
    (logits,) = FloatGraph((folders.engine / "model.onnx").read_bytes()).run({"x": rows}).values()
    return np.asarray(logits.argmax(axis=-1), np.int64)


def test_engine_that_fails_its_gate_is_not_installed(folders: BuildFolders) -> None:
    """Without a fallback the earlier engine stays and the error names the gate with its values."""
    first = folders.build()
    ruin_ranges(folders, "fallback = false")
    with pytest.raises(BuildError, match=r"did not pass and is not installed: .*min_agreement"):
        folders.build()
    assert EngineStore(folders.root / "engines").current("toy") == first.engine


def test_int8_that_fails_its_gate_falls_back_and_says_why(folders: BuildFolders) -> None:
    """The next precision is installed; manifest and report hold the reason, and it stays."""
    ruin_ranges(folders, "")
    manifest = folders.build().engine.manifest
    assert manifest.precision == "fp32"
    assert manifest.quantized == ()
    assert manifest.verdict.metrics["agreement"] == 1.0
    (note,) = manifest.notes
    assert re.search(r"^INT8 could not be had: the engine did not pass.*min_agreement", note)
    report = json.loads((folders.engine / "built/current/report.json").read_text())
    assert (report["precision"], report["notes"]) == ("fp32", [note])
    assert not folders.build().changed


@pytest.mark.parametrize(("precision", "least_db"), [("fp16", 55), ("fp32", 100)])
def test_float_engine_is_built_without_calibrating(
    tmp_path: Path, precision: str, least_db: float
) -> None:
    """FP16 and FP32 need no ranges, so none are made; I/O stays as the recipe says."""
    folders = toy(tmp_path, more=f'precision = "{precision}"')
    manifest = folders.build().engine.manifest
    assert (manifest.precision, manifest.notes, manifest.quantized) == (precision, (), ())
    assert manifest.verdict.metrics["sqnr_db"] > least_db
    assert not (folders.calib / "ranges.json").exists()


def test_precision_of_the_call_wins_over_the_recipe(folders: BuildFolders) -> None:
    """A build in another precision is a change, and going back is one too."""
    folders.build()
    other = folders.build(precision="fp32")
    assert (other.changed, other.engine.manifest.precision) == (True, "fp32")
    assert not folders.build(precision="fp32").changed
    assert folders.build().engine.manifest.precision == "int8"


def test_model_with_its_own_pairs_passes_through_untouched(tmp_path: Path) -> None:
    """Q/DQ from another tool is taken as it is, not calibrated, and compared with float."""
    first = toy(tmp_path / "float").build()
    folders = toy(tmp_path / "own")
    folders.write_model(first.engine.path.read_bytes())
    result = folders.build()
    assert result.engine.path.read_bytes() == first.engine.path.read_bytes()
    assert result.engine.manifest.quantized == ("middle",)
    assert result.engine.manifest.verdict.metrics == first.engine.manifest.verdict.metrics
    assert not (folders.calib / "ranges.json").exists()


# ------------------------------------------------------------------ bad input


def refuse(folders: BuildFolders, message: str, kind: type[EdgedError] = BuildError) -> None:
    """The build is refused with this message, and nothing is installed."""
    with pytest.raises(kind, match=message):
        folders.build()
    assert EngineStore(folders.root / "engines").models() == []


def test_corrupt_model_is_refused(folders: BuildFolders) -> None:
    """Garbage with the right digest is no ONNX."""
    folders.write_model(b"\xff\xfegarbage" * 9)
    refuse(folders, "model 'toy', read: the model is no ONNX file")


def test_another_model_file_is_refused_with_both_digests(folders: BuildFolders) -> None:
    """What is built is what the recipe names."""
    (folders.engine / "model.onnx").write_bytes(onnx_models.two_layers().SerializeToString())
    refuse(folders, r"has sha256 [0-9a-f]{64}, the recipe says [0-9a-f]{64}; restore")


def test_missing_model_file_is_refused_with_its_source(folders: BuildFolders) -> None:
    """The recipe says where to get it."""
    (folders.engine / "model.onnx").unlink()
    refuse(folders, "model.onnx cannot be read .* get it from: tests")


def test_missing_recipe_is_a_config_error(tmp_path: Path) -> None:
    """A model that is not there is named."""
    refuse(BuildFolders(tmp_path), "no recipe for model 'toy'", ConfigError)


def test_name_that_leaves_the_folder_is_refused(folders: BuildFolders) -> None:
    """A name is no path."""
    with pytest.raises(ConfigError, match="is no model name"):
        build_model("../toy", engines=folders.root / "engines", calib=folders.root / "calib")


def test_missing_samples_are_refused(folders: BuildFolders) -> None:
    """Without a dataset nothing is calibrated on made-up data."""
    (folders.calib / "dataset.toml").unlink()
    refuse(folders, "no dataset for model 'toy'")


def test_samples_of_another_shape_are_refused(folders: BuildFolders) -> None:
    """Shapes are compared with the recipe before anything runs."""
    rows = np.zeros((64, 11), np.float32)
    folders.write_samples(rows, rows, np.zeros(64, np.int64))
    refuse(folders, "calibration.npz")


def test_model_of_another_shape_is_refused(folders: BuildFolders) -> None:
    """A recipe whose shape is not the model's is named with both."""
    folders.write_model(onnx_models.mlp(features=9).SerializeToString())
    refuse(folders, "the recipe gives samples of shape")


def test_nan_samples_are_refused_with_their_number(folders: BuildFolders) -> None:
    """One bad sample is found and named."""
    rows = np.ones((64, 12), np.float32)
    rows[17, 3] = np.nan
    folders.write_samples(rows, np.ones((64, 12), np.float32), np.zeros(64, np.int64))
    refuse(folders, "sample 17 .* NaN")


def test_output_of_another_shape_is_refused(folders: BuildFolders) -> None:
    """A recipe whose output is not the model's is found when it is verified."""
    recipe = folders.engine / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("shape = [3]", "shape = [4]"))
    refuse(folders, "output 'last_out' has shape")


def test_unknown_excluded_node_is_refused_with_near_names(folders: BuildFolders) -> None:
    """A misspelt layer does not silently become INT8."""
    folders.write_model(onnx_models.mlp(), '[quantize]\nexclude = ["midle"]')
    refuse(folders, r"'midle', which the model lacks; near it are \['middle'\]")


def test_nothing_to_quantize_is_refused(tmp_path: Path) -> None:
    """An INT8 engine without an INT8 layer is no success."""
    refuse(toy(tmp_path, onnx_models.two_layers()), "nothing is left to quantize")


def test_dead_activations_are_refused(folders: BuildFolders) -> None:
    """Samples that never reach a layer leave it without a range."""
    folders.write_model(onnx_models.mlp(), '[quantize]\ninclude = ["first"]')
    rows = np.zeros((64, 12), np.float32)
    folders.write_samples(rows, rows, np.zeros(64, np.int64))
    refuse(folders, "'x' has no range: all of its 768 values are zero in 64 calibration samples")


def test_store_that_cannot_be_written_is_refused(folders: BuildFolders) -> None:
    """Found before any work is done (a file stands where the folder should)."""
    (folders.engine / "built").write_text("in the way")
    refuse(folders, "engine store cannot be written for model 'toy'")


def test_damaged_ranges_stop_the_build(folders: BuildFolders) -> None:
    """A file that may have been edited by hand is not overwritten."""
    (folders.calib / "ranges.json").write_text("{")
    refuse(folders, "ranges.json is not JSON")


def test_two_builds_of_one_model_do_not_run_together(folders: BuildFolders) -> None:
    """The second one is refused while the first one holds the store."""
    store = EngineStore(folders.root / "engines")
    with store.building("toy"):
        refuse(folders, "another build of model 'toy' is running")
    assert folders.build().changed
