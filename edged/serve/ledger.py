"""What the batch timer did and what came of it: reasons, achieved cost, late alarms. Pure."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

MEMORY = 600.0
"""Samples over which what was achieved is averaged, about as many as the tuner replays."""
LEAST = 200.0
"""Below so many samples seen, what was achieved is not known."""
ALARMS = 256
"""Alarms whose lateness is kept."""
LOOK_EVERY = 16
"""Their quantile is taken anew after so many."""
LATE_GAIN = 0.05
"""Weight of the newest batch in the share of those that were held too long."""


@dataclass(frozen=True, slots=True)
class Started:
    """A batch on its way.

    Attributes:
        now: when it was closed.
        samples: in it.
        waited_s: sum over its samples of the time since their arrival.
        deadline: earliest one in it.
        held: whether it had been held back for company.
    """

    now: float
    samples: int
    waited_s: float
    deadline: float
    held: bool


class Ledger:
    """Counters and short averages of one timer. Not thread-safe, like the timer."""

    def __init__(self) -> None:
        self.closed: dict[str, int] = {}
        self.late_p99_s = 0.0
        self.held_late = 0.0
        self._running: deque[Started] = deque(maxlen=64)
        self._samples = 0.0
        self._seen = 0
        self._latency_s = 0.0
        self._device_s = 0.0
        self._idle_s = 0.0
        self._late: deque[float] = deque(maxlen=ALARMS)
        self._since_look = 0

    def __repr__(self) -> str:
        return f"<Ledger {sum(self.closed.values())} batches, {len(self._running)} running>"

    def started(self, batch: Started, reason: str) -> None:
        """A batch was closed."""
        self.closed[reason] = self.closed.get(reason, 0) + 1
        self._running.append(batch)

    def completed(self, samples: int, service_s: float, idle_s: float) -> None:
        """A batch came back, that takes ``idle_s`` on the idle device.

        Times that are none leave the averages alone.
        """
        batch = next((b for b in self._running if b.samples == samples), None)
        if batch is None:
            return
        self._running.remove(batch)
        if not (service_s > 0 and math.isfinite(service_s) and math.isfinite(batch.waited_s)):
            return
        keep = math.exp(-samples / MEMORY)
        self._samples = self._samples * keep + samples
        self._latency_s = self._latency_s * keep + batch.waited_s + samples * service_s
        self._device_s = self._device_s * keep + service_s
        self._idle_s = self._idle_s * keep + idle_s
        self._seen += samples
        if batch.held:
            late = batch.now + service_s > batch.deadline
            self.held_late += LATE_GAIN * (late - self.held_late)

    def cost_s(self, price: float) -> float:
        """Achieved ``mean latency + c x device time per sample``; NaN while too few were seen."""
        if self._seen < LEAST or not math.isfinite(price):
            return math.nan
        return (self._latency_s + price * self._device_s) / self._samples

    @property
    def idle_s(self) -> float:
        """Idle device time per sample of the batches that were made; NaN: too few were seen.

        It tells of their sizes alone, however slow the device has become.
        """
        return self._idle_s / self._samples if self._seen >= LEAST else math.nan

    def woke(self, late_s: float) -> None:
        """An alarm went off so many seconds after its time."""
        if not math.isfinite(late_s):
            return
        self._late.append(max(0.0, late_s))
        self._since_look += 1
        if self._since_look >= LOOK_EVERY:
            self._since_look = 0
            ordered = sorted(self._late)
            self.late_p99_s = ordered[int(0.99 * len(ordered))]

    def forgive(self) -> None:
        """Begins anew with what may be held against the timer."""
        self.held_late = self.late_p99_s = 0.0
        self._late.clear()
        self._latency_s = self._device_s = self._idle_s = self._samples = 0.0
        self._seen = 0
