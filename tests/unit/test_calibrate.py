"""Histograms and thresholds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from edged.build.calibrate import CANDIDATES, Array, collect, settle
from edged.build.histogram import BINS, Histogram, NotFiniteError
from edged.build.observe import Observed, observe
from edged.build.ranges import Ranges, Sources, TensorRange
from edged.build.thresholds import Method, divergence, threshold
from edged.build.thresholds import tensor_range as described
from edged.build_options import CalibrateOptions
from edged.errors import BuildError

SOURCES = Sources(model="", dataset="", preprocessing="")
MSE = CalibrateOptions(method="mse")


def tensor_range(found: Histogram, method: Method = "mse") -> TensorRange:
    """Threshold and summary by a method."""
    return described(found, threshold(found, method))


def histogram(*arrays: Array) -> Histogram:
    """A histogram of these arrays."""
    found = Histogram()
    for values in arrays:
        found.add(values)
    return found


def heavy_tailed(count: int = 200_000) -> Array:
    """Values with rare large ones."""
    return np.random.default_rng(0).standard_t(3, count).astype(np.float32)


def squared_error(values: Array, top: float) -> float:
    """Mean squared error of symmetric INT8, by doing it."""
    step = top / 127
    exact = np.asarray(values, np.float64)
    return float(np.mean((exact - np.clip(np.rint(exact / step), -127, 127) * step) ** 2))


def test_empty_arrays_are_counted_as_nothing() -> None:
    """An array without entries changes nothing."""
    assert histogram(np.zeros((0, 3), np.float32)).total == 0


def test_range_doubles_and_keeps_every_count() -> None:
    """A larger value merges bins; no count is lost and the range is the next power of two."""
    found = histogram(np.full(10, 0.9, np.float32), np.array([5.0], np.float32))
    assert (found.exponent, found.total, found.amax) == (3, 11, 5.0)
    assert found.counts[int(0.9 / found.width)] == 10


def test_range_may_grow_beyond_all_bins() -> None:
    """Values that are smaller than a bin of the new range all fall into its first bin."""
    found = histogram(np.full(7, 1e-20, np.float32), np.array([1e20], np.float32))
    assert found.counts[0] == 7
    assert found.total == 8


def test_denormal_and_largest_values_have_a_bin() -> None:
    """The whole range of float32 is counted without overflow."""
    tiny, huge = np.float32(1e-45), np.finfo(np.float32).max
    found = histogram(np.array([tiny, huge, -huge], np.float32))
    assert found.total == 3
    assert tensor_range(found).threshold > 0


def test_zeros_are_counted_apart() -> None:
    """Zeros are no signal, but count for percentiles and for the summary."""
    found = histogram(np.array([0, 0, 0, -2], np.float32))
    assert (found.zeros, found.quantile(0.5)) == (3, 0.0)
    assert tensor_range(found).zeros == 0.75


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_with_their_number(bad: float) -> None:
    """NaN and infinities never reach a histogram."""
    with pytest.raises(NotFiniteError, match="1 of 3 values"):
        histogram(np.array([1, bad, 2], np.float32))


def test_minmax_is_the_largest_magnitude() -> None:
    """The sign does not count."""
    found = histogram(np.array([1, -3], np.float32))
    assert threshold(found, "minmax") == 3.0


@pytest.mark.parametrize("percentile", [99.0, 99.9, 99.99])
def test_percentile_is_that_of_the_values_within_a_bin(percentile: float) -> None:
    """The histogram's percentile is numpy's, up to the width of one bin."""
    values = heavy_tailed()
    found = histogram(values)
    exact = float(np.percentile(np.abs(values), percentile))
    assert threshold(found, "percentile", percentile) == pytest.approx(exact, abs=found.width)


def test_percentile_below_the_first_value_falls_back_to_the_largest() -> None:
    """Where almost everything is zero a percentile would be zero, which is no threshold."""
    values = np.zeros(100, np.float32)
    values[0] = 4
    assert threshold(histogram(values), "percentile", 60) == 4.0


def test_mse_threshold_has_the_smallest_real_error() -> None:
    """On heavy tails the chosen threshold beats the largest magnitude and every other one tried."""
    values = heavy_tailed()
    chosen = threshold(histogram(values), "mse")
    tried = np.abs(values).max() * np.linspace(0.1, 1, 60)
    best = min(squared_error(values, float(top)) for top in tried)
    assert squared_error(values, chosen) <= best * 1.03
    assert squared_error(values, chosen) < squared_error(values, float(np.abs(values).max())) * 0.7


def test_mse_keeps_the_range_where_nothing_is_to_be_clipped() -> None:
    """Evenly spread values are not clipped."""
    values = np.linspace(-1.9, 1.9, 50_001, dtype=np.float32)
    assert threshold(histogram(values), "mse") == pytest.approx(1.9, rel=0.01)


def test_a_single_value_is_its_own_range() -> None:
    """A constant tensor is represented exactly."""
    found = tensor_range(histogram(np.full(5, 0.3, np.float32)))
    assert found.threshold == pytest.approx(0.3, rel=1e-4)
    assert found.clipped == 0


def test_summary_tells_what_is_clipped_and_the_noise() -> None:
    """The share above the threshold and the tensor's SQNR are those of the values."""
    values = heavy_tailed()
    found = tensor_range(histogram(values))
    exact = float(np.mean(np.abs(values) > found.threshold))
    assert found.clipped == pytest.approx(exact, abs=1e-4)
    signal = float(np.mean(values.astype(np.float64) ** 2))
    sqnr = 10 * np.log10(signal / squared_error(values, found.threshold))
    assert found.sqnr_db == pytest.approx(sqnr, abs=0.3)


