"""Shadow replay: which count and which timer would have served the last arrivals best. Pure.

The last few hundred arrival times are pushed through a virtual queue with the device's present
service times, once for each candidate (M, T): serve once M wait, or once the oldest has waited T.
Nothing is tried out on live requests, so the tuner cannot follow its own steps, and what only the
arrivals' shape tells (cameras on one trigger, bursts) is found without a model of it.

All candidates see the same arrivals, so their differences are known better than their values. They
are compared as ratios to what is set, averaged over the rounds; a challenger replaces it only if
it is better by more than chance would make it, or the choice would wander among equals.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from edged.serve.arrivals import mean_rate
from edged.serve.batch_size import control_limit

LEAST_TRACE = 100
"""Below so many arrivals nothing is chosen."""
GAIN = 0.01
"""A challenger has to be better by this share ..."""
ERRORS = 2.5
"""... and so many standard errors of what was seen of it: the best of many looks too good."""
NOISE = 0.02
"""Standard deviation of a ratio from round to round, before it is known."""
SURE = 4
"""Candidates that are surely worse are tried again only every so many rounds."""
MEMORY_GAIN = 0.15
"""Weight of the newest round in the averages, once there were several."""
CHANGE = 0.25
"""A device or a price that moved by this share makes old rounds tell nothing."""
OTHER_RATE = 3.0
"""Likewise arrivals that grew or shrank by this share; smaller moves may be bursts."""
MISSES = 0.005
"""Share of requests that may miss the SLO before it costs."""
MISS_WEIGHT = 20.0
"""Each further 1 % of missed requests costs so many per cent."""
HOLDS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Timers to try, as multiples of the time of a batch of one."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What may be chosen.

    Attributes:
        limit: M, serve once so many samples wait.
        hold_s: T, or once the oldest has waited so long; infinity: the count alone.
    """

    limit: int
    hold_s: float = math.inf


GREEDY = Setting(1)


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a setting makes of a trace.

    Attributes:
        cost_s: J_c, mean latency + c x device time per sample.
        device_s: device time per sample.
        p99_s: 99th percentile of the latency.
        missed: share of the samples whose latency exceeds the SLO.
    """

    cost_s: float = math.nan
    device_s: float = math.nan
    p99_s: float = math.nan
    missed: float = 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """What a round of tuning came to.

    Attributes:
        setting: the best one.
        predicted: what it makes of the trace.
        greedy: what serving at once would have made of it.
        rate: samples/s of the trace.
        phi: scale of the service times then.
        price: c then.
        seen: of each candidate, mean and variance over the rounds of its cost as a multiple of
            the setting's.
        rounds: that were averaged.
    """

    setting: Setting
    predicted: Replayed
    greedy: Replayed
    rate: float
    phi: float
    price: float
    seen: Mapping[Setting, tuple[float, float]] = field(default_factory=dict, repr=False)
    rounds: int = 1


@dataclass(frozen=True, slots=True)
class Task:
    """All that a round of tuning goes by; a copy, so that it can be worked on anywhere.

    Attributes:
        trace: arrival times in seconds, ascending, one a sample.
        idle_s: service time by batch size on the idle device, entries 0 to cap.
        phi: scale of the service times, as the device is now.
        line: alpha and beta of the service time, as the device is now.
        sizes: how many of 0 to cap waiting samples a batch takes.
        price: c, finite.
        slo_s: latency that a request should keep; infinity: none.
        guard_s: kept free before the SLO, besides the batch's own cautious time.
        caution: by how much a batch rarely exceeds its expected time, as a factor.
        last: the choice before, if it still tells anything.
    """

    trace: tuple[float, ...]
    idle_s: tuple[float, ...]
    phi: float
    line: tuple[float, float]
    sizes: tuple[int, ...]
    price: float
    slo_s: float
    guard_s: float
    caution: float
    last: Choice | None = None

    @property
    def cap(self) -> int:
        """Most samples in a batch."""
        return len(self.idle_s) - 1


def tune(task: Task, pause: Callable[[], object] = lambda: None) -> Choice | None:
    """The best setting for a trace; None if it is too short to tell.

    Args:
        task: what to go by.
        pause: called between two candidates; a thread lets others run there.
    """
    rate = mean_rate(task.trace)
    if len(task.trace) < LEAST_TRACE or not rate > 0 or not math.isfinite(task.price):
        return None
    replay = _Replay(task)
    greedy = replay.run(GREEDY)
    last = _usable(task, rate)
    theory = Setting(control_limit(task.price, task.line, rate, task.cap))
    incumbent = last.setting if last else theory
    wanted = {GREEDY, incumbent, theory, *(last.seen if last else ())}
    unit = replay.score(incumbent)
    if not math.isfinite(unit):  # a count that the trace never reaches
        incumbent, last, unit = GREEDY, None, replay.score(GREEDY)
    costs: dict[Setting, float] = {}
    for setting in sorted(wanted | set(candidates(task)), key=lambda s: (s.limit, s.hold_s)):
        if last is None or not _hopeless(setting, last):
            costs[setting] = replay.score(setting) / unit
            pause()
    seen, rounds = _averaged(costs, last)
    setting = _best(seen, incumbent, rounds)
    unit = seen[setting][0]
    return Choice(
        setting,
        replay.run(setting),
        greedy,
        rate,
        task.phi,
        task.price,
        {other: (mean / unit, variance) for other, (mean, variance) in seen.items()},
        rounds,
    )


def candidates(task: Task) -> list[Setting]:
    """The grid: counts up to the cap, timers up to the SLO."""
    # Of the idle device: phi drifts, and each round would bring new ones beside those of the last.
    cap, one = task.cap, task.idle_s[1]
    limits = sorted({n for n in (2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64) if n < cap} | {cap})
    holds = [factor * one for factor in HOLDS if factor * one < task.slo_s]
    return [Setting(limit, hold) for limit in limits for hold in (*holds, math.inf) if limit > 1]


def due(choice: Choice | None, task: Task, waited_s: float, every_s: float) -> bool:
    """Whether to tune again: the time has come, or the rate or the device moved by `CHANGE`."""
    if choice is None or waited_s >= every_s:
        return True
    rate = mean_rate(task.trace)
    return moved(rate, choice.rate, CHANGE) or moved(task.phi, choice.phi, CHANGE)


def moved(now: float, then: float, by: float) -> bool:
    """Whether a positive number grew or shrank by more than a share."""
    return not (then / (1 + by) <= now <= then * (1 + by))


def _usable(task: Task, rate: float) -> Choice | None:
    """The choice before, where device, price and rate are about what they were."""
    last = task.last
    if last is None or moved(task.phi, last.phi, CHANGE) or moved(rate, last.rate, OTHER_RATE):
        return None
    return last if task.price == last.price or not moved(task.price, last.price, CHANGE) else None


def _hopeless(setting: Setting, last: Choice) -> bool:
    """Whether a candidate is so far behind that it need not be tried in every round."""
    if setting == last.setting or last.rounds < SURE or last.rounds % SURE == 0:
        return False
    mean, variance = last.seen.get(setting, (1.0, 0.0))
    return mean - ERRORS * math.sqrt(variance) > 1 - GAIN


def _best(seen: Mapping[Setting, tuple[float, float]], incumbent: Setting, rounds: int) -> Setting:
    """The setting whose cost is surely lowest, if it is surely below the incumbent's."""
    errors = ERRORS / math.sqrt(min(rounds, 2 / MEMORY_GAIN - 1))
    at_most = {other: mean + errors * math.sqrt(var) for other, (mean, var) in seen.items()}
    best = min(at_most, key=lambda other: (at_most[other], other.limit, other.hold_s))
    return best if at_most[best] < seen[incumbent][0] * (1 - GAIN) else incumbent


