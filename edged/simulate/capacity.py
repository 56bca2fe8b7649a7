"""The largest load that a device carries within a limit, by bisection. Pure but for the runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from edged.simulate.summary import Summary

ENOUGH = 0.99
"""A device carries a load if this share of the requests is answered within the SLO."""
MOST = 2**20
"""Loads are not searched for beyond so many times the first one."""
PRECISION = 0.02
"""Of a load that is no whole number, as a share."""


@dataclass(frozen=True)
class Capacity:
    """What a search found.

    Attributes:
        load: the largest load that is carried; 0: not even the smallest one.
        tried: ``(load, summary)`` of all that was simulated, ascending.
    """

    load: float
    tried: tuple[tuple[float, Summary], ...]


def carries(summary: Summary) -> bool:
    """Whether enough requests were answered in time, and will be if it goes on like this.

    A run is short: more than the device can do may come for longer than it lasts before the first
    answer is late. So the last requests have to be in time too, and the load below the most that
    the device can do, where that is known.
    """
    kept = min(summary.attainment, summary.last) >= ENOUGH
    return kept and summary.offered < 1


def find_capacity(
    measure: Callable[[float], Summary], load: float, *, whole: bool, most: float = math.inf
) -> Capacity:
    """Searches around a load.

    Args:
        measure: simulates a load.
        load: where to begin.
        whole: only whole numbers are loads.
        most: a larger load is not carried, however well a run of finite length goes.

    Returns:
        The largest load that is carried, to `PRECISION` or to the unit.
    """
    tried: dict[float, Summary] = {}

    def carried(at: float) -> bool:
        if at > most:
            return False
        if at not in tried:
            tried[at] = measure(at)
        return carries(tried[at])

    low, high = _bracket(carried, load, whole=whole)
    while high - low > (1 if whole else PRECISION * high):
        middle = (low + high) // 2 if whole else (low + high) / 2
        low, high = (middle, high) if carried(middle) else (low, middle)
    return Capacity(low, tuple(sorted(tried.items())))


def _bracket(carried: Callable[[float], bool], load: float, *, whole: bool) -> tuple[float, float]:
    """A load that is carried (0 is) and a larger one that is not."""
    least = 1.0 if whole else load / MOST
    if carried(load):
        low = load
        while low < load * MOST and carried(2 * low):
            low *= 2
        return low, 2 * low
    high = load
    while high > least:
        lower = max(least, high // 2 if whole else high / 2)
        if carried(lower):
            return lower, high
        high = lower
    return 0.0, high
