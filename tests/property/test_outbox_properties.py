"""The outbox against a model in memory, with crashes between any two steps."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edged.metrics import Metrics
from edged.report.draft import ROW_OVERHEAD, Draft, Row
from edged.report.fallback import StoreWithFallback
from edged.report.outbox_file import COMPANIONS, DATABASE
from edged.report.streams import EVENT, RESULT, ROLLOUT, STREAMS, TELEMETRY, Overflow, streams_from
from edged.report.writer import Hooks, Writer
from edged.settings import OutboxSettings

CAP = 65_536
SIZES = st.sampled_from([0, 1, 4_000, 20_000, 60_000, CAP - ROW_OVERHEAD, CAP - ROW_OVERHEAD + 1])


@dataclass
class ModelStream:
    """What a stream should hold: events as (number, key, body), the oldest first."""

    overflow: Overflow
    given: int = 0
    waiting: list[tuple[int, str, bytes]] = field(default_factory=list)
    flying: set[int] = field(default_factory=set)
    dropped: int = 0
    backlog_up_to: int = 0

    def used(self) -> int:
        """Bytes in use."""
        return sum(len(body) + len(key) + ROW_OVERHEAD for _, key, body in self.waiting)

    def add(self, key: str, body: bytes) -> None:
        """One event comes."""
        self.given += 1
        needed = len(key) + len(body) + ROW_OVERHEAD
        if self.overflow is Overflow.KEEP_LATEST and key:
            self.waiting = [each for each in self.waiting if each[1] != key]
        while self.overflow is not Overflow.REJECT_NEW and self.used() + needed > CAP:
            oldest = next((each for each in self.waiting if each[0] not in self.flying), None)
            if oldest is None:
                break
            self.waiting.remove(oldest)
            self.dropped += 1
        if self.used() + needed > CAP:
            self.dropped += 1
        else:
            self.waiting.append((self.given, key, body))


class OutboxMachine(RuleBasedStateMachine):
    """Steps of reporters, of the uplink, and of fate."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="outbox-model-"))
        self.lives = 0
        self.settings = OutboxSettings(
            path=self.home / "0",
            telemetry_overflow="keep_latest",
            max_event_bytes=CAP,
            **{f"{name}_max_bytes": CAP for name in STREAMS},  # type: ignore[arg-type]  # by name
        )
        self.metrics = Metrics()
        self.model = {
            name: ModelStream(each.overflow) for name, each in streams_from(self.settings).items()
        }
        self.taken: dict[int, Row] = {}
        self.refused: Counter[str] = Counter()
        self.counter = 0
        self.open()

    def open(self) -> None:
        """A life begins."""
        self.store = StoreWithFallback(
            self.settings, streams_from(self.settings), self.metrics, lambda _: None
        )
        self.store.lock()
        self.store.open()
        self.writer = Writer(self.settings, self.store, self.metrics, Hooks())
        self.taken.clear()
        for stream in self.model.values():
            stream.flying.clear()

    def teardown(self) -> None:
        """The last life ends."""
        self.store.close()
        shutil.rmtree(self.home)

    # ------------------------------------------------------------------ reporters

    @rule(
        stream=st.sampled_from([ROLLOUT, EVENT, RESULT]),
        sizes=st.lists(SIZES, min_size=1, max_size=4),
    )
    def put(self, stream: str, sizes: list[int]) -> None:
        """Events come together."""
        self.write(stream, [("", self.body(size)) for size in sizes])

    @rule(key=st.sampled_from(["", "a", "b", "c"]), size=SIZES)
    def put_keyed(self, key: str, size: int) -> None:
        """The latest word on something comes."""
        self.write(TELEMETRY, [(key, self.body(max(0, size - len(key))))])

    def body(self, size: int) -> bytes:
        """Bytes that no other event has, as far as there is room for that."""
        self.counter += 1
        return str(self.counter).encode().rjust(size, b".")[:size]

    def write(self, stream: str, events: list[tuple[str, bytes]]) -> None:
        """Stores a group, here and in the model."""
        drafts = [Draft(stream, "", key, 1.5, body) for key, body in events]
        self.writer.write(drafts, Counter())
        for key, body in events:
            self.model[stream].add(key, body)

    # ------------------------------------------------------------------ the uplink

    @rule(limit=st.integers(1, 6), backlog=st.sampled_from([None, True, False]))
    def take(self, limit: int, backlog: bool | None) -> None:  # noqa: FBT001  # drawn
        """What is taken is what the model has next, in its order."""
        rows = self.writer.take(limit, 1 << 30, backlog)
        wanted: list[tuple[str, int, str, bytes]] = []
        for name in self.store.streams:
            model = self.model[name]
            for number, key, body in model.waiting:
                old = number <= model.backlog_up_to
                if number not in model.flying and backlog in (None, old):
                    wanted.append((name, number, key, body))
        told = [(row.position.stream, row.position.seq, row.key, row.body) for row in rows]
        assert told == wanted[:limit]
        for row in rows:
            self.taken[row.id] = row
            self.model[row.position.stream].flying.add(row.position.seq)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def confirm(self, data: Any) -> None:
        """Some of what is on its way has arrived."""
        for row in self.some(data):
            self.writer.confirm([row.id])
            self.gone(row)
        self.writer.write([], Counter())

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def sent(self, data: Any) -> None:
        """The broker has some: gone, except where the application has to acknowledge it."""
        for row in self.some(data):
            self.writer.sent([row.id])
            if row.position.stream != ROLLOUT:
                self.gone(row)
        self.writer.write([], Counter())

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def release(self, data: Any) -> None:
        """Some has to be sent again."""
        for row in self.some(data):
            self.store.release([row.id])
            self.back(row)

    @rule()
    def release_all(self) -> None:
        """The connection is gone."""
        self.store.release_all()
        for row in list(self.taken.values()):
            self.back(row)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def quarantine(self, data: Any) -> None:
        """Some will never be taken."""
        for row in self.some(data):
            self.writer.quarantine(row.id, "no")
            stored = any(each[0] == row.position.seq for each in self.model_of(row).waiting)
            self.refused[row.position.stream] += stored  # not if a later one has replaced it
            self.gone(row)
        self.writer.write([], Counter())

    @rule()
    def begin_backlog(self) -> None:
        """A connection begins."""
        self.store.begin_backlog()
        for stream in self.model.values():
            stream.backlog_up_to = stream.given

    def some(self, data: Any) -> list[Row]:
        """Some of what is on its way."""
        ids = data.draw(st.lists(st.sampled_from(sorted(self.taken)), unique=True, min_size=1))
        return [self.taken[each] for each in ids]

    def model_of(self, row: Row) -> ModelStream:
        """The model's stream of a row."""
        return self.model[row.position.stream]

    def back(self, row: Row) -> None:
        """It is not on its way any more."""
        del self.taken[row.id]
        self.model_of(row).flying.discard(row.position.seq)

    def gone(self, row: Row) -> None:
        """It is not there any more."""
        self.back(row)
        model = self.model_of(row)
        model.waiting = [each for each in model.waiting if each[0] != row.position.seq]

    # ------------------------------------------------------------------ fate

    @rule()
    def crash(self) -> None:
        """The process is killed: the next one finds the files as they are at this moment."""
        old = self.settings.path
        self.lives += 1
        new = self.home / str(self.lives)
        new.mkdir()
        for suffix in ("", COMPANIONS[0]):
            if (old / f"{DATABASE}{suffix}").exists():
                shutil.copy(old / f"{DATABASE}{suffix}", new / f"{DATABASE}{suffix}")
        self.store.close()
        self.settings = self.settings.model_copy(update={"path": new})
        self.forget_backlog()
        self.open()

    @rule()
    def restart(self) -> None:
        """The process ends in an orderly way."""
        self.store.close()
        self.forget_backlog()
        self.open()

    def forget_backlog(self) -> None:
        """A new life knows of no connection."""
        for stream in self.model.values():
            stream.backlog_up_to = 0

    # ------------------------------------------------------------------ always

    @invariant()
    def numbers_are_right(self) -> None:
        """Counts and limits, in memory and in the file."""
        stats = self.store.stats()
        for name, model in self.model.items():
            told = stats[name]
            assert (told.rows, told.bytes) == (len(model.waiting), model.used())
            assert told.bytes <= CAP
            assert sum(told.dropped.values()) == model.dropped
            assert told.in_flight == len(model.flying)
            assert told.quarantined == self.refused[name]
        with closing(sqlite3.connect(self.settings.path / DATABASE)) as db:
            in_file = dict(db.execute("SELECT stream, sum(size) FROM message GROUP BY stream"))
        assert in_file == {name: each.used() for name, each in self.model.items() if each.waiting}


TestOutbox = OutboxMachine.TestCase
TestOutbox.settings = settings(max_examples=40, stateful_step_count=25)