# ------------------------------------------------------------------ the loop


def doubled(batch: Mapping[str, Array]) -> dict[str, Observed]:
    """A float graph with one activation, ``y = 2 x``."""
    return {"y": observe(np.asarray(batch["x"], np.float32) * np.float32(2))}


def no_score(_ranges: Mapping[str, TensorRange]) -> float:
    """For methods that need none."""
    raise AssertionError("not to be called")


def run(values: Array, tensors: list[str], batch: int = 4) -> Ranges:
    """Calibrates `doubled` on the rows of ``values``."""
    batches: Iterator[dict[str, Array]] = (
        {"x": values[at : at + batch]} for at in range(0, len(values), batch)
    )
    return settle(collect(doubled, batches, tensors), MSE, SOURCES, no_score)


def test_inputs_and_activations_get_ranges() -> None:
    """A model input is calibrated from the batch, an activation from the graph."""
    values = np.random.default_rng(1).normal(size=(10, 3)).astype(np.float32)
    found = run(values, ["x", "y"])
    assert found.samples == 10
    assert found.tensors["y"].amax == pytest.approx(2 * found.tensors["x"].amax, rel=1e-4)


def test_batch_size_does_not_change_the_ranges() -> None:
    """The same samples give the same file, however they are batched."""
    values = np.random.default_rng(1).normal(size=(50, 3)).astype(np.float32)
    assert run(values, ["y"], batch=1) == run(values, ["y"], batch=50)


def test_no_samples_are_refused() -> None:
    """An empty split cannot be calibrated on."""
    with pytest.raises(BuildError, match="has no samples"):
        run(np.zeros((0, 3), np.float32), ["y"])


def test_activation_that_is_never_but_zero_is_refused_with_its_name() -> None:
    """A dead layer has no range; the message says which tensor and what to do."""
    with pytest.raises(BuildError, match="'y' has no range: all of its 30 values are zero"):
        run(np.zeros((10, 3), np.float32), ["y"])


def test_activation_that_overflows_is_refused_with_its_samples() -> None:
    """Infinity in the float model is named with tensor and samples."""
    values = np.ones((10, 3), np.float32)
    values[5] = np.inf
    with pytest.raises(BuildError, match=r"'y': at least one value is NaN .* in samples 4 to 7"):
        run(values, ["y"])


