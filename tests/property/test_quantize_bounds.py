"""What quantization promises, for any numbers: histograms, thresholds, weights, whole graphs."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from edged.build.histogram import Histogram
from edged.build.normalise import normalise
from edged.build.onnx_graph import GraphIndex, load_model
from edged.build.placement import LinearLayer, place
from edged.build.quantize import quantize, weight_scale
from edged.build.ranges import Ranges, Sources, TensorRange, parse_ranges
from edged.build.thresholds import Method, tensor_range, threshold
from edged.build_options import QuantizeOptions
from edged.runners.onnx import FloatGraph
from tests.doubles.onnx_models import GraphWriter

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=True)
VALUES = hnp.arrays(np.float32, st.integers(1, 60), elements=FINITE)
METHODS: st.SearchStrategy[Method] = st.sampled_from(["mse", "minmax", "percentile", "entropy"])
MODERATE = st.floats(width=32, min_value=-1000, max_value=1000)


def histogram(values: npt.NDArray[np.float32]) -> Histogram:
    """All values at once."""
    found = Histogram()
    found.add(values)
    return found


@settings(max_examples=100, deadline=None)
@given(values=VALUES, data=st.data())
def test_order_and_batching_do_not_change_a_histogram(
    values: npt.NDArray[np.float32], data: st.DataObject
) -> None:
    """Any order in any pieces gives the same counts: ranges depend on the samples only."""
    whole = histogram(values)
    shuffled = values[data.draw(st.permutations(range(values.size)))]
    cuts = sorted(data.draw(st.sets(st.integers(0, values.size), max_size=4)))
    pieces = Histogram()
    for start, stop in pairwise([0, *cuts, values.size]):
        pieces.add(shuffled[start:stop])
    assert np.array_equal(pieces.counts, whole.counts)
    assert (pieces.exponent, pieces.zeros, pieces.amax) == (whole.exponent, whole.zeros, whole.amax)
    assert whole.total == values.size


@settings(max_examples=100, deadline=None)
@given(values=VALUES.filter(lambda v: np.abs(v).max() > 1e-30), method=METHODS)
def test_threshold_is_positive_and_never_above_the_largest_value(
    values: npt.NDArray[np.float32], method: Method
) -> None:
    """A range wider than what was seen would waste levels; one of zero would divide by zero."""
    found = histogram(values)
    chosen = threshold(found, method, 99)
    assert 0 < chosen <= found.amax
    described = tensor_range(found, chosen)
    assert 0 <= described.clipped <= 1
    assert 0 <= described.zeros <= 1


@settings(max_examples=100, deadline=None)
@given(values=VALUES.filter(lambda v: np.abs(v).max() > 1e-30))
def test_mse_is_never_expected_to_be_worse_than_minmax(values: npt.NDArray[np.float32]) -> None:
    """The largest magnitude is among the thresholds that are tried."""
    found = histogram(values)
    chosen = threshold(found, "mse")
    errors = found.noise(np.array([chosen, found.amax]))
    assert errors[0] <= errors[1]


@settings(max_examples=100, deadline=None)
@given(
    weight=hnp.arrays(
        np.float32, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=MODERATE
    ),
    axis=st.integers(0, 1),
)
def test_weights_keep_within_half_a_step_of_their_channel(
    weight: npt.NDArray[np.float32], axis: int
) -> None:
    """By minmax, rounding is the only error of a weight, whatever its channel's size."""
    graph = helper.make_graph([], "g", [], [], [numpy_helper.from_array(weight, "w")])
    scale = weight_scale(GraphIndex(graph), LinearLayer("n", "Gemm", "x", "w", axis), "minmax")
    assert scale.shape == (weight.shape[axis],)
    steps = np.expand_dims(scale, 1 - axis).astype(np.float64)
    levels = np.clip(np.rint(weight / steps), -128, 127)
    assert np.all(np.abs(levels * steps - weight) <= steps / 2 * (1 + 1e-5) + 1e-37)


