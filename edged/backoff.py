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


class Backoff:
    """Pauses between attempts, which grow until a connection has stood for twice the longest one.

    A connection alone is no reason to hurry again: two clients of one name would take the session
    from each other several times a second, and a broker that accepts and then drops everyone would
    be stormed.

    Args:
        shortest: seconds before the first retry, at most.
        longest: seconds, never exceeded.
    """

    def __init__(self, shortest: float, longest: float) -> None:
        self._shortest = shortest
        self._longest = longest
        self._attempts = 0
        self._since: float | None = None

    def __repr__(self) -> str:
        return f"<Backoff {self._attempts} attempts since the last steady connection>"

    def connected(self, now: float) -> None:
        """A connection stands from ``now``, monotonic seconds, on."""
        self._since = now

    def pause_s(self, now: float, chance: float) -> float:
        """Seconds to wait after a failed attempt or a lost connection.

        Args:
            now: monotonic seconds.
            chance: uniform in [0, 1).
        """
        if self._since is not None and now - self._since >= 2 * self._longest:
            self._attempts = 0
        self._since = None
        self._attempts += 1
        return backoff_s(self._attempts - 1, self._shortest, self._longest, chance)
