"""Choosing what becomes INT8, and putting the Q/DQ pairs in."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from edged.build.normalise import normalise
from edged.build.onnx_graph import load_model
from edged.build.placement import LinearLayer, Placement, Shortcut, place, quantized_nodes
from edged.build.quantize import quantize, without_pairs
from edged.build_options import QuantizeOptions
from edged.errors import BuildError
from tests.doubles import onnx_models
from tests.doubles.onnx_models import GraphWriter

Shapes = dict[str, tuple[int, ...]]

IMAGE: Shapes = {"x": (4, 8, 8)}
VECTOR: Shapes = {"x": (12,)}


def normal(model: onnx.ModelProto, inputs: Shapes) -> onnx.ModelProto:
    """The model as the build reads it from its file."""
    return normalise(load_model(model.SerializeToString()), inputs)


def placed(
    model: onnx.ModelProto, *, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()
) -> Placement:
    """What becomes INT8."""
    return place(model, QuantizeOptions(include=include, exclude=exclude))


def quantized(model: onnx.ModelProto, placement: Placement, top: float = 2.0) -> onnx.ModelProto:
    """The Q/DQ model with one threshold everywhere."""
    thresholds = dict.fromkeys(placement.tensors, top)
    return onnx.load_from_string(quantize(model, placement, thresholds))


def makers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Node by the tensor that it makes."""
    return {name: node for node in model.graph.node for name in node.output}


def values(model: onnx.ModelProto) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
    """Constants by name."""
    return {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}


def named(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    """The one node of a name."""
    (node,) = [node for node in model.graph.node if node.name == name]
    return node


def branching() -> onnx.ModelProto:
    """An If whose branches read a weight and an activation from outside, and hold a MatMul."""
    g = GraphWriter()
    first = g.gemm("x", "first", (12, 12))
    middle = g.gemm(first, "middle", (12, 12))
    g.random("inner_w", 12, 3)
    g.constant("yes", np.array(True))  # noqa: FBT003  # the tensor's value
    branches = []
    for name in ("then", "else"):
        out = onnx.helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, ["n", 3])
        node = onnx.helper.make_node("MatMul", [middle, "inner_w"], [f"{name}_out"], name=name)
        branches.append(onnx.helper.make_graph([node], name, [], [out]))
    last = g.gemm(middle, "last", (12, 3))
    chosen = g.node("If", ["yes"], "choice", then_branch=branches[0], else_branch=branches[1])
    return g.model({"x": ["n", 12]}, {last: ["n", 3], chosen: ["n", 3]})


def test_subgraphs_keep_what_they_read_and_stay_in_float() -> None:
    """Nothing inside an If is quantized, and the constants that it reads are not dropped."""
    model = normal(branching(), VECTOR)
    assert "inner_w" in values(model)
    found = placed(model)
    assert [layer.node for layer in found.layers] == ["middle"]
    assert "then" not in found.kept
    made = quantized(model, found)
    (choice,) = [node for node in made.graph.node if node.op_type == "If"]
    assert choice.attribute[0].g.node[0].input[1] == "inner_w"


# ------------------------------------------------------------------ placement


def test_residual_net_is_placed_as_tensorrt_wants_it() -> None:
    """All but first, last and depthwise layers; both shortcuts; one range for what is joined."""
    found = placed(normal(onnx_models.residual_net(), IMAGE))
    assert [layer.node for layer in found.layers] == [
        "identity_a", "identity_b", "down_a", "down_b", "down_skip",
        "left", "right", "more", "mix", "wide", "hidden",
    ]  # fmt: skip
    assert found.kept == {
        "stem": "first linear layer",
        "depthwise": "grouped convolution (32 groups)",
        "head": "last linear layer",
    }
    stem_relu = found.layers[0].activation
    assert found.shortcuts == (
        Shortcut("identity_add", stem_relu),
        Shortcut("down_add", "down_skip_out"),
    )
    left_relu = next(layer.activation for layer in found.layers if layer.node == "more")
    assert found.groups == (frozenset({left_relu, "join_out"}),)
    assert repr(found) == "<Placement 11 layers INT8, 3 float>"


