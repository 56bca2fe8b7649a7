"""How much of a device others use, as far as it can be known. Pure.

While we run batches the total utilisation mostly says that we do; a timer driven by it would steer
by its own shadow. So a look counts only where we were idle for the whole sampling period. Without
such gaps the stretch of our own batches tells: with one busy neighbour, time slices double them.
"""

from __future__ import annotations

import math

from edged.gpu_load import Believed

PERIOD_S = 1.0
"""Over so long drivers average a utilisation."""
FRESH_S = 5.0
"""A gap's utilisation is good for so long."""
GAIN = 0.3
"""Weight of the newest look."""
STRETCHED = 1.3
"""Service times below so many times the measured ones are no sign of others."""


class IdleGaps:
    """What others use of one device. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._believed = Believed()
        self._share = math.nan
        self._at = -math.inf

    def __repr__(self) -> str:
        known = "unknown" if math.isnan(self._share) else f"{self._share:.2f}"
        return f"<IdleGaps others {known}, believed {self._believed.moved}>"

    def look(self, now: float, utilisation: float | None, idle_s: float, busy_s: float) -> None:
        """One look at the device.

        Args:
            now: when.
            utilisation: 0 to 1, or None.
            idle_s: for how long none of our batches has run; 0 while one does.
            busy_s: for how long our batches have run without a gap; 0 while none does.
        """
        if utilisation is None or not math.isfinite(utilisation):
            return
        if busy_s >= PERIOD_S:
            self._believed.sample(utilisation, busy=True)
        elif idle_s >= PERIOD_S:
            self._believed.sample(utilisation, busy=False)
            known = now - self._at <= FRESH_S
            self._share += GAIN * (utilisation - self._share) if known else math.nan
            if not known:
                self._share = utilisation
            self._at = now

    def share(self, now: float, phi: float) -> float | None:
        """Share of the device that others use, 0 to 1; None: unknown.

        Args:
            now: when.
            phi: how many times longer batches take than on the idle device.
        """
        if self._believed.moved and now - self._at <= FRESH_S:
            return self._share
        return 1 - 1 / phi if phi >= STRETCHED else None
