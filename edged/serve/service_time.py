"""How long a batch takes on the device as it is now: the measured curve times one scale. Pure.

The curve was measured on the idle device. Load by others, clocks and heat stretch it; one scale phi
follows them. One number can be learned while all batches have one size, where the two of a line
cannot. Wall time is what counts: a device shared by time slices stretches it, not the kernels.
"""

from __future__ import annotations

import math
from collections import deque

from edged.latency import LatencyCurve

PHI_LIMITS = (0.3, 20.0)
"""Bounds of the scale."""
SLOW_GAIN = 0.05
"""Of a residual that noise explains."""
FAST_GAIN = 0.7
"""Of a residual that is the second large one in a row: the device has changed."""
SETTLING = 0.7
"""After a change the gain falls back by this factor a batch: what is left is learned quickly."""
RESIDUALS = 128
"""Residuals kept for their quantiles."""
LOOK_EVERY = 16
"""The quantile is taken anew after so many batches: it needs a sort."""


class ServiceTime:
    """Expected and cautious service time by batch size.

    Args:
        curve: measured on the idle device.
        cap: most samples in a batch.
    """

    def __init__(self, curve: LatencyCurve, cap: int) -> None:
        self.curve = curve
        self.phi = 1.0
        self.spread = 0.1  # running mean absolute log residual of the curve
        self.idle_s = (0.0, *(curve(size) for size in range(1, cap + 1)))
        self._line = curve.line()
        self._surprises = 0
        self._gain = SLOW_GAIN
        self._residuals: deque[float] = deque(maxlen=RESIDUALS)
        self._since_look = 0
        self._high = 0.0

    def __repr__(self) -> str:
        return f"<ServiceTime phi {self.phi:.2f}, spread {self.spread:.3f}>"

    def completed(self, samples: int, service_s: float) -> None:
        """A batch came back after so many seconds; 0 and what is no time tell nothing.

        Small residuals are tracked slowly; two large ones in a row are a change.
        """
        if not (service_s > 0 and math.isfinite(service_s)):
            return
        # A difference of logarithms: the quotient of a tiny time could underflow to 0.
        residual = math.log(service_s) - math.log(self.phi * self.idle(samples))
        large = abs(residual) > max(0.15, 3 * self.spread)
        self._surprises = self._surprises + 1 if large else 0
        changed = self._surprises >= 2
        if changed:  # what was learned of the noise stays, the residuals are about another device
            self._residuals.clear()
            self._high, self._gain = 0.0, FAST_GAIN
        else:
            self._remember(residual)
        gain = SLOW_GAIN if large and not changed else self._gain
        self._gain = max(SLOW_GAIN, SETTLING * self._gain)
        if not large:
            self.spread += SLOW_GAIN * (abs(residual) - self.spread)
        phi = self.phi * math.exp(gain * residual)
        self.phi = min(max(phi, PHI_LIMITS[0]), PHI_LIMITS[1])

    def _remember(self, residual: float) -> None:
        self._residuals.append(residual)
        self._since_look += 1
        if self._since_look >= LOOK_EVERY:
            self._since_look = 0
            self._high = max(0.0, self.quantile(0.95))

    def quantile(self, q: float) -> float:
        """Of the last residuals, ``ln(measured / expected)``; 0 without any."""
        ordered = sorted(self._residuals)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0

    def idle(self, samples: int) -> float:
        """Seconds on the idle device."""
        table = self.idle_s
        return table[samples] if 0 < samples < len(table) else self.curve(samples)

    def expected(self, samples: int) -> float:
        """Seconds of a batch, as the device is now."""
        return self.phi * self.idle(samples)

    @property
    def caution(self) -> float:
        """By how much a batch rarely exceeds its expected time, as a factor >= 1.

        Two standard deviations (1.25 mean absolute residuals each, as for a normal law), or the
        95th percentile of the last residuals if their tail is longer.
        """
        return math.exp(max(2 * 1.25 * self.spread, self._high))

    def line(self) -> tuple[float, float]:
        """``(alpha, beta)`` in seconds, as the device is now."""
        return self.phi * self._line[0], self.phi * self._line[1]
