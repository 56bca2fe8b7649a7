"""Outboxes for tests: started on a folder, with what they report and count kept."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edged.events import Event
from edged.metrics import Metrics
from edged.report.draft import Row, StreamStats
from edged.report.outbox import Outbox
from edged.report.writer import Hooks
from edged.settings import OutboxSettings

TIMEOUT_S = 30.0


@dataclass
class Observed:
    """An outbox that runs, and what it told.

    Attributes:
        outbox: it.
        metrics: its counters.
        events: what it reported of itself.
    """

    outbox: Outbox
    metrics: Metrics
    events: list[Event] = field(default_factory=list)
    told: threading.Condition = field(default_factory=threading.Condition)

    def hear(self, event: Event) -> None:
        """On the outbox's thread."""
        with self.told:
            self.events.append(event)
            self.told.notify_all()

    def wait_for(self, kind: str) -> Event:
        """The first event of a kind; fails if none comes."""
        with self.told:
            found = self.told.wait_for(lambda: self.kinds.count(kind) > 0, TIMEOUT_S)
            assert found, f"no {kind} in {self.kinds}"
            return next(each for each in self.events if each.kind == kind)

    @property
    def kinds(self) -> list[str]:
        """Kinds of what it reported, in its order."""
        return [each.kind for each in self.events]

    def put(self, stream: str, *bodies: bytes, **fields: Any) -> None:
        """Stores events and waits until that is done."""
        for body in bodies:
            self.outbox.emit(stream, body, **fields)
        assert self.outbox.flush(TIMEOUT_S)

    def bodies(self, limit: int = 10_000) -> list[bytes]:
        """Takes what there is; its bodies."""
        return [row.body for row in self.take(limit)]

    def take(self, limit: int = 10_000) -> list[Row]:
        """Takes what there is."""
        return self.outbox.take(limit, 1 << 30)

    def stats(self, stream: str) -> StreamStats:
        """Numbers of a stream."""
        numbers = self.outbox.stats()
        assert numbers is not None
        return numbers.streams[stream]


def observed(folder: Path, **settings: Any) -> Observed:
    """An outbox that is not started."""
    metrics = Metrics()
    heard: list[Observed] = []
    hooks = Hooks(report=lambda event: heard[0].hear(event))  # noqa: PLW0108  # not there yet
    it = Observed(Outbox(OutboxSettings(path=folder, **settings), metrics, hooks), metrics)
    heard.append(it)
    return it


@contextmanager
def running(folder: Path, **settings: Any) -> Iterator[Observed]:
    """An outbox that runs; stopped at the end."""
    it = observed(folder, **settings)
    it.outbox.start()
    try:
        assert it.outbox.flush(TIMEOUT_S)
        yield it
    finally:
        assert it.outbox.stop(TIMEOUT_S)


def bodies(first: int, last: int) -> list[bytes]:
    """Numbered bodies of a kilobyte."""
    return [str(number).encode().rjust(1000, b".") for number in range(first, last)]


def killed(folder: Path, copy: Path) -> None:
    """Copies the files of an outbox as they are now: what its next life finds after a kill."""
    shutil.copytree(folder, copy)
