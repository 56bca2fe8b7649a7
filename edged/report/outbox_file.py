"""The outbox's files: the lock, the database's schema and its older forms, and what is damaged.

outbox.db       the database, with outbox.db-wal and outbox.db-shm while it is open
outbox.lock     held by the process that writes; has the last number of each stream, see `Guard`
outbox.db.damaged-20261122T175300Z    a database that could not be read, kept for inspection
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import json
import os
import sqlite3
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from edged.errors import (
    OutboxDamagedError,
    OutboxDiskError,
    OutboxLockedError,
    OutboxVersionError,
)

DATABASE = "outbox.db"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
LOCK = "outbox.lock"
COMPANIONS = ("-wal", "-shm")
APPLICATION_ID = 0x45444745
"""Tells this database from others: "EDGE"."""
SCHEMA_VERSION = 3
PAGE_BYTES = 8192
"""8192 took 12 to 28 % more rows of 1 KB a second than 4096 (docs/decisions/0007)."""
WAL_BYTES = 1024 * 1024
"""The log is cut to this after a checkpoint."""
BUSY_S = 5.0
"""Another connection, such as ``edged outbox --requeue``, is waited for so long."""
DAMAGED_KEPT = 2
"""Databases that were set aside and are kept; older ones are removed."""

HIGHEST = 1 << 53
"""Ids, numbers and counts above it are garbage: no outbox comes so far."""

MESSAGE_COLUMNS = "stream, epoch, seq, kind, key, time, clock, size, crc, body"

SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE stream (name TEXT PRIMARY KEY, epoch TEXT, next_seq INTEGER) WITHOUT ROWID;
CREATE TABLE dropped (
  stream TEXT, reason TEXT, count INTEGER, PRIMARY KEY (stream, reason)
) WITHOUT ROWID;
CREATE TABLE message (
  id INTEGER PRIMARY KEY, stream TEXT, epoch TEXT, seq INTEGER, kind TEXT, key TEXT,
  time REAL, clock REAL, size INTEGER, body BLOB, crc INTEGER
);
CREATE INDEX message_stream ON message (stream);
CREATE INDEX message_key ON message (stream, key) WHERE key <> '';
CREATE TABLE quarantine (
  id INTEGER PRIMARY KEY, stream TEXT, epoch TEXT, seq INTEGER, kind TEXT, key TEXT,
  time REAL, clock REAL, size INTEGER, body BLOB, reason TEXT, requeue INTEGER DEFAULT 0,
  crc INTEGER
);
"""

MIGRATIONS: dict[int, str] = {
    # Version 1 had neither counts of what was dropped nor a way to have a message sent again.
    1: """
CREATE TABLE dropped (
  stream TEXT, reason TEXT, count INTEGER, PRIMARY KEY (stream, reason)
) WITHOUT ROWID;
ALTER TABLE quarantine ADD COLUMN requeue INTEGER DEFAULT 0;
""",
    # Version 2 had no checksums; rows without one are taken as they are.
    2: """
ALTER TABLE message ADD COLUMN crc INTEGER;
ALTER TABLE quarantine ADD COLUMN crc INTEGER;
""",
}
"""Version -> what makes the next one of it."""


