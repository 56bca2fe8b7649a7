"""A histogram -> the magnitude that becomes 127, by one of the methods. Pure."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from edged.build.histogram import LEVELS, Floats, Histogram
from edged.build.ranges import TensorRange

Method = Literal["mse", "percentile", "minmax", "entropy"]

# With fewer bins under the threshold than levels, a bin would span several quantization steps and
# its centre would say nothing about the rounding error.
_LOWEST_EDGE = LEVELS + 1
_EDGE_STEP = 8  # thresholds are tried at every 8th bin edge: under 0.8 % of the largest magnitude
_SMOOTHING = 1e-6  # of the probability, spread evenly: a divergence must not be infinite


def threshold(histogram: Histogram, method: Method, percentile: float = 99.99) -> float:
    """The magnitude that becomes 127.

    ``minmax``: the largest magnitude. ``percentile``: that share of all values lies below.
    ``mse``: of the bin edges from the 128th on, and the largest magnitude, the one with the
    smallest expected squared error. ``entropy``: of the same ones, the one with the smallest
    Kullback-Leibler divergence between the values' distribution and that of the quantized ones.

    Args:
        histogram: at least one value in it is not zero.
        method: how.
        percentile: for ``percentile``, 50 to 100.
    """
    if method == "minmax":
        return histogram.amax
    if method == "percentile":
        return histogram.quantile(percentile / 100) or histogram.amax
    candidates = _candidates(histogram)
    if method == "mse":
        return float(candidates[int(np.argmin(histogram.noise(candidates)))])
    divergences = [divergence(histogram, float(top)) for top in candidates]
    # The largest of equals: clipping has to gain something.
    best = min(divergences)
    return float(max(top for top, d in zip(candidates, divergences, strict=True) if d <= best))


def _candidates(histogram: Histogram) -> Floats:
    used = np.flatnonzero(histogram.counts)
    last = int(used[-1]) if used.size else 0
    edges = np.arange(_LOWEST_EDGE, last + 1, _EDGE_STEP) * histogram.width
    return np.append(edges[edges < histogram.amax], histogram.amax)


def divergence(histogram: Histogram, top: float) -> float:
    """``KL(P || Q)`` in nats of clipping at ``top`` and rounding to INT8.

    ``P`` is the distribution of magnitudes with everything above ``top`` in its last bin, ``Q``
    what is left of it after quantization: the mass of each level, clipped values left out, spread
    evenly over the bins that it came from and that are not empty. The bins are finer than the
    levels (that is what is measured: with as many levels as bins the divergence is zero for the
    whole range, and the method is ``minmax`` by another name), and zeros are in neither, since
    they are exact at any threshold.
    """
    bins = min(len(histogram.counts), math.ceil(top / histogram.width - 1e-9))
    inside = histogram.counts[:bins].astype(np.float64)
    reference = inside.copy()
    reference[-1] += float(histogram.counts[bins:].sum())
    if not inside.any():
        return math.inf
    centres = (np.arange(bins) + 0.5) * histogram.width
    level = np.minimum(np.rint(centres / (top / LEVELS)), LEVELS).astype(np.intp)
    mass = np.bincount(level, inside, LEVELS + 1)
    # Bins with something in them; the last one counts in P and so has to be able to count in Q.
    filled = (reference > 0).astype(np.float64)
    spread = np.bincount(level, filled, LEVELS + 1)
    quantized = filled * (mass / np.maximum(spread, 1))[level]
    p = reference / reference.sum()
    q = (1 - _SMOOTHING) * quantized / quantized.sum() + _SMOOTHING * filled / filled.sum()
    seen = p > 0
    return float((p[seen] * np.log(p[seen] / q[seen])).sum())


def tensor_range(histogram: Histogram, chosen: float) -> TensorRange:
    """A threshold and the summary of the histogram, in which not every value is zero."""
    above = histogram.counts[math.ceil(chosen / histogram.width) :].sum()
    return TensorRange(
        threshold=chosen,
        amax=histogram.amax,
        p50=histogram.quantile(0.5),
        p99=histogram.quantile(0.99),
        p99_9=histogram.quantile(0.999),
        zeros=histogram.zeros / histogram.total,
        clipped=float(above) / histogram.total,
        lost=histogram.lost(chosen),
        sqnr_db=histogram.sqnr_db(chosen),
    )
