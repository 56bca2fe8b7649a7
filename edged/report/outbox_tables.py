"""The outbox's tables: counted in memory as they change, and read back. One thread only.

What a transaction changes is counted at once. After one that failed the database is closed and
opened again, so tables and counts cannot part.
"""

from __future__ import annotations

import math
import sqlite3
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edged.errors import OutboxDamagedError
from edged.report.draft import Position, Row, StreamStats
from edged.report.outbox_file import HIGHEST, MESSAGE_COLUMNS, connect, mapped_errors
from edged.report.streams import Durability, Stream

DAMAGED = "damaged"
QUARANTINE_FULL = "quarantine_full"
EXPIRED_AT_ONCE = 2000
"""Rows that one pass removes for their age, so that events do not wait for it."""
IDS_AT_ONCE = 250
"""Rows that one statement removes. SQLite took 999 parameters before 3.32."""
MAX_REASON = 500
"""Characters that are kept of why the control plane refused a message."""
LOWEST_IN_MEMORY = -(1 << 62)
"""First id of a database in memory: those on disk are positive."""
SELECT = f"SELECT id, {MESSAGE_COLUMNS} FROM message"  # noqa: S608  # our own column names
INSERT = f"INSERT INTO message (id, {MESSAGE_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608  # our own column names


@dataclass
class Numbering:
    """The next number of a stream, and the epoch it is counted in."""

    epoch: str
    next_seq: int


def checksum(epoch: str, seq: int, kind: str, body: bytes) -> int:
    """CRC-32 of what a row is sent as: one that changed on the disk must not spoil its batch."""
    return zlib.crc32(body, zlib.crc32(f"{epoch} {seq} {kind}".encode()))


