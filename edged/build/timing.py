"""Times engines in turn on this device: round after round, each at every batch size.

What slows the machine for a while then slows all of them alike, which one after the other would
not. The inputs are real samples: zeros take another path through some kernels, and denormals cost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import numpy as np

from edged.build.choice import Rounds
from edged.runners import Array, Runner, run_batch

ROUNDS = 9
"""Odd, so that a median is one of them."""
_BUDGET_S = 0.05  # of one engine at one size in one round; a slow one still runs once
_REPEATS = 5
_WARM_UPS = 2  # the first run of a size compiles on some runtimes; the second has warm caches


def time_in_turn(
    runners: Mapping[str, Runner],
    samples: Mapping[str, Array],
    sizes: Sequence[int],
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    *,
    rounds: int = ROUNDS,
) -> dict[str, Rounds]:
    """Wall time of one batch alone, from staging to answer.

    Args:
        runners: prepared and idle, by any name.
        samples: model inputs ``[n, *shape]``, repeated where a batch is larger.
        sizes: batch sizes, each within every runner's ``max_batch``.
        progress: called with (rounds done, rounds in all).
        rounds: how often each one is looked at; in each the median of up to 5 runs counts.

    Returns:
        By runner and batch size one time a round, in seconds.

    Raises:
        EdgedError: an engine fails.
    """
    batches = {size: _rows(samples, size) for size in sizes}
    found: dict[str, dict[int, list[float]]] = {name: {n: [] for n in sizes} for name in runners}
    for runner in runners.values():
        for batch in batches.values():
            for _ in range(_WARM_UPS):
                run_batch(runner, batch)
    for number in range(rounds):
        for size, batch in batches.items():
            for name, runner in runners.items():
                found[name][size].append(_time(runner, batch))
        progress(number + 1, rounds)
    return dict(found)


def _time(runner: Runner, batch: Mapping[str, Array]) -> float:
    times: list[float] = []
    while len(times) < _REPEATS and sum(times) < _BUDGET_S:
        begun = time.perf_counter()
        run_batch(runner, batch)
        times.append(time.perf_counter() - begun)
    return max(median(times), 1e-9)


def _rows(samples: Mapping[str, Array], size: int) -> dict[str, Array]:
    return {name: np.resize(rows, (size, *rows.shape[1:])) for name, rows in samples.items()}
