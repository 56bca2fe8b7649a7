"""Which streams may be sent now: each waits for itself alone. Pure.

A stream waits after its messages were turned down, or while too many of its records are not
acknowledged by the control plane. The others go on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from edged.backoff import Backoff

PAUSE_S = (1.0, 60.0)
"""Shortest and longest pause of a stream while the broker is busy or nobody listens to it."""
MOST_AWAITED = 20_000
"""Records of a stream that wait for an acknowledgement of the control plane; beyond it no more of
them are sent."""


class StreamGates:
    """One gate a stream. `now` is monotonic seconds.

    Args:
        streams: names.
        pause_s: see `PAUSE_S`.
        most_awaited: see `MOST_AWAITED`.
    """

    def __init__(
        self,
        streams: Iterable[str],
        pause_s: tuple[float, float] = PAUSE_S,
        most_awaited: int = MOST_AWAITED,
    ) -> None:
        self._streams = tuple(streams)
        self._pause_s = pause_s
        self._most_awaited = most_awaited
        self._backoffs: dict[str, Backoff] = {}
        self._until: dict[str, float] = {}
        self._open = frozenset(self._streams)

    def __repr__(self) -> str:
        shut = sorted(set(self._streams) - self._open)
        return f"<StreamGates shut: {', '.join(shut) or 'none'}>"

    @property
    def any_shut(self) -> bool:
        """Whether a stream waited when it was looked at last."""
        return len(self._open) < len(self._streams)

    @property
    def open(self) -> frozenset[str]:
        """Streams that may be sent, as of the last `look`."""
        return self._open

    def turned_down(self, stream: str, now: float) -> float | None:
        """A message was; for how many seconds its stream waits now, None if it waited already."""
        if now < self._until.get(stream, now):
            return None
        backoff = self._backoffs.setdefault(stream, Backoff(*self._pause_s))
        pause_s = backoff.pause_s(now, 0.5)
        self._until[stream] = now + pause_s
        return pause_s

    def taken(self, stream: str) -> None:
        """A message was taken: the next pause is a short one again."""
        self._backoffs.pop(stream, None)

    def connected(self) -> None:
        """A new connection: what was turned down on the one before may be taken by this one."""
        self._until.clear()

    def look(self, now: float, awaited: Mapping[str, int]) -> bool:
        """Opens and shuts.

        Args:
            now: monotonic seconds.
            awaited: stream -> records that are not acknowledged by the control plane.

        Returns:
            Whether a gate opened, so that records behind it may be sent.
        """
        before = self._open
        self._open = frozenset(
            name
            for name in self._streams
            if now >= self._until.get(name, now) and awaited.get(name, 0) < self._most_awaited
        )
        return bool(self._open - before)
