"""Other servers' batching rules, written anew for the simulator; the rules, not the products.

Each is an `edged.simulate.device.Policy`. One sample a request, first in first out.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter, deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edged.latency import LatencyCurve, fit_line
from edged.serve.timer import Decision, Reason, Waiting
from edged.simulate.arrivals import Arrivals
from edged.simulate.device import Run


class _Base:
    """Keeps the arrival times; the last ``waiting.samples`` of them wait."""

    def __init__(self, cap: int) -> None:
        self.cap = cap
        self.came: list[float] = []

    def arrived(self, now: float, samples: int) -> None:
        """Notes the times."""
        self.came.extend([now] * samples)

    def started(self, now: float, waiting: Waiting, decision: Decision) -> None:
        """Nothing is learnt from it."""

    def completed(self, samples: int, service_s: float) -> None:
        """Nor from this."""

    def _oldest(self, waiting: Waiting) -> float:
        return self.came[-waiting.samples]

    def _close(self, now: float, waiting: Waiting) -> Decision:
        return Decision(min(waiting.samples, self.cap), now, Reason.COUNT)

    def _close_at(self, at: float, now: float, waiting: Waiting) -> Decision:
        return Decision(0, at, Reason.GAP) if at > now else self._close(now, waiting)


class Greedy(_Base):
    """Takes whatever waits as soon as the device is free; Triton's default."""

    def decide(self, now: float, waiting: Waiting) -> Decision:
        """Always now."""
        return self._close(now, waiting)


class FixedDelay(_Base):
    """Triton: at once with K samples, else when the oldest has waited for T; it keeps filling."""

    def __init__(self, cap: int, count: int, delay_s: float) -> None:
        super().__init__(cap)
        self.count, self.delay_s = min(count, cap), delay_s

    def decide(self, now: float, waiting: Waiting) -> Decision:
        """By count or by the age of the oldest."""
        if waiting.samples >= self.count:
            return self._close(now, waiting)
        return self._close_at(self._oldest(waiting) + self.delay_s, now, waiting)


class PickUp(_Base):
    """LitServe, Ray Serve: the delay begins when the worker turns to the queue."""

    def __init__(self, cap: int, delay_s: float) -> None:
        super().__init__(cap)
        self.delay_s = delay_s
        self._picked_up: float | None = None

    def decide(self, now: float, waiting: Waiting) -> Decision:
        """Full, or T after the first look."""
        if self._picked_up is None:
            self._picked_up = now
        at = self._picked_up + self.delay_s
        if waiting.samples >= self.cap or at <= now:
            self._picked_up = None
            return self._close(now, waiting)
        return Decision(0, at, Reason.GAP)


class Clipper(_Base):
    """AIMD on the cap: one more while batches end within the target, a tenth less otherwise."""

    def __init__(self, cap: int, target_s: float, delay_s: float = 0.0) -> None:
        super().__init__(cap)
        self.target_s, self.delay_s = target_s, delay_s
        self._limit = 1.0

    def completed(self, samples: int, service_s: float) -> None:
        """Moves the cap."""
        if service_s > self.target_s:
            self._limit = max(1.0, 0.9 * self._limit)
        elif samples >= int(self._limit):
            self._limit = min(float(self.cap), self._limit + 1)

    def decide(self, now: float, waiting: Waiting) -> Decision:
        """Greedy up to the cap, or after a fixed delay."""
        limit = int(self._limit)
        if waiting.samples >= limit:
            return Decision(limit, now, Reason.CAP)
        return self._close_at(self._oldest(waiting) + self.delay_s, now, waiting)


