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

    def add(self, draft: Draft) -> Draft | None:
        """Queues an event.

        Returns:
            The event that was dropped for it: by the stream's policy it, or the oldest; or None.

        Raises:
            KeyError: there is no such stream: a fault of the caller.
        """
        name = draft.stream
        lane = self._lanes[name]
        used = self._bytes[name] + _size(draft)
        if len(lane) >= MAX_ROWS or used > MAX_BYTES:
            return self._drop_for(draft)
        lane.append(draft)
        self._bytes[name] = used
        self.rows += 1
        return None

    def _drop_for(self, draft: Draft) -> Draft:
        lane = self._lanes[draft.stream]
        self.lost[draft.stream, HANDOVER_FULL] += 1
        if self._streams[draft.stream].overflow is Overflow.REJECT_NEW or not lane:
            return draft
        oldest = lane.popleft()
        lane.append(draft)
        self._bytes[draft.stream] += _size(draft) - _size(oldest)
        return oldest

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
