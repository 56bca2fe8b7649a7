"""Waiting requests of one model, in the total order (class, place, arrival). Pure.

A request's place is its deadline: earliest deadline first inside a class. Two rules bend that:

* ageing: a background request that has used up half of its time counts as a normal one, so that
  it is not passed by until it expires;
* freshness: where only the latest request of a source counts, the newer one takes the place of the
  older one. With a place of its own, a source that sends often would stand last for ever.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort

from edged.serve.request import Part, Priority, Request
from edged.serve.timer import Waiting

AGEING = 0.5
"""Share of its time after which a background request counts as a normal one."""
_STALE = 64
"""So many entries of a heap may be those of requests that have left, besides as many as wait."""


class _Entry:
    """Samples ``start`` to ``stop`` of a request, which wait; ``start`` moves on as they leave."""

    __slots__ = ("attempt", "number", "place", "priority", "request", "start", "stop")

    def __init__(self, part: Part, number: int) -> None:
        self.request = part.request
        self.start, self.stop = part.start, part.stop
        self.attempt = part.attempt
        self.priority = part.request.priority
        self.place = part.request.deadline
        self.number = number

    @property
    def left(self) -> int:
        return self.stop - self.start

    def part(self, samples: int) -> Part:
        """The first so many of its samples."""
        return Part(self.request, self.start, self.start + samples, self.attempt)


class _Moments:
    """Entries by a moment of each; those that have left are dropped when they come to the top."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, _Entry]] = []
        self._pushed = 0

    def push(self, moment: float, entry: _Entry, waiting: int) -> None:
        """Adds an entry; ``waiting`` is the number of those that wait."""
        if len(self._heap) > 2 * waiting + _STALE:
            self._heap = [item for item in self._heap if item[2].left]
            heapq.heapify(self._heap)
        self._pushed += 1
        heapq.heappush(self._heap, (moment, self._pushed, entry))

    def first(self) -> float:
        """The earliest moment, infinity if nothing waits."""
        while self._heap and not self._heap[0][2].left:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def pop(self, now: float) -> list[_Entry]:
        """Takes out those whose moment has come."""
        come = []
        while self.first() <= now and self._heap:
            come.append(heapq.heappop(self._heap)[2])
        return come


