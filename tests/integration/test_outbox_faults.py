"""Bad days of the outbox: kill -9, full and read-only disks, clocks that are set, power cuts."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from edged.report.outbox_file import DATABASE, LOCK
from tests.doubles.outboxes import TIMEOUT_S, Observed, bodies, killed, running

ROOT = Path(__file__).parents[2]
BODY = bytes(1000)


def test_kill_9_at_random_moments_loses_nothing() -> None:
    """Forty lives end by SIGKILL; what was stored arrives, in order, twice only as itself."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.outbox_kills", "--kills", "40", "--seed", "3"],
        cwd=ROOT,
        capture_output=True,
        timeout=100,
        check=False,
    )
    result = json.loads(done.stdout)

    assert done.returncode == 0, done.stderr.decode()
    assert result["stored"] > 100
    assert (result["lost"], result["reordered"], result["positions_mixed_up"]) == (0, 0, 0)
    assert result["databases_set_aside"] == 0


# ------------------------------------------------------------------ the disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB; where none can be mounted the test is skipped."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"mounting needs root: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def retry_disk_now(it: Observed) -> None:
    """The pause before the next attempt is over; waits for the disk to be in use again."""
    store = it.outbox._store
    it.outbox._order(lambda: setattr(store, "_retry_at", 0.0))
    it.outbox._order(lambda: setattr(it.outbox, "_care_at", 0.0))


def test_a_full_disk_is_survived_in_memory(small_disk: Path) -> None:
    """Events that find no room on the disk wait in memory, and move there when it has some."""
    with running(small_disk / "outbox") as it:
        it.put("result", *bodies(0, 100))
        (small_disk / "other").write_bytes(bytes(1_000_000))
        it.put("result", *bodies(100, 1500))
        it.wait_for("outbox_degraded")
        numbers = it.outbox.stats()
        assert numbers is not None
        assert not numbers.durable

        (small_disk / "other").unlink()
        taken = it.take()
        it.outbox.confirm([row.id for row in taken])
        it.put("result", b"last")
        retry_disk_now(it)
        it.wait_for("outbox_recovered")
        left = it.take()

        got = [row.body for row in taken] + [row.body for row in left]
        assert sorted(got) == sorted([*bodies(0, 1500), b"last"])
        for rows in (taken, left):  # from memory first, then what the disk has kept
            epochs = list(dict.fromkeys(row.position.epoch for row in rows))
            for epoch in epochs:
                seqs = [row.position.seq for row in rows if row.position.epoch == epoch]
                assert seqs == sorted(set(seqs))
        assert it.metrics.value("outbox_failures_total", "disk") == 1
        assert it.kinds == ["outbox_degraded", "outbox_recovered"]


def test_a_full_database_needs_no_mount(tmp_path: Path) -> None:
    """SQLite's own "database or disk is full" has the same effect as a full disk."""
    with running(tmp_path) as it:
        it.put("event", b"before")
        it.outbox._order(lambda: limit_pages(it, 0))
        it.put("event", *bodies(0, 200))
        it.wait_for("outbox_degraded")

        assert it.bodies() == bodies(0, 200)
        retry_disk_now(it)
        it.wait_for("outbox_recovered")
        it.outbox.release_all()
        assert it.bodies() == [b"before", *bodies(0, 200)]


def limit_pages(it: Observed, more: int) -> None:
    """Lets the database grow by so many pages only, as long as it is open."""
    db = it.outbox._store._store._db
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count = {pages + more}")


def test_memory_is_bounded_and_drops_are_counted(tmp_path: Path) -> None:
    """With a disk that never works, memory holds its share of the limit; the rest is counted."""
    (tmp_path / "file").write_bytes(b"")
    with running(tmp_path / "file" / "outbox", memory_max_bytes=262_144) as it:
        it.put("telemetry", *bodies(0, 500))
        numbers = it.stats("telemetry")

        assert numbers.bytes <= 262_144 // 4
        assert numbers.rows + it.metrics.total("outbox_dropped_total") == 500
        assert it.bodies() == bodies(500 - numbers.rows, 500)
        assert it.kinds == ["outbox_degraded"]
    assert it.metrics.value("outbox_dropped_total", "telemetry", "not_saved") == numbers.rows


