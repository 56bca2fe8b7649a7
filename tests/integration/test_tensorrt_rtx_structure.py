"""TensorRT's own builder takes our Q/DQ graphs and keeps the linear layers in INT8.

TensorRT-RTX builds without a GPU, so this shows what the parser and the builder make of the graph;
it shows neither speed nor that the plan runs.
"""

from __future__ import annotations

import platform
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from edged.build.calibrate import collect, ranges_by
from edged.build.engine import (
    import_tensorrt,
    network_flags,
    tensorrt_plan,
    weak_typing_flags,
)
from edged.build.fp16 import activations, find_peaks, to_half
from edged.build.normalise import normalise
from edged.build.observe import observe
from edged.build.onnx_graph import load_model, with_outputs
from edged.build.placement import Placement, place
from edged.build.plan import Plan, PlanJob, ProfileShape, TypedGraphs
from edged.build.quantize import quantize
from edged.build_options import QuantizeOptions
from edged.errors import BuildError
from edged.runners.onnx import FloatGraph
from tests.doubles import onnx_models

ROOT = Path(__file__).resolve().parents[2]
Shape = tuple[int, ...]

TEST_MODELS: dict[str, tuple[bytes, Shape]] = {
    "residual": (onnx_models.residual_net().SerializeToString(), (4, 8, 8)),
    "attention": (onnx_models.attention_net().SerializeToString(), (6, 16)),
    "mlp": (onnx_models.mlp().SerializeToString(), (12,)),
    "hidden weights": (onnx_models.hidden_weights().SerializeToString(), (4, 8, 8)),
    "unusual layers": (onnx_models.unusual_layers().SerializeToString(), (4, 4, 4)),
    "digits": ((ROOT / "engines/digits/model.onnx").read_bytes(), (1, 8, 8)),
    "watch": ((ROOT / "engines/watch/model.onnx").read_bytes(), (128, 6)),
}


@pytest.fixture(scope="module")
def trt() -> ModuleType:
    """TensorRT-RTX, which is a wheel for x86-64 only."""
    found = import_tensorrt()
    if found is None:
        pytest.skip(
            f"TensorRT is not installed (TensorRT-RTX has no wheel for {platform.machine()})"
        )
    return found


def plan_of(
    trt: ModuleType, model: bytes, *profiles: dict[str, ProfileShape], **options: Any
) -> Plan:
    """Builds in this process."""
    job = PlanJob(**{"precision": "int8", **options}, profiles=profiles)
    return tensorrt_plan(trt, TypedGraphs(model, model), job)


def halved(data: bytes, shape: Shape, *, pairs: bytes | None = None, wide: bool = False) -> bytes:
    """The model, or its Q/DQ form, with FP16 inside."""
    source = load_model(data)
    name = source.graph.input[0].name
    model = normalise(source, {name: shape})
    names = activations(model)
    graph = FloatGraph(with_outputs(model, names))
    rows = np.random.default_rng(0).normal(size=(8, *shape)).astype(np.float32)
    peaks = find_peaks(lambda batch: graph.run(batch, names), [{name: rows}])
    return to_half(onnx.load_from_string(pairs) if pairs else model, peaks, wide=wide).model


def quantized(data: bytes, shape: Shape) -> tuple[bytes, Placement, dict[str, ProfileShape]]:
    """Q/DQ model, placement and profile of a model, calibrated on random samples."""
    source = load_model(data)
    name = source.graph.input[0].name
    model = normalise(source, {name: shape})
    placement = place(model, QuantizeOptions())
    inner = sorted(placement.tensors - {name})
    graph = FloatGraph(with_outputs(model, inner))
    rng = np.random.default_rng(0)
    samples = [{name: rng.normal(size=(8, *shape)).astype(np.float32)} for _ in range(4)]
    seen = collect(
        lambda batch: {n: observe(rows) for n, rows in graph.run(batch, inner).items()},
        samples,
        sorted(placement.tensors),
    )
    thresholds = {n: found.threshold for n, found in ranges_by(seen, "mse", 100.0).items()}
    profile = {name: ProfileShape((1, *shape), (4, *shape), (8, *shape))}
    return quantize(model, placement, thresholds), placement, profile


@pytest.mark.parametrize("name", TEST_MODELS)
def test_every_quantized_layer_runs_in_int8(trt: ModuleType, name: str) -> None:
    """By the builder's layer information, each Conv, Gemm and MatMul of the placement is INT8."""
    model, placement, profile = quantized(*TEST_MODELS[name])
    plan = plan_of(trt, model, profile)
    assert len(plan.data) > 0
    wanted = {layer.node for layer in placement.layers}
    assert wanted <= plan.int8_nodes()
    assert not set(placement.kept) & plan.int8_nodes()


@pytest.mark.parametrize("sums", ["FP16", "FP32"])
@pytest.mark.parametrize("name", TEST_MODELS)
def test_int8_with_an_fp16_rest_keeps_its_int8_layers(
    trt: ModuleType, name: str, sums: str
) -> None:
    """The same layers are INT8, and no linear layer is left that computes in FP32."""
    data, shape = TEST_MODELS[name]
    model, placement, profile = quantized(data, shape)
    plan = plan_of(
        trt, halved(data, shape, pairs=model, wide=sums == "FP32"), profile, fp16_rest=True
    )
    assert {layer.node for layer in placement.layers} <= plan.int8_nodes()
    linear = [layer for layer in plan.layers if layer.linear]
    assert {layer.inputs[0] for layer in linear} <= {"Int8", "Half"}


