"""A graph with observers tells what the whole activation would have told."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edged.build.normalise import normalise
from edged.build.observe import MOST_VALUES, observe, thin, with_observers
from edged.build.onnx_graph import load_model
from edged.runners.onnx import FloatGraph
from tests.doubles.onnx_models import GraphWriter, residual_net


def wide_graph() -> tuple[bytes, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """One activation of 3 * 80 * 80 values a sample, and two samples."""
    g = GraphWriter()
    g.node("Neg", ["x"], "turned")
    model = g.model({"x": ["batch", 3, 80, 80]}, {"turned_out": ["batch", 3, 80, 80]})
    rows = np.random.default_rng(0).normal(size=(2, 3, 80, 80)).astype(np.float32)
    return model.SerializeToString(), rows


def test_a_large_activation_is_thinned_and_its_extremes_are_exact() -> None:
    """At most so many values of a sample leave the graph; the largest magnitude is that of all."""
    data, rows = wide_graph()
    rows[1, 2, 7, 9] = 50.0
    model = normalise(load_model(data), {"x": (3, 80, 80)})
    observed = with_observers(model, ["turned_out"])
    assert observed.whole == ()
    found = observed.observed(FloatGraph(observed.model).run({"x": rows}, observed.outputs))
    seen = found["turned_out"]
    assert seen.largest == 50.0
    assert len(seen.values) == 2
    assert MOST_VALUES // 2 <= seen.values[0].size <= MOST_VALUES
    assert np.array_equal(seen.values, -rows[:, :, :, ::3])


def test_an_activation_that_is_no_image_is_thinned_likewise() -> None:
    """Rows of a transformer, for example: a regular sample, and exact extremes."""
    g = GraphWriter()
    g.node("Neg", ["x"], "turned")
    model = g.model({"x": ["batch", 240, 800]}, {"turned_out": ["batch", 240, 800]})
    rows = np.random.default_rng(0).normal(size=(2, 240, 800)).astype(np.float32)
    rows[0, 100, 3] = -40.0
    observed = with_observers(normalise(model, {"x": (240, 800)}), ["turned_out"])
    assert observed.pooled == frozenset()
    found = observed.observed(FloatGraph(observed.model).run({"x": rows}, observed.outputs))
    assert found["turned_out"].largest == 40.0
    assert np.array_equal(found["turned_out"].values, thin(-rows))


def test_an_image_behind_relu_is_not_squared() -> None:
    """Its magnitudes are its values, which saves a pass over them."""
    g = GraphWriter()
    g.node("Relu", ["x"], "cut")
    model = g.model({"x": ["batch", 3, 80, 80]}, {"cut_out": ["batch", 3, 80, 80]})
    rows = np.random.default_rng(0).normal(size=(2, 3, 80, 80)).astype(np.float32)
    observed = with_observers(normalise(model, {"x": (3, 80, 80)}), ["cut_out"])
    assert observed.pooled == frozenset({"cut_out"})
    assert observed.squared == frozenset()
    found = observed.observed(FloatGraph(observed.model).run({"x": rows}, observed.outputs))
    assert found["cut_out"].largest == rows.max()


def test_the_sample_reaches_every_channel_row_and_column() -> None:
    """The step shares no factor with an axis, so no column is passed over."""
    position = np.arange(3 * 80 * 80, dtype=np.float32).reshape(1, 3, 80, 80)
    taken = thin(position)[0].astype(np.int64)
    for size, stride in ((80, 1), (80, 80), (3, 6400)):
        assert len(np.unique(taken // stride % size)) == size


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_value_that_is_not_finite_is_told_wherever_it_lies(bad: float) -> None:
    """NaN and infinity are seen although their value is not among those that are taken."""
    data, rows = wide_graph()
    rows[0, 1, 1, 1] = bad
    observed = with_observers(normalise(load_model(data), {"x": (3, 80, 80)}), ["turned_out"])
    found = observed.observed(FloatGraph(observed.model).run({"x": rows}, observed.outputs))
    assert not math.isfinite(found["turned_out"].largest)


def test_small_activations_are_given_out_whole() -> None:
    """Nothing is thinned that fits."""
    model = normalise(load_model(residual_net().SerializeToString()), {"x": (4, 8, 8)})
    observed = with_observers(model, ["stem_out"])
    assert observed.whole == ("stem_out",)
    rows = np.ones((2, 4, 8, 8), np.float32)
    values = FloatGraph(observed.model).run({"x": rows}, observed.outputs)
    assert observed.observed(values)["stem_out"].largest == np.abs(values["stem_out"]).max()


def test_an_empty_activation_is_observed_as_nothing() -> None:
    """No values: no magnitude."""
    assert observe(np.zeros((0, 3), np.float32)).largest == 0
