"""The outbox's store on disk, and one in memory for as long as the disk cannot be written.

Trouble is said once when it begins and once when it ends. Ids of rows on disk are positive, those
of rows in memory negative.
"""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from edged.backoff import Backoff
from edged.errors import OutboxDamagedError, OutboxDiskError, OutboxError
from edged.events import Event, OutboxDegraded, OutboxRecovered
from edged.metrics import Metrics
from edged.report.draft import Row, StreamStats
from edged.report.in_flight import InFlight
from edged.report.opening import Opener
from edged.report.outbox_store import Batch, Store, Written
from edged.report.outbox_tables import LOWEST_IN_MEMORY
from edged.report.streams import Stream
from edged.settings import OutboxSettings

log = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_S = (1.0, 60.0)
"""The first pause before the disk is tried again, and the longest one."""
ATTEMPTS = 4
"""Disk, disk with a new database, memory: one more than can be needed."""
NOT_SAVED = "not_saved"


class StoreWithFallback:
    """Where rows are: on disk, or else in memory. Used by one thread.

    Args:
        settings: folder and limits.
        streams: by name, the most urgent first.
        metrics: counters.
        report: told of trouble.
    """

    def __init__(
        self,
        settings: OutboxSettings,
        streams: Mapping[str, Stream],
        metrics: Metrics,
        report: Callable[[Event], None],
    ) -> None:
        self.streams = streams
        self._opener = Opener(settings, streams, metrics, report)
        self._metrics = metrics
        self._report = report
        self._store: Store
        self._flights = {True: InFlight(streams), False: InFlight(streams)}
        self._moved: dict[int, int] = {}
        self._known: dict[str, int] = {}
        self._last_ids = {True: 0, False: LOWEST_IN_MEMORY}
        self._clock_base = (0.0, time.monotonic())
        self._elsewhere = 0
        self._backoff = Backoff(*RETRY_S)
        self._down_since: float | None = None
        self._retry_at = 0.0

    def __repr__(self) -> str:
        return repr(self._store) if hasattr(self, "_store") else "<Store, not open>"

    @property
    def durable(self) -> bool:
        """Whether rows go to the disk."""
        return self._store.durable

    # -------------------------------------------------------------- opening, falling back

    def lock(self) -> None:
        """Takes the folder for this process, where it can be used at all.

        Raises:
            OutboxLockedError: another process has it.
        """
        self._opener.lock()

    def open(self) -> None:
        """Opens the database, or one in memory if that cannot be."""
        try:
            self._use(self._on_disk())
        except (OutboxDiskError, OutboxDamagedError) as err:
            self._fall_back(err)

    def _on_disk(self, damage: OutboxDamagedError | None = None) -> Store:
        store, anew = self._opener.on_disk(self._known, damage)
        if anew:  # nothing that was read from the old file is on its way any more
            self._flights[True] = InFlight(self.streams)
        return store

    def _use(self, store: Store) -> None:
        # An id that somebody may still confirm must not meet a new row.
        store.next_id = max(store.next_id, self._last_ids[store.durable] + 1)
        self._elsewhere = 0
        self._store = store
        self._clock_base = (store.clock, time.monotonic())

    def _fall_back(self, err: OutboxError) -> None:
        """Goes on in memory."""
        now = time.monotonic()
        self._remember()
        if self._down_since is None:
            self._down_since = now
            log.error(
                "the outbox cannot use its disk, events wait in memory and are lost if the "
                "service ends: %s",
                err.message,
            )
            self._metrics.count("outbox_failures_total", "disk")
        memory = self._opener.in_memory(self._known)
        if hasattr(self, "_store"):
            memory.clock = self._store.clock
            self._store.close(clean=False)
        self._flights[False] = InFlight(self.streams)
        self._use(memory)
        self._retry_at = now + self._backoff.pause_s(now, random.random())  # noqa: S311  # no secret
        self._report(OutboxDegraded(time.time(), err.message))

    def _remember(self) -> None:
        """Numbers must not come again, whatever store comes next."""
        if hasattr(self, "_store"):
            self._known = {name: own.next_seq for name, own in self._store.numbers.items()}
            self._last_ids[self._store.durable] = self._store.next_id - 1

    def recover(self) -> bool:
        """Tries the disk again when it is time, and moves there; whether that came about."""
        now = time.monotonic()
        if self._store.durable or now < self._retry_at:
            return False
        self._remember()
        memory = self._store
        try:
            disk = self._on_disk()
            try:
                disk.next_id = max(disk.next_id, self._last_ids[True] + 1)
                last = disk.next_id - 1
                self._tick()
                disk.clock = max(disk.clock, memory.clock)
                moved = disk.adopt(memory)
            except BaseException:
                disk.close(clean=False)
                raise
        except (OutboxDiskError, OutboxDamagedError) as err:
            log.debug("the outbox's disk cannot be used yet: %s", err.message)
            self._retry_at = now + self._backoff.pause_s(now, random.random())  # noqa: S311  # no secret
            return False
        self._flights[True].begin_backlog(last)
        self._moved.update(self._flights[True].adopt(self._flights[False], moved))
        self._flights[False] = InFlight(self.streams)
        memory.close(clean=False)
        self._use(disk)
        self._backoff.connected(now)
        away, self._down_since = now - (self._down_since or now), None
        log.info("the outbox uses its disk again after %.1f s", away)
        self._report(OutboxRecovered(time.time(), round(away, 3), len(moved)))
        return True

    def close(self) -> None:
        """Stores what is in memory if that can be done now, and closes the file."""
        self._tick()
        if not self._store.durable:
            self._retry_at = 0.0
            self.recover()
        left = self._store.rows if not self._store.durable else Counter[str]()
        for name, rows in left.items():
            if rows:
                log.error("%d events of %s could not be stored and are lost", rows, name)
                self._metrics.count("outbox_dropped_total", name, NOT_SAVED, by=rows)
        with contextlib.suppress(OutboxDiskError, OutboxDamagedError):
            self._store.close(clean=self._store.durable)
        self._opener.close()

    def _tick(self) -> None:
        base, since = self._clock_base
        self._store.clock = base + time.monotonic() - since

    def _with_store(self, work: Callable[[Store], T]) -> T:
        """Does something with the store, and again with another one if the first is in trouble."""
        self._tick()
        for _ in range(ATTEMPTS):
            try:
                return work(self._store)
            except OutboxDamagedError as err:  # noqa: PERF203  # each pass is an attempt
                self._begin_afresh(err)
            except OutboxDiskError as err:
                self._fall_back(err)
        raise OutboxDiskError("outbox can be kept neither on disk nor in memory")

    def _begin_afresh(self, err: OutboxDamagedError) -> None:
        self._remember()
        self._store.close(clean=False)
        try:
            self._use(self._on_disk(err))
        except (OutboxDiskError, OutboxDamagedError) as trouble:
            self._fall_back(trouble)

    # -------------------------------------------------------------- what the outbox does with it

    def write(self, batch: Batch) -> Written:
        """Does what a batch says, on disk or in memory."""
        batch.spared = self._flights[True].ids.keys() | self._flights[False].ids.keys()
        written = self._with_store(lambda store: store.write(batch))
        self._opener.note(self._store)
        return written

    def take(
        self,
        limit_rows: int,
        limit_bytes: int,
        backlog: bool | None,  # noqa: FBT001  # handed on
        hidden: Callable[[int], bool],
    ) -> list[Row]:
        """Rows that are not in flight yet, which they are from now on."""
        flight = self._flights[self._store.durable]
        rows = self._with_store(
            lambda store: _read(
                store, self._flights[store.durable], limit_rows, limit_bytes, backlog, hidden
            )
        )
        flight = self._flights[self._store.durable]
        for row in rows:
            flight.take(row.position.stream, row.id)
        return rows

    def begin_backlog(self) -> None:
        """What is stored now is backlog."""
        self._flights[self._store.durable].begin_backlog(self._store.next_id - 1)

    def stream_of(self, row: int) -> str | None:
        """The stream of a row in flight; None if it is not."""
        row = self._moved.get(row, row)
        return self._flights[row > 0].ids.get(row)

    def settle(self, ids: Iterable[int]) -> dict[int, str]:
        """Ends the flight of rows.

        Returns:
            Those that were in flight, by the ids that they have now, with their streams.
        """
        settled = {}
        for given in ids:
            row = self._moved.pop(given, given)
            stream = self._flights[row > 0].ids.pop(row, None)
            if stream is not None:
                settled[row] = stream
        return settled

    def release(self, ids: Iterable[int]) -> None:
        """Rows are to be taken again."""
        for given in ids:
            row = self._moved.pop(given, given)
            self._flights[row > 0].release([row])

    def release_all(self) -> None:
        """As `release`, for all in flight."""
        self._moved.clear()
        for flight in self._flights.values():
            flight.release(list(flight.ids))

    def requeue(self) -> int:
        """Puts back what another process marked; how many."""
        if not self._store.durable:
            return 0
        number = self._with_store(lambda store: store.changed_elsewhere())
        if number == self._elsewhere or not self._store.durable:
            return 0
        self._elsewhere = number
        return self._with_store(lambda store: store.requeue())

    def expire(self) -> Counter[tuple[str, str]]:
        """Drops what is too old."""
        spared = self._flights[True].ids.keys() | self._flights[False].ids.keys()
        return self._with_store(lambda store: store.expire(spared))

    def give_back(self, pages: int) -> bool:
        """Gives space back to the file system; whether there is more."""
        return self._with_store(lambda store: store.give_back(pages))

    def stats(self) -> dict[str, StreamStats]:
        """Numbers by stream."""
        flying = Counter([*self._flights[True].ids.values(), *self._flights[False].ids.values()])
        return {
            name: replace(
                self._with_store(lambda store, name=name: store.stats(name)),  # type: ignore[misc]  # bound at once
                in_flight=flying[name],
            )
            for name in self.streams
        }


def _read(
    store: Store,
    flight: InFlight,
    limit_rows: int,
    limit_bytes: int,
    backlog: bool | None,  # noqa: FBT001  # handed on
    hidden: Callable[[int], bool],
) -> list[Row]:
    taken: list[Row] = []
    used = 0
    for stream in store.streams:
        for above, up_to in flight.ranges(stream, backlog):
            for row in store.read(stream, above, up_to):
                if row.id in flight.ids or hidden(row.id):
                    continue
                used += len(row.body)
                if len(taken) >= limit_rows or (taken and used > limit_bytes):
                    return taken
                taken.append(replace(row, replay=True) if row.id <= flight.boundary else row)
    return taken