class Cork(_Base):
    """BentoML: compares what one more arrival costs those that wait with the mean wait.

    The loop wakes with the first arrival of an empty queue; while the worker is busy, or waiting
    pays, it sleeps for a tick. A line is fitted to the last 50 batches, and the mean wait of their
    oldest samples is refreshed, at most every 5 s.
    """

    def __init__(self, cap: int, tick_s: float = 0.001) -> None:
        super().__init__(cap)
        self.tick_s = tick_s
        self._batches: deque[tuple[int, float]] = deque(maxlen=50)
        self._waits: deque[float] = deque(maxlen=50)
        self._slope, self._wait = 0.0, 0.0
        self._refreshed = -math.inf
        self._woke, self._waiting = 0.0, 0

    def arrived(self, now: float, samples: int) -> None:
        """Wakes the loop if nothing waited."""
        super().arrived(now, samples)
        if not self._waiting:
            self._woke = now
        self._waiting += samples

    def completed(self, samples: int, service_s: float) -> None:
        """Another point of the line."""
        self._batches.append((samples, service_s))

    def decide(self, now: float, waiting: Waiting) -> Decision:
        """Only on a tick of the loop."""
        ticks = math.ceil((now - self._woke) / self.tick_s - 1e-6)
        following = self._woke + ticks * self.tick_s
        if following > now + 1e-9:
            return Decision(0, following, Reason.GAP)
        self._refresh(now)
        age = now - waiting.newest
        worth = waiting.samples * (age + self.tick_s + self._slope) <= 0.95 * self._wait
        if waiting.samples < self.cap and worth:
            return Decision(0, now + self.tick_s, Reason.GAP)
        self._waits.append(now - self._oldest(waiting))
        decision = self._close(now, waiting)
        self._waiting -= decision.samples
        self._woke = now
        return decision

    def _refresh(self, now: float) -> None:
        if now - self._refreshed < 5 or len(self._batches) < 11:
            return
        self._refreshed = now
        sizes, seconds = zip(*self._batches, strict=True)
        self._slope = fit_line(sizes, seconds)[1]
        self._wait = sum(self._waits) / len(self._waits)


class SkiRental(_Base):
    """Closes when the summed waiting equals the price of one setup: 2-competitive without a rate.

    After Dooly, Goldman and Scott's rule for acknowledging packets.
    """

    def __init__(self, cap: int, alpha_s: float, price: float) -> None:
        super().__init__(cap)
        self.budget = alpha_s * price

    def decide(self, now: float, waiting: Waiting) -> Decision:
        """Now, or when the budget will be spent if nobody comes."""
        if waiting.samples >= self.cap:
            return self._close(now, waiting)
        waited = waiting.samples * now - waiting.arrival_weight
        return self._close_at(now + (self.budget - waited) / waiting.samples, now, waiting)


class DeferredLatest(_Base):
    """As late as the first deadline allows by a curve that is never corrected."""

    def __init__(self, cap: int, curve: LatencyCurve, slack_s: float = 0.0005) -> None:
        super().__init__(cap)
        self.curve, self.slack_s = curve, slack_s

    def decide(self, now: float, waiting: Waiting) -> Decision:
        """Full, or at the last moment for one more sample."""
        if waiting.samples >= self.cap:
            return self._close(now, waiting)
        at = waiting.deadline - self.curve(waiting.samples + 1) - self.slack_s
        return self._close_at(at, now, waiting)


class Table(_Base):
    """A policy that an oracle has solved for: samples to serve by what waits, and by the phase."""

    def __init__(
        self,
        cap: int,
        actions: npt.NDArray[np.int64],
        phases: Sequence[tuple[float, int]] = (),
    ) -> None:
        super().__init__(cap)
        self.actions = actions
        self._changes = [at for at, _ in phases] or [0.0]
        self._phases = [phase for _, phase in phases] or [0]

    def decide(self, now: float, waiting: Waiting) -> Decision:
        """As the table says; asked again when the phase changes."""
        index = bisect.bisect_right(self._changes, now) - 1
        state = min(waiting.samples, len(self.actions) - 1)
        size = int(self.actions[state, self._phases[index]])
        if size:
            return Decision(size, now, Reason.COUNT)
        more = index + 1 < len(self._changes)
        return Decision(0, self._changes[index + 1] if more else math.inf, Reason.GAP)


def fixed_delay(
    arrivals: Arrivals, curve: LatencyCurve, cap: int, count: int, delay_s: float
) -> Run:
    """A whole run of `FixedDelay` by its own recursion, batch by batch: for grids of settings."""
    times: list[float] = arrivals.times.tolist()
    service = [0.0, *(curve(size) for size in range(1, cap + 1))]
    batches: list[tuple[int, int, float, float, float]] = []
    head, free, last, count = 0, 0.0, len(times), min(count, cap)
    while head < last:
        full = times[head + count - 1] if head + count <= last else math.inf
        closed = max(free, min(full, times[head] + delay_s), times[head])
        size = bisect.bisect_right(times, closed, head, min(head + cap, last)) - head
        batches.append((head, size, closed, free, service[size]))
        free = closed + service[size]
        head += size
    first, sizes, at, freed, taken = zip(*batches, strict=True)
    return Run(
        arrivals=arrivals,
        first=np.asarray(first, np.int64),
        sizes=np.asarray(sizes, np.int64),
        closed=np.asarray(at, np.float64),
        free=np.asarray(freed, np.float64),
        service_s=np.asarray(taken, np.float64),
        reasons=Counter({"delay": len(batches)}),
    )
