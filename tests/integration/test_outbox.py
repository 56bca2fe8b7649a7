"""The outbox on good days: order, numbers, priorities, acknowledgements, limits, space."""

from __future__ import annotations

import random
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest

from edged.errors import OutboxDropError
from edged.metrics import Metrics
from edged.report.draft import ROW_OVERHEAD, Position
from edged.report.hand_over import MAX_ROWS
from edged.report.outbox import Outbox
from edged.report.outbox_file import DATABASE
from edged.report.writer import PAGES_AT_ONCE, Hooks
from edged.settings import OutboxSettings
from tests.doubles.outboxes import TIMEOUT_S, Observed, running


def give_back_all(it: Observed) -> None:
    """What the outbox does in its spare time, now."""
    store = it.outbox._store

    def work() -> None:
        while store.give_back(PAGES_AT_ONCE):
            pass

    assert it.outbox.flush(TIMEOUT_S)  # what was confirmed is deleted
    it.outbox._order(work)
    assert it.outbox.flush(TIMEOUT_S)


def test_the_outbox_never_loses_an_accepted_event_and_never_grows_past_its_limits(
    tmp_path: Path,
) -> None:
    """Whatever comes and goes: given = received + dropped + waiting, and bytes keep the limit."""
    chance = random.Random(5)
    names = ("rollout", "event", "result", "telemetry")
    limits = {f"{name}_max_bytes": 200_000 for name in names}
    given = dict.fromkeys(names, 0)
    received: dict[str, list[int]] = {name: [] for name in names}
    for _ in range(6):
        with running(tmp_path, **limits) as it:
            for _ in range(12):
                for _ in range(chance.randrange(120)):
                    name = chance.choice(names)
                    given[name] += 1
                    it.outbox.emit(name, bytes(chance.randrange(4000)))
                assert it.outbox.flush(TIMEOUT_S)
                rows = it.take(chance.randrange(60))
                for row in rows:
                    received[row.position.stream].append(row.position.seq)
                it.outbox.confirm([row.id for row in rows])
                assert it.outbox.flush(TIMEOUT_S)
                numbers = it.outbox.stats()
                assert numbers is not None
                for name, each in numbers.streams.items():
                    assert each.bytes <= 200_000
                    dropped = sum(each.dropped.values())
                    assert given[name] == len(received[name]) + dropped + each.rows
                assert (tmp_path / DATABASE).stat().st_size < 4 * 200_000 * 2 + 1_000_000
    for name in names:
        assert received[name] == sorted(set(received[name]))
    assert sum(map(len, received.values())) > 1000


def test_numbers_never_come_again(tmp_path: Path) -> None:
    """Not after everything was deleted, nor after restarts; drops leave a gap."""
    seen = []
    for _ in range(3):
        with running(tmp_path, max_event_bytes=1024) as it:
            it.put("event", b"a", bytes(2000), b"b")
            rows = it.take()
            it.outbox.confirm([row.id for row in rows])
            seen += [row.position.seq for row in rows]
            assert it.outbox.flush(TIMEOUT_S)
            assert it.stats("event").rows == 0

    assert seen == sorted(set(seen))
    assert [seen[1], seen[3], seen[5]] == [3, 6, 9], "the event that was dropped has a number too"
    assert len({row.position.epoch for row in rows}) == 1


def test_store_tells_when_an_event_is_durable(tmp_path: Path) -> None:
    """The position, once it is in the file; an error with the reason, if it was dropped."""
    with running(tmp_path, max_event_bytes=1024) as it:
        good = it.outbox.store("event", b"a")
        bad = it.outbox.store("event", bytes(2000))
        given_up: Future[Position] = it.outbox.store("event", b"c")
        given_up.cancel()

        assert good.result(TIMEOUT_S).stream == "event"
        with pytest.raises(OutboxDropError, match="too_large"):
            bad.result(TIMEOUT_S)
        assert it.outbox.flush(TIMEOUT_S)
        assert it.bodies() == [b"a", b"c"]
    with pytest.raises(OutboxDropError, match="stopped"):
        it.outbox.store("event", b"too late").result(TIMEOUT_S)
    assert it.metrics.value("outbox_dropped_total", "event", "stopped") == 1
    assert it.outbox.take(1, 1) == []
    assert it.outbox.stats() is None


