"""When requests are sent, and of which class each is. Pure: a seed in, times out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from edged.bench.options import MOST_REQUESTS, BenchOptions
from edged.errors import BadParameterError
from edged.simulate import arrivals
from edged.simulate.recorded import read_recorded

Times = npt.NDArray[np.float64]
Classes = npt.NDArray[np.int64]


def send_times(options: BenchOptions) -> Times:
    """Intended send times, float64 [n], seconds from the start, ascending, the first one 0.

    Empty for a closed loop, which sends when an answer comes.

    Raises:
        BadParameterError: the capture has more requests than one run may have.
        InputFileError: the capture cannot be read.
    """
    if options.trace is not None:
        return _recorded(options.trace)
    if not options.rate_hz:
        return np.zeros(0)
    rate = options.rate_hz
    count = max(1, round(rate * (options.seconds + options.warmup_s)))
    if options.arrivals == "uniform":
        return np.arange(count) / rate
    if options.arrivals == "bursts":
        times = arrivals.bursts(rate, count, options.seed, mean_size=options.burst).times[:count]
    elif options.arrivals == "phases":
        times = arrivals.mmpp(rate, count, options.seed).times
    else:
        times = arrivals.poisson(rate, count, options.seed).times
    from_first: Times = times - times[0]
    return from_first


def _recorded(path: Path) -> Times:
    times = read_recorded(path).times
    if len(times) > MOST_REQUESTS:
        raise BadParameterError(
            f"{path.name} has {len(times)} requests, at most {MOST_REQUESTS} are sent in one run"
        )
    return times


def classes(options: BenchOptions, count: int) -> Classes:
    """Which of ``options.mix`` each request is, int64 [count]."""
    if len(options.mix) == 1:
        return np.zeros(count, np.int64)
    weights = np.asarray([share.weight for share in options.mix])
    chance = np.random.default_rng(options.seed + 1)
    return chance.choice(len(weights), count, p=weights / weights.sum())
