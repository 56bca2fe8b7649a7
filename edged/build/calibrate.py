"""Calibration: samples through the float graph -> the range of each activation.

Histograms are streamed, so memory depends on one batch and on the number of tensors, not on the
number of samples. Everything but the loop in `calibrate` is pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edged.build.ranges import Ranges, Sources, TensorRange, percentile_of
from edged.errors import BuildError
from edged.recipe import CalibrateOptions

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float64]

BINS = 2048
LEVELS = 127
"""Positive levels of symmetric INT8."""

_CHUNK = 1 << 20  # values a step: bounds the temporary arrays to a few MB
_LOWEST_EXPONENT = -100  # ranges below 2^-100 are one: their reciprocal would overflow in float32
# With fewer bins under the threshold than levels, a bin would span several quantization steps and
# its centre would say nothing about the rounding error.
_LOWEST_EDGE = LEVELS + 1
_EDGE_STEP = 8  # thresholds are tried at every 8th bin edge: under 0.8 % of the largest magnitude


class NotFiniteError(ValueError):
    """An array holds NaN or an infinity."""


@dataclass
class Histogram:
    """Counts of ``|x|`` in 2048 equal bins from 0 to ``2 ** exponent``.

    The range is always a power of two and grows by whole factors of two, so that bins merge without
    splitting a count: the result does not depend on the order of the values or on how they were
    batched. At least half of the bins are in use.
    """

    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    exponent: int | None = None
    """None until a value other than zero was seen."""
    zeros: int = 0
    """Values that are exactly zero; they are in no bin, since no threshold harms them."""
    amax: float = 0.0

    def __repr__(self) -> str:
        return f"<Histogram {self.total} values, {self.zeros} zero, amax {self.amax:.5g}>"

    @property
    def total(self) -> int:
        """Number of values."""
        return self.zeros + int(self.counts.sum())

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(1.0, 0 if self.exponent is None else self.exponent) / BINS

    def add(self, values: Array) -> None:
        """Counts an array of any shape.

        Raises:
            NotFiniteError: a value is NaN or infinite.
        """
        flat = values.reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            self._add(np.abs(flat[start : start + _CHUNK].astype(np.float32, copy=False)))

    def _add(self, magnitudes: npt.NDArray[np.float32]) -> None:
        largest = float(magnitudes.max())
        if not math.isfinite(largest):
            bad = int(magnitudes.size - np.isfinite(magnitudes).sum())
            raise NotFiniteError(f"{bad} of {magnitudes.size} values are NaN or infinite")
        if largest == 0:
            self.zeros += magnitudes.size
            return
        self.amax = max(self.amax, largest)
        # frexp: largest < 2 ** exponent, so that no value falls on the upper end.
        exponent = self._grow(max(math.frexp(largest)[1], _LOWEST_EXPONENT))
        index = (magnitudes * np.float32(math.ldexp(BINS, -exponent))).astype(np.intp)
        found = np.bincount(index, minlength=BINS)
        zeros = magnitudes.size - int(np.count_nonzero(magnitudes))
        found[0] -= zeros
        self.zeros += zeros
        self.counts += found

    def _grow(self, exponent: int) -> int:
        if self.exponent is None:
            self.exponent = exponent
        shift = min(exponent - self.exponent, BINS.bit_length() - 1)
        if shift > 0:
            merged = self.counts.reshape(-1, 1 << shift).sum(axis=1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[: merged.size] = merged
            self.exponent = exponent
        return self.exponent

    def quantile(self, share: float) -> float:
        """Magnitude below which ``share`` (0 to 1) of all values lie, linear within a bin."""
        wanted = share * self.total - self.zeros
        if wanted <= 0:
            return 0.0
        cumulative = np.cumsum(self.counts)
        at = int(np.searchsorted(cumulative, wanted))
        if at >= BINS:
            return self.amax
        before = int(cumulative[at - 1]) if at else 0
        within = (wanted - before) / int(self.counts[at])
        return min(self.amax, (at + within) * self.width)

    def noise(self, thresholds: Floats) -> Floats:
        """Expected sum of squared INT8 errors for each threshold, from the bins' centres.

        Rounding error below the threshold and clipping error above it, in one: a centre ``c``
        becomes ``clip(round(c / step), 0, 127) * step`` with ``step = threshold / 127``.
        """
        used = np.flatnonzero(self.counts)
        centres = np.minimum((used + 0.5) * self.width, self.amax)
        steps = thresholds[:, None] / LEVELS
        error = centres - np.minimum(np.rint(centres / steps), LEVELS) * steps
        return np.asarray(np.square(error) @ self.counts[used].astype(np.float64))

    def sqnr_db(self, threshold: float) -> float:
        """Signal to quantization noise ratio in dB at one threshold; at most 200."""
        used = np.flatnonzero(self.counts)
        centres = np.minimum((used + 0.5) * self.width, self.amax)
        signal = float(np.square(centres) @ self.counts[used].astype(np.float64))
        noise = float(self.noise(np.array([threshold]))[0])
        return min(200.0, 10 * math.log10(signal / noise)) if noise > 0 else 200.0


def threshold(histogram: Histogram, options: CalibrateOptions) -> float:
    """The magnitude that becomes 127, by the recipe's method.

    ``minmax``: the largest magnitude. ``percentile``: that share of all values lies below.
    ``mse``: of the bin edges from the 128th on, and the largest magnitude, the one with the
    smallest expected squared error.

    Args:
        histogram: at least one value in it is not zero.
        options: method and percentile.
    """
    if options.method == "minmax":
        return histogram.amax
    if options.method == "percentile":
        return histogram.quantile(options.percentile / 100) or histogram.amax
    last = int(np.flatnonzero(histogram.counts)[-1])
    edges = np.arange(_LOWEST_EDGE, last + 1, _EDGE_STEP) * histogram.width
    candidates = np.append(edges[edges < histogram.amax], histogram.amax)
    return float(candidates[int(np.argmin(histogram.noise(candidates)))])


def tensor_range(histogram: Histogram, options: CalibrateOptions) -> TensorRange:
    """Threshold and summary of one tensor's histogram, in which not every value is zero."""
    chosen = threshold(histogram, options)
    above = histogram.counts[math.ceil(chosen / histogram.width) :].sum()
    return TensorRange(
        threshold=chosen,
        amax=histogram.amax,
        p50=histogram.quantile(0.5),
        p99=histogram.quantile(0.99),
        p99_9=histogram.quantile(0.999),
        zeros=histogram.zeros / histogram.total,
        clipped=float(above) / histogram.total,
        sqnr_db=histogram.sqnr_db(chosen),
    )


