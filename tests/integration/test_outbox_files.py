"""Bad files of the outbox: damaged, with garbage, of other versions, in use elsewhere."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from edged.errors import OutboxLockedError, OutboxVersionError
from edged.report.outbox_file import DATABASE, SCHEMA_VERSION, connect
from edged.report.outbox_reader import read_stats
from tests.doubles.outboxes import TIMEOUT_S, Observed, bodies, killed, observed, running

ROOT = Path(__file__).parents[2]


def garble_middle(path: Path) -> None:
    """Overwrites the middle third of a file."""
    with path.open("r+b") as file:
        size = path.stat().st_size
        file.seek(size // 3)
        file.write(os.urandom(size // 3))


def truncate_half(path: Path) -> None:
    """Cuts a file in its middle."""
    os.truncate(path, path.stat().st_size // 2)


def garble_start(path: Path) -> None:
    """Overwrites the header."""
    with path.open("r+b") as file:
        file.write(os.urandom(100))


@pytest.mark.parametrize("harm", [garble_middle, truncate_half, garble_start])
def test_a_damaged_database_is_set_aside(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    """It gets a name with the time, it is said, numbers go on above, and events are taken."""
    with running(tmp_path) as it:
        it.put("event", *bodies(0, 300))
        before = it.take(1)[0].position
    harm(tmp_path / DATABASE)

    with running(tmp_path) as it:
        event = it.wait_for("outbox_damaged")
        it.put("event", b"new")
        rows = it.take()

    aside = [each.name for each in tmp_path.iterdir() if ".damaged-" in each.name]
    assert getattr(event, "set_aside", None) in aside
    assert [row.body for row in rows] == [b"new"]
    assert rows[0].position.seq == 301
    assert rows[0].position.epoch != before.epoch
    assert it.metrics.value("outbox_failures_total", "damaged") == 1


def test_damage_under_a_running_outbox_is_set_aside(tmp_path: Path) -> None:
    """Pages that turn out to be garbage while it runs end the file, not the outbox."""
    with running(tmp_path) as it:
        it.put("event", *bodies(0, 2000))
        checkpoint(it)
        garble_middle(tmp_path / DATABASE)
        it.outbox._order(lambda: forget_pages(it))
        it.take()
        it.put("event", b"new")
        it.wait_for("outbox_damaged")
        it.outbox.release_all()

        assert it.bodies() == [b"new"]
        assert it.kinds == ["outbox_damaged"]


def checkpoint(it: Observed) -> None:
    """Moves the log into the database."""
    it.outbox._ask(it.outbox._store._store._truncate_log).result(TIMEOUT_S)


def forget_pages(it: Observed) -> None:
    """Has the connection read its pages anew."""
    it.outbox._store._store._db.execute("PRAGMA shrink_memory")


@pytest.mark.parametrize("harm", [garble_middle, truncate_half, garble_start])
def test_a_damaged_log_is_said_and_numbers_do_not_come_again(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    """SQLite drops the damaged end of its log in silence; the outbox notices what is missing."""
    with running(tmp_path / "a") as it:
        it.put("event", *bodies(0, 200))
        it.put("event", *bodies(200, 300))
        numbers = {row.position for row in it.take()}
        killed(tmp_path / "a", tmp_path / "b")
    harm(tmp_path / "b" / f"{DATABASE}-wal")

    with running(tmp_path / "b") as it:
        it.wait_for("outbox_damaged")
        it.put("event", b"new")
        last = it.take()[-1]

    assert last.body == b"new"
    assert last.position not in numbers
    assert last.position.seq == 301


def test_only_the_latest_damaged_files_are_kept(tmp_path: Path) -> None:
    """Damage that comes again and again does not fill the disk."""
    for day in range(5):
        old = tmp_path / f"{DATABASE}.damaged-2026010{day}T000000Z"
        old.write_bytes(b"old")
        os.utime(old, (day, day))
    (tmp_path / DATABASE).write_bytes(b"no database" * 100)

    with running(tmp_path) as it:
        it.wait_for("outbox_damaged")

    kept = sorted(each.name for each in tmp_path.iterdir() if ".damaged-" in each.name)
    assert len(kept) == 2
    assert kept[0] == f"{DATABASE}.damaged-20260104T000000Z"


def test_garbage_rows_are_removed_and_counted(tmp_path: Path) -> None:
    """Rows of the wrong form stop nothing: neither the others nor the start."""
    with running(tmp_path) as it:
        it.put("event", b"first", b"second", b"third", b"fourth")
    with closing(sqlite3.connect(tmp_path / DATABASE)) as db:
        db.execute("UPDATE message SET body = 'text', epoch = 7 WHERE seq = 2")
        db.execute("UPDATE message SET seq = 'x', clock = x'00' WHERE seq = 3")
        db.execute("INSERT INTO message (stream, size) VALUES ('unknown', 1), (NULL, 'x')")
        db.execute("INSERT INTO quarantine (stream) VALUES (x'ff')")
        db.execute("INSERT INTO dropped VALUES ('event', 'odd', 'many')")
        db.execute(
            "INSERT INTO message (id, stream, size) VALUES (9223372036854775807, 'event', 1)"
        )
        db.execute("UPDATE stream SET next_seq = 9223372036854775807 WHERE name = 'result'")
        db.execute("UPDATE meta SET value = 'noon' WHERE name = 'clock'")
        db.commit()

    assert read_stats(tmp_path)["event"].rows == 5
    with running(tmp_path) as it:
        assert it.bodies() == [b"first", b"fourth"]
        assert it.stats("event").dropped == {"damaged": 2}
        it.put("result", b"goes on")
        assert [row.position.seq for row in it.take()] == [1]
        assert it.stats("event").rows == 2
        assert it.events == []


def test_another_programs_database_is_set_aside(tmp_path: Path) -> None:
    """A file that is a sound database, but not ours, is not written to."""
    with closing(sqlite3.connect(tmp_path / DATABASE)) as db:
        db.execute("CREATE TABLE theirs (x)")

    with running(tmp_path) as it:
        aside = getattr(it.wait_for("outbox_damaged"), "set_aside", "")
        it.put("event", b"ours")

    with closing(sqlite3.connect(tmp_path / aside)) as db:
        assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]


# ------------------------------------------------------------------ versions and processes


OLDEST_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE stream (name TEXT PRIMARY KEY, epoch TEXT, next_seq INTEGER) WITHOUT ROWID;
CREATE TABLE message (
  id INTEGER PRIMARY KEY, stream TEXT, epoch TEXT, seq INTEGER, kind TEXT, key TEXT,
  time REAL, clock REAL, size INTEGER, body BLOB
);
CREATE INDEX message_stream ON message (stream);
CREATE INDEX message_key ON message (stream, key) WHERE key <> '';
CREATE TABLE quarantine (
  id INTEGER PRIMARY KEY, stream TEXT, epoch TEXT, seq INTEGER, kind TEXT, key TEXT,
  time REAL, clock REAL, size INTEGER, body BLOB, reason TEXT
);
INSERT INTO stream VALUES ('event', '0123456789abcdef', 8);
INSERT INTO message VALUES (3, 'event', '0123456789abcdef', 7, 'k', '', 1.5, 2.5, 200, x'6f6c64');
INSERT INTO quarantine VALUES
  (2, 'event', '0123456789abcdef', 6, 'k', '', 1.5, 2.5, 200, x'626164', 'refused');
INSERT INTO meta VALUES ('clean', 1), ('clock', 3.5);
PRAGMA application_id = 0x45444745;
PRAGMA user_version = 1;
"""


