"""The waiting room: admitted requests in, batches out. The one lock of the path.

One condition guards the waiting requests and the timers' state. Nothing is called with it held that
waits or does I/O: the timers and the admission rule are pure. Devices pull: a device's thread asks
for work when it has a free lane, and sleeps until an arrival, a completion, or the one armed time.
"""

from __future__ import annotations

import math
import threading
import time
from bisect import insort
from collections.abc import Callable, Mapping

from edged.errors import EdgedError
from edged.serve.request import Batch, Part, Priority, Request, Work
from edged.serve.timer import BatchTimer, Decision, Reason, Waiting

Refusal = Callable[..., EdgedError | None]
"""`edged.serve.admit.Admission.refusal`."""


class _Entry:
    """A waiting request, of which the first ``taken`` samples already went into batches."""

    __slots__ = ("request", "taken")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.taken = 0

    @property
    def left(self) -> int:
        return self.request.samples - self.taken


class ModelQueue:
    """Waiting requests of one model, in the total order (class, deadline, arrival).

    Not thread-safe: `WaitingRoom` holds the lock.
    """

    def __init__(self, timer: BatchTimer) -> None:
        self.timer = timer
        self.samples = 0
        self._classes: dict[Priority, list[tuple[float, int, _Entry]]] = {p: [] for p in Priority}
        self._weight = 0.0
        self._arrival_weight = 0.0
        self._newest = -math.inf

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(q)} {p.name.lower()}" for p, q in self._classes.items())
        return f"<ModelQueue {self.samples} samples: {counts}>"

    def _weight_of(self, request: Request) -> float:
        return float(self.timer.cap) if request.priority is Priority.URGENT else 1.0

    def put(self, request: Request, number: int, now: float) -> None:
        """Adds an admitted request."""
        insort(self._classes[request.priority], (request.deadline, number, _Entry(request)))
        self._account(request, request.samples)
        self._newest = max(self._newest, request.received)
        self.timer.arrived(now, request.samples)

    def _account(self, request: Request, samples: int) -> None:
        weight = samples * self._weight_of(request)
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
                expired.append(Part(entry.request, entry.taken, entry.request.samples))
                self._account(entry.request, -entry.left)
        return expired

    def take(self, samples: int) -> tuple[Part, ...]:
        """Takes the first samples in order; the last request may be left with a remainder."""
        parts = []
        for entries in self._classes.values():
            while entries and samples > 0:
                entry = entries[0][2]
                count = min(samples, entry.left)
                parts.append(Part(entry.request, entry.taken, entry.taken + count))
                self._account(entry.request, -count)
                entry.taken += count
                samples -= count
                if entry.left == 0:
                    entries.pop(0)
        return tuple(parts)


class WaitingRoom:
    """All waiting requests, their timers, and the free lanes of the devices.

    Thread-safe. ``put`` is called by the intake thread, ``take`` by a device's thread,
    ``completed`` by whoever learns that a batch is done.

    Args:
        timers: one for each model that is served.
        refusal: the admission rule.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        timers: Mapping[str, BatchTimer],
        refusal: Refusal,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queues = {name: ModelQueue(timer) for name, timer in timers.items()}
        self._refusal = refusal
        self._clock = clock
        self._changed = threading.Condition()
        self._free: dict[str, int] = {}
        self._numbers = 0
        self._draining = False
        self._closed = False
        self._alarm = math.inf  # until when the sleeping device sleeps

    def __repr__(self) -> str:
        with self._changed:
            lanes = ", ".join(f"{name} {count}" for name, count in self._free.items())
            return f"<WaitingRoom {self._waiting()} samples, free lanes: {lanes or 'none'}>"

    def _waiting(self) -> int:
        return sum(queue.samples for queue in self._queues.values())

    @property
    def samples(self) -> int:
        """Samples that wait, over all models."""
        with self._changed:
            return self._waiting()

    def timer(self, model: str) -> BatchTimer:
        """The timer of a model, for reading its state."""
        return self._queues[model].timer

    def add_device(self, device: str, lanes: int) -> None:
        """Registers a device with so many free lanes."""
        with self._changed:
            self._free[device] = lanes

    def put(self, request: Request) -> None:
        """Admits a request.

        Raises:
            EdgedError: it is refused; the request is not kept.
        """
        with self._changed:
            now = self._clock()
            queue = self._queues[request.model]
            refusal = self._refusal(
                request,
                now,
                waiting=queue.samples,
                drain_s=_seconds(queue),
                draining=self._draining,
            )
            if refusal is not None:
                raise refusal
            self._numbers += 1
            queue.put(request, self._numbers, now)
            # A device whose lanes are all busy need not wake up, unless this one expires first.
            if any(self._free.values()) or request.deadline < self._alarm:
                self._changed.notify_all()

    def take(self, device: str) -> Work | None:
        """Waits for work for a device; None once the room is closed.

        A batch occupies one of the device's lanes until `completed`. While none is free, only
        expired requests are handed out, when they expire.
        """
        with self._changed:
            while not self._closed:
                now = self._clock()
                expired = [part for queue in self._queues.values() for part in queue.expire(now)]
                batch, alarm = self._next_batch(device, now)
                if batch is not None or expired:
                    return Work(batch, tuple(expired))
                self._alarm = alarm
                self._changed.wait(None if math.isinf(alarm) else max(0.0, alarm - now))
                self._alarm = math.inf
            return None

    def _next_batch(self, device: str, now: float) -> tuple[Batch | None, float]:
        """The batch to run now, or when to look again."""
        filled = [(name, queue) for name, queue in self._queues.items() if queue.samples]
        alarm = min((queue.deadline for _, queue in filled), default=math.inf)
        if not self._free.get(device):
            return None, alarm
        due: list[tuple[float, float, str, Decision]] = []
        for name, queue in filled:
            decision = queue.timer.decide(now, queue.waiting())
            if self._draining and not decision.samples:
                size = min(queue.samples, queue.timer.cap)
                decision = Decision(size, now, Reason.DRAIN)
            if decision.samples:
                due.append((decision.at, queue.deadline, name, decision))
            alarm = min(alarm, decision.at)
        if not due:
            return None, alarm
        # Earliest closing time first, then earliest deadline.
        _, _, name, decision = min(due, key=lambda item: item[:3])
        self._free[device] -= 1
        parts = self._queues[name].take(decision.samples)
        return Batch(name, parts, decision.samples, decision.reason.value, now), alarm

    def completed(self, device: str, model: str, samples: int, service_s: float) -> None:
        """A batch left its lane; ``service_s`` is 0 where it failed and tells nothing."""
        with self._changed:
            self._free[device] += 1
            self._queues[model].timer.completed(samples, service_s)
            if self._waiting():  # else there is nothing to wake up for
                self._changed.notify_all()

    def drain(self) -> None:
        """Refuses what comes from now on, and runs what waits without waiting for more."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()

    def close(self) -> list[Part]:
        """Ends every `take`, and gives back what still waits."""
        with self._changed:
            self._closed = self._draining = True
            left = [part for queue in self._queues.values() for part in queue.expire(math.inf)]
            self._changed.notify_all()
            return left


def _seconds(queue: ModelQueue) -> float:
    """Expected device time of what waits."""
    full, rest = divmod(queue.samples, queue.timer.cap)
    seconds = full * queue.timer.service_s(queue.timer.cap)
    return seconds + (queue.timer.service_s(rest) if rest else 0.0)
