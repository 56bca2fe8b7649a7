"""Models that tools of this kind usually break on: built, or refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper

from edged.build.pipeline import BuildResult
from edged.build.scan import scan_model
from edged.errors import BuildError, EdgedError
from tests.doubles import onnx_models
from tests.doubles.build_folders import BuildFolders, toy
from tests.doubles.onnx_models import GraphWriter

INT8 = 'precision = "int8"\nfallback = false\n'


def kept(result: BuildResult) -> dict[str, str]:
    """Layers that stayed in float, from the report."""
    document = json.loads((result.engine.path.parent / "report.json").read_text())
    return dict(document["float"])


def folders(root: Path, model: onnx.ModelProto, more: str = "") -> BuildFolders:
    """A toy build that asks for INT8 and nothing else."""
    made = toy(root, model, more)
    recipe = made.engine / "recipe.toml"
    lines = [x for x in recipe.read_text().splitlines() if not x.startswith(("precision", "fallb"))]
    text = "\n".join(lines) + "\n"
    recipe.write_text(text.replace("max_batch = 4\n", f"max_batch = 4\n{INT8}"))
    return made


def test_opset_11_with_placeholder_dimensions_becomes_int8(tmp_path: Path) -> None:
    """An old opset is raised and "?" on several axes is renamed; layers become INT8."""
    model = onnx_models.hidden_weights()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 8
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 8
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3
    result = folders(tmp_path, model).build()
    assert result.engine.manifest.precision == "int8"
    assert len(result.engine.manifest.quantized) == 2


def test_a_fixed_batch_is_refused_unless_the_recipe_frees_it(tmp_path: Path) -> None:
    """The error names the switch; with it the same file is built and batches of any size run."""
    model = onnx_models.mlp()
    made = folders(tmp_path, model)
    for item in (model.graph.input[0], model.graph.output[0]):
        item.type.tensor_type.shape.dim[0].dim_value = 10
    made.write_model(model, "")
    with pytest.raises(BuildError, match=r"fixed at 10; .* reshape = true"):
        made.build()
    recipe = made.engine / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("[model]\n", "[model]\nreshape = true\n"))
    assert made.build().engine.manifest.verdict.passed


def test_an_axis_0_that_is_not_the_batch_is_refused(tmp_path: Path) -> None:
    """A model that mixes the samples along axis 0 cannot be batched, whatever its shape says."""
    g = GraphWriter()
    hidden = g.gemm(g.node("Relu", [g.gemm("x", "first", (12, 12))]), "middle", (12, 12))
    mean = g.node("ReduceMean", [hidden], axes=[0], keepdims=1)
    g.gemm(g.node("Sub", [hidden, mean]), "last", (12, 3))
    made = toy(tmp_path, g.model({"x": ["time", 12]}, {"last_out": ["time", 3]}))
    with pytest.raises(BuildError, match="depends on the other samples of its batch: axis 0 is"):
        made.build()


def test_an_if_stays_in_float_and_the_rest_becomes_int8(tmp_path: Path) -> None:
    """Layers inside a subgraph are left alone; those around it are quantized."""
    g = GraphWriter()
    a = g.gemm("x", "first", (12, 12))
    b = g.node("Relu", [g.gemm(a, "middle", (12, 12))])
    condition = g.constant("condition", np.asarray(np.bool_(1)))
    branches = [
        helper.make_graph(
            [helper.make_node("MatMul", [b, "inner_w"], [f"{name}_out"], name=f"{name}_inner")],
            name, [], [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)],
        )
        for name in ("then", "else")
    ]  # fmt: skip
    g.random("inner_w", 12, 12)
    chosen = g.node("If", [condition], then_branch=branches[0], else_branch=branches[1])
    g.gemm(chosen, "last", (12, 3))
    model = g.model({"x": ["batch", 12]}, {"last_out": ["batch", 3]})
    result = folders(tmp_path, model, "[quantize]\nlast = true\n").build()
    assert not any("inner" in name for name in result.engine.manifest.quantized)
    assert "middle" in result.engine.manifest.quantized


def test_everything_inside_a_loop_is_an_error_and_no_silent_success(tmp_path: Path) -> None:
    """Inserting no Q/DQ is never a success: the build says that nothing can be quantized."""
    g = GraphWriter()
    g.random("w", 12, 12)
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "w"], ["state_out"], name="inner"),
            helper.make_node("Identity", ["condition_in"], ["condition_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("condition_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, ["batch", 12]),
        ],
        [
            helper.make_tensor_value_info("condition_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_out", TensorProto.FLOAT, ["batch", 12]),
        ],
    )
    turns, go = g.constant("turns", np.array(2)), g.constant("go", np.asarray(np.bool_(1)))
    g.node("Loop", [turns, go, "x"], "loop", body=body)
    model = g.model({"x": ["batch", 12]}, {"loop_out": ["batch", 12]})
    with pytest.raises(BuildError, match="no Conv, Gemm or MatMul outside of subgraphs"):
        folders(tmp_path, model).build()


def test_an_lstm_stays_in_float_between_int8_layers(tmp_path: Path) -> None:
    """A recurrent layer is not quantized, the linear layers around it are."""
    g = GraphWriter(seed=2)
    wide = g.node(
        "Relu", [g.matmul(g.node("Relu", [g.matmul("x", "first", (6, 8))]), "in", (8, 8))]
    )
    turned = g.node("Transpose", [wide], perm=[1, 0, 2])
    weights = [g.random(n, 1, 32, 8) for n in ("lstm_w", "lstm_r")]
    g.nodes.append(helper.make_node("LSTM", [turned, *weights], ["", "last_h"], hidden_size=8))
    flat = g.node("Squeeze", ["last_h", g.constant("axis0", np.array([0], np.int64))])
    g.gemm(g.node("Relu", [g.gemm(flat, "out", (8, 8))]), "head", (8, 3))
    model = g.model({"x": ["batch", 5, 6]}, {"head_out": ["batch", 3]})
    quantized = folders(tmp_path, model).build().engine.manifest.quantized
    assert set(quantized) == {"in", "out"}


def test_a_spectrogram_with_a_huge_range_keeps_its_layer_in_float(tmp_path: Path) -> None:
    """Where 127 levels would turn most values into zeros the layer stays in float, with why."""
    g = GraphWriter(seed=4)
    first = g.gemm("x", "first", (12, 12))
    power = g.node("Exp", [g.node("Mul", [first, g.constant("gain", np.array(9, np.float32))])])
    g_out = g.gemm(power, "behind", (12, 12))
    log = g.node("Log", [g.node("Add", [g.node("Abs", [g_out]), g.constant("one", np.float32(1))])])
    middle = g.node("Relu", [g.gemm(log, "middle", (12, 12))])
    g.gemm(middle, "last", (12, 3))
    model = g.model({"x": ["batch", 12]}, {"last_out": ["batch", 3]})
    floats = kept(
        folders(tmp_path, model, "[verify]\nmin_agreement = 0.8\nmax_drop = 0.2\n").build()
    )
    assert "would be rounded to zero" in floats["behind"]


def test_weights_in_another_file_are_refused_with_the_way_out(tmp_path: Path) -> None:
    """External data is not searched for: the error says how to save the model whole."""
    made = toy(tmp_path)
    model = onnx_models.mlp()
    for tensor in model.graph.initializer:
        onnx.external_data_helper.set_external_data(tensor, "weights.bin")
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
    made.write_model(model)
    with pytest.raises(BuildError, match=r"lie in another file; .*save_as_external_data=False"):
        made.build()


def test_an_unknown_operator_is_named(tmp_path: Path) -> None:
    """No runtime knows it, and the error says which one it is."""
    made = toy(tmp_path)
    model = onnx_models.mlp()
    model.graph.node[1].op_type = "NoSuchOperator"
    made.write_model(model)
    with pytest.raises(EdgedError, match="NoSuchOperator"):
        made.build()


def samples(folders_: BuildFolders, calibration: npt.NDArray[np.float32]) -> None:
    """Other calibration samples beside sound held-out ones."""
    held = np.random.default_rng(0).normal(size=(20, 12)).astype(np.float32)
    folders_.write_samples(calibration, held, np.zeros(20, np.int64))


@pytest.mark.parametrize(
    ("calibration", "expected"),
    [
        (np.ones((1, 12), np.float32), "has 1 samples, at least 8"),
        (np.zeros((0, 12), np.float32), "greater than or equal to 1"),
        (np.ones((64, 11), np.float32), r"has shape \[64, 11\], wanted is \[n, 12\]"),
        (np.full((64, 12), np.nan, np.float32), "holds NaN or an infinity"),
    ],
    ids=["one", "none", "wrong shape", "nan"],
)
def test_samples_that_cannot_calibrate_are_refused(
    tmp_path: Path, calibration: npt.NDArray[np.float32], expected: str
) -> None:
    """The reason is said, and the engine that served before stays."""
    made = toy(tmp_path)
    before = made.build().engine.manifest.key
    samples(made, calibration)
    with pytest.raises(BuildError, match=expected):
        made.build(force=True)
    assert (made.engine / "built" / "current").resolve().name == before[:12]


def test_samples_that_are_all_zero_give_no_range(tmp_path: Path) -> None:
    """Constant samples say nothing of the input; the error names the tensor."""
    made = folders(tmp_path, onnx_models.mlp(), "[quantize]\nfirst = true\n")
    samples(made, np.zeros((64, 12), np.float32))
    with pytest.raises(BuildError, match="'x' has no range: all of its 768 values are zero"):
        made.build()


# ------------------------------------------------------------------ accuracy


def fragile() -> onnx.ModelProto:
    """Four middle layers, one of them with a weight that INT8 ruins: rows of tiny and huge."""
    g = GraphWriter(seed=8)
    x = g.node("Relu", [g.gemm("x", "first", (12, 24))])
    for number in range(3):
        x = g.node("Relu", [g.gemm(x, f"sound{number}", (24, 24))])
    spread = np.exp(np.linspace(-7, 7, 24)).astype(np.float32)
    scaled = g.node("Mul", [x, g.constant("spread", spread)])
    weight = g.rng.normal(size=(24, 24)).astype(np.float32) / spread
    broken = g.node("Gemm", [scaled, g.constant("broken_w", weight)], "broken", transB=1)
    g.gemm(g.node("Relu", [broken]), "last", (24, 3))
    return g.model({"x": ["batch", 12]}, {"last_out": ["batch", 3]})


def test_the_costliest_layer_ranks_first_and_the_ranking_is_resumed(tmp_path: Path) -> None:
    """The scan finds the layer that INT8 ruins; a second one takes everything from its state."""
    made = toy(tmp_path, fragile())
    told: list[str] = []

    def ranked(progress: Callable[[str, float], None]) -> list[str]:
        found = scan_model(
            "toy", engines=tmp_path / "engines", calib=tmp_path / "calib", progress=progress
        )
        return [cost.node for cost in found]

    first = ranked(lambda text, _share: told.append(text))
    assert first[0] == "broken"
    assert set(first) == {"sound0", "sound1", "sound2", "broken"}
    assert any("layer 2 of 4" in text and "left" in text for text in told)
    told.clear()
    assert ranked(lambda text, _share: told.append(text)) == first
    assert not any("layer 2 of 4" in text for text in told)
    assert made.calib.is_dir()


def test_the_accuracy_budget_leaves_the_costliest_layer_in_float(tmp_path: Path) -> None:
    """The build finds by itself what has to stay in float, says why, and passes."""
    more = '[quantize]\naccuracy_budget = 0.01\n[verify]\nmetric = "cosine"\nmax_drop = 0.02\n'
    result = folders(tmp_path, fragile(), more).build()
    floats = kept(result)
    assert floats["broken"].startswith("accuracy budget: alone in INT8 it costs")
    assert len(result.engine.manifest.quantized) == 3


@pytest.mark.parametrize("method", ["mse", "percentile", "minmax", "entropy", "auto"])
def test_every_method_gives_an_engine_and_the_same_file_twice(tmp_path: Path, method: str) -> None:
    """Each method calibrates; ranges.json is the same bytes when calibrated again."""
    made = toy(tmp_path, onnx_models.mlp(), f'[calibrate]\nmethod = "{method}"\n')
    made.build()
    before = (made.calib / "ranges.json").read_bytes()
    made.build(force=True)
    assert (made.calib / "ranges.json").read_bytes() == before
    document = json.loads(before)
    assert document["method"] == method
    assert bool(document["scores"]) == (method == "auto")
