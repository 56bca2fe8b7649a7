"""Histograms of magnitudes, streamed: what calibration keeps of an activation. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float64]

BINS = 2048
LEVELS = 127
"""Positive levels of symmetric INT8."""

_CHUNK = 1 << 20  # values a step: bounds the temporary arrays to a few MB
_LOWEST_EXPONENT = -100  # ranges below 2^-100 are one: their reciprocal would overflow in float32


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

    def reach(self, largest: float) -> None:
        """Takes note of the largest magnitude of an array of which only a part is counted.

        Raises:
            NotFiniteError: it is NaN or infinite.
        """
        if not math.isfinite(largest):
            raise NotFiniteError("at least one value is NaN or infinite")
        if largest > 0:
            self.amax = max(self.amax, largest)
            self._grow(max(math.frexp(largest)[1], _LOWEST_EXPONENT))

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

    def lost(self, threshold: float) -> float:
        """Share of the values other than zero that INT8 rounds to zero, up to a bin."""
        seen = int(self.counts.sum())
        below = int(self.counts[: int(threshold / (2 * LEVELS) / self.width)].sum())
        return below / seen if seen else 0.0

    def sqnr_db(self, threshold: float) -> float:
        """Signal to quantization noise ratio in dB at one threshold; at most 200."""
        used = np.flatnonzero(self.counts)
        centres = np.minimum((used + 0.5) * self.width, self.amax)
        signal = float(np.square(centres) @ self.counts[used].astype(np.float64))
        noise = float(self.noise(np.array([threshold]))[0])
        return min(200.0, 10 * math.log10(signal / noise)) if noise > 0 else 200.0
