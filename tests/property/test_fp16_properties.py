"""FP16 conversion of random graphs: valid, finite, close, and FP32 at the borders."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from edged.build.fp16 import activations, find_peaks, to_half
from edged.build.onnx_graph import with_outputs
from edged.runners.onnx import FloatGraph
from tests.doubles.onnx_models import GraphWriter

WIDTH = 4
UNARY = ("Relu", "Sigmoid", "Tanh", "Neg", "Identity", "Softmax", "Abs")
BINARY = ("Add", "Sub", "Max", "Mul")
WITH_CONSTANT = ("Add", "Mul")

Step = tuple[str, int, int, float]


@st.composite
def steps(draw: st.DrawFn) -> list[Step]:
    """Operators with what they read: any earlier tensor, or a constant of any size."""
    magnitudes = st.sampled_from([1e-12, 1e-5, 0.1, 1.0, 30.0, 1e4, 1e6])
    chosen = []
    for count in range(1, draw(st.integers(1, 8)) + 1):
        operator = draw(st.sampled_from((*UNARY, *BINARY, "constant")))
        first, second = (draw(st.integers(0, count - 1)) for _ in range(2))
        chosen.append((operator, first, second, draw(magnitudes)))
    return chosen


def written(chosen: list[Step]) -> onnx.ModelProto:
    """The graph: x [batch, 4] -> the last tensor."""
    g = GraphWriter(seed=11)
    tensors = ["x"]
    for number, (operator, first, second, magnitude) in enumerate(chosen):
        sources = [tensors[first]]
        if operator == "constant":
            value = g.rng.uniform(0.5, 1.0, WIDTH).astype(np.float32) * np.float32(magnitude)
            sources.append(g.constant(f"c{number}", value))
            operator = WITH_CONSTANT[number % 2]
        elif operator in BINARY:
            sources.append(tensors[second])
        tensors.append(g.node(operator, sources, f"n{number}"))
    return g.model({"x": ["batch", WIDTH]}, {tensors[-1]: ["batch", WIDTH]})


@settings(max_examples=50)
@given(steps())
def test_random_graph_stays_finite_and_close(chosen: list[Step]) -> None:
    """Whatever the magnitudes: every tensor is near its FP32 value, measured by its own peak."""
    model = written(chosen)
    names = activations(model)
    feeds = {"x": np.random.default_rng(5).normal(size=(32, WIDTH)).astype(np.float32)}
    graph = FloatGraph(with_outputs(model, names))
    peaks = find_peaks(lambda batch: graph.run(batch, names), [feeds])
    half = to_half(model, peaks)
    converted = onnx.load_from_string(half.model)
    borders = (*converted.graph.input, *converted.graph.output)
    assert {item.type.tensor_type.elem_type for item in borders} == {TensorProto.FLOAT}
    (wanted,), (found,) = (
        FloatGraph(data).run(feeds).values() for data in (model.SerializeToString(), half.model)
    )
    assert np.isfinite(np.asarray(found, np.float64)).all()
    # Differences of near-equal values lose digits in any precision: the largest operand counts.
    scale = max(peaks.values())
    error = np.abs(np.asarray(wanted, np.float64) - np.asarray(found, np.float64)).max()
    assert error <= 2**-10 * len(chosen) * max(scale, scale**2)
