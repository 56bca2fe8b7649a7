"""The waiting room: admitted requests in, batches out. The one lock of the path.

One lock guards the waiting requests and the timers' state. Nothing is called with it held that
waits or does I/O: the timers and the admission rule are pure. Devices pull: who brings an arrival
or a completion asks for what is due (`take_now`), one thread at a time for a device; the device's
own thread sleeps until it is called, or until the one armed time (`take`).

Several devices share the room. Each has its own timers, so a busier one is known to be slower; it
leaves work to the others when they would have done all that waits before it had done one batch.

What waits lies in queues: one for each model, or one for each model and padded length. Which of
them a device serves next, and with how large a batch, is decided in `edged.serve.next_batch`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from threading import get_ident
from typing import Any

from edged.errors import EdgedError, UnknownModelError
from edged.serve.dispatch import UrgentTraffic
from edged.serve.model_queue import ModelQueue
from edged.serve.next_batch import Situation, next_batch
from edged.serve.occupancy import OWN, Occupancy, Refusal, Taker, busy, refusal, states
from edged.serve.request import Batch, Part, Priority, Request, Work, model_of
from edged.serve.sleepers import Sleepers
from edged.serve.timer import BatchTimer
from edged.serve.tuner import Choice, Task


class WaitingRoom:
    """All waiting requests, the timers, and the free lanes of the devices.

    Thread-safe. ``put`` is called by the intake, ``take`` by a device's thread, ``take_now`` by any
    other one that starts batches, ``completed`` by whoever learns that a batch is done.

    Attributes:
        call_due: there is something that devices have to look at.

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
        self._all = Situation({name: ModelQueue(timer.cap) for name, timer in timers.items()})
        self._queues = self._all.queues
        self._devices = self._all.devices
        self._refusal = refusal
        self._clock = clock
        self._changed = Sleepers()
        self.call_due = False
        self._takers: dict[str, Taker] = {}  # by device
        self._observers: dict[str, list[BatchTimer]] = {}  # of arrivals, by queue
        self._numbers = 0
        self._returns = -(2**62)  # before all arrivals, in the order in which they come back
        self._closed = False

    def __repr__(self) -> str:
        with self._changed:
            return f"<WaitingRoom {self._all!r}>"

    @property
    def samples(self) -> int:
        """Samples that wait, over all models."""
        with self._changed:
            return self._all.waiting()

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
            self._takers.setdefault(device, Taker())
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
            self._all.leaving.update(queues)
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
                for known in (self._queues, self._timers, self._all.urgent, self._observers):
                    known.pop(name, None)
                for device in self._devices.values():
                    device.drop(name)
            for where, number in lanes.items():
                self._devices[where].resize(number)
            self._all.leaving.difference_update(queues)

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
            call: False: more will follow at once; then `due` says so, or `call` wakes the devices.

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
                self._all.reopen(request.queue)
            superseded = queue.put(Part(request, 0, request.samples), self._numbers)
            self._arrived(request, queue, now)
            if not self.call_due:
                self.call_due = self._concerns(request)
        if call:
            self.call()
        return superseded

    def _concerns(self, request: Request) -> bool:
        """Whether a device has to look: those whose lanes are all busy only if it expires first."""
        return any(device.free > 0 for device in self._devices.values()) or any(
            request.deadline < taker.armed for taker in self._takers.values()
        )

    def due(self) -> bool:
        """Whether devices have to look at what was put without a call; asked once for each time.

        Who is told so has `take_now` asked for every device, or calls.
        """
        if not self.call_due:
            return False
        with self._changed:
            self.call_due = False
            return True

    def call(self) -> None:
        """Wakes the devices' threads, if there is anything for them."""
        if self.call_due:
            with self._changed:
                self.call_due = False
                self._changed.notify_all()

    def _open_queue(self, request: Request) -> ModelQueue:
        queue = self._queues.get(request.queue)
        if queue is None or request.queue in self._all.leaving:
            raise UnknownModelError(
                f"model {request.model!r} is served here no more: it was taken off serve.models"
            )
        return queue

    def _refused(self, request: Request, queue: ModelQueue, now: float) -> EdgedError | None:
        waiting = self._all.waiting_for(request) - queue.replaceable(request)
        limits = {"waiting": waiting, "draining": self._all.draining}
        rule = partial(self._refusal, request, now, **limits)
        return refusal(rule, self._all.able(request.queue), request, queue, now)

    def _arrived(self, request: Request, queue: ModelQueue, now: float) -> None:
        """Has the timers know, and the closing times of devices that are busy."""
        name = request.queue
        if request.priority is Priority.URGENT:
            traffic = self._all.urgent.setdefault(name, UrgentTraffic())
            traffic.arrived(now, request.samples, request.deadline - request.received)
        for timer in self._observers.get(name) or self._timers_of(name):
            timer.arrived(now, request.samples)
        for device in self._devices.values():
            device.arrived(now, name, queue)

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

    # -------------------------------------------------------------- batches out

    def take(self, device: str) -> Work | None:
        """Waits for work for a device, on its own thread; None once the room is closed.

        A batch occupies one of the device's lanes until `completed`. While none is free, only
        expired requests are handed out, when they expire.
        """
        with self._changed:
            taker, armed = self._takers[device], math.inf
            while not self._closed:
                now, alarm = self._clock(), math.inf
                if (batch := taker.take_handed()) is not None:
                    return Work(batch)
                if taker.free_for(OWN):
                    work, alarm = self._look(device, now, armed)
                    if work is not None:
                        return work
                taker.armed = armed = alarm
                self._changed.wait(None if math.isinf(alarm) else max(0.0, alarm - now))
                taker.armed = -math.inf
            return None

    def _look(self, device: str, now: float, armed: float) -> tuple[Work | None, float]:
        """What there is for a device's own thread, or when it has to look again."""
        state, taker = self._devices[device], self._takers[device]
        expired = tuple(part for queue in self._queues.values() for part in queue.expire(now))
        batch, alarm = next_batch(self._all, state, now)
        retry = state.ask_retry(now)
        taker.thread = OWN if batch is not None else 0
        if expired and self._all.leaving:
            self._changed.notify_all()
        if batch is None and not expired and not retry:
            return None, alarm
        late_s = now - armed if now >= armed else None
        if batch is not None and late_s is not None:
            state.timers[batch.queue].woke(late_s)
        return Work(batch, expired, retry, late_s), alarm

    def take_now(self, device: str) -> Batch | None:
        """The batch that is due on a device; from any thread, which asks until there is none.

        None also while another thread is at it, which asks again itself. What has expired, and an
        earlier time to look again, is left to the device's own thread: `call` wakes it.
        """
        taker = self._takers[device]
        with self._changed:
            if self._closed or not taker.free_for(get_ident()):
                return None
            now = self._clock()
            batch, alarm = None, self._all.deadline()
            if now < alarm < math.inf or self._all.waiting():
                batch, alarm = next_batch(self._all, self._devices[device], now)
            taker.thread = get_ident() if batch is not None else 0
            if batch is None and alarm < taker.armed:
                self.call_due = True
            return batch

    def hand(self, device: str, batch: Batch) -> None:
        """Leaves a batch of `take_now` to the device's own thread; `call` wakes it."""
        with self._changed:
            self._takers[device].hand(batch)
            self.call_due = True

    def completed(
        self, device: str, queue: str, samples: int, service_s: float, *, call: bool = True
    ) -> None:
        """A batch left its lane.

        Args:
            device: it ran on.
            queue: it was taken from.
            samples: in it.
            service_s: seconds on the device; 0 where it failed and tells nothing.
            call: False: the caller goes on to `take_now`.
        """
        with self._changed:
            state = self._devices[device]
            state.ended(self._clock(), queue)
            state.timers[queue].completed(samples, service_s)
            if self._all.leaving or (call and self._all.waiting()):
                self._changed.notify_all()

    def drain(self) -> None:
        """Refuses what comes from now on, and runs what waits without waiting for more."""
        with self._changed:
            self._all.draining = True
            self._changed.notify_all()

    def resume(self) -> None:
        """Takes requests again after `drain`."""
        with self._changed:
            self._all.draining = self._closed

    def close(self) -> list[Part]:
        """Ends every `take`, and gives back what still waits."""
        with self._changed:
            self._closed = self._all.draining = True
            left = [part for queue in self._queues.values() for part in queue.expire(math.inf)]
            self._changed.notify_all()
            return left
