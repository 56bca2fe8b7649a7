"""Decisions of the uplink: which rows make a message, what an answer means, when to try again.

Pure: no clock, thread or I/O; `now` is monotonic seconds.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum

from edged.control_plane import HEAD_OVERHEAD, RECORD_OVERHEAD, BatchHead, Record
from edged.errors import BatchError
from edged.report.draft import Row

SUCCESS_LIMIT = 0x80
NO_SUBSCRIBERS = 0x10
"""PUBACK: the broker took the message, and nobody was there to get it (MQTT 5, 3.4.2.1)."""
FORBIDDEN = frozenset({0x87, 0x90})
"""Not authorised, topic name invalid: it would be the same for each record."""
TRANSIENT = frozenset({0x80, 0x83, 0x97})
"""Unspecified, implementation specific, quota exceeded: the same message may be taken later."""
MAX_ACK_BYTES = 256 * 1024


class Verdict(Enum):
    """What the broker's answer to a message means for its records."""

    TAKEN = "taken"
    UNHEARD = "unheard"
    """Nobody subscribes: they are kept, and sent again later."""
    LATER = "later"
    """It is busy: they are sent again later."""
    SPLIT = "split"
    """One of them may be at fault: each is sent alone."""
    NEVER = "never"
    """They go into quarantine."""


def verdict(code: int, records: int, *, needs_subscriber: bool) -> Verdict:
    """What a PUBACK means.

    Args:
        code: its reason code.
        records: in the message.
        needs_subscriber: whether a message that nobody gets counts as not delivered.
    """
    if code == NO_SUBSCRIBERS and needs_subscriber:
        return Verdict.UNHEARD
    if code < SUCCESS_LIMIT:
        return Verdict.TAKEN
    if code in TRANSIENT:
        return Verdict.LATER
    if records > 1 and code not in FORBIDDEN:
        return Verdict.SPLIT
    return Verdict.NEVER


@dataclass(frozen=True)
class Batch:
    """Records that go up in one message: of one stream, one epoch and one mode."""

    rows: tuple[Row, ...]
    mode: str

    @property
    def stream(self) -> str:
        """Its stream."""
        return self.rows[0].position.stream

    @property
    def ids(self) -> tuple[int, ...]:
        """Handles of its rows."""
        return tuple(row.id for row in self.rows)

    def head(self, boot_id: str, number: int) -> BatchHead:
        """What it says of itself."""
        position = self.rows[0].position
        return BatchHead(position.stream, position.epoch, boot_id, number, self.mode)

    def records(self) -> list[Record]:
        """Its rows as they are sent."""
        return [Record(row.position.seq, row.time, row.kind, row.body) for row in self.rows]


def split(rows: Sequence[Row], max_bytes: int, replayed: Collection[int] = ()) -> list[Batch]:
    """Rows as batches, in their order, each of at most ``max_bytes`` before compression.

    A row that is larger is alone in its batch.

    Args:
        rows: as the outbox gave them.
        max_bytes: of a message, topic and properties included.
        replayed: ids of those that waited for the connection, or were sent before.
    """
    batches: list[Batch] = []
    current: list[Row] = []
    key: tuple[str, str, str] | None = None
    used = HEAD_OVERHEAD
    for row in rows:
        mode = "replayed" if row.id in replayed else "live"
        this = (row.position.stream, row.position.epoch, mode)
        size = len(row.body) + len(row.kind) + RECORD_OVERHEAD
        if current and (this != key or used + size > max_bytes):
            batches.append(Batch(tuple(current), key[2] if key else mode))
            current, used = [], HEAD_OVERHEAD
        current.append(row)
        key = this
        used += size
    if current and key:
        batches.append(Batch(tuple(current), key[2]))
    return batches


class Pace:
    """A token bucket: how many records may be sent now.

    Args:
        rate: records a second.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._most = max(1.0, rate * 0.2)
        self._tokens = self._most
        self._at: float | None = None

    def __repr__(self) -> str:
        return f"<Pace {self.rate:g} a second, {self._tokens:.0f} now>"

    def allowed(self, now: float) -> int:
        """Records that may be sent now; a clock that jumps back gives none."""
        if self._at is not None:
            gained = max(0.0, now - self._at) * self.rate
            self._tokens = min(self._most, self._tokens + gained)
        self._at = now
        return int(self._tokens)

    def spend(self, records: int) -> None:
        """So many were sent."""
        self._tokens -= records


@dataclass(frozen=True)
class Acknowledgement:
    """What the control plane says of one batch.

    Attributes:
        boot_id: of the run that sent it.
        batch: its number: its records are stored, or refused.
        refused: sequence number -> why it will never be stored.
    """

    boot_id: str
    batch: int
    refused: dict[int, str] = field(default_factory=dict)


def parse_ack(payload: bytes) -> Acknowledgement:
    """Reads an acknowledgement.

    Raises:
        BatchError: it is none.
    """
    if len(payload) > MAX_ACK_BYTES:
        raise BatchError(f"an acknowledgement has {len(payload)} bytes, at most {MAX_ACK_BYTES}")
    try:
        document = json.loads(payload)
        refused = document.get("refused") or []
        numbers = {_number(each["seq"]): str(each.get("reason", ""))[:256] for each in refused}
        return Acknowledgement(str(document["boot_id"]), _number(document["batch"]), numbers)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        raise BatchError(f"an acknowledgement cannot be read: {type(err).__name__}") from err


def _number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return value


class Awaiting:
    """Batches that the control plane has to acknowledge itself, before they are deleted.

    Args:
        timeout_s: after so long without a word they are sent again; doubled each time in vain.
        longest_s: limit of that.
    """

    def __init__(self, timeout_s: float, longest_s: float = 3600.0) -> None:
        self._timeout_s = timeout_s
        self._longest_s = max(timeout_s, longest_s)
        self._vain: dict[str, int] = {}
        self._batches: dict[int, tuple[float, Batch]] = {}
        self.rows = 0
        """Records in them."""

    def __repr__(self) -> str:
        return f"<Awaiting {self.rows} records in {len(self._batches)} batches>"

    def add(self, number: int, batch: Batch, now: float) -> None:
        """A batch was sent under this number."""
        timeout = self._timeout_s * 2.0 ** min(self._vain.get(batch.stream, 0), 32)
        self._batches[number] = (now + min(timeout, self._longest_s), batch)
        self.rows += len(batch.rows)

    def acknowledged(self, ack: Acknowledgement) -> tuple[list[int], dict[int, str]]:
        """Rows to be deleted, and rows to be put aside with their reasons."""
        batch = self.drop(ack.batch)
        if batch is None:
            return [], {}
        self._vain.pop(batch.stream, None)
        refused = {r.id: ack.refused[r.position.seq] for r in batch.rows
                   if r.position.seq in ack.refused}  # fmt: skip
        return [row.id for row in batch.rows if row.id not in refused], refused

    def overdue(self, now: float) -> list[Batch]:
        """Batches to be sent again; they are awaited no more."""
        late = [number for number, (due, _) in self._batches.items() if due <= now]
        found = [batch for number in late if (batch := self.drop(number)) is not None]
        for stream in {batch.stream for batch in found}:
            self._vain[stream] = self._vain.get(stream, 0) + 1
        return found

    def drop(self, number: int) -> Batch | None:
        """A batch is not awaited any more; which one it was."""
        _, batch = self._batches.pop(number, (0.0, None))
        self.rows -= len(batch.rows) if batch is not None else 0
        return batch

    def clear(self) -> None:
        """The connection is gone: all of them are sent again."""
        self._batches.clear()
        self._vain.clear()
        self.rows = 0
