"""Which batch a device gets now, or when to look again. Pure; the waiting room's lock guards it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from edged.serve.dispatch import UrgentTraffic
from edged.serve.model_queue import ModelQueue
from edged.serve.occupancy import Occupancy
from edged.serve.request import Batch, Request, model_of
from edged.serve.timer import Decision, Reason


@dataclass(repr=False)
class Situation:
    """All that the choice depends on.

    Attributes:
        queues: what waits.
        devices: what they do.
        urgent: urgent traffic, by queue.
        leaving: queues that are to go.
        draining: whether nothing is waited for any more.
    """

    queues: dict[str, ModelQueue]
    devices: dict[str, Occupancy] = field(default_factory=dict)
    urgent: dict[str, UrgentTraffic] = field(default_factory=dict)
    leaving: set[str] = field(default_factory=set)
    draining: bool = False

    def __repr__(self) -> str:
        lanes = ", ".join(f"{name} {device.free}" for name, device in self.devices.items())
        return f"{self.waiting()} samples, free lanes: {lanes or 'none'}"

    def able(self, queue: str) -> list[Occupancy]:
        """Devices that serve a queue and are not out."""
        return [d for d in self.devices.values() if d.retry_at is None and queue in d.timers]

    def deadline(self) -> float:
        """Earliest deadline of all that waits, infinity if nothing does."""
        return min((queue.deadline for queue in self.queues.values()), default=math.inf)

    def waiting(self) -> int:
        """Samples that wait, over all queues."""
        return sum(queue.samples for queue in self.queues.values())

    def waiting_for(self, request: Request) -> int:
        """Samples that wait for the model of a request."""
        if not request.length:
            return self.queues[request.queue].samples
        named = ((model_of(name), queue) for name, queue in self.queues.items())
        return sum(queue.samples for model, queue in named if model == request.model)

    def reopen(self, queue: str) -> None:
        """The batch that closes next is another one."""
        for device in self.devices.values():
            device.closes.pop(queue, None)


def next_batch(all_: Situation, device: Occupancy, now: float) -> tuple[Batch | None, float]:
    """The batch to run now, taken out of its queue, or when to look again."""
    alarm = all_.deadline()
    if device.retry_at is not None:
        return None, min(alarm, device.retry_at)
    if device.free <= 0:
        return None, alarm
    due: list[tuple[bool, float, float, str, Decision]] = []
    for name, queue in all_.queues.items():
        if not queue.samples or name not in device.timers:
            continue
        decision, at = _decide(all_, device, name, now)
        alarm = min(alarm, at)
        if decision.samples:
            closed = min(now, device.closes.get(name, now))
            due.append((not queue.urgent[0], closed, queue.deadline, name, decision))
    if not due:
        return None, alarm
    _, _, _, name, decision = due[0] if len(due) == 1 else min(due, key=lambda item: item[:4])
    return _close(all_, device, name, decision, now), alarm


def _close(all_: Situation, device: Occupancy, name: str, decision: Decision, now: float) -> Batch:
    queue = all_.queues[name]
    device.timers[name].started(now, queue.waiting(), decision)
    device.started(now, name, decision.samples)
    all_.reopen(name)
    queue.age(now)
    parts = queue.take(decision.samples)
    model, length = parts[0].request.model, parts[0].request.length
    return Batch(model, parts, decision.samples, decision.reason.value, now, length)


def _decide(all_: Situation, device: Occupancy, name: str, now: float) -> tuple[Decision, float]:
    """What to do with one queue on this device, and when to look again."""
    queue = all_.queues[name]
    decision, cap = device.sized(name, all_.queues, all_.urgent, now)
    if (all_.draining or name in all_.leaving) and not decision.samples:
        decision = Decision(min(queue.samples, cap), now, Reason.DRAIN)
    if not decision.samples:
        device.closes[name] = decision.at
        return decision, decision.at
    device.closes[name] = min(now, device.closes.get(name, now))
    later = Decision(0, now, decision.reason)
    earliest = device.earliest(now)
    if earliest > now and decision.samples < cap:
        return later, earliest
    others = [other for other in all_.able(name) if other is not device]
    if not others:
        return decision, now
    service_s = device.timers[name].service_s(decision.samples)
    if any(other.clear_s(now, name, queue.samples) < service_s for other in others):
        return later, now + service_s
    return decision, now