@pytest.mark.parametrize("name", TEST_MODELS)
def test_fp16_model_computes_its_linear_layers_in_fp16(trt: ModuleType, name: str) -> None:
    """By the builder's layer information; the inputs and outputs of the plan stay FP32."""
    data, shape = TEST_MODELS[name]
    source = load_model(data).graph.input[0].name
    profile = {source: ProfileShape((1, *shape), (4, *shape), (8, *shape))}
    plan = plan_of(trt, halved(data, shape), profile, precision="fp16")
    linear = [layer for layer in plan.layers if layer.linear]
    assert linear
    assert {layer.inputs[0] for layer in linear} == {"Half"}


def test_auxiliary_streams_are_accepted(trt: ModuleType) -> None:
    """A plan for several streams is built from the same graph."""
    model, placement, profile = quantized(*TEST_MODELS["attention"])
    plan = plan_of(trt, model, profile, aux_streams=2)
    assert {layer.node for layer in placement.layers} <= plan.int8_nodes()


def test_float_model_has_no_int8_layer(trt: ModuleType) -> None:
    """The assertion above can fail: without Q/DQ the same builder reports no INT8 layer."""
    data, shape = TEST_MODELS["residual"]
    model = normalise(load_model(data), {"x": shape})
    profile = {"x": ProfileShape((1, *shape), (1, *shape), (2, *shape))}
    plan = plan_of(trt, model.SerializeToString(), profile, precision="fp32")
    assert [layer for layer in plan.layers if layer.linear]
    assert not plan.int8_nodes()


def test_shortcut_of_a_residual_add_arrives_in_int8(trt: ModuleType) -> None:
    """The kernel that adds reads the shortcut as INT8: nothing was requantized in between."""
    model, _, profile = quantized(*TEST_MODELS["residual"])
    plan = plan_of(trt, model, profile)
    adding = [layer for layer in plan.layers if "identity_add" in layer.nodes]
    assert any("Int8" in layer.inputs for layer in adding)


def test_what_the_parser_says_is_in_the_error(trt: ModuleType) -> None:
    """An unknown operator is named with its node."""
    model = onnx_models.mlp()
    model.graph.node[1].op_type = "NoSuchOperator"
    model.graph.node[1].domain = "nowhere"
    model.opset_import.append(onnx.helper.make_opsetid("nowhere", 1))
    with pytest.raises(BuildError, match=r"TensorRT cannot read the model: .*NoSuchOperator"):
        plan_of(trt, model.SerializeToString())


def test_what_the_builder_says_is_in_the_error(trt: ModuleType) -> None:
    """A dynamic input without a profile is told as the builder tells it."""
    with pytest.raises(BuildError, match=r"could not build the engine: .*profile"):
        plan_of(trt, TEST_MODELS["mlp"][0])


@pytest.mark.parametrize(
    "shape",
    [
        ProfileShape((4, 12), (2, 12), (8, 12)),
        ProfileShape((1, 12), (2, 12), (1, 12)),
        ProfileShape((0, 12), (2, 12), (4, 12)),
        ProfileShape((1, 12), (2, 12, 1), (4, 12)),
    ],
)
def test_impossible_profile_is_refused_before_the_build(
    trt: ModuleType, shape: ProfileShape
) -> None:
    """Minimum, optimum and maximum are checked with the input's name."""
    with pytest.raises(BuildError, match="'x' must have 1 <= minimum"):
        plan_of(trt, TEST_MODELS["mlp"][0], {"x": shape})


def test_profile_for_another_input_is_refused(trt: ModuleType) -> None:
    """The builder would take a misspelt name and fail later."""
    shape = ProfileShape((1, 12), (2, 12), (8, 12))
    with pytest.raises(BuildError, match=r"names inputs \['y'\], the model has \['x'\]"):
        plan_of(trt, TEST_MODELS["mlp"][0], {"y": shape})


def test_networks_are_strongly_typed_where_that_exists_and_get_flags_where_not() -> None:
    """TensorRT 10 and 11 take types from the graph; 8 needs explicit batches and flags."""
    new, old = (
        SimpleNamespace(
            NetworkDefinitionCreationFlag=SimpleNamespace(**flags),
            BuilderFlag=SimpleNamespace(INT8="int8", FP16="fp16"),
        )
        for flags in ({"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}, {"EXPLICIT_BATCH": 0})
    )
    newest = SimpleNamespace(NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=0))
    assert [network_flags(module) for module in (old, new, newest)] == [1, 2, 1]
    jobs = [
        PlanJob(precision="int8", fp16_rest=True, profiles=()),
        PlanJob(precision="int8", profiles=()),
        PlanJob(precision="fp16", profiles=()),
        PlanJob(precision="fp32", profiles=()),
    ]
    assert [weak_typing_flags(old, job) for job in jobs] == [
        ["int8", "fp16"], ["int8"], ["fp16"], []
    ]  # fmt: skip
    assert [weak_typing_flags(module, jobs[0]) for module in (new, newest)] == [[], []]


def test_plan_without_layer_information_has_no_int8_nodes() -> None:
    """Precision is asserted, never assumed: no information is no INT8."""
    assert Plan(b"plan", ()).int8_nodes() == frozenset()
