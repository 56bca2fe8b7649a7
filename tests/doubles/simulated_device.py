"""A simulated device behind a batch timer: discrete events, no randomness of its own, no clock."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from edged.latency import LatencyCurve
from edged.serve.timer import BatchTimer, Decision, Waiting

SIZES = (1, 2, 4, 8, 16, 32)


def linear(alpha: float, beta: float) -> LatencyCurve:
    """A device on which a batch of b takes alpha + beta b seconds."""
    return LatencyCurve(SIZES, tuple(alpha + beta * size for size in SIZES))


def waiting(arrivals: Sequence[float], deadline: float = math.inf) -> Waiting:
    """Normal samples that came at these times."""
    return Waiting(
        samples=len(arrivals),
        weight=float(len(arrivals)),
        arrival_weight=math.fsum(arrivals),
        newest=max(arrivals),
        deadline=deadline,
    )


@dataclass(frozen=True)
class Ran:
    """One batch of a simulation."""

    closed: float
    free: float
    """When the device had become free."""
    arrivals: tuple[float, ...]
    service_s: float
    alpha: float
    """Setup time as the timer saw it when it closed the batch."""
    decision: Decision

    @property
    def voluntary_s(self) -> float:
        """Seconds that its samples waited although the device was free, summed up."""
        return math.fsum(self.closed - max(self.free, came) for came in self.arrivals)


def simulate(
    timer: BatchTimer, arrivals: Sequence[float], slow: float = 1.0, slo: float = math.inf
) -> list[Ran]:
    """One device and one timer: discrete events, no randomness of its own."""
    ran: list[Ran] = []
    queue: list[float] = []
    position, free, done, alarm, size = 0, 0.0, math.inf, math.inf, 0
    while position < len(arrivals) or queue:
        came = arrivals[position] if position < len(arrivals) else math.inf
        now = min(came, done, alarm)
        if now == came:
            queue.append(came)
            timer.arrived(now, 1)
            position += 1
        elif now == done:
            timer.completed(size, ran[-1].service_s)
            free, done = now, math.inf
        alarm = math.inf
        if done < math.inf or not queue:
            continue
        decision = timer.decide(now, waiting(queue, deadline=queue[0] + slo))
        size = decision.samples
        if size:
            alpha = timer.phi * timer.curve.line()[0]
            service = slow * timer.curve(size)
            ran.append(Ran(now, free, tuple(queue[:size]), service, alpha, decision))
            del queue[:size]
            done = now + service
        else:
            alarm = decision.at
    return ran


def poisson(rate: float, count: int, seed: int) -> list[float]:
    """Arrival times."""
    chance = random.Random(seed)
    now, times = 0.0, []
    for _ in range(count):
        now += chance.expovariate(rate)
        times.append(now)
    return times


def cost(ran: Sequence[Ran], price: float) -> float:
    """J_c in seconds: mean latency + c x (device time per sample)."""
    samples = sum(len(batch.arrivals) for batch in ran)
    latency = math.fsum(
        batch.closed + batch.service_s - came for batch in ran for came in batch.arrivals
    )
    device = math.fsum(batch.service_s for batch in ran)
    return (latency + price * device) / samples


def fixed_count(curve: LatencyCurve, count: int, arrivals: Sequence[float], price: float) -> float:
    """J_c of the rule "serve once so many wait", by its own recursion."""
    free, begin, latency, device = 0.0, 0, 0.0, 0.0
    while begin < len(arrivals):
        ready = min(begin + count, len(arrivals)) - 1
        start, end = max(free, arrivals[ready]), ready + 1
        while end < len(arrivals) and end - begin < curve.sizes[-1] and arrivals[end] <= start:
            end += 1
        service = curve(end - begin)
        free = start + service
        latency += math.fsum(free - came for came in arrivals[begin:end])
        device += service
        begin = end
    return (latency + price * device) / len(arrivals)