def test_an_older_schema_is_migrated(tmp_path: Path) -> None:
    """Everything in it stays, and numbers go on."""
    with closing(sqlite3.connect(tmp_path / DATABASE)) as db:
        db.executescript(OLDEST_SCHEMA)

    with running(tmp_path) as it:
        it.put("event", b"new")
        rows = it.take()
        assert [(row.position, row.body) for row in rows] == [
            (("event", "0123456789abcdef", 7), b"old"),
            (("event", "0123456789abcdef", 8), b"new"),
        ]
        assert it.stats("event").quarantined == 1
        assert it.events == []


def test_a_newer_schema_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    """The older version writes nothing to it, says so, and goes on in memory."""
    with running(tmp_path) as it:
        it.put("event", b"of the newer version")
    with closing(sqlite3.connect(tmp_path / DATABASE)) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    file = (tmp_path / DATABASE).read_bytes()

    with pytest.raises(OutboxVersionError, match="install the newer version again"):
        connect(tmp_path / DATABASE)
    with running(tmp_path) as it:
        it.put("event", b"new")
        assert it.bodies() == [b"new"]
        assert "schema 3" in getattr(it.wait_for("outbox_degraded"), "reason", "")
        it.outbox.confirm([row.id for row in it.take()])
    assert (tmp_path / DATABASE).read_bytes() == file


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    """The folder belongs to the first; it is free again when that ends, by whatever."""
    code = (
        "import sys; from pathlib import Path; from tests.doubles.outboxes import observed\n"
        "observed(Path(sys.argv[1])).outbox.start(); print('started', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"started\n"
        with pytest.raises(OutboxLockedError, match=r"outbox\.path"):
            observed(tmp_path).outbox.start()
        first.kill()

    with running(tmp_path) as it:
        it.put("event", b"mine")
        assert it.stats("event").rows == 1