def test_products_of_two_activations_stay_in_float() -> None:
    """Attention's inner products are left out, its projections are not."""
    found = placed(normal(onnx_models.attention_net(), {"x": (6, 16)}))
    assert [layer.node for layer in found.layers] == ["q", "k", "v", "project", "up", "down"]
    assert found.kept["scores"] == found.kept["mix"] == "both operands are activations"
    assert found.shortcuts == ()


def test_layers_that_cannot_be_quantized_are_named_with_the_reason() -> None:
    """A transposed convolution, a left-hand constant; a weight computed of constants is folded."""
    model = normal(onnx_models.unusual_layers(), {"x": (4, 4, 4)})
    found = placed(model)
    kept = found.kept
    assert kept["up"].startswith("transposed convolution")
    assert kept["left"] == "the left operand is the constant one"
    assert "computed" in {layer.node for layer in found.layers}
    with pytest.raises(BuildError, match="'up' cannot be quantized: transposed"):
        placed(model, include=("up",))


def test_gemm_axis_follows_its_transposition() -> None:
    """Output channels are axis 0 of a transposed weight, else axis 1."""
    g = GraphWriter()
    a = g.gemm("x", "first", (12, 12))
    b = g.gemm(a, "turned", (12, 10), trans_b=True)
    c = g.gemm(b, "plain", (10, 8), trans_b=False)
    g.gemm(c, "last", (8, 3))
    model = normal(g.model({"x": ["n", 12]}, {"last_out": ["n", 3]}), VECTOR)
    assert placed(model).layers == (
        LinearLayer("turned", "Gemm", "first_out", "turned_w", 0),
        LinearLayer("plain", "Gemm", "turned_out", "plain_w", 1),
    )


def test_parallel_first_and_last_layers_all_stay_in_float() -> None:
    """First is what has no linear layer before it, on every branch; last likewise."""
    g = GraphWriter()
    branches = [g.gemm("x", name, (12, 6)) for name in ("in_a", "in_b")]
    joined = g.node("Concat", branches, axis=1)
    body = g.gemm(joined, "body", (12, 12))
    g.gemm(body, "out_a", (12, 3))
    g.gemm(body, "out_b", (12, 3))
    model = g.model({"x": ["n", 12]}, {"out_a_out": ["n", 3], "out_b_out": ["n", 3]})
    found = placed(normal(model, VECTOR))
    assert [layer.node for layer in found.layers] == ["body"]
    assert set(found.kept) == {"in_a", "in_b", "out_a", "out_b"}


def test_include_overrides_the_defaults_and_exclude_wins_names() -> None:
    """A recipe can quantize the first layer and leave another one out."""
    model = normal(onnx_models.mlp(), VECTOR)
    found = placed(model, include=("first", "last"), exclude=("middle",))
    assert [layer.node for layer in found.layers] == ["first", "last"]
    assert found.kept == {"middle": "excluded by the recipe"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exclude": ("midle",)}, r"'midle', which the model lacks; near it are \['middle'\]"),
        ({"include": ("zzzzzz",)}, r"linear layers are \['first', 'middle', 'last'\]"),
        ({"exclude": ("Relu_0",)}, "'Relu_0', a Relu; only Conv"),
        ({"include": ("middle",), "exclude": ("middle",)}, "'middle' is in both"),
    ],
)
def test_names_in_the_recipe_are_checked(options: dict[str, tuple[str, ...]], message: str) -> None:
    """A misspelt name is an error with the nearest names, never silently ignored."""
    with pytest.raises(BuildError, match=message):
        placed(normal(onnx_models.mlp(), VECTOR), **options)


def test_nothing_left_to_quantize_is_an_error_that_says_why() -> None:
    """Zero INT8 layers is never a success; each layer's reason is told."""
    with pytest.raises(BuildError, match=r"'first': first linear layer.*name layers under"):
        placed(normal(onnx_models.two_layers(), VECTOR))