class Guard:
    """The lock of a folder, and beside it a copy of the last numbers, for when the database lies.

    The copy is written after each commit without waiting for the disk. If the database comes back
    with lower numbers, it has lost something: its log was cut, or it is an older copy.

    Args:
        folder: it is made where it is missing.

    Raises:
        OutboxLockedError: another process holds it.
        OutboxDiskError: the folder cannot be made, or the file not opened.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o750)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as err:
            raise OutboxDiskError(f"outbox {folder} cannot be used: {err.strerror}") from err
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            os.close(self._file)
            raise OutboxLockedError(
                f"outbox {folder} is used by another process; end that one, or give this one "
                "another folder with outbox.path"
            ) from err

    def note(self, numbers: Mapping[str, int]) -> None:
        """Writes the copy; one that cannot be written is no trouble of its own."""
        with contextlib.suppress(OSError):
            text = json.dumps(dict(numbers)).encode()
            os.pwrite(self._file, b"%s %08x\n" % (text, zlib.crc32(text)), 0)

    def close(self) -> None:
        """Lets another process have the folder."""
        os.close(self._file)


def noted_numbers(folder: Path) -> dict[str, int]:
    """What `Guard.note` wrote last: stream -> number that comes next; empty if it is not known."""
    with contextlib.suppress(OSError, ValueError):
        text, _, check = (folder / LOCK).read_bytes().split(b"\n")[0].rpartition(b" ")
        if int(check, 16) == zlib.crc32(text):
            return {str(name): int(number) for name, number in json.loads(text).items()}
    return {}


def this_boot() -> str:
    """Names this start of the machine; "" if it is not known."""
    with contextlib.suppress(OSError):
        return BOOT_ID.read_text(encoding="ascii").strip()
    return ""


@contextlib.contextmanager
def mapped_errors(what: str) -> Iterator[None]:
    """Raises SQLite's errors as ours.

    Raises:
        OutboxDamagedError: the file is at fault.
        OutboxDiskError: the disk, its rights or another connection is.
    """
    try:
        yield
    except sqlite3.OperationalError as err:
        text = str(err)
        if "malformed" in text or text.startswith(("no such table", "no such column")):
            raise OutboxDamagedError(f"{what}: {text}") from err
        raise OutboxDiskError(f"{what}: {text}") from err
    except sqlite3.DatabaseError as err:
        raise OutboxDamagedError(f"{what}: {err}") from err


def connect(path: Path | None) -> sqlite3.Connection:
    """Opens a database for writing, makes its tables or brings them up to date.

    Args:
        path: the file; None: a database in memory.

    Raises:
        OutboxVersionError: a newer version wrote it.
        OutboxDamagedError: it is no database of ours, or a damaged one.
        OutboxDiskError: it cannot be opened or written.
    """
    with mapped_errors("outbox cannot be opened"):
        db = sqlite3.connect(path or ":memory:", timeout=BUSY_S, isolation_level=None)
        try:
            db.text_factory = lambda text: text.decode("utf-8", "replace")
            _check_version(db)
            _set_up(db)
            if path:
                _check_pages(db)
        except BaseException:
            db.close()
            raise
    return db


def _check_version(db: sqlite3.Connection) -> None:
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if application != APPLICATION_ID:
        if application or version or db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise OutboxDamagedError("outbox is damaged: the file is another program's database")
    elif version > SCHEMA_VERSION:
        raise OutboxVersionError(
            f"outbox has schema {version}, and this version knows up to {SCHEMA_VERSION}; it is "
            "left as it is: install the newer version again, or move the file away"
        )
    elif version != SCHEMA_VERSION and version not in MIGRATIONS:
        raise OutboxDamagedError(f"outbox is damaged: there is no schema {version}")


def _check_pages(db: sqlite3.Connection) -> None:
    found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise OutboxDamagedError(f"outbox is damaged: {found}")


def _set_up(db: sqlite3.Connection) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if not version:
        db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # has to come before the first table
    db.execute("PRAGMA journal_mode = WAL")
    db.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
    if version == SCHEMA_VERSION:
        return
    steps = [MIGRATIONS[each] for each in range(version, SCHEMA_VERSION)] if version else [SCHEMA]
    db.execute("PRAGMA synchronous = FULL")
    script = "".join(steps)
    db.executescript(
        f"BEGIN IMMEDIATE; {script} PRAGMA application_id = {APPLICATION_ID}; "
        f"PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
    )


def set_aside(folder: Path, now: float) -> str:
    """Renames a damaged database and removes the oldest ones that were set aside before.

    Args:
        folder: the outbox's.
        now: Unix seconds, for the name.

    Returns:
        The new name.

    Raises:
        OutboxDiskError: it cannot be renamed.
    """
    stamp = dt.datetime.fromtimestamp(now, dt.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    name = f"{DATABASE}.damaged-{stamp}"
    try:
        for suffix in (*COMPANIONS, ""):  # the database last: without it nothing has happened yet
            source = folder / f"{DATABASE}{suffix}"
            if source.exists():
                source.replace(folder / f"{name}{suffix}")
        kept = sorted(
            (each for each in folder.glob(f"{DATABASE}.damaged-*Z")),
            key=lambda path: path.stat().st_mtime,
        )
        for old in kept[:-DAMAGED_KEPT]:
            for suffix in ("", *COMPANIONS):
                old.with_name(old.name + suffix).unlink(missing_ok=True)
    except OSError as err:
        raise OutboxDiskError(f"a damaged outbox cannot be set aside: {err.strerror}") from err
    return name
