"""The waiting room: admitted requests in, batches out. The one lock of the path.

One lock guards the waiting requests and the timers' state. Nothing is called with it held that
waits or does I/O: the timers and the admission rule are pure. Devices pull: a device's thread asks
for work when it has a free lane, and sleeps until an arrival, a completion, or the one armed time.

Several devices share the room. Each has its own timers, so a busier one is known to be slower; it
leaves work to the others when they would have done all that waits before it had done one batch.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping

from edged.errors import EdgedError
from edged.serve.model_queue import ModelQueue
from edged.serve.request import Batch, Part, Request, Work
from edged.serve.sleepers import Sleepers
from edged.serve.timer import BatchTimer, Decision, Reason

Refusal = Callable[..., EdgedError | None]
"""`edged.serve.admit.Admission.refusal`."""


class _Device:
    """What the room knows of a device."""

    def __init__(self, lanes: int, timers: Mapping[str, BatchTimer], lead_s: float) -> None:
        self.lanes = self.free = lanes
        self.timers = dict(timers)
        self.lead_s = lead_s
        self.busy_until = -math.inf
        self._expected: deque[float] = deque()  # seconds of each batch that runs, oldest first
        self.retry_at: float | None = None  # set while it is out

    def started(self, now: float, model: str, samples: int) -> None:
        self.free -= 1
        service_s = self.timers[model].service_s(samples)
        self._expected.append(service_s)
        self.busy_until = max(now, self.busy_until) + service_s

    def ended(self, now: float) -> None:
        """A batch left: no error of earlier predictions outlives it."""
        self.free += 1
        self._expected.popleft()
        self.busy_until = min(self.busy_until, now + sum(self._expected))

    def resize(self, lanes: int) -> None:
        """Another number of lanes, of which those that are busy stay busy."""
        self.free += lanes - self.lanes
        self.lanes = lanes

    def earliest(self, now: float) -> float:
        """When its next batch may be closed: with one running, just before that one ends."""
        return now if self.free == self.lanes else max(now, self.busy_until - self.lead_s)

    def clear_s(self, now: float, model: str, samples: int) -> float:
        """Seconds until it would have done so many samples by itself.

        A device that is late is taken to need as long again as it is late.
        """
        timer = self.timers[model]
        full, rest = divmod(samples, timer.cap)
        work = full * timer.service_s(timer.cap) + (timer.service_s(rest) if rest else 0.0)
        return work + (abs(self.busy_until - now) if self.free < self.lanes else 0.0)


class WaitingRoom:
    """All waiting requests, the timers, and the free lanes of the devices.

    Thread-safe. ``put`` is called by the intake thread, ``take`` by a device's thread,
    ``completed`` by whoever learns that a batch is done.

    Args:
        timers: one for each model that is served; devices that bring none of their own use them.
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
        self._observers: dict[str, list[BatchTimer]] = {}  # of arrivals, by model
        self._devices: dict[str, _Device] = {}
        self._numbers = 0
        self._returns = -(2**62)  # before all arrivals, in the order in which they come back
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

    def timer(self, model: str, device: str = "") -> BatchTimer:
        """The timer of a model on a device, or the common one, for reading its state."""
        with self._changed:
            known = self._devices.get(device)
            return known.timers[model] if known else self._timers[model]

    def timer_states(self, now: float) -> dict[str, dict[str, dict[str, float]]]:
        """State of all timers, model by model and device by device, for telemetry."""
        with self._changed:
            return {
                model: {
                    name: device.timers[model].state(now)
                    for name, device in self._devices.items()
                    if model in device.timers
                }
                for model in self._queues
            }

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
            timers: one for each model, measured on it; None: the common ones.
            lead_s: with a batch running, the next one is closed so long before that one ends, and
                keeps filling until then; infinity: at once. A full batch never waits.
        """
        with self._changed:
            self._devices[device] = _Device(lanes, timers or self._timers, lead_s)
            self._observers.clear()
            self._changed.notify_all()

    def suspend(self, device: str, retry_at: float) -> None:
        """Takes a device out: until ``retry_at`` it gets no work, then `take` asks to try again."""
        with self._changed:
            self._devices[device].retry_at = retry_at
            self._changed.notify_all()

    def set_model(
        self, model: str, timers: Mapping[str, BatchTimer], lanes: Mapping[str, int] | None = None
    ) -> None:
        """A model is served from now on, or by another engine; what waits for it stays.

        Args:
            model: its name.
            timers: by device.
            lanes: batches that may be on a device at once from now on; None: as many as before.
        """
        with self._changed:
            for device, timer in timers.items():
                if lanes is not None:
                    self._devices[device].resize(lanes[device])
                self._devices[device].timers[model] = timer
                self._timers[model] = timer
                self._queues.setdefault(model, ModelQueue(timer.cap)).cap = timer.cap
            self._observers.clear()
            self._changed.notify_all()

    def set_rule(self, refusal: Refusal) -> None:
        """Admits by another rule from now on."""
        with self._changed:
            self._refusal = refusal

    # -------------------------------------------------------------- requests in

    def put(self, request: Request, *, call: bool = True) -> None:
        """Admits a request.

        Args:
            request: a decoded request.
            call: False: more will follow at once; `call` wakes the devices then, for all of them.

        Raises:
            EdgedError: it is refused; the request is not kept.
        """
        with self._changed:
            now = self._clock()
            queue = self._queues[request.model]
            refusal = self._refusal(
                request, now, waiting=queue.samples, drain_s=0.0, draining=self._draining
            )
            if refusal is not None:  # only now it is worth while to find out how long to wait
                raise (
                    self._refusal(
                        request,
                        now,
                        waiting=queue.samples,
                        drain_s=self._drain_s(request.model, now, queue.samples),
                        draining=self._draining,
                    )
                    or refusal
                )
            self._numbers += 1
            queue.put(Part(request, 0, request.samples), self._numbers)
            timers = self._observers.get(request.model)
            if timers is None:
                timers = self._observers[request.model] = self._timers_of(request.model)
            for timer in timers:
                timer.arrived(now, request.samples)
            # A device whose lanes are all busy need not wake up, unless this one expires first.
            if any(d.free > 0 for d in self._devices.values()) or request.deadline < self._alarm:
                if call:
                    self._changed.notify_all()
                else:
                    self._call_due = True

    def call(self) -> None:
        """Wakes the devices for what was put without a call. From the thread that put it."""
        if self._call_due:
            with self._changed:
                self._call_due = False
                self._changed.notify_all()

    def put_back(self, parts: Iterable[Part]) -> None:
        """Takes samples in again whose device failed; they keep their place in the order."""
        with self._changed:
            for part in parts:
                request = part.request
                again = Part(request, part.start, part.stop, part.attempt + 1)
                self._returns += 1
                self._queues[request.model].put(again, self._returns)
            self._changed.notify_all()

    def _timers_of(self, model: str) -> list[BatchTimer]:
        devices = self._devices.values()
        timers = [self._timers[model], *(d.timers[model] for d in devices if model in d.timers)]
        return list({id(timer): timer for timer in timers}.values())

    def _drain_s(self, model: str, now: float, samples: int) -> float:
        able = self._able(model)
        return min((device.clear_s(now, model, samples) for device in able), default=0.0)

    def _able(self, model: str) -> list[_Device]:
        """Devices that serve a model and are not out."""
        return [d for d in self._devices.values() if d.retry_at is None and model in d.timers]

    # -------------------------------------------------------------- batches out

    def take(self, device: str) -> Work | None:
        """Waits for work for a device; None once the room is closed.

        A batch occupies one of the device's lanes until `completed`. While none is free, only
        expired requests are handed out, when they expire.
        """
        with self._changed:
            while not self._closed:
                now = self._clock()
                state = self._devices[device]
                expired = [part for queue in self._queues.values() for part in queue.expire(now)]
                batch, alarm = self._next_batch(state, now)
                retry = state.retry_at is not None and state.retry_at <= now
                if batch is not None or expired or retry:
                    return Work(batch, tuple(expired), retry)
                self._alarm = min(self._alarm, alarm)
                self._changed.wait(None if math.isinf(alarm) else max(0.0, alarm - now))
                self._alarm = math.inf
            return None

    def _next_batch(self, device: _Device, now: float) -> tuple[Batch | None, float]:
        """The batch to run now, or when to look again."""
        filled = [(n, q) for n, q in self._queues.items() if q.samples and n in device.timers]
        alarm = min((queue.deadline for queue in self._queues.values()), default=math.inf)
        if device.retry_at is not None:
            return None, min(alarm, device.retry_at)
        if device.free <= 0:
            return None, alarm
        due: list[tuple[float, float, str, Decision]] = []
        for name, queue in filled:
            decision, at = self._decide(device, name, queue, now)
            alarm = min(alarm, at)
            if decision.samples:
                due.append((decision.at, queue.deadline, name, decision))
        if not due:
            return None, alarm
        # Earliest closing time first, then earliest deadline.
        _, _, name, decision = min(due, key=lambda item: item[:3])
        device.started(now, name, decision.samples)
        parts = self._queues[name].take(decision.samples)
        return Batch(name, parts, decision.samples, decision.reason.value, now), alarm

    def _decide(
        self, device: _Device, name: str, queue: ModelQueue, now: float
    ) -> tuple[Decision, float]:
        """What to do with one model on this device, and when to look again."""
        decision = device.timers[name].decide(now, queue.waiting())
        if self._draining and not decision.samples:
            decision = Decision(min(queue.samples, queue.cap), now, Reason.DRAIN)
        if not decision.samples:
            return decision, decision.at
        later = Decision(0, now, decision.reason)
        earliest = device.earliest(now)
        if earliest > now and decision.samples < queue.cap:
            return later, earliest
        service_s = device.timers[name].service_s(decision.samples)
        others = [other for other in self._able(name) if other is not device]
        if any(other.clear_s(now, name, queue.samples) < service_s for other in others):
            return later, now + service_s
        return decision, now

    def completed(self, device: str, model: str, samples: int, service_s: float) -> None:
        """A batch left its lane; ``service_s`` is 0 where it failed and tells nothing."""
        with self._changed:
            state = self._devices[device]
            state.ended(self._clock())
            state.timers[model].completed(samples, service_s)
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