class Tables:
    """An open database.

    Args:
        path: its file; None: in memory, where ids are negative.
        streams: by name, the most urgent first.
        quarantine_max_bytes: for all streams together.

    Attributes:
        clock: seconds in which the outbox ran, ever; the owner advances it.
        next_id: of the next row; ids are not used again while it is open.
        numbers: stream -> what comes next.
        rows: stream -> rows.
        bytes: stream -> bytes they use.
        dropped: (stream, reason) -> events since the database was made.

    Raises:
        OutboxDamagedError, OutboxDiskError, OutboxVersionError: see `connect`.
    """

    def __init__(
        self, path: Path | None, streams: Mapping[str, Stream], quarantine_max_bytes: int
    ) -> None:
        self.durable = path is not None
        self.streams = streams
        self._quarantine_max_bytes = quarantine_max_bytes
        self._sync = ""
        self._db = connect(path)
        try:
            with mapped_errors("outbox cannot be read"):
                self._load()
        except (TypeError, ValueError, OverflowError) as err:  # garbage that nobody thought of
            self._db.close()
            raise OutboxDamagedError(f"outbox is damaged: {err}") from err
        except BaseException:
            self._db.close()
            raise

    def __repr__(self) -> str:
        where = "disk" if self.durable else "memory"
        return f"<{type(self).__name__} on {where}: {sum(self.rows.values())} rows>"

    def _load(self) -> None:
        db = self._db
        self._remove_misplaced()
        self.meta: dict[str, Any] = dict(db.execute("SELECT name, value FROM meta"))
        clock = self.meta.get("clock")
        self.clock: float = 0.0
        if isinstance(clock, float) and 0 <= clock < HIGHEST:
            self.clock = clock
        self.numbers: dict[str, Numbering] = {
            name: Numbering(str(epoch), number)
            for name, epoch, number in db.execute("SELECT name, epoch, next_seq FROM stream")
            if epoch and isinstance(number, int) and 0 < number < HIGHEST
        }
        self.dropped = Counter(
            {
                (str(name), str(why)): int(number)
                for name, why, number in db.execute("SELECT stream, reason, count FROM dropped")
                if isinstance(number, int) and 0 < number < HIGHEST
            }
        )
        lowest = 1 if self.durable else LOWEST_IN_MEMORY
        self.next_id = int(
            db.execute(
                "SELECT max(?, coalesce((SELECT max(id) FROM message) + 1, ?))", (lowest, lowest)
            ).fetchone()[0]
        )
        self.rows, self.bytes = self._sums("message")
        self.quarantined, self.quarantined_bytes = self._sums("quarantine")

    def _remove_misplaced(self) -> None:
        """Removes rows that no stream would ever read, or whose size nobody could add up."""
        known = ", ".join("?" * len(self.streams))
        lowest = 0 if self.durable else LOWEST_IN_MEMORY
        for table in ("message", "quarantine"):
            self._db.execute(
                f"DELETE FROM {table} WHERE stream IS NULL OR stream NOT IN ({known}) "  # noqa: S608  # our own names
                "OR typeof(size) <> 'integer' OR size NOT BETWEEN 0 AND ? "
                "OR id NOT BETWEEN ? AND ?",
                (*self.streams, HIGHEST >> 20, lowest, HIGHEST),
            )

    def _sums(self, table: str) -> tuple[Counter[str], Counter[str]]:
        """Stream -> rows, and stream -> bytes."""
        rows: Counter[str] = Counter()
        used: Counter[str] = Counter()
        for name, number, total in self._db.execute(
            f"SELECT stream, count(*), sum(size) FROM {table} GROUP BY stream"  # noqa: S608  # our own names
        ):
            rows[name], used[name] = number, int(total)
        return rows, used

    # -------------------------------------------------------------- reading

    def read(self, stream: str, above: int, up_to: int | None = None) -> Iterator[Row]:
        """Rows of a stream in their order, lazily; what is no proper row is removed and counted.

        Args:
            stream: its name.
            above: ids greater than this.
            up_to: ids not greater than this; None: all.

        Raises:
            OutboxDiskError, OutboxDamagedError: it cannot be read.
        """
        garbage: list[int] = []
        try:
            with mapped_errors("outbox cannot be read"):
                for values in self._db.execute(
                    f"{SELECT} WHERE stream = ? AND id > ? AND id <= ? ORDER BY id",
                    (stream, above, (1 << 62) if up_to is None else up_to),
                ):
                    row = self._row(values)
                    if row is None:
                        garbage.append(values[0])
                    else:
                        yield row
        finally:
            if garbage:
                self._remove_garbage(stream, garbage)

    def _row(self, values: Sequence[Any]) -> Row | None:
        number, stream, epoch, seq, kind, key, time, clock, _, crc, body = values
        if not (
            isinstance(body, bytes)
            and crc in {None, checksum(epoch, seq, kind, body)}
            and isinstance(seq, int)
            and isinstance(epoch, str)
            and isinstance(time, float)
            and isinstance(clock, float)
            and math.isfinite(time)
            and math.isfinite(clock)
        ):
            return None
        age = max(0.0, self.clock - clock)
        return Row(number, Position(stream, epoch, seq), str(kind), str(key), time, age, body)

    def _remove_garbage(self, stream: str, ids: list[int]) -> None:
        with mapped_errors("outbox cannot be written"), self._transaction(Durability.CRASH):
            self._delete(ids)
            self._count_dropped(Counter({(stream, DAMAGED): len(ids)}))

    def stats(self, stream: str) -> StreamStats:
        """Numbers of one stream; those in flight are not known here."""
        with mapped_errors("outbox cannot be read"):
            oldest = self._db.execute(
                "SELECT clock FROM message WHERE stream = ? ORDER BY id LIMIT 1", (stream,)
            ).fetchone()
        age = self.clock - oldest[0] if oldest and isinstance(oldest[0], float) else None
        return StreamStats(
            self.rows[stream],
            self.bytes[stream],
            None if age is None else round(max(0.0, age), 3),
            0,
            {why: number for (name, why), number in self.dropped.items() if name == stream},
            self.quarantined[stream],
            self.quarantined_bytes[stream],
        )

    def next_seq(self, stream: str) -> int:
        """The number that comes next in a stream; 1 where there was none yet."""
        own = self.numbers.get(stream)
        return own.next_seq if own else 1

    def changed_elsewhere(self) -> int:
        """A number that differs from the one before if another connection wrote meanwhile."""
        with mapped_errors("outbox cannot be read"):
            return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    # -------------------------------------------------------------- inside a transaction

    def _transaction(self, durability: Durability) -> _Transaction:
        """One transaction; what was committed before it is as durable as it is itself."""
        sync = "FULL" if durability is Durability.POWER_CUT else "NORMAL"
        if sync != self._sync:
            self._db.execute(f"PRAGMA synchronous = {sync}")
            self._sync = sync
        return _Transaction(self._db)

    def _put(self, rows: list[tuple[Any, ...]]) -> None:
        """Inserts rows of `MESSAGE_COLUMNS` under the next ids."""
        first = self.next_id
        self.next_id += len(rows)
        self._db.executemany(INSERT, [(first + n, *row) for n, row in enumerate(rows)])
        for row in rows:
            self.rows[row[0]] += 1
            self.bytes[row[0]] += row[7]

    def _delete(self, ids: Iterable[int]) -> None:
        rows = list(ids)
        for first in range(0, len(rows), IDS_AT_ONCE):
            some = rows[first : first + IDS_AT_ONCE]
            those = f"FROM message WHERE id IN ({','.join('?' * len(some))})"
            for name, number, used in self._db.execute(
                f"SELECT stream, count(*), sum(size) {those} GROUP BY stream", some
            ).fetchall():
                self.rows[name] -= number
                self.bytes[name] -= used
            self._db.execute(f"DELETE {those}", some)

    def _oldest(self, stream: str, needed: int, spared: Collection[int]) -> list[int]:
        """Ids of the oldest rows that together use at least so many bytes."""
        found: list[int] = []
        for row, used in self._db.execute(
            "SELECT id, size FROM message WHERE stream = ? ORDER BY id", (stream,)
        ):
            if needed <= 0:
                break
            if row not in spared:
                needed -= used
                found.append(row)
        return found

    def _old(self, stream: str, before: float, spared: Collection[int]) -> list[int]:
        """Ids of rows stored before that running time, a limited number of them."""
        found: list[int] = []
        for row, clock in self._db.execute(
            "SELECT id, clock FROM message WHERE stream = ? ORDER BY id", (stream,)
        ):
            young = isinstance(clock, float) and clock >= before  # any other type is garbage
            if young or len(found) == EXPIRED_AT_ONCE:
                break
            if row not in spared:
                found.append(row)
        return found

    def _of_key(self, stream: str, key: str) -> list[int]:
        """Ids of the rows that have a key."""
        return [
            row
            for (row,) in self._db.execute(
                "SELECT id FROM message WHERE stream = ? AND key = ? AND key <> ''", (stream, key)
            )
        ]

    def _quarantine(self, refused: Mapping[int, str]) -> None:
        """Moves rows into the quarantine: id -> why."""
        for row, reason in refused.items():
            for found in self._db.execute(f"{SELECT} WHERE id = ?", (row,)).fetchall():
                self._put_aside(found[1:], reason)
        self._delete(refused)
        if refused:
            self.quarantined, self.quarantined_bytes = self._sums("quarantine")

    def _put_aside(self, row: Sequence[Any], reason: str) -> None:
        """Adds to the quarantine; the oldest go where it holds too much then."""
        self._db.execute(
            f"INSERT INTO quarantine ({MESSAGE_COLUMNS}, reason) VALUES (?,?,?,?,?,?,?,?,?,?,?)",  # noqa: S608  # our own column names
            (*row, reason[:MAX_REASON]),
        )
        total = self._db.execute("SELECT sum(size) FROM quarantine").fetchone()[0]
        excess = total - self._quarantine_max_bytes
        for number, stream, used in self._db.execute(
            "SELECT id, stream, size FROM quarantine ORDER BY id LIMIT 1000"
        ).fetchall():
            if excess <= 0:
                return
            excess -= used
            self._db.execute("DELETE FROM quarantine WHERE id = ?", (number,))
            self._count_dropped(Counter({(stream, QUARANTINE_FULL): 1}))

    def _save_numbers(self, names: Iterable[str]) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO stream (name, epoch, next_seq) VALUES (?, ?, ?)",
            [(name, self.numbers[name].epoch, self.numbers[name].next_seq) for name in names],
        )

    def _count_dropped(self, dropped: Counter[tuple[str, str]]) -> None:
        for (name, reason), number in dropped.items():
            if number:
                self.dropped[name, reason] += number
                self._db.execute(
                    "INSERT OR REPLACE INTO dropped (stream, reason, count) VALUES (?, ?, ?)",
                    (name, reason, self.dropped[name, reason]),
                )

    def _set_meta(self, **values: object) -> None:
        self.meta.update(values)
        self._db.executemany(
            "INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", list(values.items())
        )


class _Transaction:
    """Commits at its end, or rolls back."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        if kind is None:
            self._db.execute("COMMIT")
        elif self._db.in_transaction:
            self._db.execute("ROLLBACK")
