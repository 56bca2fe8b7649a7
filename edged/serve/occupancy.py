"""What the waiting room knows of one device: lanes, timers, until when it is busy, who takes."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from edged.errors import EdgedError
from edged.serve import dispatch
from edged.serve.dispatch import Prospect, UrgentTraffic
from edged.serve.model_queue import ModelQueue
from edged.serve.request import Batch, Request
from edged.serve.timer import BatchTimer, Decision

Refusal = Callable[..., EdgedError | None]
"""`edged.serve.admit.Admission.refusal`."""


class Occupancy:
    """One device as the waiting room sees it. Pure; the room's lock guards it.

    Attributes:
        lanes: batches that may be on it at once.
        free: lanes of which nothing is known to run.
        timers: by queue.
        closes: by queue, when its batch closes or closed, as far as it was asked.
        retry_at: set while the device is out; infinity while it is tried again.
        running: by queue, batches that run.

    Args:
        lanes: batches that may be on it at once.
        timers: by queue.
        lead_s: with a batch running, the next one is closed so long before that one ends.
    """

    def __init__(self, lanes: int, timers: Mapping[str, BatchTimer], lead_s: float) -> None:
        self.lanes = self.free = lanes
        self.timers = dict(timers)
        self.closes: dict[str, float] = {}
        self.retry_at: float | None = None
        self.running: Counter[str] = Counter()
        self._lead_s = lead_s
        self._busy_until = -math.inf
        self._expected: deque[float] = deque()  # seconds of each batch that runs, oldest first

    def __repr__(self) -> str:
        return f"<Occupancy {self.free} of {self.lanes} lanes free>"

    def ask_retry(self, now: float) -> bool:
        """Whether it is to be tried again now; true once for each time that it was taken out."""
        due = self.retry_at is not None and self.retry_at <= now
        if due:
            self.retry_at = math.inf
        return due

    def started(self, now: float, queue: str, samples: int) -> None:
        """A batch occupies a lane."""
        self.free -= 1
        self.running[queue] += 1
        service_s = self.timers[queue].service_s(samples)
        self._expected.append(service_s)
        self._busy_until = max(now, self._busy_until) + service_s

    def ended(self, now: float, queue: str) -> None:
        """A batch left: no error of earlier predictions outlives it."""
        self.free += 1
        self.running[queue] -= 1
        self._expected.popleft()
        self._busy_until = min(self._busy_until, now + sum(self._expected))

    def arrived(self, now: float, name: str, queue: ModelQueue) -> None:
        """Has its closing time follow an arrival while it is busy."""
        # One model needs no order; a device with a free lane is asked in a moment anyway.
        ordered = self.free <= 0 and len(self.timers) > 1 and name in self.timers
        if ordered and self.closes.get(name, math.inf) > now:
            decision = self.timers[name].decide(now, queue.waiting())
            self.closes[name] = now if decision.samples else decision.at

    def drop(self, queue: str) -> None:
        """A queue is served no more; nothing of it waits or runs."""
        for known in (self.timers, self.closes, self.running):
            known.pop(queue, None)

    def resize(self, lanes: int) -> None:
        """Another number of lanes, of which those that are busy stay busy."""
        self.free += lanes - self.lanes
        self.lanes = lanes

    def earliest(self, now: float) -> float:
        """When its next batch may be closed: with one running, just before that one ends."""
        if self.free == self.lanes:
            return now
        return max(now, self._busy_until - self._lead_s)

    def scales(self) -> dict[str, float]:
        """By queue, how many times longer batches take than on the idle device."""
        return {queue: timer.phi for queue, timer in self.timers.items()}

    def prospect(self, now: float, queue: str) -> Prospect:
        """What it has before it, at the least; a device that is late may be free at once."""
        timer = self.timers[queue]
        busy_s = max(0.0, self._busy_until - now) if self.free < self.lanes else 0.0
        slots = max(1, self.free) if math.isinf(self._lead_s) else 1
        # With no lane free the first of those that run has to end; else the lead counts.
        ends_s = sum(list(self._expected)[1:]) if self.free <= 0 else self._lead_s
        opens_s = max(0.0, busy_s - ends_s)
        return Prospect(slots, opens_s, busy_s, timer.service_s(timer.cap))

    def clear_s(self, now: float, queue: str, samples: int) -> float:
        """Seconds until it would have done so many samples by itself.

        A device that is late is taken to need as long again as it is late.
        """
        timer = self.timers[queue]
        full, rest = divmod(samples, timer.cap)
        work = full * timer.service_s(timer.cap) + (timer.service_s(rest) if rest else 0.0)
        return work + (abs(self._busy_until - now) if self.free < self.lanes else 0.0)

    # -------------------------------------------------------------- how large a batch

    def sized(
        self,
        name: str,
        queues: Mapping[str, ModelQueue],
        urgent: Mapping[str, UrgentTraffic],
        now: float,
    ) -> tuple[Decision, int]:
        """The decision of a queue's timer, its size bounded for urgent requests; and the bound.

        Args:
            name: of the queue.
            queues: all of them.
            urgent: what urgent requests need, by queue.
            now: monotonic seconds.
        """
        timer, queue = self.timers[name], queues[name]
        waiting = queue.waiting(earlier_s=self._blocking_s(name, queues, now))
        decision = timer.decide(now, waiting)
        samples, deadline = queue.urgent
        if samples:
            decision = dispatch.beside_urgent(decision, samples, timer.cautious_s, deadline - now)
            return decision, queue.cap
        cap = self._blocking_cap(name, urgent, now)
        return dispatch.limited(decision, waiting, cap, now), cap

    def _blocking_s(self, name: str, queues: Mapping[str, ModelQueue], now: float) -> float:
        """The longest batch of another queue that the device may have begun by then."""
        if len(self.timers) == 1:
            return 0.0
        return max(
            (
                timer.service_s(timer.cap)
                for other, timer in self.timers.items()
                if other != name and (queues[other].samples or timer.rate(now) > dispatch.RARE)
            ),
            default=0.0,
        )

    def _blocking_cap(self, name: str, urgent: Mapping[str, UrgentTraffic], now: float) -> int:
        """Most samples in a batch of a queue in which nothing urgent waits."""
        timer = self.timers[name]
        if not urgent:
            return timer.cap
        bears_s = min(
            (
                traffic.bears_s(now, self.timers[other].cautious_s, self.timers[other].slack_s)
                for other, traffic in urgent.items()
                if other in self.timers
            ),
            default=math.inf,
        )
        if math.isinf(bears_s):
            return timer.cap
        rest = 1 - sum(self._least_share(other, now) for other in self.timers if other != name)
        rate = timer.rate(now) / max(rest, dispatch.LEAST_REST)
        return dispatch.blocking_cap(timer.cautious_s, timer.cap, bears_s, rate)

    def _least_share(self, queue: str, now: float) -> float:
        """Share of its time that one queue takes at the least, in full batches."""
        timer = self.timers[queue]
        return timer.rate(now) * timer.service_s(timer.cap) / timer.cap


OWN = -1
"""The device's own thread, as a `Taker`."""


