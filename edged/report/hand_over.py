"""The queue between those who report and the outbox's thread: bounded by stream. Pure."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping

from edged.report.draft import ASSUMED_BYTES, Draft
from edged.report.streams import Overflow, Stream

MAX_ROWS = 10_000
MAX_BYTES = 16 * 1024 * 1024
"""Of each stream: a few tenths of a second of more events than any disk takes."""
HANDOVER_FULL = "handover_full"


class HandOver:
    """Events that are not stored yet, in their order within each stream. Not thread-safe.

    Args:
        streams: by name, the most urgent first.
    """

    def __init__(self, streams: Mapping[str, Stream]) -> None:
        self._streams = streams
        self._lanes: dict[str, deque[Draft]] = {name: deque() for name in streams}
        self._bytes = dict.fromkeys(streams, 0)
        self.rows = 0
        self.lost: Counter[tuple[str, str]] = Counter()
        """(stream, reason) -> events dropped since the last `take_lost`."""

    def __repr__(self) -> str:
        return f"<HandOver {self.rows} events wait>"

    def add(self, draft: Draft) -> list[Draft]:
        """Queues an event.

        Returns:
            The events that were dropped for it: by the stream's policy it alone, or as many of the
            oldest as it takes; usually none.

        Raises:
            KeyError: there is no such stream: a fault of the caller.
        """
        name, needed = draft.stream, _size(draft)
        lane = self._lanes[name]
        dropped: list[Draft] = []
        if self._full(name, needed):
            if self._streams[name].overflow is Overflow.REJECT_NEW or needed > MAX_BYTES:
                self.lost[name, HANDOVER_FULL] += 1
                return [draft]
            while lane and self._full(name, needed):
                dropped.append(lane.popleft())
                self._bytes[name] -= _size(dropped[-1])
            self.lost[name, HANDOVER_FULL] += len(dropped)
        lane.append(draft)
        self._bytes[name] += needed
        self.rows += 1 - len(dropped)
        return dropped

    def _full(self, name: str, needed: int) -> bool:
        return len(self._lanes[name]) >= MAX_ROWS or self._bytes[name] + needed > MAX_BYTES

    def take(self, limit: int) -> list[Draft]:
        """Up to so many events, the most urgent stream first."""
        taken: list[Draft] = []
        for name, lane in self._lanes.items():
            while lane and len(taken) < limit:
                draft = lane.popleft()
                self._bytes[name] -= _size(draft)
                taken.append(draft)
        self.rows -= len(taken)
        return taken

    def take_lost(self) -> Counter[tuple[str, str]]:
        """(stream, reason) -> events that were dropped since the last call."""
        lost, self.lost = self.lost, Counter()
        return lost


def _size(draft: Draft) -> int:
    return len(draft.body) if isinstance(draft.body, bytes) else ASSUMED_BYTES
