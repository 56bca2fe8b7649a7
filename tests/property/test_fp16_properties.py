"""FP16 conversion of random graphs: valid, finite, close, and FP32 at the borders."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
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
WITH_CONSTANT = ("constant Add", "constant Mul")
MAGNITUDES = (1e-12, 1e-5, 0.1, 1.0, 30.0, 1e4, 1e6)

Floats = npt.NDArray[np.float64]
Step = tuple[str, int, int, float]


@st.composite
def steps(draw: st.DrawFn) -> list[Step]:
    """Operators with what they read: any earlier tensor, or a constant of any size."""
    chosen = []
    for count in range(1, draw(st.integers(1, 8)) + 1):
        operator = draw(st.sampled_from((*UNARY, *BINARY, *WITH_CONSTANT)))
        first, second = (draw(st.integers(0, count - 1)) for _ in range(2))
        chosen.append((operator, first, second, draw(st.sampled_from(MAGNITUDES))))
    return chosen


def written(chosen: list[Step]) -> onnx.ModelProto:
    """The graph: x [batch, 4] -> the last tensor."""
    g = GraphWriter(seed=11)
    tensors = ["x"]
    for number, (operator, first, second, magnitude) in enumerate(chosen):
        sources = [tensors[first]]
        if operator.startswith("constant "):
            value = g.rng.uniform(0.5, 1.0, WIDTH).astype(np.float32) * np.float32(magnitude)
            sources.append(g.constant(f"c{number}", value))
        elif operator in BINARY:
            sources.append(tensors[second])
        tensors.append(g.node(operator.removeprefix("constant "), sources, f"n{number}"))
    return g.model({"x": ["batch", WIDTH]}, {tensors[-1]: ["batch", WIDTH]})


def converted(model: onnx.ModelProto) -> tuple[Floats, Floats, dict[str, float]]:
    """Answers in FP32 and in FP16, and the peaks."""
    names = activations(model)
    feeds = {"x": np.random.default_rng(5).normal(size=(32, WIDTH)).astype(np.float32)}
    graph = FloatGraph(with_outputs(model, names))
    peaks = find_peaks(lambda batch: graph.run(batch, names), [feeds])
    half = to_half(model, peaks)
    made = onnx.load_from_string(half.model).graph
    borders = {item.type.tensor_type.elem_type for item in (*made.input, *made.output)}
    assert borders == {TensorProto.FLOAT}
    (wanted,), (found,) = (
        FloatGraph(data).run(feeds).values() for data in (model.SerializeToString(), half.model)
    )
    return np.asarray(wanted, np.float64), np.asarray(found, np.float64), peaks


@settings(max_examples=50)
@given(steps())
def test_random_graph_stays_finite_and_close(chosen: list[Step]) -> None:
    """Whatever is joined with whatever: a valid graph whose answers are finite and near FP32's."""
    wanted, found, peaks = converted(written(chosen))
    assert np.isfinite(found).all()
    # Differences of near-equal values lose digits in any precision: the largest operand counts,
    # and a product passes on the error of one factor times the other one.
    scale = max(peaks.values())
    assert np.abs(wanted - found).max() <= 2**-10 * len(chosen) * max(scale, scale**2)


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["Neg", "Abs", "Identity", "constant Mul"]),
            st.sampled_from(MAGNITUDES),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_chain_of_products_keeps_its_relative_error(chain: list[tuple[str, float]]) -> None:
    """Nothing is flushed to zero and nothing overflows, however small or large it gets."""
    chosen = [(operator, at, 0, magnitude) for at, (operator, magnitude) in enumerate(chain)]
    wanted, found, _ = converted(written(chosen))
    largest = np.abs(wanted).max()
    # Below 1e-30 FP32 itself runs out.
    if largest > 1e-30:
        assert np.abs(wanted - found).max() <= 2**-10 * (len(chain) + 1) * largest
