"""Waiting requests of one model, in the total order (class, deadline, arrival). Pure."""

from __future__ import annotations

import math
from bisect import insort

from edged.serve.request import Part, Priority, Request
from edged.serve.timer import Waiting


class _Entry:
    """Samples ``start`` to ``stop`` of a request, which wait; ``start`` moves on as they leave."""

    __slots__ = ("attempt", "request", "start", "stop")

    def __init__(self, part: Part) -> None:
        self.request = part.request
        self.start, self.stop = part.start, part.stop
        self.attempt = part.attempt

    @property
    def left(self) -> int:
        return self.stop - self.start

    def part(self, samples: int) -> Part:
        """The first so many of its samples."""
        return Part(self.request, self.start, self.start + samples, self.attempt)


class ModelQueue:
    """What waits for one model. Not thread-safe: `edged.serve.batch.WaitingRoom` holds the lock.

    Args:
        cap: most samples in a batch; an urgent sample weighs as much, so that it closes one.
    """

    def __init__(self, cap: int) -> None:
        self.cap = cap
        self.samples = 0
        self._classes: dict[Priority, list[tuple[float, int, _Entry]]] = {p: [] for p in Priority}
        self._weight = 0.0
        self._arrival_weight = 0.0
        self._newest = -math.inf

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(q)} {p.name.lower()}" for p, q in self._classes.items())
        return f"<ModelQueue {self.samples} samples: {counts}>"

    def put(self, part: Part, number: int) -> None:
        """Adds samples; ``number`` is the running number of the arrival."""
        request = part.request
        insort(self._classes[request.priority], (request.deadline, number, _Entry(part)))
        self._account(request, part.samples)
        self._newest = max(self._newest, request.received)

    def _account(self, request: Request, samples: int) -> None:
        weight = samples * (float(self.cap) if request.priority is Priority.URGENT else 1.0)
        self.samples += samples
        self._weight += weight
        self._arrival_weight += weight * request.received
        if self.samples == 0:  # no rounding error outlives an empty queue
            self._weight = self._arrival_weight = 0.0

    @property
    def deadline(self) -> float:
        """Earliest deadline, infinity if nothing waits."""
        return min((q[0][0] for q in self._classes.values() if q), default=math.inf)

    def waiting(self) -> Waiting:
        """What the timer decides on."""
        return Waiting(
            samples=self.samples,
            weight=self._weight,
            arrival_weight=self._arrival_weight,
            newest=self._newest,
            deadline=self.deadline,
            urgent=bool(self._classes[Priority.URGENT]),
        )

    def expire(self, now: float) -> list[Part]:
        """Takes out what may not be started any more."""
        expired = []
        for entries in self._classes.values():
            while entries and entries[0][0] <= now:
                entry = entries.pop(0)[2]
                expired.append(entry.part(entry.left))
                self._account(entry.request, -entry.left)
        return expired

    def take(self, samples: int) -> tuple[Part, ...]:
        """Takes the first samples in order; the last request may be left with a remainder."""
        parts = []
        for entries in self._classes.values():
            while entries and samples > 0:
                entry = entries[0][2]
                count = min(samples, entry.left)
                parts.append(entry.part(count))
                self._account(entry.request, -count)
                entry.start += count
                samples -= count
                if entry.left == 0:
                    entries.pop(0)
        return tuple(parts)