def test_a_graph_without_linear_layers_is_an_error() -> None:
    """There is nothing that could ever become INT8."""
    with pytest.raises(BuildError, match="has no Conv, Gemm or MatMul"):
        placed(normal(onnx_models.no_linear_layers(), VECTOR))


# ------------------------------------------------------------------ inserting


def test_pairs_are_symmetric_and_weights_are_per_channel() -> None:
    """Zero points are 0; an activation has one scale, a weight one for each output channel."""
    source = normal(onnx_models.residual_net(), IMAGE)
    placement = placed(source)
    model = quantized(source, placement)
    constants, made = values(model), makers(model)
    for layer in placement.layers:
        pairs = [made[name] for name in named(model, layer.node).input[:2]]
        assert [pair.op_type for pair in pairs] == ["DequantizeLinear"] * 2
        activation, weight = pairs
        assert constants[activation.input[1]].shape == ()
        assert constants[activation.input[1]] == np.float32(2.0 / 127)
        channels = constants[layer.weight].shape[layer.axis]
        assert constants[weight.input[1]].shape == (channels,)
        assert [item.i for item in weight.attribute if item.name == "axis"] == [layer.axis]
        for pair in pairs:
            zero = constants[pair.input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()


def test_weights_and_biases_stay_float() -> None:
    """Weights keep their float values behind the pair; no bias is quantized."""
    source = normal(onnx_models.residual_net(), IMAGE)
    placement = placed(source)
    model = quantized(source, placement)
    made, constants = makers(model), values(model)
    for layer in placement.layers:
        node = named(model, layer.node)
        assert node.input[2] not in made
        assert constants[node.input[2]].dtype == np.float32
        quantizer = made[made[node.input[1]].input[0]]
        assert (quantizer.op_type, quantizer.input[0]) == ("QuantizeLinear", layer.weight)
    assert all(np.array_equal(constants[name], value) for name, value in values(source).items())


def test_a_tensor_has_one_pair_whoever_reads_it() -> None:
    """Query, key and value share the pair of their input."""
    source = normal(onnx_models.attention_net(), {"x": (6, 16)})
    model = quantized(source, placed(source))
    assert len({named(model, name).input[0] for name in "qkv"}) == 1
    quantizers = [node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantizers) == len(set(quantizers))


def test_outputs_of_layers_and_float_layers_are_not_quantized() -> None:
    """A pair is put before a quantized layer or a shortcut, never behind a layer for itself."""
    source = normal(onnx_models.residual_net(), IMAGE)
    placement = placed(source)
    model = quantized(source, placement)
    made = makers(model)
    for name in placement.kept:
        assert all(
            made[item].op_type != "DequantizeLinear"
            for item in named(model, name).input
            if item in made
        )
    wanted = placement.tensors | {layer.weight for layer in placement.layers}
    quantizers = {node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert quantizers == wanted


def test_residual_add_reads_its_shortcut_through_the_pair() -> None:
    """The convolution's branch goes into the Add as float, the shortcut dequantized."""
    source = normal(onnx_models.residual_net(), IMAGE)
    model = quantized(source, placed(source))
    made = makers(model)
    for name in ("identity_add", "down_add"):
        operators = [made[item].op_type for item in named(model, name).input]
        assert operators == ["Conv", "DequantizeLinear"]


def test_group_shares_the_largest_threshold() -> None:
    """What meets in a Concat has one scale, so that the Concat can stay in INT8."""
    source = normal(onnx_models.residual_net(), IMAGE)
    placement = placed(source)
    (group,) = placement.groups
    thresholds = dict.fromkeys(placement.tensors, 1.0) | {"join_out": 3.0}
    model = onnx.load_from_string(quantize(source, placement, thresholds))
    constants = values(model)
    scales = {
        node.input[0]: float(constants[node.input[1]])
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] in placement.tensors
    }
    for tensor, scale in scales.items():
        assert scale == pytest.approx((3.0 if tensor in group else 1.0) / 127)


def test_same_input_gives_the_same_bytes() -> None:
    """The Q/DQ model can be identified by its digest."""
    first, second = (
        quantize(source, placement, dict.fromkeys(placement.tensors, 1.5))
        for source in (normal(onnx_models.residual_net(), IMAGE) for _ in range(2))
        for placement in (placed(source),)
    )
    assert first == second


def test_names_that_are_taken_are_not_used_twice() -> None:
    """A model that already has a tensor called like one of ours still gives a valid graph."""
    g = GraphWriter(seed=2)
    a = g.gemm("x", "first", (12, 12))
    g.node("Relu", [a], "first_out_quantized")
    g.nodes[-1].output[0] = "first_out_scale"
    c = g.gemm("first_out_scale", "middle", (12, 12))
    d = g.gemm(a, "other", (12, 12))
    g.gemm(g.node("Add", [c, d], "sum"), "last", (12, 3))
    source = normal(g.model({"x": ["n", 12]}, {"last_out": ["n", 3]}), VECTOR)
    model = quantized(source, placed(source))
    outputs = [name for node in model.graph.node for name in node.output]
    outputs += [item.name for item in model.graph.initializer]
    assert len(outputs) == len(set(outputs))


def test_channel_of_zeros_gets_a_scale() -> None:
    """A pruned channel must not divide by zero."""
    model = onnx_models.mlp()
    (weight,) = [item for item in model.graph.initializer if item.name == "middle_w"]
    value = numpy_helper.to_array(weight).copy()
    value[:, 3] = 0
    weight.CopyFrom(numpy_helper.from_array(value, "middle_w"))
    source = normal(model, VECTOR)
    constants = values(quantized(source, placed(source)))
    assert constants["middle_w_scale"][3] == np.float32(1 / 127)
    assert constants["middle_w_scale"].all()


def test_weights_that_are_not_finite_are_refused() -> None:
    """A diverged training is found in the weights, with the node's name."""
    model = onnx_models.mlp()
    (weight,) = [item for item in model.graph.initializer if item.name == "middle_w"]
    value = numpy_helper.to_array(weight).copy()
    value[0, 0] = np.nan
    weight.CopyFrom(numpy_helper.from_array(value, "middle_w"))
    source = normal(model, VECTOR)
    with pytest.raises(BuildError, match="'middle_w' of node 'middle' holds NaN"):
        quantized(source, placed(source))


def test_missing_threshold_is_refused() -> None:
    """Ranges that lack a tensor are not guessed."""
    source = normal(onnx_models.mlp(), VECTOR)
    with pytest.raises(BuildError, match="no range for activation"):
        quantize(source, placed(source), {})


def test_own_pairs_are_read_back() -> None:
    """A model with Q/DQ names its INT8 layers, and gives the float one back without its pairs."""
    source = normal(onnx_models.residual_net(), IMAGE)
    placement = placed(source)
    model = quantized(source, placement)
    assert quantized_nodes(model) == tuple(layer.node for layer in placement.layers)
    stripped = onnx.load_from_string(without_pairs(model))
    for layer in placement.layers:
        assert list(named(stripped, layer.node).input[:2]) == [layer.activation, layer.weight]


def test_output_that_is_dequantized_keeps_its_name_without_pairs() -> None:
    """A model of another tool may quantize its output; the float form still has that output."""
    source = normal(onnx_models.mlp(), VECTOR)
    model = quantized(source, placed(source))
    dequantized = named(model, "middle").input[0]
    model.graph.output.append(
        onnx.helper.make_tensor_value_info(dequantized, TensorProto.FLOAT, ["batch", 24])
    )
    stripped = onnx.load_from_string(without_pairs(model))
    onnx.checker.check_model(stripped, full_check=True)
    assert makers(stripped)[dequantized].op_type == "Identity"


def test_pairs_without_a_quantized_layer_are_refused() -> None:
    """Q/DQ nodes that no layer reads make no INT8 engine."""
    source = normal(onnx_models.mlp(), VECTOR)
    model = quantized(source, placed(source))
    named(model, "middle").input[1] = "middle_w"
    with pytest.raises(BuildError, match="no linear layer reads both"):
        quantized_nodes(model)
