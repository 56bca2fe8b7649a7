"""How long to wait before the next attempt. Pure."""

from __future__ import annotations


def backoff_s(attempt: int, shortest: float, longest: float, chance: float) -> float:
    """How long to wait before connection attempt number ``attempt`` (0 is the first retry).

    Doubling, with full jitter above half, so that a fleet does not come back in one instant.

    Args:
        attempt: failures since the last good connection, minus one.
        shortest: seconds before the first retry, at most.
        longest: seconds, never exceeded.
        chance: uniform in [0, 1).
    """
    ceiling = min(longest, shortest * 2.0 ** min(attempt, 32))
    return ceiling * (0.5 + 0.5 * chance)
