"""What goes into the outbox and what comes out of it: values without behaviour.

`Draft` is an event on its way in, `Row` one that is stored, `Position` its place in its stream.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

ROW_OVERHEAD = 128
"""Bytes that a row costs beside its body, kind and key: numbers, index, and the page's slack."""
ASSUMED_BYTES = 1024
"""A body that is not made yet counts so much in the hand-over queue."""


class Position(NamedTuple):
    """Where an event stands: unique on this device, and growing by one in each epoch of a stream.

    Attributes:
        stream: its stream.
        epoch: 16 hexadecimal digits. A new one begins where numbering cannot be continued safely: a
            new or damaged database, the loss of power in a stream that does not survive it, a disk
            that cannot be written. They sort by the time when they began, as far as the wall clock
            was right.
        seq: from 1 on in each epoch. A number that is missing was dropped, or, with
            ``keep_latest``, replaced.
    """

    stream: str
    epoch: str
    seq: int


class Draft(NamedTuple):
    """An event on its way into the outbox.

    Attributes:
        stream: name of its stream.
        kind: what it is, for its receiver; at most 64 characters, for instance ``model_loaded``.
        key: what it is the latest word on (``keep_latest``), or "".
        time: Unix seconds when it happened.
        body: its bytes, or what makes them, called on the outbox's thread.
        stored: told its `Position` once it is durable, or why it never will be.
    """

    stream: str
    kind: str
    key: str
    time: float
    body: bytes | Callable[[], bytes]
    stored: Future[Position] | None = None


@dataclass(frozen=True)
class Row:
    """A stored event.

    Attributes:
        id: its handle for `Outbox.confirm` and its like; negative while it is in memory only.
        position: its place, for the receiver to see gaps and duplicates.
        kind: as it was given.
        key: as it was given.
        time: Unix seconds when it happened, by the wall clock of that moment.
        age_s: seconds since it was stored, of the outbox's running time.
        body: its bytes.
        replay: whether it was stored before the last `Outbox.begin_backlog`.
    """

    id: int
    position: Position
    kind: str
    key: str
    time: float
    age_s: float
    body: bytes
    replay: bool = False


@dataclass
class StreamStats:
    """Numbers of one stream.

    Attributes:
        rows: events that are stored and not confirmed.
        bytes: what they use, overhead included.
        oldest_age_s: age of the oldest of them in seconds of running time; None: there is none.
        in_flight: events that were taken and neither confirmed nor released.
        dropped: reason -> events, since the database was made.
        quarantined: events that the control plane refused.
        quarantined_bytes: what those use.
    """

    rows: int = 0
    bytes: int = 0
    oldest_age_s: float | None = None
    in_flight: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    quarantined: int = 0
    quarantined_bytes: int = 0


@dataclass(frozen=True)
class OutboxStats:
    """Numbers of the outbox.

    Attributes:
        streams: by name.
        durable: whether events go to the disk; False: to memory, since it cannot be written.
        waiting: events handed over that are not stored yet.
    """

    streams: dict[str, StreamStats]
    durable: bool
    waiting: int


def size(draft: Draft, body: bytes) -> int:
    """Bytes that an event counts for in its stream's limit."""
    return len(body) + len(draft.kind) + len(draft.key) + ROW_OVERHEAD
