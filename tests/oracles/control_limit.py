"""Exact cost of "serve once M wait" under Poisson arrivals, and Inoue's bound for M = 1.

The chain is embedded at the ends of service: n samples are left, M - n more are waited for, and
min(n, cap) of them are served while Poisson many come. Cost and device time follow by renewal
reward from its stationary law.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edged.latency import LatencyCurve


@dataclass(frozen=True)
class Exact:
    """Long-run averages.

    Attributes:
        latency_s: mean latency.
        device_s: device time a request.
        batch: mean batch size.
    """

    latency_s: float
    device_s: float
    batch: float

    def cost(self, price: float) -> float:
        """J_c in seconds."""
        return self.latency_s + price * self.device_s


def control_limit(
    rate: float, curve: LatencyCurve, cap: int, limit: int = 1, states: int = 512
) -> Exact:
    """The chain of a control limit.

    Args:
        rate: arrivals a second.
        curve: service time by batch size.
        cap: most samples in a batch.
        limit: M, at most ``cap``.
        states: most samples that are left over.
    """
    left = np.arange(states + 1)
    ready = np.maximum(left, limit)
    batch = np.minimum(ready, cap)
    times = np.array([curve(int(size)) for size in batch])
    chain = np.zeros((states + 1, states + 1))
    for start in left:
        chances = _poisson(rate * times[start], states - (ready[start] - batch[start]))
        chain[start, ready[start] - batch[start] :] = chances
    law = _stationary(chain)
    waited = (ready - left) / rate
    held = (ready * (ready - 1) - left * (left - 1)) / 2 / rate
    held = held + ready * times + rate * times**2 / 2
    cycle = float(law @ (waited + times)) * rate
    return Exact(
        latency_s=float(law @ held) / cycle,
        device_s=float(law @ times) / cycle,
        batch=float(law @ batch),
    )


def _poisson(mean: float, most: int) -> npt.NDArray[np.float64]:
    """Chances of 0 to ``most``; the rest is in the last one."""
    counts = np.arange(most + 1)
    logs = np.cumsum(np.log(np.maximum(counts, 1)))  # of the factorials
    chances = np.exp(counts * math.log(mean) - mean - logs)
    chances[-1] += max(0.0, 1.0 - float(chances.sum()))
    return np.asarray(chances, dtype=np.float64)


def _stationary(chain: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    size = len(chain)
    system = np.vstack([(chain.T - np.eye(size))[:-1], np.ones(size)])
    right = np.zeros(size)
    right[-1] = 1.0
    return np.asarray(np.linalg.solve(system, right), dtype=np.float64)


def inoue_bound(rate: float, alpha: float, beta: float) -> float:
    """Upper bound of greedy's mean latency without a cap, in seconds (Inoue 2021).

    Args:
        rate: arrivals a second.
        alpha: setup time of a batch, seconds.
        beta: time of one more sample, seconds; ``rate * beta`` is below 1.
    """
    load = rate * beta
    never = 1.5 * alpha / (1 - load) + beta / 2 * (load + 2) / (1 - load**2)
    least = (alpha + beta) / (2 * (1 - load))
    always = least * (1 + 2 * rate * alpha + (1 - rate * alpha) / (1 + load))
    return min(never, always)


def greedy_without_cap(rate: float, alpha: float, beta: float) -> float:
    """Greedy's mean latency without a cap, to about 0.1 %, in seconds.

    Moments of the batch size by renewal, with the chance that nothing comes during a batch taken at
    the mean batch size: a fixed point.
    """
    empty, first = 0.5, 1.0
    for _ in range(200):
        first = (rate * alpha + empty) / (1 - rate * beta)
        empty = math.exp(-rate * (alpha + beta * first))
    own = rate * (beta * first + alpha)
    came = rate**2 * (2 * alpha * beta * first + alpha**2)
    second = (own + came + empty) / (1 - (rate * beta) ** 2)
    square = beta**2 * second + 2 * alpha * beta * first + alpha**2
    return (rate / 2 * square + beta * second + alpha * first) / first