def _averaged(
    costs: Mapping[Setting, float], last: Choice | None
) -> tuple[dict[Setting, tuple[float, float]], int]:
    """Means and variances of the ratios with this round's, by exponential weights."""
    rounds = last.rounds + 1 if last else 1
    gain = max(MEMORY_GAIN, 1 / rounds)
    seen = dict(last.seen) if last else {}
    for setting, cost in costs.items():
        if not math.isfinite(cost):
            continue
        # One that is new in this round starts from it.
        mean, variance = last.seen.get(setting, (cost, NOISE**2)) if last else (cost, NOISE**2)
        off = cost - mean
        spread = max(gain, MEMORY_GAIN)
        seen[setting] = (
            mean + gain * off,
            (1 - spread) * (variance + spread * off * off) if rounds > 1 else variance,
        )
    return seen, rounds


class _Replay:
    """A virtual queue in front of a virtual device."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._sums = [0.0, *accumulate(task.trace)]
        self._seconds = [task.phi * seconds for seconds in task.idle_s]

    def run(self, setting: Setting) -> Replayed:
        """Every number of a setting."""
        batches = self._batches(setting)
        cost, missed = self._cost(batches)
        served = sum(size for _, size, _ in batches) or math.nan
        device = sum(self._seconds[size] for _, size, _ in batches) / served
        return Replayed(cost, device, self._p99(batches), missed)

    def score(self, setting: Setting) -> float:
        """J_c of a setting in seconds, with what missing the SLO costs."""
        cost, missed = self._cost(self._batches(setting))
        return cost * (1 + MISS_WEIGHT * max(0.0, missed - MISSES))

    def _batches(self, setting: Setting) -> list[tuple[int, int, float]]:
        """``(first, size, end)`` of each batch, until a batch would wait for what is unknown."""
        task, trace, cap = self._task, self._task.trace, self._task.cap
        seconds, sizes, count = self._seconds, task.sizes, len(task.trace)
        limit, hold = min(setting.limit, cap), setting.hold_s
        hold = min(hold, task.slo_s - task.guard_s - task.caution * seconds[limit])
        first, free = 0, trace[0]
        batches = []
        while first < count:
            oldest, by_count = trace[first], first + limit - 1
            close = oldest + hold if hold > 0 else oldest
            if by_count < count:
                close = min(close, trace[by_count])
            elif close > trace[-1]:
                break
            close = max(close, free, oldest)
            waiting = bisect_right(trace, close, first, min(count, first + cap)) - first
            size = sizes[waiting]
            free = close + seconds[size]
            batches.append((first, size, free))
            first += size
        return batches

    def _cost(self, batches: Sequence[tuple[int, int, float]]) -> tuple[float, float]:
        """J_c in seconds, and the share of samples that missed the SLO."""
        if not batches:
            return math.inf, 1.0
        trace, sums, seconds = self._task.trace, self._sums, self._seconds
        slo = self._task.slo_s
        latency = device = 0.0
        missed = 0
        for first, size, end in batches:
            latency += size * end - (sums[first + size] - sums[first])
            device += seconds[size]
            if end - trace[first] > slo:
                missed += bisect_left(trace, end - slo, first, first + size) - first
        served = batches[-1][0] + batches[-1][1]
        return (latency + self._task.price * device) / served, missed / served

    def _p99(self, batches: Sequence[tuple[int, int, float]]) -> float:
        latencies = sorted(
            end - came
            for first, size, end in batches
            for came in self._task.trace[first : first + size]
        )
        return latencies[int(0.99 * len(latencies))] if latencies else math.inf
