"""Looks into the outbox's file from another process, while the service uses it or not.

Nothing is locked for longer than a query. The one thing that is written is the mark on messages in
quarantine that are to be sent again; the service sees to the rest within a second, or at its start.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import json
import math
import sqlite3
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from edged.errors import OutboxDiskError, OutboxError, OutboxVersionError
from edged.report.draft import StreamStats
from edged.report.outbox_file import (
    APPLICATION_ID,
    BUSY_S,
    COMPANIONS,
    DATABASE,
    MESSAGE_COLUMNS,
    SCHEMA_VERSION,
    mapped_errors,
    this_boot,
)
from edged.report.streams import STREAMS

ROWS_AT_ONCE = 200
"""An export reads in pieces, so that it never keeps the service from cutting its log."""


@dataclass(frozen=True)
class Refused:
    """A message in quarantine.

    Attributes:
        id: for `requeue`.
        stream: its stream.
        kind: what it is.
        bytes: it uses.
        reason: why the control plane refused it.
        requeued: whether it is marked to be sent again.
    """

    id: int
    stream: str
    kind: str
    bytes: int
    reason: str
    requeued: bool


@contextlib.contextmanager
def _opened(folder: Path, mode: str) -> Iterator[sqlite3.Connection]:
    path = folder / DATABASE
    try:
        found = path.is_file()
    except OSError as err:
        raise OutboxDiskError(
            f"outbox in {folder} cannot be read: {err.strerror}; try as the service's user: "
            "sudo -u edged edged outbox"
        ) from err
    if not found:
        raise OutboxError(
            f"there is no outbox in {folder}: nothing was reported yet, the service cannot write "
            "there, or outbox.path is another folder"
        )
    with mapped_errors(f"outbox in {folder} cannot be read"):
        db = _connect(path, mode)
        try:
            _check(db)
            yield db
        finally:
            db.close()


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    """Opens the file, on a read-only disk too.

    Raises:
        OutboxDiskError: it cannot be opened.
    """
    address = f"{path.resolve().as_uri()}?mode={mode}"
    log = path.with_name(f"{path.name}{COMPANIONS[0]}")
    # On a read-only disk SQLite cannot make the files that it shares with other connections, and
    # must be told that there are none. Where there is a log there may be some.
    quiet = mode == "ro" and not (log.exists() and log.stat().st_size)
    for each in (address, f"{address}&immutable=1")[: 1 + quiet]:
        db = sqlite3.connect(each, uri=True, timeout=BUSY_S)
        db.text_factory = lambda text: text.decode("utf-8", "replace")
        try:
            db.execute("SELECT count(*) FROM sqlite_master")
        except sqlite3.OperationalError as err:
            db.close()
            fault = err
        except BaseException:
            db.close()
            raise
        else:
            return db
    raise OutboxDiskError(
        f"outbox cannot be read: {fault}; try as the service's user: sudo -u edged edged outbox"
    ) from fault


def _check(db: sqlite3.Connection) -> None:
    """Raises an error unless it is an outbox of this version."""
    if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise OutboxError("the outbox's file is another program's")
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version != SCHEMA_VERSION:
        raise OutboxVersionError(
            f"outbox has schema {version}, this command knows {SCHEMA_VERSION}; "
            "start the service once if that is older, or use the newer version's command"
        )


def read_stats(folder: Path) -> dict[str, StreamStats]:
    """Numbers of all streams, as far as they are in the file.

    What is in flight is known to the service only, and 0 here. Ages are of the service's running
    time: as of now while it runs, else as of its last transaction.

    Raises:
        OutboxError: there is no outbox, or it cannot be read.
    """
    with _opened(folder, "ro") as db:
        now = _running_time(dict(db.execute("SELECT name, value FROM meta")))
        stats = {name: StreamStats() for name in STREAMS}
        for name, rows, used, oldest in db.execute(
            "SELECT stream, count(*), sum(size), min(clock) FROM message GROUP BY stream"
        ):
            it = stats.setdefault(str(name), StreamStats())
            it.rows, it.bytes = rows, int(used or 0)
            it.oldest_age_s = round(max(0.0, now - oldest), 3) if _is_real(oldest) else None
        for name, rows, used in db.execute(
            "SELECT stream, count(*), sum(size) FROM quarantine GROUP BY stream"
        ):
            it = stats.setdefault(str(name), StreamStats())
            it.quarantined, it.quarantined_bytes = rows, int(used or 0)
        for name, reason, number in db.execute("SELECT stream, reason, count FROM dropped"):
            stats.setdefault(str(name), StreamStats()).dropped[str(reason)] = number
    return stats


def _running_time(meta: Mapping[str, Any]) -> float:
    """Seconds in which the outbox ran, ever: up to now if its process is there."""
    clock, since = meta.get("clock"), meta.get("since")
    known = clock if _is_real(clock) else 0.0
    runs = (
        meta.get("clean") == 0
        and meta.get("boot_id") == this_boot() != ""
        and Path(f"/proc/{meta.get('pid')}").exists()
    )
    return max(known, time.monotonic() - since) if runs and _is_real(since) else known


def _is_real(value: object) -> TypeGuard[float]:
    return isinstance(value, float) and math.isfinite(value)


def read_quarantine(folder: Path) -> list[Refused]:
    """Messages that the control plane refused, the oldest first.

    Raises:
        OutboxError: there is no outbox, or it cannot be read.
    """
    with _opened(folder, "ro") as db:
        return [
            Refused(row[0], str(row[1]), str(row[2]), row[3], str(row[4]), bool(row[5]))
            for row in db.execute(
                "SELECT id, stream, kind, size, reason, requeue FROM quarantine ORDER BY id"
            )
        ]


def requeue(folder: Path, ids: list[int] | None) -> int:
    """Marks messages in quarantine to be sent again; None: all. How many were marked.

    Raises:
        OutboxError: an id is not there, there is no outbox, or it cannot be written.
    """
    with _opened(folder, "rw") as db, db:
        if ids is None:
            return db.execute("UPDATE quarantine SET requeue = 1").rowcount
        for number in ids:
            if not db.execute("UPDATE quarantine SET requeue = 1 WHERE id = ?", (number,)).rowcount:
                raise OutboxError(
                    f"no message {number} is in quarantine; edged outbox lists those that are"
                )
        return len(ids)


def export(folder: Path) -> Iterator[dict[str, Any]]:
    """Everything that waits, then everything in quarantine, as JSON objects, lazily.

    Raises:
        OutboxError: there is no outbox, or it cannot be read.
    """
    with _opened(folder, "ro") as db:
        for table, reason in (("message", "NULL"), ("quarantine", "reason")):
            last = -1
            while rows := db.execute(
                f"SELECT id, {MESSAGE_COLUMNS}, {reason} FROM {table} WHERE id > ? "  # noqa: S608  # our own names
                "ORDER BY id LIMIT ?",
                (last, ROWS_AT_ONCE),
            ).fetchall():
                last = rows[-1][0]
                yield from map(_document, rows)


def _document(row: tuple[Any, ...]) -> dict[str, Any]:
    number, stream, epoch, seq, kind, key, time, _, _, _, body, reason = row
    document: dict[str, Any] = {
        "id": number,
        "stream": stream,
        "epoch": epoch,
        "seq": seq,
        "kind": kind,
        "key": key,
        "time": _moment(time),
        "state": "waiting" if reason is None else "quarantined",
    }
    if reason is not None:
        document["reason"] = reason
    return document | _body(body)


def _moment(time: object) -> str | None:
    with contextlib.suppress(TypeError, ValueError, OverflowError, OSError):
        return dt.datetime.fromtimestamp(time, dt.timezone.utc).isoformat(timespec="milliseconds")  # type: ignore[arg-type]  # garbage is caught
    return None


def _body(body: object) -> dict[str, Any]:
    """The body as JSON where it is some, else in base 64."""
    raw = body if isinstance(body, bytes) else str(body).encode()
    with contextlib.suppress(ValueError, RecursionError):
        return {"body": json.loads(raw)}
    return {"body_base64": base64.b64encode(raw).decode()}