def test_a_read_only_disk_is_survived_in_memory(small_disk: Path) -> None:
    """On a file system that is read-only at the start, events wait in memory, numbered onwards."""
    folder = small_disk / "outbox"
    with running(folder) as it:
        it.put("event", b"one")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with running(folder) as it:
        it.put("event", b"two")
        assert it.kinds == ["outbox_degraded"]
        assert it.bodies() == [b"two"]

        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
        retry_disk_now(it)
        it.wait_for("outbox_recovered")
        it.outbox.release_all()
        rows = it.take()
        assert [row.body for row in rows] == [b"one", b"two"]
        assert rows[0].position.seq < rows[1].position.seq


def test_what_was_on_its_way_from_memory_is_confirmed_on_disk(tmp_path: Path) -> None:
    """Ids that were taken from memory stay good after the rows have moved to the disk."""
    with running(tmp_path) as it:
        it.outbox._order(lambda: limit_pages(it, 0))
        it.put("result", *bodies(0, 100))
        it.wait_for("outbox_degraded")
        taken = it.take(60)
        assert all(row.id < 0 for row in taken)
        retry_disk_now(it)
        it.wait_for("outbox_recovered")

        it.outbox.confirm([row.id for row in taken])
        assert it.bodies() == bodies(60, 100)
        it.outbox.flush(TIMEOUT_S)
        assert it.stats("result").rows == 40


# ------------------------------------------------------------------ clocks


@pytest.mark.parametrize("step_s", [-10 * 365 * 86_400.0, 10 * 365 * 86_400.0])
def test_a_wall_clock_that_is_set_makes_nothing_old(
    tmp_path: Path, step_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ages are of running time: a step of ten years either way drops nothing, and order holds."""
    real = time.time
    with running(tmp_path) as it:
        it.put("event", b"before")
        monkeypatch.setattr(time, "time", lambda: real() + step_s)
        it.put("event", b"after")
        it.outbox._order(lambda: setattr(it.outbox, "_care_at", 0.0))
    with running(tmp_path) as it:
        rows = it.take()

    assert [row.body for row in rows] == [b"before", b"after"]
    assert rows[1].time - rows[0].time == pytest.approx(step_s, abs=60)
    assert all(0 <= row.age_s < 60 for row in rows)
    assert it.metrics.total("outbox_dropped_total") == 0


def test_events_over_their_age_are_dropped_and_counted(tmp_path: Path) -> None:
    """Running time is what counts, over restarts too."""
    with running(tmp_path, event_max_age_s=3600) as it:
        it.put("event", *bodies(0, 10))
    with closing(sqlite3.connect(tmp_path / DATABASE)) as db:
        db.execute("UPDATE meta SET value = value + 3601 WHERE name = 'clock'")
        db.commit()
    with running(tmp_path, event_max_age_s=3600) as it:
        it.put("event", b"young")
        it.outbox._order(lambda: setattr(it.outbox, "_care_at", 0.0))
        it.put("event", b"younger")

        assert it.bodies() == [b"young", b"younger"]
        assert it.stats("event").dropped == {"too_old": 10}
        assert it.metrics.value("outbox_dropped_total", "event", "too_old") == 10


def test_after_a_loss_of_power_a_new_epoch_begins(tmp_path: Path) -> None:
    """Disks may lose what they had reported as written: the numbers say that they begin anew."""
    with running(tmp_path / "a") as it:
        it.put("telemetry", b"one")
        first = it.take()[0].position
        killed(tmp_path / "a", tmp_path / "b")
    with closing(sqlite3.connect(tmp_path / "b" / DATABASE)) as db:
        db.execute("UPDATE meta SET value = 'of another start' WHERE name = 'boot_id'")
        db.commit()

    with running(tmp_path / "b") as it:
        it.put("telemetry", b"two")
        second = it.take()[1].position

    assert second.epoch > first.epoch
    assert second.seq == first.seq + 1
    assert (tmp_path / "b" / LOCK).exists()
