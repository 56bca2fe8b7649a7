"""The waiting room against a model of it: every rule of the queue, in any order of events."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from edged.errors import DrainingError, EdgedError, ExpiredError, LateError, QueueFullError
from edged.latency import LatencyCurve
from edged.serve import dispatch
from edged.serve.admit import Admission
from edged.serve.batch import WaitingRoom
from edged.serve.dispatch import UrgentTraffic
from edged.serve.model_queue import AGEING
from edged.serve.request import Batch, Part, Priority, Receipt, ReplyTo, Request
from edged.serve.timer import BatchTimer, Decision, Waiting

QUEUE_SAMPLES = 30
LANES = {"x": 1, "y": 2}
# Greedy with a large batch, and one that waits for company with a small one.
TIMERS = {"greedy": (0.0, 8), "patient": (20.0, 4)}
CURVE = LatencyCurve((1, 4, 8), (0.010, 0.016, 0.024))


class Clock:
    """Monotonic seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """The time."""
        return self.now


@dataclass
class Record:
    """What should have happened to one admitted request."""

    request: Request
    number: int
    taken: int = 0
    ended: list[Part] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Samples that still wait."""
        return self.request.samples - self.taken

    def rank(self, now: float) -> tuple[int, float, int]:
        """Its place in the total order: a background request that has aged counts as normal."""
        request = self.request
        ages = request.received + AGEING * (request.deadline - request.received)
        aged = request.priority is Priority.BACKGROUND and now >= ages
        priority = Priority.NORMAL if aged else request.priority
        return (priority, request.deadline, self.number)


class Room(RuleBasedStateMachine):
    """Puts, takes, completes, waits, drains; the model predicts what each must give."""

    @initialize()
    def open(self) -> None:
        """Two models, two devices, nothing waits."""
        self.clock = Clock()
        self.timers = {
            name: BatchTimer(CURVE, cap, price=price) for name, (price, cap) in TIMERS.items()
        }
        self.urgent = {name: UrgentTraffic() for name in TIMERS}
        self.room = WaitingRoom(self.timers, Admission(QUEUE_SAMPLES).refusal, self.clock)
        for device, lanes in LANES.items():
            self.room.add_device(device, lanes)
        self.records: list[Record] = []
        self.running: list[tuple[str, Batch]] = []
        self.draining = False

    # -------------------------------------------------------------- the model

    def waiting(self, model: str) -> list[Record]:
        """What waits for a model, in the order in which it must be served."""
        of_model = [r for r in self.records if r.request.model == model and r.left]
        return sorted(of_model, key=lambda record: record.rank(self.clock.now))

    def overdue(self) -> list[Record]:
        """What may not be started any more."""
        return [r for r in self.records if r.left and r.request.deadline <= self.clock.now]

    def due(self, model: str) -> tuple[int, str]:
        """Samples that must be run now if a lane is free, and why."""
        queue = [r for r in self.waiting(model) if r.request.deadline > self.clock.now]
        samples = sum(record.left for record in queue)
        if not queue:
            return 0, ""
        weights = [
            r.left * (TIMERS[model][1] if r.request.priority is Priority.URGENT else 1)
            for r in queue
        ]
        came = [r.request.received for r in self.records if r.request.model == model]
        state = Waiting(
            samples=samples,
            weight=sum(weights),
            arrival_weight=math.fsum(
                w * r.request.received for w, r in zip(weights, queue, strict=True)
            ),
            newest=max(came),
            deadline=min(r.request.deadline for r in queue) - self.blocking_s(model),
            urgent=any(r.request.priority is Priority.URGENT for r in queue),
            oldest=min(r.request.received for r in queue),
        )
        decision = self.sized(model, self.timers[model].decide(self.clock.now, state), queue)
        if self.draining and not decision.samples:
            return min(samples, self.cap(model)), "drain"
        return decision.samples, decision.reason.value

    def blocking_s(self, model: str) -> float:
        """How long a batch of the other model may hold a device."""
        (other,) = set(TIMERS) - {model}
        timer = self.timers[other]
        waits = any(r.request.deadline > self.clock.now for r in self.waiting(other))
        comes = timer.rate(self.clock.now) > dispatch.RARE
        return timer.service_s(timer.cap) if waits or comes else 0.0

    def sized(self, model: str, decision: Decision, queue: list[Record]) -> Decision:
        """The timer's decision, bounded for urgent requests."""
        now, cautious_s = self.clock.now, self.timers[model].cautious_s
        urgent = [r for r in queue if r.request.priority is Priority.URGENT]
        if urgent:
            left_s = min(r.request.deadline for r in urgent) - now
            return dispatch.beside_urgent(decision, sum(r.left for r in urgent), cautious_s, left_s)
        cap, samples = self.cap(model), sum(record.left for record in queue)
        return dispatch.limited(decision, Waiting(samples, 0, 0, 0, 0), cap, now)

    def cap(self, model: str) -> int:
        """Most samples in a batch without urgent ones."""
        now, timer = self.clock.now, self.timers[model]
        bears_s = min(
            traffic.bears_s(now, self.timers[name].cautious_s, self.timers[name].slack_s)
            for name, traffic in self.urgent.items()
        )
        (other,) = (self.timers[name] for name in TIMERS if name != model)
        rest = 1 - other.rate(now) * other.service_s(other.cap) / other.cap
        rate = timer.rate(now) / max(rest, dispatch.LEAST_REST)
        return dispatch.blocking_cap(timer.cautious_s, timer.cap, bears_s, rate)

    def free(self, device: str) -> int:
        """Free lanes of a device."""
        return LANES[device] - sum(name == device for name, _ in self.running)

    def ready(self) -> list[str]:
        """Devices for which `take` returns at once: it is never called where it would sleep."""
        if self.overdue():
            return list(LANES)
        if not any(self.due(model)[0] for model in TIMERS):
            return []
        return [device for device in LANES if self.free(device)]

    # -------------------------------------------------------------- what may happen

    @rule(
        model=st.sampled_from(sorted(TIMERS)),
        samples=st.integers(1, 12),
        priority=st.sampled_from([*Priority, Priority.NORMAL, Priority.NORMAL]),
        left_ms=st.sampled_from([-5, 0, 1, 20, 50, 50, 200, 1000]),
        age_ms=st.sampled_from([0, 0, 1, 3]),
    )
    def put(self, model: str, samples: int, priority: Priority, left_ms: int, age_ms: int) -> None:
        """A request arrives; it is let in or refused for the right reason."""
        request = make_request(
            model, samples, priority,
            deadline=self.clock.now + left_ms / 1e3, received=self.clock.now - age_ms / 1e3,
        )  # fmt: skip
        before = sum(record.left for record in self.waiting(model))
        expected: type[EdgedError] | None = None
        if self.draining:
            expected = DrainingError
        elif left_ms <= 0:
            expected = ExpiredError
        elif before + samples > QUEUE_SAMPLES:
            expected = QueueFullError
        if expected is None:
            try:
                self.room.put(request)
            except LateError:  # never with nothing before it
                assert before or self.running
                return
            self.records.append(Record(request, len(self.records)))
            if priority is Priority.URGENT:
                allowance_s = request.deadline - request.received
                self.urgent[model].arrived(self.clock.now, samples, allowance_s)
            return
        with pytest.raises(expected):
            self.room.put(request)

    @precondition(lambda self: self.ready())
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        """A device asks for work, and gets what the model says."""
        device = data.draw(st.sampled_from(self.ready()))
        due = {model: self.due(model) for model in TIMERS}
        overdue = {record.number for record in self.overdue()}
        lanes = self.free(device)

        work = self.room.take(device)

        assert work is not None
        assert {self.record(part).number for part in work.expired} == overdue
        for part in work.expired:
            self.end(part)
            assert part.stop == part.request.samples
        assert (work.batch is not None) == (
            lanes > 0 and any(samples for samples, _ in due.values())
        )
        if work.batch is not None:
            self.check(work.batch, due)
            self.running.append((device, work.batch))

    def check(self, batch: Batch, due: dict[str, tuple[int, str]]) -> None:
        """The batch has the size, the order and the samples that it must have."""
        urgent = {
            model: any(r.request.priority is Priority.URGENT for r in self.waiting(model))
            for model, (samples, _) in due.items()
            if samples
        }
        assert urgent[batch.model] == max(urgent.values())
        assert (batch.samples, batch.reason) == due[batch.model]
        assert 1 <= batch.samples <= TIMERS[batch.model][1]
        assert sum(part.samples for part in batch.parts) == batch.samples
        assert batch.closed == self.clock.now
        queue = self.waiting(batch.model)
        assert [self.record(part) for part in batch.parts] == queue[: len(batch.parts)]
        for part in batch.parts:
            assert part.samples > 0
            assert part.request.deadline > self.clock.now
            self.end(part)
        # Only the last request of a batch may have been cut.
        assert all(not self.record(part).left for part in batch.parts[:-1])

    @precondition(lambda self: self.running)
    @rule(data=st.data(), factor=st.sampled_from([0.0, 0.5, 1.0, 3.0]))
    def complete(self, data: st.DataObject, factor: float) -> None:
        """Any running batch ends, after some service time or a failure."""
        position = data.draw(st.integers(0, len(self.running) - 1))
        device, batch = self.running.pop(position)
        self.room.completed(device, batch.model, batch.samples, factor * CURVE(batch.samples))

    @rule(milliseconds=st.sampled_from([0.1, 1, 5, 20, 100]))
    def pass_time(self, milliseconds: float) -> None:
        """The clock goes on."""
        self.clock.now += milliseconds / 1e3

    @precondition(lambda self: len(self.records) > 5)
    @rule()
    def drain(self) -> None:
        """The service begins to stop."""
        self.room.drain()
        self.draining = True

    # -------------------------------------------------------------- what must hold

    def record(self, part: Part) -> Record:
        """Whose part it is."""
        return next(r for r in self.records if r.request is part.request)

    def end(self, part: Part) -> None:
        """Samples are handed out: the next ones of their request, without a hole."""
        record = self.record(part)
        assert part.start == record.taken
        assert part.start < part.stop <= part.request.samples
        record.taken = part.stop
        record.ended.append(part)

    @invariant()
    def it_says_what_waits(self) -> None:
        """Count and representation are those of the model."""
        left = sum(record.left for record in self.records)
        lanes = ", ".join(f"{device} {self.free(device)}" for device in LANES)
        assert self.room.samples == left
        assert repr(self.room) == f"<WaitingRoom {left} samples, free lanes: {lanes}>"

    @invariant()
    def no_lane_is_lent_twice(self) -> None:
        """A device never runs more batches than it has lanes."""
        assert all(self.free(device) >= 0 for device in LANES)

    def teardown(self) -> None:
        """What was put is what ran, expired or was given back, sample by sample."""
        if not hasattr(self, "room"):
            return
        for part in self.room.close():
            self.end(part)
        assert self.room.take("x") is None
        with pytest.raises(DrainingError):
            self.room.put(make_request("greedy", 1, Priority.NORMAL, math.inf, self.clock.now))
        for record in self.records:
            assert list(samples_of(record.ended)) == list(range(record.request.samples))


def make_request(
    model: str, samples: int, priority: Priority, deadline: float, received: float
) -> Request:
    """A request without content."""
    return Request(
        model=model,
        id="",
        samples=samples,
        tensors={"x": np.zeros((samples, 1), np.float32)},
        deadline=deadline,
        priority=priority,
        received=received,
        reply_to=ReplyTo("r", None, 0),
        receipt=Receipt(1, 0, 0, 0),
    )


def samples_of(parts: list[Part]) -> Iterator[int]:
    """Sample numbers in the order in which they were handed out."""
    for part in parts:
        yield from range(part.start, part.stop)


def test_the_room_does_what_the_model_says() -> None:
    """Conservation, order, deadlines, caps, lanes and refusals hold in any order of events."""
    run_state_machine_as_test(Room, settings=settings(max_examples=100, stateful_step_count=60))
