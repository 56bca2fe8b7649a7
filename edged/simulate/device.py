"""The device loop: arrivals, one device, one policy; discrete events and nothing else.

The policy is asked exactly as `edged.serve.batch.WaitingRoom` asks it: told of each arrival and of
each completion, asked after either while the device is free, and again when its armed time comes.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from edged.latency import LatencyCurve
from edged.serve.timer import Decision, Reason, Waiting
from edged.simulate.arrivals import Arrivals, Numbers, Times


class Policy(Protocol):
    """What decides; `edged.serve.timer.BatchTimer` is one."""

    def arrived(self, now: float, samples: int) -> None:
        """So many samples came."""

    def started(self, now: float, waiting: Waiting, decision: Decision) -> None:
        """A batch was closed as it was decided about what waited."""

    def completed(self, samples: int, service_s: float) -> None:
        """A batch came back after so many seconds."""

    def decide(self, now: float, waiting: Waiting) -> Decision:
        """Asked while the device is free and something waits."""


@dataclass(frozen=True)
class Device:
    """A simulated device.

    Attributes:
        curve: true service time by batch size.
        steps: ``(from second, factor)``, ascending: from then on a batch takes so many times its
            time, as when another process shares the device.
        noise: standard deviation of the logarithm of a batch's time about it.
        seed: of that noise.
    """

    curve: LatencyCurve
    steps: tuple[tuple[float, float], ...] = ()
    noise: float = 0.0
    seed: int = 0

    def factor(self, now: float) -> float:
        """How many times slower it is."""
        return next((factor for at, factor in reversed(self.steps) if at <= now), 1.0)


@dataclass(frozen=True)
class Rules:
    """What holds for every request, and what else is done at simulated times.

    Attributes:
        slo_s: deadline of a request after its arrival, for the policy's guard.
        expire: answer those as expired whose deadline has passed instead of starting them.
        tune: called with the present time about every ``tune_s``, when the policy is to be asked.
        tune_s: how often.
        watch: the policy's set-point, noted at the same times.
    """

    slo_s: float = math.inf
    expire: bool = False
    tune: Callable[[float], None] | None = None
    tune_s: float = 1.0
    watch: Callable[[float], float] | None = None


@dataclass(frozen=True)
class Run:
    """What happened. Arrays over batches in the order of their start, seconds.

    Attributes:
        arrivals: what came.
        first: index of each batch's first arrival; the others follow it.
        sizes: samples of each batch.
        closed: when each was started.
        free: when the device had become free before.
        service_s: how long each took.
        reasons: how often a batch was closed for each reason.
        set_points: ``(second, value)`` of the policy.
    """

    arrivals: Arrivals
    first: Numbers
    sizes: Numbers
    closed: Times
    free: Times
    service_s: Times
    reasons: Counter[str]
    set_points: tuple[tuple[float, float], ...] = ()

    def served(self) -> Numbers:
        """Index of every served arrival, batch by batch."""
        within = np.arange(self.sizes.sum()) - np.repeat(
            np.cumsum(self.sizes) - self.sizes, self.sizes
        )
        return np.asarray(np.repeat(self.first, self.sizes) + within, dtype=np.int64)

    def latencies(self) -> Times:
        """Seconds from arrival to answer of every served arrival, in the order of `served`."""
        ends = np.repeat(self.closed + self.service_s, self.sizes)
        return np.asarray(ends - self.arrivals.times[self.served()], dtype=np.float64)


@dataclass
class _Loop:
    """The state of one run. Arrivals ``head`` to ``tail`` wait."""

    policy: Policy
    arrivals: Arrivals
    device: Device
    rules: Rules
    head: int = 0
    tail: int = 0
    free: float = 0.0
    batches: list[tuple[int, int, float, float, float]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    set_points: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.times: list[float] = self.arrivals.times.tolist()
        sums = np.concatenate(([0.0], np.cumsum(self.arrivals.times)))
        self.sums: list[float] = sums.tolist()
        self.chance = random.Random(self.device.seed)  # noqa: S311  # a simulation, no secret
        self.next_tune = self.rules.tune_s

    def run(self) -> None:
        """Until everything that came was served or has expired."""
        times, count, now = self.times, len(self.times), 0.0
        while self.head < count:
            if self.head == self.tail:
                now = max(now, times[self.head])
            self._admit(now)
            self._expire(now)
            if self.head == self.tail:
                continue
            if now >= self.next_tune:
                self._tune(now)
            waiting = self._waiting()
            decision = self.policy.decide(now, waiting)
            if decision.samples:
                now = self._serve(now, waiting, decision)
                continue
            following = min(times[self.tail] if self.tail < count else math.inf, decision.at)
            if following == math.inf:  # nothing more comes, and it would wait for ever
                now = self._serve(now, waiting, Decision(waiting.samples, now, Reason.DRAIN))
            else:
                now = max(now, following)

    def _admit(self, now: float) -> None:
        times, tail, count = self.times, self.tail, len(self.times)
        while tail < count and times[tail] <= now:
            self.policy.arrived(times[tail], 1)
            tail += 1
        self.tail = tail

    def _expire(self, now: float) -> None:
        if self.rules.expire:
            while self.head < self.tail and self.times[self.head] + self.rules.slo_s <= now:
                self.head += 1

    def _waiting(self) -> Waiting:
        samples = self.tail - self.head
        return Waiting(
            samples=samples,
            weight=float(samples),
            arrival_weight=self.sums[self.tail] - self.sums[self.head],
            newest=self.times[self.tail - 1],
            deadline=self.times[self.head] + self.rules.slo_s,
            oldest=self.times[self.head],
        )

    def _serve(self, now: float, waiting: Waiting, decision: Decision) -> float:
        """Runs the first so many; returns when the device is free again."""
        samples = decision.samples
        self.policy.started(now, waiting, decision)
        service = self.device.factor(now) * self.device.curve(samples)
        if self.device.noise:
            service *= math.exp(self.chance.gauss(0.0, self.device.noise))
        self.batches.append((self.head, samples, now, self.free, service))
        self.reasons[decision.reason.value] += 1
        self.head += samples
        self.free = now + service
        self._admit(self.free)
        self.policy.completed(samples, service)
        return self.free

    def _tune(self, now: float) -> None:
        self.next_tune = now + self.rules.tune_s
        if self.rules.tune:
            self.rules.tune(now)
        if self.rules.watch:
            self.set_points.append((now, self.rules.watch(now)))


def simulate(policy: Policy, arrivals: Arrivals, device: Device, rules: Rules | None = None) -> Run:
    """Runs all arrivals through one device.

    Args:
        policy: a fresh one; it is changed by the run.
        arrivals: what comes.
        device: what serves.
        rules: deadlines, expiry, tuning.

    Returns:
        What happened to every batch.
    """
    loop = _Loop(policy, arrivals, device, rules or Rules())
    loop.run()
    columns = list(zip(*loop.batches, strict=True)) or [()] * 5
    return Run(
        arrivals=arrivals,
        first=np.asarray(columns[0], dtype=np.int64),
        sizes=np.asarray(columns[1], dtype=np.int64),
        closed=np.asarray(columns[2], dtype=np.float64),
        free=np.asarray(columns[3], dtype=np.float64),
        service_s=np.asarray(columns[4], dtype=np.float64),
        reasons=loop.reasons,
        set_points=tuple(loop.set_points),
    )
