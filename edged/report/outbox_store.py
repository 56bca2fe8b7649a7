"""The outbox's transactions: batches in, age limits, what is put back, space given back.

One thread only. Rows leave by what a later batch says of them.
"""

from __future__ import annotations

import os
import secrets
import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from edged.report.draft import Draft, Position, size
from edged.report.outbox_file import BUSY_S, MESSAGE_COLUMNS, mapped_errors
from edged.report.outbox_tables import SELECT, Numbering, Tables, checksum
from edged.report.streams import Durability, Overflow, Stream

FULL = "too_many_bytes"
OLD = "too_old"
SLACK_PAGES = 64
"""Half a MiB of free pages is kept, so that a stream that comes and goes does not move pages."""


@dataclass
class Batch:
    """What one transaction does.

    Attributes:
        drafts: events with their bodies, in their order.
        deleted: ids of rows that were confirmed.
        quarantined: id -> why the control plane refused it.
        lost: (stream, reason) -> events that never came so far; they take up numbers, before those
            of the drafts, so that the receiver sees a gap.
        spared: ids that must not be dropped to make room: they are on their way.
    """

    drafts: list[tuple[Draft, bytes]] = field(default_factory=list)
    deleted: Collection[int] = ()
    quarantined: Mapping[int, str] = field(default_factory=dict)
    lost: Mapping[tuple[str, str], int] = field(default_factory=dict)
    spared: Collection[int] = ()


@dataclass
class Written:
    """What a transaction did.

    Attributes:
        positions: for each draft its place, or None where it was dropped for lack of room.
        dropped: (stream, reason) -> events.
    """

    positions: list[Position | None]
    dropped: Counter[tuple[str, str]]


_Numbered = tuple[int, Draft, bytes, int]
"""Place in the batch, event, its body, its number."""


def new_epoch(now: float) -> str:
    """16 hexadecimal digits: milliseconds since 1970, then 20 random bits."""
    return f"{max(0, int(now * 1e3)) & (1 << 44) - 1:011x}{secrets.randbits(20):05x}"