def test_bodies_are_made_on_the_outbox_thread(tmp_path: Path) -> None:
    """Not in the request path; one that cannot be made is dropped, and the others come."""
    where: list[str] = []

    def body() -> bytes:
        where.append(threading.current_thread().name)
        return b"made"

    def fault() -> bytes:
        raise ValueError("no such thing")

    with running(tmp_path) as it:
        it.outbox.emit("result", fault, kind="result")
        it.outbox.emit("result", body, kind="result", key="k", time=1.5)
        assert it.outbox.flush(TIMEOUT_S)
        (row,) = it.take()

    assert where == ["outbox"]
    assert (row.body, row.kind, row.key, row.time) == (b"made", "result", "k", 1.5)
    assert row.position.seq == 2
    assert it.metrics.value("outbox_dropped_total", "result", "not_made") == 1


def test_urgent_streams_are_taken_first_within_the_limits(tmp_path: Path) -> None:
    """By priority, then by order; rows and bytes are limits, and one row always comes."""
    with running(tmp_path) as it:
        it.put("telemetry", b"t")
        it.put("result", b"r" * 600, b"s" * 600)
        it.put("rollout", b"o")

        assert [row.body[:1] for row in it.outbox.take(2, 10_000)] == [b"o", b"r"]
        assert [row.body[:1] for row in it.outbox.take(9, 100)] == [b"s"]
        assert it.bodies() == [b"t"]
        assert it.bodies() == []


def test_an_application_acknowledgement_is_waited_for_where_asked(tmp_path: Path) -> None:
    """The broker's word deletes events, but not in streams that ask for the application's."""
    with running(tmp_path, application_ack=("rollout",)) as it:
        it.put("rollout", b"o")
        it.put("event", b"e")
        rows = it.take()
        it.outbox.sent([row.id for row in rows])
        assert it.outbox.flush(TIMEOUT_S)
        assert (it.stats("rollout").rows, it.stats("rollout").in_flight) == (1, 1)
        assert it.stats("event").rows == 0
        assert it.bodies() == []

        it.outbox.release([row.id for row in rows])
        assert it.bodies() == [b"o"]
        it.outbox.confirm([row.id for row in rows])
        assert it.outbox.flush(TIMEOUT_S)
        assert it.stats("rollout").rows == 0
    assert it.metrics.value("outbox_confirmed_total", "rollout") == 1


def test_live_events_are_taken_beside_the_backlog(tmp_path: Path) -> None:
    """After a connection the two parts are read apart, each in its order, and told apart."""
    with running(tmp_path) as it:
        it.put("event", b"1", b"2", b"3")
        it.outbox.begin_backlog()
        it.put("event", b"4", b"5")

        live = it.outbox.take(9, 9999, backlog=False)
        assert [(row.body, row.replay) for row in live] == [(b"4", False), (b"5", False)]
        old = it.outbox.take(1, 9999, backlog=True)
        assert [(row.body, row.replay) for row in old] == [(b"1", True)]
        it.outbox.release_all()
        it.outbox.begin_backlog()
        assert it.outbox.take(9, 9999, backlog=False) == []
        again = it.outbox.take(9, 9999, backlog=True)
        assert [row.body for row in again] == [b"1", b"2", b"3", b"4", b"5"]
        assert all(row.replay for row in again)


def test_the_latest_of_each_key_is_kept(tmp_path: Path) -> None:
    """keep_latest replaces what waits, on its way or not, and an old confirmation is harmless."""
    with running(tmp_path, telemetry_overflow="keep_latest") as it:
        it.put("telemetry", b"a1", key="a")
        it.put("telemetry", b"b1", key="b")
        first = it.take(1)
        it.put("telemetry", b"a2", key="a")
        it.put("telemetry", b"plain", b"plain")
        it.outbox.confirm([row.id for row in first])
        assert it.outbox.flush(TIMEOUT_S)

        assert it.bodies() == [b"b1", b"a2", b"plain", b"plain"]
        assert it.stats("telemetry").dropped == {}