class Taker:
    """Who takes batches for one device, so that they are submitted in the order of being taken.

    Attributes:
        thread: who has taken a batch and not asked for the next one; 0: nobody.
        handed: a batch that was taken by another thread, for the device's own.
        armed: until when the device's own thread sleeps; minus infinity while it is awake.
    """

    __slots__ = ("armed", "handed", "thread")

    def __init__(self) -> None:
        self.thread = 0
        self.handed: Batch | None = None
        self.armed = -math.inf

    def free_for(self, thread: int) -> bool:
        """Whether this thread may take now; else somebody takes who asks again afterwards."""
        return self.thread in {0, thread} and self.handed is None

    def hand(self, batch: Batch) -> None:
        """Leaves a batch that was taken to the device's own thread."""
        self.handed, self.thread = batch, 0

    def take_handed(self) -> Batch | None:
        """By the device's own thread."""
        batch, self.handed = self.handed, None
        if batch is not None:
            self.thread = OWN
        return batch


def starts_in_s(
    devices: Sequence[Occupancy], request: Request, queue: ModelQueue, now: float
) -> float:
    """The least time after which a request's first sample is started; 0 with nothing before it.

    So something always runs, and a device that was slow is seen to be faster again.

    Args:
        devices: that serve its queue and are not out.
        request: would come in now.
        queue: its queue.
        now: monotonic seconds.
    """
    if queue.samples < queue.cap and any(device.free == device.lanes for device in devices):
        return 0.0  # it goes with the next batch, on an idle device
    prospects = [device.prospect(now, request.queue) for device in devices]
    replaced = queue.replaceable(request)
    starts_s = dispatch.starts_in_s((queue.samples - replaced) // queue.cap, prospects)
    if now + starts_s <= request.deadline:
        return starts_s
    # Only now it matters who stands behind whom.
    before = max(0, queue.ahead(request) - replaced)
    return dispatch.starts_in_s(before // queue.cap, prospects)


def refusal(
    rule: Refusal,
    devices: Sequence[Occupancy],
    request: Request,
    queue: ModelQueue,
    now: float,
) -> EdgedError | None:
    """Why a request is refused, or None.

    Args:
        rule: of admission, to be asked with ``starts_in_s`` and ``drain_s``.
        devices: that serve its queue and are not out.
        request: would come in now.
        queue: its queue.
        now: monotonic seconds.
    """
    starts_s = starts_in_s(devices, request, queue, now)
    if rule(starts_in_s=starts_s, drain_s=0.0) is None:
        return None
    # How long the devices need is found out only where an answer is to say it.
    drains_s = (device.clear_s(now, request.queue, queue.samples) for device in devices)
    return rule(starts_in_s=starts_s, drain_s=min(drains_s, default=0.0))


def states(
    devices: Mapping[str, Occupancy], queues: Mapping[str, ModelQueue], now: float
) -> dict[str, dict[str, dict[str, Any]]]:
    """State of all timers, queue by queue and device by device, for telemetry."""
    return {
        name: {
            device: state.timers[name].state(now) | {"waiting": queue.samples}
            for device, state in devices.items()
            if name in state.timers
        }
        for name, queue in queues.items()
    }


def busy(
    names: Iterable[str], queues: Mapping[str, ModelQueue], devices: Mapping[str, Occupancy]
) -> bool:
    """Whether anything of these queues waits or runs."""
    return any(
        (name in queues and queues[name].samples > 0)
        or any(device.running[name] for device in devices.values())
        for name in names
    )