class ModelQueue:
    """What waits for one model. Not thread-safe: `edged.serve.batch.WaitingRoom` holds the lock.

    Args:
        cap: most samples in a batch; an urgent sample weighs as much, so that it closes one.
    """

    def __init__(self, cap: int) -> None:
        self.cap = cap
        self.samples = 0
        self._classes: dict[Priority, list[tuple[float, int, _Entry]]] = {p: [] for p in Priority}
        self._deadlines = _Moments()
        self._received = _Moments()
        self._ageing = _Moments()
        self._latest: dict[str, _Entry] = {}  # by source
        self._weight = 0.0
        self._arrival_weight = 0.0
        self._urgent_samples = 0
        self._newest = -math.inf

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(q)} {p.name.lower()}" for p, q in self._classes.items())
        return f"<ModelQueue {self.samples} samples: {counts}>"

    # -------------------------------------------------------------- in

    def put(self, part: Part, number: int) -> tuple[Part, ...]:
        """Adds samples.

        Args:
            part: of a request; one with a `Request.source` takes the place of the request of that
                source that waits, unless some of its samples have left already.
            number: the running number of the arrival.

        Returns:
            What was superseded: a whole request, or nothing.
        """
        request, entry = part.request, _Entry(part, number)
        older = self._replaceable(request) if part.attempt == 0 else None
        superseded: tuple[Part, ...] = ()
        if older is not None:
            superseded = (older.part(older.left),)
            if older.request.priority is request.priority:
                entry.priority, entry.number = older.priority, older.number
                entry.place = min(older.place, request.deadline)
            self._remove(older)
        self._insert(entry)
        waiting = sum(map(len, self._classes.values()))
        self._deadlines.push(request.deadline, entry, waiting)
        self._received.push(request.received, entry, waiting)
        if entry.priority is Priority.BACKGROUND and math.isfinite(request.deadline):
            ages = request.received + AGEING * (request.deadline - request.received)
            self._ageing.push(ages, entry, waiting)
        if request.source and part.attempt == 0:
            self._latest[request.source] = entry
        self._account(request, part.samples)
        self._newest = max(self._newest, request.received)
        return superseded

    def replaceable(self, request: Request) -> int:
        """Samples that would leave if this request came in."""
        older = self._replaceable(request)
        return older.left if older is not None else 0

    def _replaceable(self, request: Request) -> _Entry | None:
        older = self._latest.get(request.source) if request.source else None
        whole = older is not None and older.left == older.request.samples
        return older if whole else None

    def _insert(self, entry: _Entry) -> None:
        insort(self._classes[entry.priority], (entry.place, entry.number, entry))

    def _account(self, request: Request, samples: int) -> None:
        urgent = request.priority is Priority.URGENT
        weight = samples * (float(self.cap) if urgent else 1.0)
        self.samples += samples
        self._urgent_samples += samples if urgent else 0
        self._weight += weight
        self._arrival_weight += weight * request.received
        if self.samples == 0:  # no rounding error outlives an empty queue
            self._weight = self._arrival_weight = 0.0

    # -------------------------------------------------------------- what waits

    @property
    def deadline(self) -> float:
        """Earliest deadline, infinity if nothing waits."""
        return self._deadlines.first()

    @property
    def urgent(self) -> tuple[int, float]:
        """Urgent samples that wait, and the place of the first of them: its deadline or earlier."""
        entries = self._classes[Priority.URGENT]
        return self._urgent_samples, entries[0][0] if entries else math.inf

    def waiting(self, *, earlier_s: float = 0.0) -> Waiting:
        """What the timer decides on.

        Args:
            earlier_s: the deadline that it is told lies so long before the real one.
        """
        return Waiting(
            samples=self.samples,
            weight=self._weight,
            arrival_weight=self._arrival_weight,
            newest=self._newest,
            deadline=self.deadline - earlier_s,
            urgent=bool(self._classes[Priority.URGENT]),
            oldest=self._received.first() if self.samples else math.nan,
        )

    def ahead(self, request: Request) -> int:
        """Samples that would go before a request that came in now."""
        count = 0
        for priority, entries in self._classes.items():
            if priority > request.priority:
                break
            end = len(entries)
            if priority is request.priority:
                end = bisect_left(entries, (request.deadline, math.inf))
            count += sum(entry.left for _, _, entry in entries[:end])
        return count

    # -------------------------------------------------------------- out

    def expire(self, now: float) -> list[Part]:
        """Takes out what may not be started any more."""
        if self.deadline > now:
            return []
        late = sorted(self._deadlines.pop(now), key=lambda e: (e.priority, e.place, e.number))
        parts = [entry.part(entry.left) for entry in late]
        for entry in late:
            self._remove(entry)
        return parts

    def _remove(self, entry: _Entry) -> None:
        """Takes out an entry with all that is left of it."""
        entries = self._classes[entry.priority]
        del entries[bisect_left(entries, (entry.place, entry.number))]
        self._account(entry.request, -entry.left)
        self._leave(entry)

    def _leave(self, entry: _Entry) -> None:
        entry.start = entry.stop
        if self._latest.get(entry.request.source) is entry:
            del self._latest[entry.request.source]

    def age(self, now: float) -> None:
        """Has background requests that have waited for long count as normal ones."""
        for entry in self._ageing.pop(now):
            entries = self._classes[entry.priority]
            del entries[bisect_left(entries, (entry.place, entry.number))]
            entry.priority = Priority.NORMAL
            self._insert(entry)

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
                    self._leave(entry)
        return tuple(parts)