def test_a_full_stream_rejects_or_drops_and_counts(tmp_path: Path) -> None:
    """What is dropped by which policy, with the reason, and never what is on its way."""
    size = 1000 + ROW_OVERHEAD
    limit = 70 * size
    bodies = [str(number).encode().rjust(1000) for number in range(100)]
    with running(tmp_path, rollout_max_bytes=limit, event_max_bytes=limit) as it:
        it.put("rollout", *bodies)
        it.put("event", *bodies[:70])
        on_its_way = it.outbox.take(75, 1 << 20)[70:]
        it.put("event", *bodies[70:])
        it.outbox.release_all()
        rows = it.take()

    assert [row.body for row in on_its_way] == bodies[:5]
    assert [row.body for row in rows[:70]] == bodies[:70]
    assert [row.body for row in rows[70:]] == [*bodies[:5], *bodies[35:]]
    for stream in ("rollout", "event"):
        assert it.metrics.value("outbox_dropped_total", stream, "too_many_bytes") == 30


def test_a_full_hand_over_drops_at_once_and_leaves_a_gap(tmp_path: Path) -> None:
    """Nobody waits for a slow disk: the oldest of what was not stored yet go, and are counted."""
    going_on, stuck = threading.Event(), threading.Event()

    def slow() -> bytes:
        stuck.set()
        assert going_on.wait(TIMEOUT_S)
        return b"slow"

    with running(tmp_path) as it:
        it.outbox.emit("telemetry", slow)
        assert stuck.wait(TIMEOUT_S)
        for number in range(MAX_ROWS + 100):
            it.outbox.emit("telemetry", str(number).encode())
        assert it.metrics.value("outbox_dropped_total", "telemetry", "handover_full") == 100
        going_on.set()
        assert it.outbox.flush(TIMEOUT_S)
        rows = it.take(MAX_ROWS + 200)

        assert [row.body for row in rows[1:]] == [b"%d" % n for n in range(100, MAX_ROWS + 100)]
        assert rows[-1].position.seq == MAX_ROWS + 101
        assert it.stats("telemetry").dropped == {"handover_full": 100}


def test_what_is_refused_stands_in_nobodys_way(tmp_path: Path) -> None:
    """It goes into the quarantine, whose oldest go when that is full, and the others are taken."""
    with running(tmp_path, quarantine_max_bytes=65_536) as it:
        it.put("result", *[bytes(30_000)] * 5, b"good")
        for row in it.take(5):
            it.outbox.quarantine(row.id, "x" * 10_000)
        assert it.bodies() == [b"good"]
        assert it.outbox.flush(TIMEOUT_S)
        numbers = it.stats("result")

    assert numbers.quarantined == 2
    assert numbers.quarantined_bytes == 2 * (30_000 + ROW_OVERHEAD)
    assert numbers.dropped == {"quarantine_full": 3}
    assert it.metrics.value("outbox_quarantined_total", "result") == 5


def test_space_is_given_back(tmp_path: Path) -> None:
    """After 20 MB have come and gone the files are small again, while the outbox runs."""
    with running(tmp_path) as it:
        for _ in range(20):
            it.put("result", *[bytes(1000)] * 1000)
        assert (tmp_path / DATABASE).stat().st_size > 15_000_000
        while rows := it.take(1000):
            it.outbox.confirm([row.id for row in rows])
        give_back_all(it)
        files = sum(each.stat().st_size for each in tmp_path.iterdir())

    assert files < 2_000_000


def test_the_uplink_is_told_of_what_came_in(tmp_path: Path) -> None:
    """Once a group is stored, on the outbox's thread; not for what was only deleted."""
    told = threading.Semaphore(0)
    outbox = Outbox(OutboxSettings(path=tmp_path), Metrics(), Hooks(stored=told.release))
    outbox.start()
    try:
        assert outbox.store("event", b"a").result(TIMEOUT_S)
        assert told.acquire(timeout=TIMEOUT_S)
        outbox.confirm([row.id for row in outbox.take(9, 9)])
        assert outbox.flush(TIMEOUT_S)
        assert not told.acquire(blocking=False)
        assert repr(outbox) == "<Outbox <Store on disk: 0 rows>, 0 events wait for it>"
    finally:
        assert outbox.stop(TIMEOUT_S)


def test_only_streams_that_must_survive_a_power_cut_wait_for_the_disk(tmp_path: Path) -> None:
    """A group is synchronous (FULL is 2) when one event in it asks for that, else not (1)."""

    def synchronous() -> int:
        db = it.outbox._store._store._db
        return int(db.execute("PRAGMA synchronous").fetchone()[0])

    with running(tmp_path) as it:
        it.put("telemetry", b"t")
        assert it.outbox._ask(synchronous).result(TIMEOUT_S) == 1
        it.put("result", b"r")
        assert it.outbox._ask(synchronous).result(TIMEOUT_S) == 2
