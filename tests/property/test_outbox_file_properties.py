"""Whatever the outbox's files hold, it starts, takes events, and gives no number twice."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edged.report.draft import Position
from edged.report.outbox_file import COMPANIONS, DATABASE, LOCK
from tests.doubles.outboxes import TIMEOUT_S, running

WAL = f"{DATABASE}{COMPANIONS[0]}"


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[Position]]:
    """Files of an outbox as a kill leaves them, some of them in the log, and what was in it."""
    folder = tmp_path_factory.mktemp("origin")
    with running(folder / "first") as it:
        for n in range(8):
            it.put("event", *[f"{n}.{m}".encode().rjust(400) for m in range(30)], key=str(n))
        for row in it.take(3):
            it.outbox.quarantine(row.id, "no")
        it.put("telemetry", bytes(20_000))
        it.outbox.release_all()
    with running(folder / "first") as it:
        it.put("result", *[bytes([n]) * 500 for n in range(30)])
        known = {row.position for row in it.take()}
        shutil.copytree(folder / "first", folder / "killed")
    return folder / "killed", known


def harmed(data: bytes, place: float, length: int, kind: str) -> bytes:
    """Bytes with a part cut out, cut off, or overwritten."""
    at = int(place * len(data))
    if kind == "cut off":
        return data[:at]
    if kind == "cut out":
        return data[:at] + data[at + length :]
    filling = {"zero": bytes(length), "ones": b"\xff" * length, "text": (b"1e9 " * length)[:length]}
    return data[:at] + filling[kind] + data[at + length :]


@settings(
    max_examples=50,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    name=st.sampled_from([DATABASE, DATABASE, WAL, WAL, LOCK]),
    place=st.floats(0, 1, exclude_max=True),
    length=st.sampled_from([1, 2, 16, 100, 4096, 20_000]),
    kind=st.sampled_from(["cut off", "cut out", "zero", "ones", "text"]),
)
def test_any_damage_is_survived(
    origin: tuple[Path, set[Position]],
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    place: float,
    length: int,
    kind: str,
) -> None:
    """It starts, goes on disk, takes a new event and hands it out under a number of its own."""
    killed, known = origin
    folder = tmp_path_factory.mktemp("harmed") / "outbox"
    shutil.copytree(killed, folder)
    (folder / name).write_bytes(harmed((folder / name).read_bytes(), place, length, kind))
    with running(folder) as it:
        it.put("event", b"new")
        position = it.outbox.store("event", b"newer").result(TIMEOUT_S)
        rows = it.take(100_000)
        assert it.outbox.flush(TIMEOUT_S)
        numbers = it.outbox.stats()
        assert numbers is not None
        assert numbers.durable
        assert it.outbox.thread.is_alive()
        it.outbox.confirm([row.id for row in rows])
        assert it.outbox.flush(TIMEOUT_S)

    found = [row.position for row in rows if row.body == b"newer"]
    assert found == [position]
    assert position not in known
    shutil.rmtree(folder.parent)
