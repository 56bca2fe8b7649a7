"""The waiting room: admitted requests in, batches out. The one lock of the path.

One lock guards the waiting requests and the timers' state. Nothing is called with it held that
waits or does I/O: the timers and the admission rule are pure. Devices pull: a device's thread asks
for work when it has a free lane, and sleeps until an arrival, a completion, or the one armed time.

Several devices share the room. Each has its own timers, so a busier one is known to be slower; it
leaves work to the others when they would have done all that waits before it had done one batch.

What waits lies in queues: one for each model, or one for each model and padded length. Which of
them a device serves next, and with how large a batch, is decided in `edged.serve.dispatch`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any

from edged.errors import EdgedError, UnknownModelError
from edged.serve.dispatch import UrgentTraffic
from edged.serve.model_queue import ModelQueue
from edged.serve.occupancy import Occupancy, Refusal, busy, refusal, states
from edged.serve.request import Batch, Part, Priority, Request, Work, model_of
from edged.serve.sleepers import Sleepers
from edged.serve.timer import BatchTimer, Decision, Reason
from edged.serve.tuner import Choice, Task


class WaitingRoom:
    """All waiting requests, the timers, and the free lanes of the devices.

    Thread-safe. ``put`` is called by the intake, ``take`` by a device's thread,
    ``completed`` by whoever learns that a batch is done.

    Args:
        timers: by queue, for all that is served; devices that bring none of their own use them.
        refusal: the admission rule.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        timers: Mapping[str, BatchTimer],
        refusal: Refusal,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._timers = dict(timers)
        self._queues = {name: ModelQueue(timer.cap) for name, timer in timers.items()}
        self._refusal = refusal
        self._clock = clock
        self._changed = Sleepers()
        self._call_due = False
        self._devices: dict[str, Occupancy] = {}
        self._observers: dict[str, list[BatchTimer]] = {}  # of arrivals, by queue
        self._urgent: dict[str, UrgentTraffic] = {}  # by queue
        self._numbers = 0
        self._returns = -(2**62)  # before all arrivals, in the order in which they come back
        self._leaving: set[str] = set()  # queues that are to go
        self._draining = False
        self._closed = False
        self._alarm = math.inf  # until when the sleeping devices sleep, at most

    def __repr__(self) -> str:
        with self._changed:
            lanes = ", ".join(f"{name} {device.free}" for name, device in self._devices.items())
            return f"<WaitingRoom {self._waiting()} samples, free lanes: {lanes or 'none'}>"

    def _waiting(self) -> int:
        return sum(queue.samples for queue in self._queues.values())

    @property
    def samples(self) -> int:
        """Samples that wait, over all models."""
        with self._changed:
            return self._waiting()

    def timer_states(self, now: float) -> dict[str, dict[str, dict[str, Any]]]:
        """State of all timers, queue by queue and device by device, for telemetry."""
        with self._changed:
            return states(self._devices, self._queues, now)

    # -------------------------------------------------------------- devices and models

    def add_device(
        self,
        device: str,
        lanes: int,
        timers: Mapping[str, BatchTimer] | None = None,
        lead_s: float = math.inf,
    ) -> None:
        """Registers a device, or takes it in again after `suspend`.

        Args:
            device: its name.
            lanes: batches that may be on it at once.
            timers: by queue, measured on it; None: the common ones.
            lead_s: so long before a running batch ends, the next one is closed; infinity: at once.
        """
        with self._changed:
            known = self._timers if timers is None else timers
            self._devices[device] = Occupancy(lanes, known, lead_s)
            self._observers.clear()
            self._changed.notify_all()

    def suspend(self, device: str, retry_at: float) -> None:
        """Takes a device out: it gets no work until ``retry_at``, when `take` asks to try again."""
        with self._changed:
            self._devices[device].retry_at = retry_at
            self._changed.notify_all()

    def set_model(
        self, queue: str, timers: Mapping[str, BatchTimer], lanes: Mapping[str, int] | None = None
    ) -> None:
        """A model is served from now on, or by another engine; what waits for it stays.

        Args:
            queue: its queue; of inputs of variable length, each queue is set by itself.
            timers: by device.
            lanes: batches that may be on a device at once from now on; None: as many as before.
        """
        with self._changed:
            for device, timer in timers.items():
                if lanes is not None:
                    self._devices[device].resize(lanes[device])
                self._devices[device].timers[queue] = timer
                self._timers[queue] = timer
                self._queues.setdefault(queue, ModelQueue(timer.cap)).cap = timer.cap
            self._observers.clear()
            self._changed.notify_all()

    def leave(self, queues: Collection[str]) -> bool:
        """Refuses what comes for these queues, runs what waits at once, and waits for its end.

        Returns:
            Whether nothing of it waits or runs any more; False: the room was closed meanwhile.
        """
        with self._changed:
            self._leaving.update(queues)
            self._changed.notify_all()
            while not self._closed and busy(queues, self._queues, self._devices):
                self._changed.wait()
            return not self._closed

    def remove(self, queues: Collection[str], lanes: Mapping[str, int]) -> None:
        """Forgets queues after `leave`.

        Args:
            queues: nothing of them waits or runs.
            lanes: by device, batches that may be on it at once from now on.
        """
        with self._changed:
            for name in queues:
                for known in (self._queues, self._timers, self._urgent, self._observers):
                    known.pop(name, None)
                for device in self._devices.values():
                    device.drop(name)
            for where, number in lanes.items():
                self._devices[where].resize(number)
            self._leaving.difference_update(queues)

    def tunings(self) -> list[tuple[BatchTimer, Task]]:
        """What the tuner may work on, outside the lock; `tuned` takes the result."""
        with self._changed:
            now = self._clock()
            timers = [timer for d in self._devices.values() for timer in d.timers.values()]
            return [(timer, task) for timer in timers if (task := timer.tuning(now)) is not None]

    def tuned(self, timer: BatchTimer, choice: Choice | None) -> None:
        """A timer goes by this choice from now on."""
        with self._changed:
            timer.tuned(self._clock(), choice)
            self._changed.notify_all()

    def scales(self) -> dict[str, dict[str, float]]:
        """By device and queue, how many times longer batches take than on the idle device."""
        with self._changed:
            return {name: device.scales() for name, device in self._devices.items()}

    def set_price(self, device: str, price: float, queue: str = "") -> None:
        """A second of a device's time is worth so many seconds of latency, in one queue or all."""
        with self._changed:
            for name, timer in self._devices[device].timers.items():
                if timer.price != price and queue in {"", name}:
                    timer.price = price
                    self._changed.notify_all()

    def set_slos(self, slos_s: Mapping[str, float]) -> None:
        """The latency that requests should keep from now on, by model."""
        with self._changed:
            for name in self._queues:
                for timer in self._timers_of(name):
                    timer.slo_s = slos_s.get(model_of(name), timer.slo_s)

    def set_rule(self, refusal: Refusal) -> None:
        """Admits by another rule from now on."""
        with self._changed:
            self._refusal = refusal

    # -------------------------------------------------------------- requests in

    def put(self, request: Request, *, call: bool = True) -> tuple[Part, ...]:
        """Admits a request.

        Args:
            request: a decoded request.
            call: False: more will follow at once; `call` wakes the devices then, for all of them.

        Returns:
            What it superseded: a whole request of the same source, or nothing.

        Raises:
            EdgedError: it is refused; the request is not kept.
        """
        with self._changed:
            now = self._clock()
            queue = self._open_queue(request)
            if (refusal := self._refused(request, queue, now)) is not None:
                raise refusal
            self._numbers += 1
            if not queue.samples:
                self._reopen(request.queue)
            superseded = queue.put(Part(request, 0, request.samples), self._numbers)
            self._arrived(request, queue, now)
            # A device whose lanes are all busy need not wake up, unless this one expires first.
            if any(d.free > 0 for d in self._devices.values()) or request.deadline < self._alarm:
                self._call_due = True
        if call:
            self.call()
        return superseded

    def call(self) -> None:
        """Wakes the devices for what was put without a call. From the thread that put it."""
        if self._call_due:
            with self._changed:
                self._call_due = False
                self._changed.notify_all()

    def _open_queue(self, request: Request) -> ModelQueue:
        queue = self._queues.get(request.queue)
        if queue is None or request.queue in self._leaving:
            raise UnknownModelError(
                f"model {request.model!r} is served here no more: it was taken off serve.models"
            )
        return queue

    def _refused(self, request: Request, queue: ModelQueue, now: float) -> EdgedError | None:
        waiting = sum(q.samples for of, q in self._queues.items() if model_of(of) == request.model)
        limits = {"waiting": waiting - queue.replaceable(request), "draining": self._draining}
        rule = partial(self._refusal, request, now, **limits)
        return refusal(rule, self._able(request.queue), request, queue, now)

    def _arrived(self, request: Request, queue: ModelQueue, now: float) -> None:
        """Has the timers know, and the closing times of devices that are busy."""
        name = request.queue
        if request.priority is Priority.URGENT:
            traffic = self._urgent.setdefault(name, UrgentTraffic())
            traffic.arrived(now, request.samples, request.deadline - request.received)
        for timer in self._observers.get(name) or self._timers_of(name):
            timer.arrived(now, request.samples)
        for device in self._devices.values():
            device.arrived(now, name, queue.waiting())

    def _reopen(self, queue: str) -> None:
        """The batch that closes next is another one."""
        for device in self._devices.values():
            device.closes.pop(queue, None)

    def put_back(self, parts: Iterable[Part]) -> None:
        """Takes samples in again whose device failed; they keep their place in the order."""
        with self._changed:
            for part in parts:
                request = part.request
                again = Part(request, part.start, part.stop, part.attempt + 1)
                self._returns += 1
                self._queues[request.queue].put(again, self._returns)
            self._changed.notify_all()

    def _timers_of(self, queue: str) -> list[BatchTimer]:
        devices = self._devices.values()
        timers = [self._timers[queue], *(d.timers[queue] for d in devices if queue in d.timers)]
        observers = self._observers[queue] = list({id(timer): timer for timer in timers}.values())
        return observers

    def _able(self, queue: str) -> list[Occupancy]:
        """Devices that serve a queue and are not out."""
        return [d for d in self._devices.values() if d.retry_at is None and queue in d.timers]

    # -------------------------------------------------------------- batches out

    def take(self, device: str) -> Work | None:
        """Waits for work for a device; None once the room is closed.

        A batch occupies one of the device's lanes until `completed`. While none is free, only
        expired requests are handed out, when they expire.
        """
        with self._changed:
            armed = math.inf
            while not self._closed:
                now = self._clock()
                state = self._devices[device]
                expired = [part for queue in self._queues.values() for part in queue.expire(now)]
                batch, alarm = self._next_batch(state, now)
                retry = state.ask_retry(now)
                if expired and self._leaving:
                    self._changed.notify_all()
                if batch is not None or expired or retry:
                    late_s = now - armed if now >= armed else None
                    if batch is not None and late_s is not None:
                        state.timers[batch.queue].woke(late_s)
                    return Work(batch, tuple(expired), retry, late_s)
                self._alarm = min(self._alarm, alarm)
                armed = alarm
                self._changed.wait(None if math.isinf(alarm) else max(0.0, alarm - now))
                self._alarm = math.inf
            return None

    def _next_batch(self, device: Occupancy, now: float) -> tuple[Batch | None, float]:
        """The batch to run now, or when to look again."""
        filled = [(n, q) for n, q in self._queues.items() if q.samples and n in device.timers]
        alarm = min((queue.deadline for queue in self._queues.values()), default=math.inf)
        if device.retry_at is not None:
            return None, min(alarm, device.retry_at)
        if device.free <= 0:
            return None, alarm
        due: list[tuple[bool, float, float, str, Decision]] = []
        for name, queue in filled:
            decision, at = self._decide(device, name, queue, now)
            alarm = min(alarm, at)
            if decision.samples:
                closed = min(now, device.closes.get(name, now))
                due.append((not queue.urgent[0], closed, queue.deadline, name, decision))
        if not due:
            return None, alarm
        _, _, _, name, decision = min(due, key=lambda item: item[:4])
        return self._close(device, name, decision, now), alarm

    def _close(self, device: Occupancy, name: str, decision: Decision, now: float) -> Batch:
        queue = self._queues[name]
        device.timers[name].started(now, queue.waiting(), decision)
        device.started(now, name, decision.samples)
        self._reopen(name)
        queue.age(now)
        parts = queue.take(decision.samples)
        model, length = parts[0].request.model, parts[0].request.length
        return Batch(model, parts, decision.samples, decision.reason.value, now, length)

    def _decide(
        self, device: Occupancy, name: str, queue: ModelQueue, now: float
    ) -> tuple[Decision, float]:
        """What to do with one queue on this device, and when to look again."""
        decision, cap = device.sized(name, self._queues, self._urgent, now)
        if (self._draining or name in self._leaving) and not decision.samples:
            decision = Decision(min(queue.samples, cap), now, Reason.DRAIN)
        if not decision.samples:
            device.closes[name] = decision.at
            return decision, decision.at
        device.closes[name] = min(now, device.closes.get(name, now))
        later = Decision(0, now, decision.reason)
        earliest = device.earliest(now)
        if earliest > now and decision.samples < cap:
            return later, earliest
        service_s = device.timers[name].service_s(decision.samples)
        others = [other for other in self._able(name) if other is not device]
        if any(other.clear_s(now, name, queue.samples) < service_s for other in others):
            return later, now + service_s
        return decision, now

    def completed(self, device: str, queue: str, samples: int, service_s: float) -> None:
        """A batch left its lane; ``service_s`` is 0 where it failed and tells nothing."""
        with self._changed:
            state = self._devices[device]
            state.ended(self._clock(), queue)
            state.timers[queue].completed(samples, service_s)
            if self._waiting() or self._leaving:  # else there is nothing to wake up for
                self._changed.notify_all()

    def drain(self) -> None:
        """Refuses what comes from now on, and runs what waits without waiting for more."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()

    def resume(self) -> None:
        """Takes requests again after `drain`."""
        with self._changed:
            self._draining = self._closed

    def close(self) -> list[Part]:
        """Ends every `take`, and gives back what still waits."""
        with self._changed:
            self._closed = self._draining = True
            left = [part for queue in self._queues.values() for part in queue.expire(math.inf)]
            self._changed.notify_all()
            return left
