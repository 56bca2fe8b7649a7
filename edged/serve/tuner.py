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
from dataclasses import dataclass, field, replace
from itertools import accumulate

from edged.serve.arrivals import mean_rate
from edged.serve.batch_size import control_limit

LEAST_TRACE = 100
"""Below so many arrivals nothing is chosen."""
NEWS = 60
"""Arrivals since the last round, a tenth of a trace, that make another round worth its time."""
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
class Seen:
    """What was seen of one candidate, as multiples of the cost of what was set.

    Attributes:
        mean: of the rounds in which it was tried, by exponential weights.
        variance: of one round about that mean.
        last: in the newest of them.
        round: its number.
    """

    mean: float = 1.0
    variance: float = 0.0
    last: float = 1.0
    round: int = 0


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
        seen: of each candidate, its cost as a multiple of the setting's.
        rounds: that were averaged.
        until: last arrival of the trace; NaN: not known.
    """

    setting: Setting
    predicted: Replayed
    greedy: Replayed
    rate: float
    phi: float
    price: float
    seen: Mapping[Setting, Seen] = field(default_factory=dict, repr=False)
    rounds: int = 1
    until: float = math.nan


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
    rounds = last.rounds + 1 if last else 1
    seen = dict(last.seen) if last else {}
    share = _news(task, last) / len(task.trace)
    for setting, cost in costs.items():
        if math.isfinite(cost):
            seen[setting] = _averaged(seen.get(setting), cost, rounds, share)
    setting = _best(seen, incumbent, rounds)
    unit = seen[setting].mean
    return Choice(
        setting,
        replay.run(setting),
        greedy,
        rate,
        task.phi,
        task.price,
        {
            other: replace(it, mean=it.mean / unit, last=it.last / unit)
            for other, it in seen.items()
        },
        rounds,
        task.trace[-1],
    )


def candidates(task: Task) -> list[Setting]:
    """The grid: counts up to the cap, timers up to the SLO."""
    # Of the idle device: phi drifts, and each round would bring new ones beside those of the last.
    cap, one = task.cap, task.idle_s[1]
    limits = sorted({n for n in (2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64) if n < cap} | {cap})
    holds = [factor * one for factor in HOLDS if factor * one < task.slo_s]
    return [Setting(limit, hold) for limit in limits for hold in (*holds, math.inf) if limit > 1]


def due(choice: Choice | None, task: Task, waited_s: float, every_s: float) -> bool:
    """Whether to tune again: the time has come, or the rate or the device moved by `CHANGE`.

    Never for a trace that is too short, or that ends where it ended the last time.
    """
    trace = task.trace
    if len(trace) < LEAST_TRACE or (choice is not None and trace[-1] == choice.until):
        return False
    if choice is None:
        return True
    if moved(mean_rate(trace), choice.rate, CHANGE) or moved(task.phi, choice.phi, CHANGE):
        return True
    return waited_s >= every_s and (_news(task, choice) >= NEWS or _repriced(task, choice))


def _news(task: Task, last: Choice | None) -> int:
    """How many arrivals of the trace came since a choice."""
    trace = task.trace
    # A trace that ends earlier is of another clock, and new as a whole.
    known = bisect_right(trace, last.until) if last and trace[-1] > last.until else 0
    return len(trace) - known


def moved(now: float, then: float, by: float) -> bool:
    """Whether a positive number grew or shrank by more than a share."""
    return not (then / (1 + by) <= now <= then * (1 + by))


def _usable(task: Task, rate: float) -> Choice | None:
    """The choice before, where device, price and rate are about what they were."""
    last = task.last
    if last is None or moved(task.phi, last.phi, CHANGE) or moved(rate, last.rate, OTHER_RATE):
        return None
    return None if _repriced(task, last) else last


def _repriced(task: Task, last: Choice) -> bool:
    return task.price != last.price and moved(task.price, last.price, CHANGE)


def _hopeless(setting: Setting, last: Choice) -> bool:
    """Whether a candidate is so far behind that it need not be tried in every round."""
    if setting == last.setting or last.rounds < SURE or last.rounds % SURE == 0:
        return False
    seen = last.seen.get(setting, Seen())
    return seen.mean - ERRORS * math.sqrt(seen.variance) > 1 - GAIN


def _best(seen: Mapping[Setting, Seen], incumbent: Setting, rounds: int) -> Setting:
    """The setting whose cost is surely lowest, if it is surely below the incumbent's."""
    errors = ERRORS / math.sqrt(min(rounds, 2 / MEMORY_GAIN - 1))
    at_most = {other: it.mean + errors * math.sqrt(it.variance) for other, it in seen.items()}
    best = min(at_most, key=lambda other: (at_most[other], other.limit, other.hold_s))
    return best if at_most[best] < seen[incumbent].mean * (1 - GAIN) else incumbent


def _averaged(before: Seen | None, cost: float, rounds: int, share: float) -> Seen:
    """What is seen of a candidate with this round's cost.

    The variance is that of differences from round to round, after von Neumann (1941): about the
    mean, arrivals that slowly become more would look like noise, and nothing would ever be sure.

    Args:
        before: what was seen until now.
        cost: of this round.
        rounds: number of this round.
        share: of the trace, that is new since the round before; only that makes a difference.
    """
    if before is None:
        return Seen(cost, NOISE**2, cost, rounds)
    passed = max(1, rounds - before.round)
    gain = max(1 / rounds, 1 - (1 - MEMORY_GAIN) ** passed)
    variance = (cost - before.last) ** 2 / (2 * min(1.0, passed * share))
    return Seen(
        before.mean + gain * (cost - before.mean),
        before.variance + max(gain, MEMORY_GAIN) * (variance - before.variance),
        cost,
        rounds,
    )


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
