"""What the past arrivals of one model say: their rate, and the times to replay. Pure."""

from __future__ import annotations

import math
from collections import deque

SHORTEST_WINDOW_S = 0.1
"""Least time constant of the rate estimate."""
LONGEST_WINDOW_S = 20.0
"""Greatest one: a device that sees a request now and then still forgets within a minute."""
WINDOW_GAPS = 20
"""In between, the time constant spans so many mean gaps."""
MIN_ARRIVALS = 20
"""Below so many samples seen, the rate is not trusted."""
TRACE = 600
"""Arrival times kept for the replay: enough for a few hundred batches, few enough to be cheap."""


class Arrivals:
    """Arrival rate and the last arrival times. Times are monotonic seconds.

    The rate is the ratio of two sums with one exponential kernel: samples seen, and time seen. With
    a constant window that is the decayed count, corrected for the short past; the ratio stays right
    while the window follows the gaps.
    """

    def __init__(self) -> None:
        self._trace: deque[float] = deque(maxlen=TRACE)
        self._begin(-math.inf)

    def _begin(self, now: float) -> None:
        """Forgets everything: nothing of another clock's times may stay."""
        self.seen = 0
        self.last = now
        self._samples = 0.0
        self._seconds = 0.0
        self._window_s = SHORTEST_WINDOW_S
        self._trace.clear()

    def __repr__(self) -> str:
        return f"<Arrivals {self.seen} samples seen, {len(self._trace)} to replay>"

    def add(self, now: float, samples: int) -> None:
        """Samples came; a time that is none is ignored, a clock that jumped back starts anew."""
        if not math.isfinite(now) or samples < 1:
            return
        if now < self.last or self.seen == 0:
            self._begin(now)
        decay, passed = self._decayed(now)
        self._samples = self._samples * decay + samples
        self._seconds = self._seconds * decay + passed
        gap = self._seconds / self._samples
        self._window_s = min(max(WINDOW_GAPS * gap, SHORTEST_WINDOW_S), LONGEST_WINDOW_S)
        self.seen += samples
        self.last = now
        self._trace.extend([now] * min(samples, TRACE))

    def rate(self, now: float) -> float:
        """Arrivals in samples/s; 0 while too few were seen to tell."""
        if self.seen < MIN_ARRIVALS:
            return 0.0
        decay, passed = self._decayed(now)
        seconds = self._seconds * decay + passed
        return self._samples * decay / seconds if seconds > 0 else 0.0

    def long_rate(self, now: float) -> float:
        """Samples/s over the whole trace up to now: steadier than `rate`, and later to follow."""
        span = now - self._trace[0] if self._trace else 0.0
        return len(self._trace) / span if span > 0 else 0.0

    def trace(self) -> tuple[float, ...]:
        """The last `TRACE` arrival times, ascending; one entry a sample."""
        return tuple(self._trace)

    def _decayed(self, now: float) -> tuple[float, float]:
        """Weight that the past keeps, and the weighted time since the last arrival."""
        decay = math.exp(-max(0.0, now - self.last) / self._window_s)
        return decay, self._window_s * (1 - decay)


def mean_rate(trace: tuple[float, ...]) -> float:
    """Samples/s over a whole trace; 0 for fewer than two times."""
    span = trace[-1] - trace[0] if len(trace) > 1 else 0.0
    return (len(trace) - 1) / span if span > 0 else 0.0
