"""Arrival models: when requests come, and from which source. Pure: a seed in, times out.

All are open loop: a request comes when it comes, however slow the device is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edged.errors import BadParameterError

Times = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Arrivals:
    """One sample a request, in the order in which they come.

    Attributes:
        times: float64 [n], seconds from 0, ascending.
        sources: int64 [n], number of the source (camera) of each.
        phases: ``(from second, phase)`` of a modulated process, for policies that may see it.
    """

    times: Times
    sources: Numbers
    phases: tuple[tuple[float, int], ...] = ()

    def __len__(self) -> int:
        return len(self.times)

    @property
    def rate(self) -> float:
        """Mean arrivals a second; 0 if there are fewer than two."""
        span = float(self.times[-1] - self.times[0]) if len(self) > 1 else 0.0
        return (len(self) - 1) / span if span > 0 else 0.0


def _ordered(times: Any, sources: Any = None, phases: Sequence[tuple[float, int]] = ()) -> Arrivals:
    values = np.asarray(times, dtype=np.float64)
    numbers = np.zeros(len(values), np.int64) if sources is None else np.asarray(sources, np.int64)
    order = np.argsort(values, kind="stable")
    return Arrivals(values[order], numbers[order], tuple(phases))


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise BadParameterError(f"{name} is {value:g}; it must be a finite number above 0")


def poisson(rate: float, count: int, seed: int = 0) -> Arrivals:
    """Independent requests at ``rate`` a second.

    Raises:
        BadParameterError: the rate or the count is not positive; so do all models here.
    """
    _positive(rate=rate, count=count)
    gaps = np.random.default_rng(seed).exponential(1 / rate, count)
    return _ordered(np.cumsum(gaps))


def pareto(rate: float, count: int, seed: int = 0, *, shape: float = 1.5) -> Arrivals:
    """Gaps with a heavy tail: Pareto of this shape, scaled to a mean gap of 1/rate."""
    _positive(rate=rate, count=count, shape=shape - 1)
    smallest = (shape - 1) / (shape * rate)
    gaps = smallest * (1 + np.random.default_rng(seed).pareto(shape, count))
    return _ordered(np.cumsum(gaps))


def bursts(rate: float, count: int, seed: int = 0, *, mean_size: float = 4.0) -> Arrivals:
    """Several at one instant: bursts come as a Poisson process, their size is geometric."""
    _positive(rate=rate, count=count, mean_size=mean_size)
    chance = np.random.default_rng(seed)
    number = math.ceil(count / mean_size)
    at = np.cumsum(chance.exponential(mean_size / rate, number))
    return _ordered(np.repeat(at, chance.geometric(min(1.0, 1 / mean_size), number)))


@dataclass(frozen=True)
class Modulation:
    """A Markov-modulated rate: phase j lasts ``sojourns_s[j]`` on average, exponentially.

    Attributes:
        factors: rate of each phase as a multiple of the mean rate.
        sojourns_s: mean seconds in each phase; they follow one another in turn.
    """

    factors: tuple[float, ...] = (0.5, 3.0)
    sojourns_s: tuple[float, ...] = (0.4, 0.1)

    def rates(self, mean: float) -> tuple[float, ...]:
        """Rate of each phase such that their average over time is ``mean``."""
        time = sum(self.sojourns_s)
        average = sum(f * s for f, s in zip(self.factors, self.sojourns_s, strict=True)) / time
        return tuple(factor * mean / average for factor in self.factors)


def mmpp(
    rate: float, count: int, seed: int = 0, *, modulation: Modulation | None = None
) -> Arrivals:
    """Markov-modulated Poisson process: quiet and busy phases around a mean rate."""
    _positive(rate=rate, count=count)
    modulation = modulation or Modulation()
    _positive(sojourn_s=min(modulation.sojourns_s), mean_factor=sum(modulation.factors))
    rates = modulation.rates(rate)
    chance = np.random.default_rng(seed)
    now, number, have = 0.0, 0, 0
    pieces: list[Times] = []
    phases: list[tuple[float, int]] = []
    while have < count:
        phase = number % len(rates)
        phases.append((now, phase))
        length = chance.exponential(modulation.sojourns_s[phase])
        # Given their number, the times of a Poisson process are uniform.
        came = chance.poisson(rates[phase] * length)
        pieces.append(now + length * chance.random(came))
        now, number, have = now + length, number + 1, have + came
    arrivals = _ordered(np.concatenate(pieces), phases=phases)
    return Arrivals(arrivals.times[:count], arrivals.sources[:count], arrivals.phases)


def diurnal(
    rate: float, count: int, seed: int = 0, *, period_s: float = 600.0, swing: float = 0.9
) -> Arrivals:
    """A rate that follows the day: ``rate (1 - swing cos(2 pi t / period))``, beginning at night.

    Args:
        rate: mean arrivals a second.
        count: about so many arrivals; whole runs stop after exactly so many.
        seed: of the process.
        period_s: seconds of a day.
        swing: 0 (none) to 1 (nobody comes at night).
    """
    _positive(rate=rate, count=count, period_s=period_s)
    if not 0 <= swing <= 1:
        raise BadParameterError(f"swing is {swing:g}; it must be within 0 and 1")
    chance = np.random.default_rng(seed)
    times: list[Times] = []
    have, now = 0, 0.0
    while have < count:
        # Thinning: candidates at the highest rate, each kept with the present rate's share.
        candidates = now + np.cumsum(chance.exponential(1 / (rate * (1 + swing)), count))
        share = (1 - swing * np.cos(2 * np.pi * candidates / period_s)) / (1 + swing)
        kept = candidates[chance.random(count) < share]
        times.append(kept)
        have, now = have + len(kept), float(candidates[-1])
    return _ordered(np.concatenate(times)[:count])


@dataclass(frozen=True)
class Cameras:
    """Periodic sources.

    Attributes:
        count: number of cameras.
        fps: frames a second of each.
        window_s: a common trigger, and frames arrive within so many seconds of it; None: each
            camera has its own random phase.
        jitter_s: standard deviation of a frame's arrival about its time.
        drift_ppm: standard deviation of the cameras' clock errors, in parts per million.
        dropout: share of the frames that never come.
    """

    count: int
    fps: float
    window_s: float | None = None
    jitter_s: float = 0.0
    drift_ppm: float = 0.0
    dropout: float = 0.0


def cameras(setup: Cameras, seconds: float, seed: int = 0) -> Arrivals:
    """Frames of all cameras over so many seconds."""
    _positive(cameras=setup.count, fps=setup.fps, seconds=seconds)
    if not 0 <= setup.dropout < 1 or min(setup.jitter_s, setup.drift_ppm, setup.window_s or 0) < 0:
        raise BadParameterError(
            f"dropout {setup.dropout:g} must be within 0 and 1; jitter, drift and window must not "
            "be negative"
        )
    chance = np.random.default_rng(seed)
    frames = max(1, round(seconds * setup.fps))
    period = (1 + 1e-6 * setup.drift_ppm * chance.standard_normal((setup.count, 1))) / setup.fps
    at = np.arange(frames) * period
    if setup.window_s is None:
        at = at + chance.random((setup.count, 1)) / setup.fps
    else:
        at = at + setup.window_s * chance.random((setup.count, frames))
    at = at + setup.jitter_s * chance.standard_normal(at.shape)
    sources = np.broadcast_to(np.arange(setup.count)[:, None], at.shape)
    kept = chance.random(at.shape) >= setup.dropout
    return _ordered(np.maximum(at[kept], 0.0), sources[kept])
