"""Bias correction and channel equalisation: what they change, and what they must not change."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from edged.build import bias_correction, equalise
from edged.build.normalise import normalise
from edged.build.onnx_graph import GraphIndex, constant_array, load_model
from edged.build.placement import Placement, place
from edged.build.quantize import quantize
from edged.build_options import QuantizeOptions
from edged.runners.onnx import FloatGraph
from tests.doubles.onnx_models import GraphWriter, attention_net, residual_net

Floats = npt.NDArray[np.float32]


def normal(model: onnx.ModelProto, shape: tuple[int, ...]) -> onnx.ModelProto:
    """As the build sees it."""
    return normalise(load_model(model.SerializeToString()), {"x": shape})


def rows_of(shape: tuple[int, ...], count: int = 64) -> Floats:
    """Random samples that are not centred on zero."""
    rng = np.random.default_rng(3)
    return (rng.normal(size=(count, *shape)) + 0.5).astype(np.float32)


def means(model: onnx.ModelProto, placed: Placement, top: float, rows: Floats) -> dict[str, Floats]:
    """Mean errors of the layers, by the name of their output."""
    shadow, copies = bias_correction.shadowed(model, placed)
    if not copies.layers:
        return {}
    data = quantize(shadow, copies, dict.fromkeys(placed.tensors, top))
    graph = FloatGraph(data)
    names = [name for name in graph.output_names if name.endswith("__mean_error")]
    found = bias_correction.mean_errors(lambda batch: graph.run(batch, names), [{"x": rows}])
    return {name: np.asarray(value, np.float32) for name, value in found.items()}


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize(
    ("model", "shape", "corrected"),
    [(residual_net, (4, 8, 8), 11), (attention_net, (6, 16), 0)],
)
def test_corrected_layers_have_no_mean_error_left(
    model: object, shape: tuple[int, ...], corrected: int, opset: int
) -> None:
    """Each channel's mean error comes off the bias; a MatMul without a bias behind it is left."""
    assert callable(model)
    source = onnx.version_converter.convert_version(model(), opset)
    float_model = normal(source, shape)
    placed, rows = place(float_model, QuantizeOptions()), rows_of(shape)
    errors = means(float_model, placed, 2.0, rows)
    assert len(errors) == corrected
    mended = bias_correction.correct(
        float_model, placed, {name: np.asarray(v, np.float64) for name, v in errors.items()}
    )
    index, before = GraphIndex(mended.graph), GraphIndex(float_model.graph)
    nodes = {node.name: node for node in mended.graph.node}
    old = {node.name: node for node in float_model.graph.node}
    for layer in placed.layers:
        error = errors.get(bias_correction.mean_output(layer.node))
        if error is None:
            continue
        change = constant_array(before, old[layer.node].input[2]).astype(np.float64)
        change = change - constant_array(index, nodes[layer.node].input[2]).astype(np.float64)
        assert np.abs(error).max() > 0
        np.testing.assert_allclose(change, error, atol=1e-6)


def test_a_matmul_is_corrected_in_the_addition_behind_it() -> None:
    """Transformers write their biases as an Add of a constant."""
    g = GraphWriter()
    first = g.matmul("x", "first", (8, 8))
    middle = g.node("Add", [g.matmul(first, "middle", (8, 8)), g.random("bias", 8)], "added")
    g.matmul(middle, "last", (8, 3))
    model = normal(g.model({"x": ["n", 8]}, {"last_out": ["n", 3]}), (8,))
    placed = place(model, QuantizeOptions())
    name = bias_correction.mean_output("middle")
    mended = bias_correction.correct(model, placed, {name: np.full(8, 0.25)})
    index = GraphIndex(mended.graph)
    added = next(node for node in mended.graph.node if node.name == "added")
    found = constant_array(index, added.input[1]).astype(np.float64)
    wanted = constant_array(GraphIndex(model.graph), "bias").astype(np.float64) - 0.25
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def uneven() -> onnx.ModelProto:
    """A chain in which one channel is 500 times as large as the others."""
    g = GraphWriter(seed=5)
    first = g.node("Relu", [g.conv("x", "first", (3, 8))])
    big = np.ones((8, 8, 3, 3), np.float32) * g.rng.normal(size=(8, 8, 3, 3)).astype(np.float32)
    big[0] *= 500
    made = g.node("Conv", [first, g.constant("big_w", big)], "big", pads=[1, 1, 1, 1])
    body = g.conv(g.node("Relu", [made]), "body", (8, 8))
    g.conv(g.node("Relu", [body]), "last", (8, 2))
    return g.model({"x": ["n", 3, 6, 6]}, {"last_out": ["n", 2, 6, 6]})


def test_equalising_keeps_the_function_to_the_bit_and_evens_the_channels() -> None:
    """Factors are powers of two: float outputs are identical, ranges are nearer to each other."""
    model, rows = normal(uneven(), (3, 6, 6)), rows_of((3, 6, 6))
    placed = place(model, QuantizeOptions())
    places = equalise.seams(model, placed)
    assert [seam.maker for seam in places] == ["first", "big"]

    def maxima(of: onnx.ModelProto) -> dict[str, npt.NDArray[np.float64]]:
        graph = FloatGraph(equalise.maxima_graph(of, places).SerializeToString())
        names = [equalise.maximum_of(seam) for seam in places]
        return equalise.channel_maxima(lambda batch: graph.run(batch, names), [{"x": rows}])

    before = maxima(model)
    evened = equalise.equalise(model, places, before)
    name = equalise.maximum_of(places[1])
    after = maxima(evened)[name]
    assert after.max() / np.median(after) < 0.25 * before[name].max() / np.median(before[name])
    wanted, found = (
        np.asarray(FloatGraph(item.SerializeToString()).run({"x": rows})["last_out"], np.float32)
        for item in (model, evened)
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-5)


def test_factors_are_powers_of_two_and_leave_dead_channels_alone() -> None:
    """Zero on either side says nothing of a channel."""
    found = equalise.factors_of(np.array([100.0, 1.0, 0.0, 4.0]), np.array([1.0, 1.0, 1.0, 0.0]))
    assert np.array_equal(np.exp2(np.rint(np.log2(found))), found)
    assert found[0] > found[1]
    assert found[2] == found[3] == 1


def test_a_tensor_that_something_else_reads_is_no_seam() -> None:
    """What a residual addition reads too keeps its channels as they are."""
    model = normal(residual_net(), (4, 8, 8))
    makers = {seam.maker for seam in equalise.seams(model, place(model, QuantizeOptions()))}
    assert "stem" not in makers
    assert "identity_a" in makers
