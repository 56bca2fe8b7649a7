"""Normalising a graph: what the quantizer may rely on afterwards, and what is refused."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto

from edged.build.normalise import normalise
from edged.build.onnx_graph import load_model
from edged.build.placement import place
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


def test_hidden_weights_become_initializers() -> None:
    """Weights behind Constant, Identity and Transpose nodes are found; the nodes are gone."""
    model = normal(onnx_models.hidden_weights(), IMAGE)
    operators = {node.op_type for node in model.graph.node}
    assert not operators & {"Constant", "Identity", "Transpose", "BatchNormalization"}
    assert [layer.operator for layer in place(model, QuantizeOptions()).layers] == [
        "Conv",
        "MatMul",
    ]


def test_unnamed_nodes_get_stable_names() -> None:
    """Names are counted by operator in graph order, the same every time."""
    first, second = (
        [node.name for node in normal(onnx_models.hidden_weights(), IMAGE).graph.node]
        for _ in range(2)
    )
    assert first == second
    assert first[:3] == ["Conv_0", "Relu_0", "Conv_1"]


def test_doubled_names_are_set_apart() -> None:
    """Two nodes of one name could not be told apart in a recipe."""
    g = GraphWriter()
    a = g.gemm("x", "same", (12, 12))
    g.nodes[-1].name = "same"
    b = g.gemm(a, "same2", (12, 12))
    g.nodes[-1].name = "same"
    g.gemm(b, "same_1", (12, 3))
    model = g.model({"x": ["n", 12]}, {"same_1_out": ["n", 3]})
    names = [node.name for node in normal(model, VECTOR).graph.node]
    assert names == ["same", "same_2", "same_1"]


def test_placeholder_dimensions_take_the_recipes_shape() -> None:
    """Several axes called "?" would be tied together; the batch axis alone stays open."""
    model = normal(onnx_models.hidden_weights(), IMAGE)
    dims = model.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", 4, 8, 8]
    out = model.graph.output[0].type.tensor_type.shape.dim
    assert out[0].dim_param == "batch"
    assert "?" not in {dim.dim_param for dim in out}


def test_old_opset_is_raised() -> None:
    """Per-channel quantization needs opset 13."""
    model = normal(onnx_models.hidden_weights(), IMAGE)
    assert model.opset_import[0].version >= 13


def test_the_source_is_not_changed() -> None:
    """Normalising works on a copy."""
    source = load_model(onnx_models.hidden_weights().SerializeToString())
    before = source.SerializeToString(deterministic=True)
    normalise(source, IMAGE)
    assert source.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("data", [b"", b"not onnx at all", b"\x08\x07", b"\xff" * 64])
def test_bytes_that_are_no_model_are_refused(data: bytes) -> None:
    """Garbage, nothing, and a message without a graph are named as what they are."""
    with pytest.raises(BuildError, match="ONNX"):
        load_model(data)


def test_truncated_model_is_refused() -> None:
    """Half a file is no model."""
    data = onnx_models.mlp().SerializeToString()
    with pytest.raises(BuildError, match=r"damaged|not valid"):
        load_model(data[: len(data) // 2])


def test_external_weights_are_refused_with_what_to_do() -> None:
    """Weights in another file would not be covered by the digest."""
    model = onnx_models.mlp()
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    tensor.external_data.add(key="location", value="weights.bin")
    with pytest.raises(BuildError, match="lie in another file"):
        load_model(model.SerializeToString())


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": (4, 8)}, r"has shape \[.*\], the recipe gives samples of shape \[4, 8\]"),
        ({"x": (3, 8, 8)}, "correct the recipe"),
        ({"y": (4, 8, 8)}, r"inputs are \['x'\], the recipe names \['y'\]"),
        ({}, r"the recipe names \[\]"),
    ],
)
def test_recipe_that_does_not_fit_is_refused(inputs: Shapes, message: str) -> None:
    """Inputs are compared by name and shape, with both sides in the message."""
    with pytest.raises(BuildError, match=message):
        normal(onnx_models.residual_net(), inputs)


def test_fixed_batch_axis_is_refused() -> None:
    """A model for batches of one cannot be batched."""
    g = GraphWriter()
    g.gemm("x", "only", (12, 3))
    model = g.model({"x": [1, 12]}, {"only_out": [1, 3]})
    with pytest.raises(BuildError, match="fixed at 1; export the model with a dynamic axis 0"):
        normal(model, VECTOR)


def test_opset_that_cannot_be_raised_is_refused() -> None:
    """An operator that the converter does not know stops with what to do."""
    model = onnx_models.hidden_weights()
    model.graph.node[1].op_type = "Upsample"
    model.opset_import[0].version = 8
    with pytest.raises(BuildError, match=r"has opset 8, INT8 needs 13 .* export it again"):
        normalise(model, IMAGE)


def test_output_that_cannot_be_is_refused() -> None:
    """A recipe shape that the graph itself contradicts is found by shape inference."""
    model = onnx_models.mlp()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "features"
    with pytest.raises(BuildError, match="recipe's shapes do not fit the model"):
        normal(model, {"x": (13,)})
