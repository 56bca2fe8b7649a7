"""How much of a device others use, as far as it can be known. Pure.

While we run batches the total utilisation mostly says that we do; a timer driven by it would steer
by its own shadow. So a look counts only where we were idle for the whole sampling period. Without
such gaps the stretch of our own batches tells: with one busy neighbour, time slices double them.

Which looks are taken under a load of our own is said here too: a utilisation is unknown until it
has moved with one (`edged.gpu_load.ProvenSource`).
"""

from __future__ import annotations

import math
from collections import deque

PERIOD_S = 1.0
"""Over so long drivers average a utilisation."""
BUSY = 0.8
"""Share of a period that our batches must have taken for it to count as a load of our own: on a
device with one lane there is a gap after each batch."""
FRESH_S = 5.0
"""A gap's utilisation is good for so long."""
GAIN = 0.3
"""Weight of the newest look."""
STRETCHED = 1.3
"""Service times below so many times the measured ones are no sign of others."""


class IdleGaps:
    """What others use of one device. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, float]] = deque()  # when, busy seconds until then
        self._share = math.nan
        self._at = -math.inf

    def __repr__(self) -> str:
        known = "unknown" if math.isnan(self._share) else f"{self._share:.2f}"
        return f"<IdleGaps others {known}>"

    def period(self, now: float, idle_s: float, busy_s: float) -> bool | None:
        """What the sampling period before now was: True: full of our batches; False: without any.

        Args:
            now: when.
            idle_s: for how long none of our batches has run; 0 while one does.
            busy_s: for how long batches of ours have run in all, since the start.
        """
        if self._busy_share(now, busy_s) >= BUSY:
            return True
        return False if idle_s >= PERIOD_S else None

    def look(self, now: float, utilisation: float | None, *, busy: bool | None) -> None:
        """One look at the device.

        Args:
            now: when.
            utilisation: 0 to 1; None where it is not known, or not proven to be real.
            busy: as `period` says; only a look without batches of ours tells of others.
        """
        if utilisation is None or not math.isfinite(utilisation) or busy is not False:
            return
        known = now - self._at <= FRESH_S
        self._share += GAIN * (utilisation - self._share) if known else math.nan
        if not known:
            self._share = utilisation
        self._at = now

    def _busy_share(self, now: float, busy_s: float) -> float:
        """Share of the last period that our batches took; 0 where the looks do not tell."""
        looks = self._looks
        looks.append((now, busy_s))
        while len(looks) > 2 and now - looks[1][0] >= PERIOD_S:
            looks.popleft()
        since, before_s = looks[0]
        # A longer time than that between two looks says nothing about the period before this one.
        known = PERIOD_S <= now - since <= 2 * PERIOD_S
        return (busy_s - before_s) / (now - since) if known else 0.0

    def share(self, now: float, phi: float) -> float | None:
        """Share of the device that others use, 0 to 1; None: unknown.

        Args:
            now: when.
            phi: how many times longer batches take than on the idle device.
        """
        if now - self._at <= FRESH_S:
            return self._share
        return 1 - 1 / phi if phi >= STRETCHED else None