def test_answers_that_are_not_finite_are_refused_with_their_samples() -> None:
    """They show NaN that no observer of the activations came across."""
    rows = np.ones((4, 3), np.float32)
    found = {"y": observe(rows), "answer": observe(rows * np.float32(np.nan))}
    with pytest.raises(BuildError, match=r"output 'answer' .* NaN or an infinity, in samples 0 to"):
        collect(lambda _batch: dict(found), [{"x": rows}], ["y"])


def test_activation_of_another_type_is_refused() -> None:
    """Only float32 activations are calibrated."""
    with pytest.raises(BuildError, match="'x' is int64"):
        run(np.ones((4, 3), np.int64), ["x"])


def test_samples_are_streamed() -> None:
    """Only one batch is alive at a time: memory does not grow with the number of samples."""
    alive = 0

    class Batch(dict[str, Array]):
        def __init__(self) -> None:
            nonlocal alive
            super().__init__(x=np.ones((4, BINS), np.float32))
            alive += 1
            most.append(alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    most: list[int] = []
    collect(doubled, (Batch() for _ in range(20)), ["y"])
    assert max(most) <= 2  # the one in hand, and the next one while it is being made


# ------------------------------------------------------------------ entropy and auto


def test_entropy_clips_a_lone_outlier_and_minmax_does_not() -> None:
    """One value far away from all others is not worth their resolution."""
    values = np.append(np.random.default_rng(2).normal(size=100_000), 60.0).astype(np.float32)
    found = histogram(values)
    assert threshold(found, "minmax") == 60.0
    assert threshold(found, "entropy") < 20


def test_entropy_sees_that_levels_are_coarser_than_bins() -> None:
    """The trap of too few bins: the whole range is not free, as it would be with a bin a level."""
    found = histogram(heavy_tailed())
    assert divergence(found, found.amax) > 0.01


def test_entropy_measures_the_distributions_that_it_says() -> None:
    """The divergence is that of a plain loop over the bins."""
    found = histogram(heavy_tailed(20_000))
    top = 700 * found.width
    reference = found.counts[:700].astype(np.float64)
    inside = reference.copy()
    reference[-1] += found.counts[700:].sum()
    levels: dict[int, list[int]] = {}
    for at in range(700):
        if reference[at] > 0:
            level = min(127, round((at + 0.5) * found.width / (top / 127)))
            levels.setdefault(level, []).append(at)
    quantized = np.zeros(700)
    for bins in levels.values():
        quantized[bins] = inside[bins].sum() / len(bins)
    p, q = reference / reference.sum(), quantized / quantized.sum()
    q = (1 - 1e-6) * q + 1e-6 * (p > 0) / (p > 0).sum()
    seen = p > 0
    plain = float((p[seen] * np.log(p[seen] / q[seen])).sum())
    assert divergence(found, top) == pytest.approx(plain, abs=1e-3)


def test_auto_takes_the_method_with_the_best_score_and_says_so() -> None:
    """Every candidate is scored once on its own ranges; ranges.json names the winner."""
    values = heavy_tailed(40_000).reshape(-1, 4)
    seen = collect(doubled, [{"x": values}], ["y"])
    wanted = threshold(seen.histograms["y"], "percentile", 99.99)
    found = settle(
        seen,
        CalibrateOptions(method="auto"),
        SOURCES,
        lambda ranges: -abs(ranges["y"].threshold - wanted),
    )
    assert found.chosen == "percentile 99.99"
    assert set(found.scores) == set(CANDIDATES)
    assert found.thresholds()["y"] == pytest.approx(wanted, rel=1e-4)


def test_lost_is_the_share_that_becomes_zero() -> None:
    """Values below half a step are told, as those of a spectrogram would be."""
    values = np.append(np.full(900, 1e-4), np.full(100, 1.0)).astype(np.float32)
    assert tensor_range(histogram(values), "minmax").lost == pytest.approx(0.9)
