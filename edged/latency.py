"""How long one batch takes: a measured curve over batch sizes. Pure."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LatencyCurve:
    """Service time of a batch by its number of samples, on an otherwise idle device.

    Attributes:
        sizes: batch sizes in samples, ascending, the first one >= 1.
        seconds: service time at each size, ascending (isotonic), each > 0.
        stepped: a batch in between is padded up to the next size and takes its time, as with
            engines that only run at the sizes they were warmed for.
    """

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    stepped: bool = False

    def __post_init__(self) -> None:
        if not self.sizes or len(self.sizes) != len(self.seconds):
            raise ValueError(
                f"a latency curve needs one time for each size, got {len(self.sizes)} sizes "
                f"and {len(self.seconds)} times"
            )
        if any(b <= a for a, b in zip(self.sizes, self.sizes[1:], strict=False)):
            raise ValueError(f"sizes must ascend, got {self.sizes}")
        if self.sizes[0] < 1 or min(self.seconds) <= 0:
            raise ValueError(f"sizes and times must be positive, got {self.sizes}, {self.seconds}")

    @classmethod
    def measured(
        cls, points: Iterable[tuple[int, float]], *, stepped: bool = False
    ) -> LatencyCurve:
        """Fits measured ``(size, seconds)`` points: sorted, and made non-decreasing.

        A larger batch never takes less time than a smaller one; where a measurement says so it is
        noise, which the pool-adjacent-violators algorithm averages out (isotonic regression).
        """
        pools: list[tuple[float, int]] = []
        ordered = sorted(points)
        for _, seconds in ordered:
            pools.append((seconds, 1))
            while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
                (a, n), (b, m) = pools[-2:]
                pools[-2:] = [((a * n + b * m) / (n + m), n + m)]
        fitted = [value for value, count in pools for _ in range(count)]
        return cls(tuple(size for size, _ in ordered), tuple(fitted), stepped)

    def __call__(self, samples: int) -> float:
        """Service time in seconds of a batch of ``samples``: linear between sizes, or stepped.

        Below the first size its time holds; above the last one the last slope goes on.
        """
        sizes, seconds = self.sizes, self.seconds
        at = bisect.bisect_left(sizes, samples)
        if at < len(sizes) and (sizes[at] == samples or at == 0 or self.stepped):
            return seconds[at]
        if len(sizes) == 1:
            return seconds[0] * samples / sizes[0]
        at = min(at, len(sizes) - 1)
        slope = (seconds[at] - seconds[at - 1]) / (sizes[at] - sizes[at - 1])
        return seconds[at - 1] + slope * (samples - sizes[at - 1])

    def line(self) -> tuple[float, float]:
        """``(alpha, beta)`` in seconds: the least-squares line ``alpha + beta * samples``.

        Neither is negative: the setup time of a batch, and the time of one more sample.
        """
        return fit_line(self.sizes, self.seconds)


def fit_line(sizes: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Least squares for ``seconds = alpha + beta * size``; alpha and beta are never negative."""
    n = len(sizes)
    mean_x, mean_y = sum(sizes) / n, sum(seconds) / n
    spread = sum((x - mean_x) ** 2 for x in sizes)
    if spread == 0:
        return seconds[0], 0.0
    covariance = sum((x - mean_x) * (y - mean_y) for x, y in zip(sizes, seconds, strict=True))
    beta = max(0.0, covariance / spread)
    return max(0.0, mean_y - beta * mean_x), beta