@settings(max_examples=50, deadline=None)
@given(
    weight=hnp.arrays(
        np.float32, st.tuples(st.integers(1, 5), st.integers(1, 40)), elements=MODERATE
    )
)
def test_mse_scales_of_weights_are_never_worse_than_minmax(
    weight: npt.NDArray[np.float32],
) -> None:
    """The largest weight is among the scales that are tried, for each channel by itself."""
    graph = helper.make_graph([], "g", [], [], [numpy_helper.from_array(weight, "w")])
    index, layer = GraphIndex(graph), LinearLayer("n", "Conv", "x", "w", 0)

    def errors(scale: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
        steps = scale.astype(np.float64)[:, None]
        found = np.clip(np.rint(weight / steps), -128, 127) * steps
        return np.asarray(np.square(found - weight).sum(axis=1), np.float64)

    best, plain = errors(weight_scale(index, layer)), errors(weight_scale(index, layer, "minmax"))
    assert np.all(best <= plain * (1 + 1e-4) + 1e-30)


@st.composite
def chains(draw: st.DrawFn) -> onnx.ModelProto:
    """Gemm, MatMul and Relu in a chain, with residual additions here and there."""
    g = GraphWriter(seed=draw(st.integers(0, 99)))
    tensors = ["x"]
    for number in range(draw(st.integers(3, 7))):
        kind = draw(st.sampled_from(["gemm", "plain", "matmul", "relu", "add"]))
        last = tensors[-1]
        if kind == "gemm" or number == 0:
            made = g.gemm(last, f"layer{number}", (8, 8))
        elif kind == "plain":
            made = g.gemm(last, f"layer{number}", (8, 8), trans_b=False)
        elif kind == "matmul":
            made = g.matmul(last, f"layer{number}", (8, 8))
        elif kind == "relu":
            made = g.node("Relu", [last])
        else:
            made = g.node("Add", [last, draw(st.sampled_from(tensors))])
        tensors.append(made)
    middle = g.gemm(tensors[-1], "middle", (8, 8))
    output = g.gemm(middle, "last", (8, 4))
    return g.model({"x": ["n", 8]}, {output: ["n", 4]})


@settings(max_examples=40, deadline=None)
@given(model=chains())
def test_any_chain_quantizes_to_a_graph_that_runs_and_stays_close(model: onnx.ModelProto) -> None:
    """Q/DQ is valid for ONNX Runtime, keeps the names, counts add up, and outputs stay close."""
    normal = normalise(load_model(model.SerializeToString()), {"x": (8,)})
    placement = place(normal, QuantizeOptions())
    inner = sorted(placement.tensors - {"x"})
    rows = np.random.default_rng(0).normal(size=(32, 8)).astype(np.float32)
    exposed = onnx.ModelProto()
    exposed.CopyFrom(normal)
    exposed.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in inner
        if name not in {item.name for item in exposed.graph.output}
    )
    seen = FloatGraph(exposed.SerializeToString()).run({"x": rows}) | {"x": rows}
    thresholds = {name: float(np.abs(seen[name]).max()) or 1.0 for name in placement.tensors}
    data = quantize(normal, placement, thresholds)
    made = onnx.load_from_string(data)
    pairs = sum(node.op_type == "QuantizeLinear" for node in made.graph.node)
    weights = {layer.weight for layer in placement.layers}
    assert pairs == len(placement.tensors) + len(weights)
    (wanted,) = FloatGraph(model.SerializeToString()).run({"x": rows}).values()
    (found,) = FloatGraph(data).run({"x": rows}).values()
    # One layer's relative error is about 1 %; it adds up over at most eight of them.
    error = np.subtract(found, wanted, dtype=np.float32, casting="unsafe")
    assert np.linalg.norm(error) <= 0.15 * np.linalg.norm(wanted) + 1e-6


RANGE = st.builds(
    TensorRange,
    **{
        name: st.floats(1e-30, 1e30)
        for name in ("threshold", "amax", "p50", "p99", "p99_9", "zeros", "clipped", "sqnr_db")
    },
)


@settings(max_examples=100, deadline=None)
@given(tensors=st.dictionaries(st.text(), RANGE, max_size=4), samples=st.integers(0, 10**6))
def test_any_ranges_survive_the_file(tensors: dict[str, TensorRange], samples: int) -> None:
    """Tensor names may be anything; the text is read back to the same ranges."""
    sources = Sources(model="a", dataset="b", preprocessing="c")
    known = Ranges(sources=sources, method="mse", samples=samples, tensors=tensors)
    assert parse_ranges(known.to_json()) == known
    assert parse_ranges(known.to_json()).to_json() == known.to_json()