def calibrate(
    run: Callable[[Mapping[str, Array]], Mapping[str, Array]],
    batches: Iterable[Mapping[str, Array]],
    tensors: Sequence[str],
    options: CalibrateOptions,
    sources: Sources,
) -> Ranges:
    """Runs batches through the float graph and finds the range of each tensor.

    Args:
        run: the float graph: model inputs by name ``[n, *shape]`` -> the wanted tensors by name.
        batches: model inputs, already preprocessed.
        tensors: names of the wanted activations; a model input is taken from the batch itself.
        options: the recipe's.
        sources: digests that the ranges are bound to.

    Raises:
        BuildError: no samples, or a tensor is never anything but zero, or not finite, or not float.
    """
    histograms = {name: Histogram() for name in tensors}
    samples = 0
    for batch in batches:
        size = len(next(iter(batch.values())))
        _observe(histograms, {**batch, **run(batch)}, samples, size)
        samples += size
    if samples == 0:
        raise BuildError("the calibration split has no samples; add some to the dataset")
    return Ranges(
        sources=sources,
        method=options.method,
        percentile=percentile_of(options),
        samples=samples,
        tensors=_ranges(histograms, options, samples),
    )


def _observe(
    histograms: Mapping[str, Histogram], values: dict[str, Array], first: int, size: int
) -> None:
    for name, histogram in histograms.items():
        found = values.pop(name)  # frees the array before the next one is looked at
        if found.dtype != np.float32:
            raise BuildError(
                f"activation {name!r} is {found.dtype}, only float32 can be calibrated; "
                "exclude the layers that read it"
            )
        try:
            histogram.add(found)
        except NotFiniteError as err:
            raise BuildError(
                f"activation {name!r}: {err}, in samples {first} to {first + size - 1}; the float "
                "model overflows there: exclude the layers that read it, or mend the samples"
            ) from err


def _ranges(
    histograms: Mapping[str, Histogram], options: CalibrateOptions, samples: int
) -> dict[str, TensorRange]:
    for name, histogram in sorted(histograms.items()):
        if histogram.exponent is None:
            raise BuildError(
                f"activation {name!r} has no range: all of its {histogram.zeros} values are zero "
                f"in {samples} calibration samples; give samples that reach it, or exclude the "
                "layers that read it"
            )
    return {name: tensor_range(histograms[name], options) for name in sorted(histograms)}
