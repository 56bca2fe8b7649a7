"""What a process leaves behind when it dies, and what the next one makes of it."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edged.serve.crash_journal import MOST_AGE_S, SLOT, SLOTS, STRIKES, CrashJournal, open_journal
from edged.serve.request import Batch, Part, Priority, Receipt, ReplyTo, Request

NOW = 1_790_000_000.0


def batch(*marks: int) -> Batch:
    """A batch of requests with these fingerprints."""
    parts = []
    for order, mark in enumerate(marks, 1):
        receipt = Receipt(1, order, order, int(mark > 0), mark)
        request = Request("m", "", 1, {}, 0.0, Priority.NORMAL, 0.0, ReplyTo("r", b"c", 1), receipt)
        parts.append(Part(request, 0, 1))
    return Batch("m", tuple(parts), len(parts), "count", 0.0)


LIFE = """
import os, signal, sys
from pathlib import Path
from edged.serve.crash_journal import open_journal
from tests.unit.test_crash_journal import NOW, batch
journal = open_journal(Path(sys.argv[1]), NOW)
back, out = batch(*range(1, 5)), batch(*map(int, sys.argv[2:]))
journal.began(back)
journal.began(out)
journal.ended(back)
os.kill(os.getpid(), signal.SIGKILL)
"""


def live_and_die(path: Path, *marks: int) -> None:
    """A process of its own runs two batches, of which one comes back, and is killed."""
    command = [sys.executable, "-c", LIFE, str(path), *map(str, marks)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL


def test_what_was_on_a_device_at_a_death_is_known_at_the_next_start(tmp_path: Path) -> None:
    """Kill -9: who was out is a suspect, with a death if it was alone; who came back is none."""
    path = tmp_path / "journal"
    live_and_die(path, 7, 8)
    live_and_die(path, 8, 9)
    live_and_die(path, 8)
    live_and_die(path, 8)
    journal = open_journal(path, NOW + 60)
    assert journal.deaths == {7: 0, 8: 2, 9: 0}
    assert oct(path.stat().st_mode & 0o777) == "0o600"


def words() -> memoryview:
    """A new file's words."""
    return memoryview(bytearray(8 * (1 + 2 * STRIKES + SLOTS * SLOT))).cast("Q")


def test_a_death_is_remembered_until_it_is_forgiven_or_long_ago() -> None:
    """Over orderly restarts too; `forget` and a day end it."""
    shared = words()
    CrashJournal(shared, NOW).began(batch(5, 6))
    journal = CrashJournal(shared, NOW + 1)
    assert journal.deaths == {5: 0, 6: 0}
    journal.forget(5)
    journal.forget(99)
    assert CrashJournal(shared, NOW + 2).deaths == {6: 0}
    assert CrashJournal(shared, NOW + 2 + MOST_AGE_S).deaths == {}


def test_the_file_has_a_fixed_size() -> None:
    """QoS 0 is left out, long batches are cut, and more batches than slots are not noted."""
    shared = words()
    journal = CrashJournal(shared, NOW)
    many = [batch(0, 1000 + n) for n in range(SLOTS)]
    for each in many:
        journal.began(each)
    surplus = batch(5)
    journal.began(surplus)
    journal.ended(surplus)
    assert set(CrashJournal(shared, NOW).deaths) == {1000 + n for n in range(SLOTS)}
    for each in many:
        journal.ended(each)
    journal.began(batch(*range(1, 400)))
    found = CrashJournal(shared, NOW + 1).deaths
    assert {mark for mark in found if mark < 1000} == set(range(1, SLOT))
    with journal.during(5000):
        assert CrashJournal(shared, NOW + 2).deaths[5000] == 1


def test_more_suspects_than_fit_leave_the_latest() -> None:
    """The table is bounded; those of the last death are in it."""
    shared = words()
    for death in range(6):
        journal = CrashJournal(shared, NOW + death)
        journal.began(batch(*range(1000 * death + 1, 1000 * death + 251)))
    found = CrashJournal(shared, NOW + 6).deaths
    assert len(found) >= STRIKES
    assert len(CrashJournal(shared, NOW + 7).deaths) == STRIKES
    assert 5001 in CrashJournal(shared, NOW + 7).deaths


@pytest.mark.parametrize("content", [b"", b"no journal" * 100, b"\xff" * 500_000])
def test_a_file_of_something_else_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    """Empty, short, or full of ones: no deaths, and it works."""
    path = tmp_path / "journal"
    path.write_bytes(content)
    journal = open_journal(path, NOW)
    assert journal.deaths == {}
    journal.began(batch(3))


def test_without_a_file_the_service_runs_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No folder, a link in its place, or another service that has it: said once, nothing noted."""
    caplog.set_level(logging.WARNING)
    target = tmp_path / "target"
    link = tmp_path / "link"
    link.symlink_to(target)
    first = open_journal(tmp_path / "journal", NOW)
    for path in (tmp_path / "none" / "journal", link, tmp_path / "journal"):
        journal = open_journal(path, NOW)
        one = batch(3)
        journal.began(one)
        journal.ended(one)
        with journal.during(4):
            pass
        journal.forget(3)
        assert journal.deaths == {}
    assert first.deaths == {}
    assert sum("no crash journal" in record.message for record in caplog.records) == 3
    assert not target.exists()