class Store(Tables):
    """The outbox's database, and what is done with it. See `Tables` for its arguments."""

    def begin(self, boot_id: str, known: Mapping[str, int], now: float) -> None:
        """Marks the store as in use, and begins new epochs where numbering is not certain.

        Certain it is after an orderly end, and after the end of the process alone; not where
        ``known`` is ahead, nor after the loss of power, when a disk may have lost what it had
        reported as written.

        Args:
            boot_id: of this start of the machine; "" if it is not known.
            known: stream -> number that comes next, as far as that is known from elsewhere.
            now: Unix seconds.
        """
        same_boot = bool(boot_id) and self.meta.get("boot_id") == boot_id
        certain = same_boot or self.meta.get("clean") == 1
        with mapped_errors("outbox cannot be written"), self._transaction(Durability.POWER_CUT):
            for name in self.streams:
                number = max(self.next_seq(name), known.get(name, 1))
                if name not in self.numbers or not certain or number > self.next_seq(name):
                    self.numbers[name] = Numbering(new_epoch(now), number)
            self._save_numbers(self.streams)
            since = time.monotonic() - self.clock  # for who looks into the file meanwhile
            self._set_meta(clean=0, boot_id=boot_id, pid=os.getpid(), since=since)

    def write(self, batch: Batch) -> Written:
        """Does all that a batch says in one transaction, durable as its most demanding stream asks.

        Raises:
            OutboxDiskError, OutboxDamagedError: nothing of it was done; the store is to be closed.
        """
        names = {draft.stream for draft, _ in batch.drafts}
        demanding = any(self.streams[name].durability is Durability.POWER_CUT for name in names)
        result = Written([None] * len(batch.drafts), Counter(batch.lost))
        with (
            mapped_errors("outbox cannot be written"),
            self._transaction(Durability.POWER_CUT if demanding else Durability.CRASH),
        ):
            self._delete(batch.deleted)
            self._quarantine(batch.quarantined)
            for (name, _), count in batch.lost.items():
                self.numbers[name].next_seq += count
                names.add(name)
            for name in names:
                self._insert(self.streams[name], batch, result)
            self._save_numbers(names)
            self._count_dropped(result.dropped)
            self._set_meta(clock=self.clock)
        return result

    def expire(self, spared: Collection[int]) -> Counter[tuple[str, str]]:
        """Drops rows that are over their stream's age, a limited number of them.

        Returns:
            (stream, reason) -> rows; with `EXPIRED_AT_ONCE` of one stream there may be more.
        """
        dropped: Counter[tuple[str, str]] = Counter()
        with mapped_errors("outbox cannot be written"):
            due = [
                (name, row)
                for name, stream in self.streams.items()
                for row in self._old(name, self.clock - stream.max_age_s, spared)
            ]
            if not due:
                return dropped
            with self._transaction(Durability.CRASH):
                self._delete([row for _, row in due])
                dropped.update((name, OLD) for name, _ in due)
                self._count_dropped(dropped)
        return dropped

    def requeue(self) -> int:
        """Puts back what ``edged outbox --requeue`` has marked in the quarantine; how many."""
        with mapped_errors("outbox cannot be written"):
            marked = self._db.execute(
                f"SELECT id, {MESSAGE_COLUMNS} FROM quarantine WHERE requeue <> 0 ORDER BY id"  # noqa: S608  # our own column names
            ).fetchall()
            if marked:
                with self._transaction(Durability.POWER_CUT):
                    self._put([(*row[1:7], self.clock, *row[8:]) for row in marked])  # as if new
                    self._db.executemany(
                        "DELETE FROM quarantine WHERE id = ?", [(row[0],) for row in marked]
                    )
                    self.quarantined, self.quarantined_bytes = self._sums("quarantine")
        return len(marked)

    def adopt(self, other: Store) -> dict[int, int]:
        """Takes over everything that another store holds, and its numbers.

        Returns:
            Old id -> new id.
        """
        with mapped_errors("outbox cannot be read"):
            rows = other._db.execute(f"{SELECT} ORDER BY id").fetchall()
            refused = other._db.execute(
                f"SELECT {MESSAGE_COLUMNS}, reason FROM quarantine ORDER BY id"  # noqa: S608  # our own column names
            ).fetchall()
        before = self.next_id
        with mapped_errors("outbox cannot be written"), self._transaction(Durability.POWER_CUT):
            later = self.clock - other.clock
            self._put([(*row[1:7], row[7] + later, *row[8:]) for row in rows])
            for row in refused:
                self._put_aside(row[:-1], row[-1])
            for name, own in self.numbers.items():
                own.next_seq = max(own.next_seq, other.numbers[name].next_seq)
            self._save_numbers(self.numbers)
            self._count_dropped(other.dropped)
            self.quarantined, self.quarantined_bytes = self._sums("quarantine")
        return {row[0]: before + n for n, row in enumerate(rows)}

    # -------------------------------------------------------------- the file

    def give_back(self, pages: int) -> bool:
        """Gives free pages back to the file system; whether there are more.

        Args:
            pages: at most so many, of `PAGE_BYTES`.
        """
        with mapped_errors("outbox cannot be written"):
            free = int(self._db.execute("PRAGMA freelist_count").fetchone()[0]) - SLACK_PAGES
            if free <= 0:
                return False
            # `execute` would stop after the first page: each counts as a row, which has no columns.
            self._db.executescript(f"PRAGMA incremental_vacuum({min(free, pages)})")
            if free <= pages:
                self._truncate_log()
            return free > pages

    def close(self, *, clean: bool) -> None:
        """Closes the file.

        Args:
            clean: note that everything is stored; not after trouble.
        """
        try:
            if clean:
                with mapped_errors("outbox cannot be written"):
                    with self._transaction(Durability.POWER_CUT):
                        self._set_meta(clock=self.clock, clean=1)
                    self._truncate_log()
        finally:
            self._db.close()

    def _truncate_log(self) -> None:
        """Moves the log into the database; if somebody reads just now, not all of it."""
        self._db.execute("PRAGMA busy_timeout = 50")
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self._db.execute(f"PRAGMA busy_timeout = {int(BUSY_S * 1e3)}")

    # -------------------------------------------------------------- inside a transaction

    def _insert(self, stream: Stream, batch: Batch, result: Written) -> None:
        """Numbers the drafts of one stream, makes room, and stores what fits."""
        numbering = self.numbers[stream.name]
        waiting = []
        for index, (draft, body) in enumerate(batch.drafts):
            if draft.stream == stream.name:
                waiting.append((index, draft, body, numbering.next_seq))
                numbering.next_seq += 1
        for index, _, _, seq in waiting:
            result.positions[index] = Position(stream.name, numbering.epoch, seq)
        if stream.overflow is Overflow.KEEP_LATEST:
            waiting = self._latest(stream.name, waiting)
        used = sum(size(draft, body) for _, draft, body, _ in waiting)
        if self.bytes[stream.name] + used > stream.max_bytes:
            waiting = self._fitting(stream, waiting, batch.spared, result)
        self._put(
            [
                (
                    stream.name, numbering.epoch, seq, draft.kind, draft.key,
                    draft.time, self.clock, size(draft, body),
                    checksum(numbering.epoch, seq, draft.kind, body), body,
                )
                for _, draft, body, seq in waiting
            ]
        )  # fmt: skip

    def _latest(self, stream: str, waiting: list[_Numbered]) -> list[_Numbered]:
        """Those that no later one of the same key replaces; rows that they replace are deleted."""
        last = {draft.key: index for index, draft, _, _ in waiting}
        kept = [each for each in waiting if not each[1].key or last[each[1].key] == each[0]]
        for key in filter(None, last):
            self._delete(self._of_key(stream, key))
        return kept

    def _fitting(
        self,
        stream: Stream,
        waiting: list[_Numbered],
        spared: Collection[int],
        result: Written,
    ) -> list[_Numbered]:
        """Those that find room, some of it made by dropping rows where the policy says so."""
        oldest_goes = stream.overflow is not Overflow.REJECT_NEW
        if oldest_goes:
            used = sum(size(draft, body) for _, draft, body, _ in waiting)
            excess = self.bytes[stream.name] + used - stream.max_bytes
            rows = self._oldest(stream.name, excess, spared)
            self._delete(rows)
            result.dropped[stream.name, FULL] += len(rows)
        room = stream.max_bytes - self.bytes[stream.name]
        kept: list[_Numbered] = []
        for each in reversed(waiting) if oldest_goes else waiting:
            needed = size(each[1], each[2])
            if needed <= room:
                room -= needed
                kept.append(each)
            elif oldest_goes:  # what is older must not stay where this one went
                break
        missing = {index for index, *_ in waiting} - {index for index, *_ in kept}
        for index in missing:
            result.positions[index] = None
        result.dropped[stream.name, FULL] += len(missing)
        return kept[::-1] if oldest_goes else kept
