"""Several devices in one waiting room, with faults: conservation, order, and nobody forgotten."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

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

from edged.errors import LateError, QueueFullError
from edged.latency import LatencyCurve
from edged.serve.gpu import MOST_ATTEMPTS
from edged.serve.model_queue import AGEING
from edged.serve.request import Batch, Part, Priority, Request, Work
from edged.serve.timer import BatchTimer
from tests.doubles.stepped_room import StepwiseRoom, make_request

QUEUE_SAMPLES = 40
CURVES = (
    LatencyCurve((1, 4, 8), (0.010, 0.016, 0.024)),
    LatencyCurve((1, 8), (0.050, 0.090), stepped=True),
    LatencyCurve((1, 8), (0.002, 0.004)),
)
CAPS = {"greedy": 8, "patient": 4}
PRICES = {"greedy": 0.0, "patient": 20.0}


def timers(curve: LatencyCurve) -> dict[str, BatchTimer]:
    """New ones of one device."""
    return {name: BatchTimer(curve, cap, price=PRICES[name]) for name, cap in CAPS.items()}


@dataclass
class Fate:
    """What became of the samples of one request."""

    request: Request
    waiting: set[int]
    running: set[int] = field(default_factory=set)
    ended: set[int] = field(default_factory=set)
    failures: Counter[int] = field(default_factory=Counter)


class Devices(RuleBasedStateMachine):
    """Requests come, devices run, fail, are tried again, and come back, in any order."""

    @initialize(
        lanes=st.lists(st.integers(1, 3), min_size=2, max_size=3),
        lead_s=st.sampled_from([0.0, 0.005, math.inf]),
    )
    def open(self, lanes: list[int], lead_s: float) -> None:
        """Two or three devices of different speed; nothing waits."""
        self.stepped = StepwiseRoom(timers(CURVES[0]), QUEUE_SAMPLES)
        self.room = self.stepped.room
        self.lanes = {f"d{number}": count for number, count in enumerate(lanes)}
        self.curves = dict(zip(self.lanes, CURVES, strict=False))
        self.lead_s = lead_s
        self.timers: dict[str, dict[str, BatchTimer]] = {}
        self.fates: list[Fate] = []
        self.running: list[tuple[str, Batch]] = []
        self.out: dict[str, float] = {}
        self.trying: set[str] = set()
        self.draining = False
        for name in self.lanes:
            self.add(name)
        self.settle()

    def add(self, name: str) -> None:
        """A device begins."""
        self.timers[name] = timers(self.curves[name])
        self.room.add_device(name, self.lanes[name], self.timers[name], self.lead_s)

    # -------------------------------------------------------------- the devices' threads

    def settle(self) -> None:
        """All device threads that would be awake ask, until all sleep or try to come back."""
        for _ in range(1000):
            names = [name for name in self.lanes if name not in self.trying]
            awake = self.stepped.awake(names)
            if not awake:
                return
            for name in awake:
                while name not in self.trying and (work := self.stepped.take(name)) is not None:
                    self.got(name, work)
        pytest.fail("devices were called for ever without getting anything")

    def got(self, name: str, work: Work) -> None:
        """A device was given this: allowed, and taken in order."""
        for part in work.expired:
            assert part.request.deadline <= self.stepped.now
            self.move(part, "waiting", "ended")
        if work.retry:
            assert self.out[name] <= self.stepped.now
            assert work.batch is None
            self.trying.add(name)
        if work.batch is None:
            assert work.expired or work.retry
            return
        assert name not in self.out
        assert sum(device == name for device, _ in self.running) < self.lanes[name]
        self.check(work.batch)
        self.running.append((name, work.batch))

    def check(self, batch: Batch) -> None:
        """Size and order; what may be started."""
        assert 1 <= batch.samples <= CAPS[batch.model]
        assert sum(part.samples for part in batch.parts) == batch.samples
        for part in batch.parts:
            assert part.samples > 0
            assert part.request.deadline > self.stepped.now
            assert part.request.model == batch.model
            failures = self.fate(part).failures
            assert {failures[n] for n in range(part.start, part.stop)} == {part.attempt}
            assert part.attempt < MOST_ATTEMPTS
            self.move(part, "waiting", "running")
        ranks = [self.rank(part.request) for part in batch.parts]
        assert ranks == sorted(ranks)
        for fate in self.fates:
            if fate.waiting and fate.request.model == batch.model:
                assert self.rank(fate.request) >= ranks[-1]

    def rank(self, request: Request) -> tuple[int, float]:
        """Class and deadline; a background request that has aged counts as a normal one."""
        ages = request.received + AGEING * (request.deadline - request.received)
        aged = request.priority is Priority.BACKGROUND and self.stepped.now >= ages
        return (Priority.NORMAL if aged else request.priority, request.deadline)

    def fate(self, part: Part) -> Fate:
        """Of its request."""
        return next(each for each in self.fates if each.request is part.request)

    def move(self, part: Part, source: str, target: str) -> None:
        """Samples go from one state to the next, each exactly once."""
        fate = self.fate(part)
        samples = set(range(part.start, part.stop))
        assert samples <= getattr(fate, source)
        getattr(fate, source).difference_update(samples)
        getattr(fate, target).update(samples)

    # -------------------------------------------------------------- what may happen

    @rule(
        model=st.sampled_from(sorted(CAPS)),
        samples=st.integers(1, 12),
        priority=st.sampled_from([*Priority, Priority.NORMAL]),
        left_ms=st.sampled_from([1, 20, 100, 1000, 1000, 60_000]),
    )
    def put(self, model: str, samples: int, priority: Priority, left_ms: int) -> None:
        """A request arrives."""
        request = make_request(
            self.stepped.now, samples, left_s=left_ms / 1e3, model=model, priority=priority
        )
        if self.draining:
            return
        waiting = sum(len(f.waiting) for f in self.fates if f.request.model == model)
        if waiting + samples > QUEUE_SAMPLES:
            with pytest.raises(QueueFullError):
                self.room.put(request)
            return
        try:
            self.room.put(request)
        except LateError:  # never with nothing before it: then a device would never be tried
            assert waiting or self.running
            return
        self.fates.append(Fate(request, set(range(samples))))
        self.settle()

    @precondition(lambda self: self.running)
    @rule(data=st.data(), factor=st.sampled_from([0.0, 0.5, 1.0, 1.0, 6.0]))
    def complete(self, data: st.DataObject, factor: float) -> None:
        """Any running batch ends, well or with an error of the engine (0)."""
        name, batch = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.room.completed(
            name, batch.model, batch.samples, factor * self.curves[name](batch.samples)
        )
        for part in batch.parts:
            self.move(part, "running", "ended")
        self.settle()

    @precondition(lambda self: self.running)
    @rule(data=st.data(), pause_s=st.sampled_from([0.0, 0.05, 1.0]))
    def fail(self, data: st.DataObject, pause_s: float) -> None:
        """A device fails under a batch, as `edged.serve.gpu.Device` takes it."""
        name, batch = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        if name not in self.out:
            self.out[name] = self.stepped.now + pause_s
            self.room.suspend(name, self.out[name])
            self.settle()
        self.room.completed(name, batch.model, batch.samples, 0.0)
        self.settle()
        again = [part for part in batch.parts if part.attempt < MOST_ATTEMPTS - 1]
        for part in batch.parts:
            self.move(part, "running", "waiting" if part in again else "ended")
            self.fate(part).failures.update(range(part.start, part.stop))
        self.room.put_back(again)
        self.settle()

    @precondition(lambda self: self.trying)
    @rule(data=st.data(), works=st.booleans())
    def try_again(self, data: st.DataObject, *, works: bool) -> None:
        """The device's thread has loaded its models anew, or could not."""
        name = data.draw(st.sampled_from(sorted(self.trying)))
        if any(device == name for device, _ in self.running):
            return  # its runners are closed first, which waits for what runs
        self.trying.remove(name)
        self.stepped.asleep.pop(name, None)
        if works:
            del self.out[name]
            self.add(name)
        else:
            self.out[name] = self.stepped.now + 0.5
            self.room.suspend(name, self.out[name])
        self.settle()

    @rule(model=st.sampled_from(sorted(CAPS)), lanes=st.integers(1, 3))
    def swap(self, model: str, lanes: int) -> None:
        """Another engine takes over on all devices, with other lanes."""
        if any(self.running):
            return
        self.lanes = dict.fromkeys(self.lanes, lanes)
        made = {name: timers(self.curves[name])[model] for name in self.lanes}
        for name, timer in made.items():
            self.timers[name][model] = timer
        self.room.set_model(model, made, self.lanes)
        self.settle()

    @rule(milliseconds=st.sampled_from([0.1, 1, 5, 20, 100, 1000]))
    def pass_time(self, milliseconds: float) -> None:
        """The clock goes on; each armed time is met on the way."""
        until = self.stepped.now + milliseconds / 1e3
        while True:
            names = [name for name in self.stepped.asleep if name not in self.trying]
            alarm = min((self.stepped.asleep[name] for name in names), default=math.inf)
            if alarm > until:
                break
            self.stepped.now = max(self.stepped.now, alarm)
            self.settle()
        self.stepped.now = until

    @precondition(lambda self: len(self.fates) > 8)
    @rule()
    def drain(self) -> None:
        """The service begins to stop."""
        self.room.drain()
        self.draining = True
        self.settle()

    # -------------------------------------------------------------- what must hold

    @invariant()
    def every_sample_is_somewhere(self) -> None:
        """It waits, runs or has ended: once."""
        assert self.room.samples == sum(len(fate.waiting) for fate in self.fates)
        for fate in self.fates:
            parts = (fate.waiting, fate.running, fate.ended)
            assert sum(map(len, parts)) == fate.request.samples
            assert set().union(*parts) == set(range(fate.request.samples))

    @invariant()
    def nobody_is_forgotten(self) -> None:
        """Who sleeps would get nothing now; who could work on what waits has an alarm.

        A device that has left work to others looks again within the time of one batch of its own:
        so long it may sleep although the others have turned out to be slower.
        """
        for name in [name for name in self.lanes if name not in self.trying]:
            slept = self.stepped.asleep[name] - self.stepped.looked[name]
            if name in self.out:
                assert self.stepped.asleep[name] <= self.out[name]
            while name not in self.trying and (work := self.stepped.take(name)) is not None:
                batch_s = max(self.timers[name][m].service_s(cap) for m, cap in CAPS.items())
                assert slept <= batch_s + 1e-6, f"{name} slept although there was work: {work}"
                self.got(name, work)
        self.settle()
        idle = [n for n in self.lanes if n not in self.out and not self.works(n)]
        if self.room.samples and idle:
            assert min(self.stepped.asleep[name] for name in idle) < math.inf

    def works(self, name: str) -> bool:
        """Whether something runs on a device."""
        return any(device == name for device, _ in self.running)

    def teardown(self) -> None:
        """Left to themselves the devices end everything, once those that are out come back."""
        if not hasattr(self, "room"):
            return
        for _ in range(200):
            for name in sorted(self.trying):
                self.trying.remove(name)
                self.stepped.asleep.pop(name, None)
                if not self.works(name):
                    del self.out[name]
                    self.add(name)
                else:
                    self.room.suspend(name, self.stepped.now)
            self.settle()
            while self.running:
                name, batch = self.running.pop(0)
                self.room.completed(name, batch.model, batch.samples, 0.01)
                for part in batch.parts:
                    self.move(part, "running", "ended")
                self.settle()
            if not self.room.samples:
                break
            self.pass_time(100)
        assert self.room.samples == 0
        assert all(len(fate.ended) == fate.request.samples for fate in self.fates)
        assert self.room.close() == []


def test_several_devices_share_the_room() -> None:
    """Each sample ends once, in order, attempts bounded, and no device sleeps through its work."""
    run_state_machine_as_test(Devices, settings=settings(max_examples=80, stateful_step_count=50))
