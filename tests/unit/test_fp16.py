"""FP16 graphs: what becomes FP16, what stays FP32 and why, and that the answers stay."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edged.build.fp16 import HALF, SMALLEST, HalfGraph, activations, find_peaks, to_half
from edged.build.normalise import normalise
from edged.build.onnx_graph import GraphIndex, load_model, with_outputs
from edged.build.placement import place
from edged.build.quantize import quantize
from edged.build_options import QuantizeOptions
from edged.errors import BuildError
from edged.runners.onnx import FloatGraph
from tests.doubles import onnx_models

ROOT = Path(__file__).resolve().parents[2]
MODELS = {
    "residual": onnx_models.residual_net(),
    "attention": onnx_models.attention_net(),
    "mlp": onnx_models.mlp(),
    "hidden weights": onnx_models.hidden_weights(),
    "unusual layers": onnx_models.unusual_layers(),
    "digits": onnx.load(ROOT / "engines/digits/model.onnx"),
    "watch": onnx.load(ROOT / "engines/watch/model.onnx"),
}
Feeds = dict[str, npt.NDArray[np.float32]]


def prepared(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Feeds]:
    """The normalised model and a random batch for it."""
    (item,) = model.graph.input
    shape = tuple(dim.dim_value or 8 for dim in item.type.tensor_type.shape.dim)[1:]
    rows = np.random.default_rng(3).normal(size=(16, *shape)).astype(np.float32)
    return normalise(load_model(model.SerializeToString()), {item.name: shape}), {item.name: rows}


def peaks_of(model: onnx.ModelProto, feeds: Feeds) -> dict[str, float]:
    """Largest magnitudes on one batch."""
    names = activations(model)
    graph = FloatGraph(with_outputs(model, names))
    return find_peaks(lambda batch: graph.run(batch, names), [feeds])


def quantized(model: onnx.ModelProto, feeds: Feeds) -> onnx.ModelProto:
    """With Q/DQ pairs whose ranges are the peaks."""
    placement = place(model, QuantizeOptions())
    return onnx.load_from_string(quantize(model, placement, peaks_of(model, feeds)))


def sqnr_db(model: bytes | onnx.ModelProto, other: bytes | onnx.ModelProto, feeds: Feeds) -> float:
    """Signal to noise of the second model's answers against the first one's."""
    wanted, found = (
        next(iter(FloatGraph(m if isinstance(m, bytes) else m.SerializeToString()).run(feeds)
                  .values())).astype(np.float64)
        for m in (model, other)
    )  # fmt: skip
    assert np.isfinite(found).all()
    noise = np.square(wanted - found).sum()
    return float(10 * np.log10(np.square(wanted).sum() / max(noise, 1e-30)))


def types_of(half: HalfGraph) -> dict[str, int]:
    """Element type of every tensor."""
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(half.model)).graph
    found = {
        item.name: item.type.tensor_type.elem_type
        for item in (*graph.input, *graph.value_info, *graph.output)
    }
    return found | {item.name: item.data_type for item in graph.initializer}


@pytest.mark.parametrize("name", MODELS)
def test_fp16_answers_are_those_of_fp32(name: str) -> None:
    """Rounding to 11 bits leaves more than 55 dB, on the test models and the bundled ones."""
    model, feeds = prepared(MODELS[name])
    half = to_half(model, peaks_of(model, feeds))
    assert half.kept == {}
    assert sqnr_db(model, half.model, feeds) > 55


@pytest.mark.parametrize("name", MODELS)
def test_int8_with_an_fp16_rest_is_as_good_as_int8(name: str) -> None:
    """The FP16 remainder costs less than 3 dB of what quantization left."""
    model, feeds = prepared(MODELS[name])
    pairs = quantized(model, feeds)
    half = to_half(pairs, peaks_of(model, feeds))
    assert sqnr_db(model, half.model, feeds) > sqnr_db(model, pairs, feeds) - 3


@pytest.mark.parametrize("name", MODELS)
def test_int8_layers_that_hand_out_fp32_keep_their_pairs(name: str) -> None:
    """Each layer and its pairs are FP32 with no cast between; everything else is FP16 as before."""
    model, feeds = prepared(MODELS[name])
    pairs = quantized(model, feeds)
    half = to_half(pairs, peaks_of(model, feeds), wide=True)
    graph, types = onnx.load_from_string(half.model).graph, types_of(half)
    index = GraphIndex(graph)
    inside = {layer.node for layer in place(model, QuantizeOptions()).layers}
    assert inside <= half.kept.keys()
    assert {why for node, why in half.kept.items() if node in inside} == {
        "its integer sums may leave the range of float16 before they are scaled"
    }
    for node in graph.node:
        if node.name in inside:
            assert {index.producer[at].op_type for at in node.input[:2]} == {"DequantizeLinear"}
            assert types[node.output[0]] == TensorProto.FLOAT
        elif node.op_type in HALF and node.name not in half.kept:
            assert TensorProto.FLOAT not in {types[at] for at in (*node.input, *node.output) if at}
    assert sqnr_db(model, half.model, feeds) > sqnr_db(model, pairs, feeds) - 3


@pytest.mark.parametrize("name", MODELS)
def test_types_are_as_promised(name: str) -> None:
    """Inputs and outputs are FP32, safe operators FP16, and the others see no FP16."""
    model, feeds = prepared(MODELS[name])
    half = to_half(quantized(model, feeds), peaks_of(model, feeds))
    graph, types = onnx.load_from_string(half.model).graph, types_of(half)
    assert {types[item.name] for item in (*graph.input, *graph.output)} == {TensorProto.FLOAT}
    for node in graph.node:
        seen = {types[name] for name in (*node.input, *node.output) if name}
        if node.op_type in HALF:
            assert TensorProto.FLOAT not in seen, node.name
        elif node.op_type != "Cast":
            assert TensorProto.FLOAT16 not in seen, node.name


def test_pairs_need_a_newer_opset_and_a_float_graph_does_not() -> None:
    """QuantizeLinear takes float16 scales from opset 19 on; else the opset stays."""
    model, feeds = prepared(MODELS["mlp"])
    versions = [
        onnx.load_from_string(to_half(graph, {}).model).opset_import[0].version
        for graph in (model, quantized(model, feeds))
    ]
    assert versions == [17, 19]


def test_same_input_gives_the_same_bytes() -> None:
    """Builds are reproducible, and the model that was given is not changed."""
    model, feeds = prepared(MODELS["residual"])
    before = model.SerializeToString()
    peaks = peaks_of(model, feeds)
    assert to_half(model, peaks).model == to_half(model, peaks).model
    assert model.SerializeToString() == before


def test_layer_that_leaves_the_range_stays_fp32() -> None:
    """A tensor beyond half of 65504 keeps those that touch it in FP32; the answer stays finite."""
    model, feeds = prepared(MODELS["mlp"])
    feeds = {name: rows * 1e5 for name, rows in feeds.items()}
    peaks = peaks_of(model, feeds)
    half = to_half(model, peaks)
    assert "middle" in half.kept
    assert "float16 ends at 65504" in half.kept["middle"]
    assert sqnr_db(model, half.model, feeds) > 55


def test_tensor_that_is_too_small_stays_fp32() -> None:
    """Magnitudes below 2^-14 would lose digits one by one."""
    model, feeds = prepared(MODELS["mlp"])
    feeds = {name: rows * 1e-7 for name, rows in feeds.items()}
    half = to_half(model, peaks_of(model, feeds))
    assert "'x' stays below" in half.kept["first"]
    assert sqnr_db(model, half.model, feeds) > 50


@pytest.mark.parametrize(
    ("value", "why"),
    [(1e9, "reaches 1e+09, float16 ends at 65504"), (1e-12, "too small for float16"),
     (np.inf, "reaches inf")],
)  # fmt: skip
def test_constant_that_float16_cannot_hold_stays_fp32(value: float, why: str) -> None:
    """A mask of -1e9 would become an infinity, an epsilon of 1e-12 a zero."""
    g = onnx_models.GraphWriter()
    g.node("Div", ["x", g.constant("c", np.array([value], np.float32))], "divide")
    model = g.model({"x": ["batch", 4]}, {"divide_out": ["batch", 4]})
    half = to_half(model, {})
    assert why in half.kept["divide"]
    assert {node.op_type for node in onnx.load_from_string(half.model).graph.node} == {"Div"}


def with_scale(model: onnx.ModelProto, name: str, factor: float) -> None:
    """Multiplies a scale."""
    scale = GraphIndex(model.graph).constants[name]
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(factor), name))


def test_layer_with_a_tiny_scale_stays_fp32_with_its_pairs() -> None:
    """No cast comes between a layer and its pairs: that would undo its INT8."""
    model, feeds = prepared(MODELS["mlp"])
    pairs = quantized(model, feeds)
    activation = next(n for n in pairs.graph.node if n.op_type == "QuantizeLinear").input[1]
    with_scale(pairs, activation, 1e-6)
    half = to_half(pairs, {})
    assert f"scale {activation!r} goes down to" in half.kept["middle"]
    index = GraphIndex(onnx.load_from_string(half.model).graph)
    layer = next(node for node in index.nodes if node.name == "middle")
    assert {index.producer[name].op_type for name in layer.input} == {"DequantizeLinear"}


def test_dead_channel_does_not_keep_its_layer_in_fp32() -> None:
    """A channel of almost nothing gets the smallest scale that float16 holds with all digits."""
    model, feeds = prepared(MODELS["mlp"])
    weight = next(item for item in model.graph.initializer if item.name == "middle_w")
    value = numpy_helper.to_array(weight).copy()
    value[:, 5] *= 1e-9
    weight.CopyFrom(numpy_helper.from_array(value, weight.name))
    pairs = quantized(model, feeds)
    half = to_half(pairs, peaks_of(model, feeds))
    scales = [
        numpy_helper.to_array(item)
        for item in onnx.load_from_string(half.model).graph.initializer
        if item.name.startswith("middle_w_scale")
    ]
    assert half.kept == {}
    assert [float(scale.min()) for scale in scales] == [SMALLEST]
    assert sqnr_db(pairs, half.model, feeds) > 35


def test_weight_of_tiny_channels_only_stays_fp32() -> None:
    """Where the smallest scale would ruin the whole weight, its layer keeps FP32 scales."""
    model, feeds = prepared(MODELS["mlp"])
    weight = next(item for item in model.graph.initializer if item.name == "middle_w")
    value = numpy_helper.to_array(weight) * np.float32(1e-3)
    weight.CopyFrom(numpy_helper.from_array(value, weight.name))
    half = to_half(quantized(model, feeds), {})
    assert "scale 'middle_w_scale' goes down to" in half.kept["middle"]


def conditional() -> onnx.ModelProto:
    """An If whose branches read a tensor from outside: x [batch, 4] -> y [batch, 4]."""
    branches = []
    for name, operator in (("then", "Relu"), ("otherwise", "Neg")):
        node = helper.make_node(operator, ["inner"], [name])
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4])
        branches.append(helper.make_graph([node], name, [], [output]))
    g = onnx_models.GraphWriter()
    g.nodes.append(helper.make_node("Sigmoid", ["x"], ["inner"], name="inner"))
    total = g.node("ReduceMax", ["x"], "largest", keepdims=0)
    positive = g.node("Greater", [total, g.constant("zero", np.array(0, np.float32))], "positive")
    g.nodes.append(
        helper.make_node(
            "If",
            [positive],
            ["y"],
            name="branch",
            then_branch=branches[0],
            else_branch=branches[1],
        )
    )
    return g.model({"x": ["batch", 4]}, {"y": ["batch", 4]})


def test_subgraph_reads_fp32_from_outside() -> None:
    """What a branch takes from outside keeps its name and its type."""
    model, feeds = prepared(conditional())
    half = to_half(model, peaks_of(model, feeds))
    assert any(
        node.op_type == "Sigmoid" and node.output[0] != "inner"
        for node in onnx.load_from_string(half.model).graph.node
    )
    assert sqnr_db(model, half.model, feeds) > 55


def test_what_must_be_fp32_stays_so() -> None:
    """Resize takes its scales as FP32 whatever the data's type; integers are not touched."""
    g = onnx_models.GraphWriter()
    scales = g.constant("scales", np.array([1, 1, 2, 2], np.float32))
    grown = g.node("Resize", [g.node("Relu", ["x"], "act"), "", scales], "grow", mode="nearest")
    shape = g.constant("shape", np.array([0, -1], np.int64))
    g.node("Reshape", [g.node("Neg", [grown], "turn"), shape], "flat")
    model = g.model({"x": ["batch", 1, 2, 2]}, {"flat_out": ["batch", 16]})
    normal, feeds = prepared(model)
    half = to_half(normal, peaks_of(normal, feeds))
    assert types_of(half)["scales"] == TensorProto.FLOAT
    assert sqnr_db(normal, half.model, feeds) > 55


def test_opset_that_cannot_be_raised_is_refused_with_what_to_do() -> None:
    """The converter knows some operators only up to an opset: then FP16 around INT8 is no way."""
    model, feeds = prepared(MODELS["mlp"])
    pairs = quantized(model, feeds)
    unknown = helper.make_node("NoSuchOperator", ["last_out"], ["more"])
    pairs.graph.node.append(unknown)
    pairs.graph.output[0].name = "more"
    with pytest.raises(BuildError, match=r"needs opset 19, the model has 17 .*fp16_rest = false"):
        to_half(pairs, {})


def test_peaks_are_the_largest_of_all_batches() -> None:
    """Inputs count, integers do not, and later batches do not replace earlier ones."""
    batches: list[Mapping[str, npt.NDArray[np.generic]]] = [
        {"x": np.array([1.0, -7.0], np.float32), "ids": np.array([9])},
        {"x": np.array([2.0, 3.0], np.float32), "ids": np.array([9])},
    ]
    found = find_peaks(lambda batch: {"y": np.asarray(batch["x"]) / np.float32(2)}, batches)
    assert found == {"x": 7.0, "y": 3.5}
