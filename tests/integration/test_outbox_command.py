"""``edged outbox`` beside a running service and without one."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from edged.cli import main
from edged.report.outbox_file import DATABASE
from edged.report.outbox_reader import export, read_quarantine, read_stats, requeue
from edged.report.writer import PAGES_AT_ONCE
from tests.doubles.outboxes import TIMEOUT_S, Observed, running


def fill(it: Observed) -> None:
    """Two results wait, one was refused, one event waits."""
    it.put("event", b'{"a": 1}', kind="started", time=1.5)
    it.put("result", b"one", b"\xfftwo", b"three", kind="result", time=2.5)
    rows = it.take()
    it.outbox.quarantine(rows[2].id, "too \x1b[1mbad")
    it.outbox.release_all()
    assert it.outbox.flush(TIMEOUT_S)


def refused_ids(folder: Path) -> list[int]:
    """Ids in quarantine."""
    return [each.id for each in read_quarantine(folder)]


def test_the_table_shows_a_running_outbox(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Depth, bytes, age, quarantine and drops of each stream, and no control characters."""
    with running(tmp_path, max_event_bytes=1024) as it:
        fill(it)
        it.put("result", bytes(2000))
        assert main(["outbox", "--path", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()

    assert [line.split()[0] for line in lines[1:5]] == ["rollout", "event", "result", "telemetry"]
    assert lines[3].split()[1:3] == ["2", "276"]
    assert lines[3].endswith("1  1 too_large")
    assert lines[5].endswith("result result: too \\x1b[1mbad")


def test_json_says_the_same_as_the_service(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file's numbers are the outbox's own, while it runs and after it has ended."""
    with running(tmp_path) as it:
        fill(it)
        own = it.stats("result")
        assert main(["outbox", "--json", "--path", str(tmp_path)]) == 0
        live = json.loads(capsys.readouterr().out)
    assert main(["outbox", "--json", "--path", str(tmp_path)]) == 0
    later = json.loads(capsys.readouterr().out)

    for told in (live, later):
        result = told["streams"]["result"]
        assert (result["rows"], result["bytes"]) == (own.rows, own.bytes) == (2, 276)
        assert (result["quarantined"], result["dropped"]) == (1, {})
        assert told["quarantine"][0]["reason"] == "too \x1b[1mbad"


def test_ages_grow_while_the_service_runs_and_stand_still_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing has to be stored for that: an hour later a report is an hour older."""
    real = time.monotonic
    with running(tmp_path) as it:
        it.put("result", b"one")
        with monkeypatch.context() as later:
            later.setattr("edged.report.outbox_reader.time.monotonic", lambda: real() + 3600)
            age = read_stats(tmp_path)["result"].oldest_age_s
        assert age is not None
        assert 3600 <= age < 3700
    monkeypatch.setattr("edged.report.outbox_reader.time.monotonic", lambda: real() + 3600)
    ended = read_stats(tmp_path)["result"].oldest_age_s

    assert ended is not None
    assert ended < 100


def test_requeue_beside_a_running_outbox(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The service takes marked messages back by itself, with the position that they had."""
    with running(tmp_path) as it:
        fill(it)
        before = next(each for each in export(tmp_path) if each["state"] == "quarantined")
        assert main(["outbox", "--requeue", "all", "--path", str(tmp_path)]) == 0
        it.outbox._order(lambda: setattr(it.outbox, "_care_at", 0.0))
        assert it.outbox.flush(TIMEOUT_S)
        rows = it.take()

        assert [row.body for row in rows] == [b'{"a": 1}', b"one", b"three", b"\xfftwo"]
        assert rows[3].position == ("result", before["epoch"], before["seq"])
        assert it.stats("result").quarantined == 0
    assert capsys.readouterr().out.startswith("1 messages are sent again")


def test_requeue_without_a_service_waits_for_its_start(tmp_path: Path) -> None:
    """What was marked while nothing ran is sent after the next start."""
    with running(tmp_path) as it:
        fill(it)
    assert requeue(tmp_path, refused_ids(tmp_path)) == 1
    assert read_quarantine(tmp_path)[0].requeued

    with running(tmp_path) as it:
        it.outbox._order(lambda: setattr(it.outbox, "_care_at", 0.0))
        assert it.outbox.flush(TIMEOUT_S)
        assert b"\xfftwo" in it.bodies()


def test_requeue_of_what_is_not_there_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One wrong id: none is marked, and the message says which and where to look."""
    with running(tmp_path) as it:
        fill(it)
    known = refused_ids(tmp_path)[0]

    assert main(["outbox", "--requeue", f"{known},99", "--path", str(tmp_path)]) == 1
    assert "no message 99 is in quarantine" in capsys.readouterr().err
    assert main(["outbox", "--requeue", "both", "--path", str(tmp_path)]) == 1
    assert "must be all, or ids" in capsys.readouterr().err
    assert not read_quarantine(tmp_path)[0].requeued


def test_export_writes_json_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything that waits and was refused, JSON bodies as such, others in base 64."""
    with running(tmp_path / "outbox") as it:
        fill(it)
        file = tmp_path / "all.jsonl"
        assert main(["outbox", "--path", str(tmp_path / "outbox"), "--export", str(file)]) == 0
    told = [json.loads(line) for line in file.read_text().splitlines()]

    assert capsys.readouterr().out == f"4 messages are in {file}\n"
    assert [(each["stream"], each["seq"], each["state"]) for each in told] == [
        ("event", 1, "waiting"),
        ("result", 1, "waiting"),
        ("result", 3, "waiting"),
        ("result", 2, "quarantined"),
    ]
    assert told[0]["body"] == {"a": 1}
    assert told[0]["time"] == "1970-01-01T00:00:01.500+00:00"
    assert told[3]["body_base64"] == "/3R3bw=="
    assert file.stat().st_mode & 0o077 == 0


def test_an_export_is_its_owners_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that was there and open to others is emptied and closed to them; links are refused."""
    with running(tmp_path / "outbox") as it:
        fill(it)
    file, link = tmp_path / "all.jsonl", tmp_path / "link"
    file.write_text("old\n" * 10_000)
    file.chmod(0o644)
    link.symlink_to(file)
    options = ["outbox", "--path", str(tmp_path / "outbox"), "--export"]

    assert main([*options, str(link)]) == 1
    assert "cannot be written" in capsys.readouterr().err
    assert main([*options, str(file)]) == 0
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(file.read_text().splitlines()) == 4


def test_an_export_does_not_hold_the_service_up(tmp_path: Path) -> None:
    """While somebody reads half of it, events are stored, deleted, and space is given back."""
    with running(tmp_path) as it:
        it.put("result", *[bytes(1000)] * 5000)
        reading = export(tmp_path)
        next(reading)
        it.outbox.confirm([row.id for row in it.take()])
        it.put("result", b"new")
        it.outbox._order(lambda: empty_file(it))
        assert it.outbox.flush(TIMEOUT_S)
        assert (tmp_path / DATABASE).stat().st_size < 2_000_000
        assert len(list(reading)) >= 1
        assert it.events == []


def empty_file(it: Observed) -> None:
    """Gives all space back now."""
    while it.outbox._store.give_back(PAGES_AT_ONCE):
        pass


def test_a_read_only_copy_can_be_looked_into(tmp_path: Path) -> None:
    """A file on a disk that is read-only, as after a fault, is still shown."""
    with running(tmp_path / "outbox") as it:
        fill(it)
    (tmp_path / "disk").mkdir()
    bound = subprocess.run(
        ["mount", "--bind", "-o", "ro", str(tmp_path / "outbox"), str(tmp_path / "disk")],
        capture_output=True,
        check=False,
    )
    if bound.returncode:
        pytest.skip(f"mounting needs root: {bound.stderr.decode().strip()}")
    try:
        assert read_stats(tmp_path / "disk")["result"].rows == 2
        assert sum(1 for _ in export(tmp_path / "disk")) == 4
    finally:
        subprocess.run(["umount", str(tmp_path / "disk")], check=True)


@pytest.mark.parametrize("content", [None, b"", b"no database" * 100])
def test_what_is_no_outbox_is_said(
    tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture[Any]
) -> None:
    """No file, an empty one, garbage: one line, no stack."""
    if content is not None:
        (tmp_path / DATABASE).write_bytes(content)

    assert main(["outbox", "--path", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("edged: ")
    assert said.count("\n") == 1
