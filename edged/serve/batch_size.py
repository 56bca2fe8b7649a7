"""How many samples to wait for, and how many of them to take. Pure.

An engine that runs at fixed sizes pads a batch up to the next one: the 17th sample then costs as
much as the 32nd. Taking the full smaller bucket and leaving the rest costs less; rounding down
unless the next bucket is nearly full is within 1.4 % of the optimum over all actions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

FILL = 0.75
"""Below half load a bucket is taken from so full on."""
BUSY_FILL = 0.85
"""Above half load, likewise."""
STEP = 1.3
"""A batch of one more that takes so many times as long is a step of the curve."""
STEP_SLOPES = 2.0
"""And which costs more than so many average samples, or a steep line would be all steps."""


def control_limit(price: float, line: tuple[float, float], rate: float, cap: int) -> int:
    """M, the number of waiting samples at which serving them pays; 1 if that cannot be told.

    ``round(sqrt(2 c alpha lambda (1 - lambda beta)))``: the economic order quantity for a setup
    cost of c alpha, corrected for the arrivals during service. Within 0.1 % of the best count on
    average over setup times, slopes, caps and loads.

    Args:
        price: c.
        line: alpha and beta of the service time, seconds.
        rate: lambda, samples/s.
        cap: most samples in a batch.
    """
    alpha, beta = line
    square = 2 * price * alpha * rate * (1 - rate * beta)
    if not (square > 0 and math.isfinite(square)):
        return 1
    return min(cap, max(1, round(math.sqrt(square))))


def steps(seconds: Sequence[float]) -> tuple[int, ...]:
    """Sizes after which the curve jumps: full buckets.

    Args:
        seconds: service time by batch size; entry 0 is not looked at.
    """
    cap = len(seconds) - 1
    slope = (seconds[cap] - seconds[1]) / (cap - 1) if cap > 1 else 0.0
    return tuple(
        size
        for size in range(1, cap)
        if seconds[size + 1] > STEP * seconds[size]
        and seconds[size + 1] - seconds[size] > STEP_SLOPES * slope
    )


def sizes_to_take(seconds: Sequence[float], fill: float) -> tuple[int, ...]:
    """For 0 to cap waiting samples, how many of them to take.

    All of them where the curve has no steps; else a full bucket, unless the next one is filled to
    ``fill``. A bucket filled to ``fill`` costs 1 / fill a sample of what a full one does: a bucket
    that costs a sample more than that above all of them is none, but noise in a measured curve at
    a small size, and no reason to serve one by one.

    Args:
        seconds: service time by batch size, entries 0 to cap.
        fill: 0 to 1.
    """
    cap = len(seconds) - 1
    full = steps(seconds)
    table = []
    for waiting in range(cap + 1):
        below = max((size for size in full if size <= waiting), default=0)
        above = min((size for size in full if size >= waiting), default=cap)
        filled = below == 0 or waiting >= fill * above
        cheaper = not filled and fill * seconds[below] / below < seconds[waiting] / waiting
        table.append(below if cheaper else waiting)
    return tuple(table)
