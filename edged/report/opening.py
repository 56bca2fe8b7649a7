"""Opens the outbox's databases: the one on disk, damaged or not, and one in memory."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from edged.errors import OutboxDamagedError, OutboxDiskError, OutboxLockedError
from edged.events import Event, OutboxDamaged
from edged.metrics import Metrics
from edged.report.outbox_file import DATABASE, Guard, noted_numbers, set_aside, this_boot
from edged.report.outbox_store import Store
from edged.report.streams import Stream
from edged.settings import OutboxSettings

log = logging.getLogger(__name__)


class Opener:
    """Opens databases whose numbers go on where others ended. Used by one thread.

    Args:
        settings: folder and limits.
        streams: by name, the most urgent first.
        metrics: counters.
        report: told of damage.
    """

    def __init__(
        self,
        settings: OutboxSettings,
        streams: Mapping[str, Stream],
        metrics: Metrics,
        report: Callable[[Event], None],
    ) -> None:
        self._folder = settings.path
        self._quarantine_max_bytes = settings.quarantine_max_bytes
        self._streams = streams
        share = settings.memory_max_bytes // len(streams)
        self._limited = {name: each.limited_to(share) for name, each in streams.items()}
        self._metrics = metrics
        self._report = report
        self._boot_id = this_boot()
        self._guard: Guard | None = None

    def __repr__(self) -> str:
        return f"<Opener{' that holds the folder' if self._guard else ''}>"

    def lock(self) -> None:
        """Takes the folder for this process, where it can be used at all.

        Raises:
            OutboxLockedError: another process has it.
        """
        with contextlib.suppress(OutboxDiskError):
            self._guard = Guard(self._folder)

    def on_disk(
        self, known: Mapping[str, int], damage: OutboxDamagedError | None = None
    ) -> tuple[Store, bool]:
        """The database on disk, ready for use; a damaged one is set aside and begun anew.

        Args:
            known: stream -> number that was not given yet.
            damage: what was found in it while it was in use.

        Returns:
            The store, and whether it was begun anew.

        Raises:
            OutboxDiskError, OutboxDamagedError: that cannot be now.
        """
        self._hold()
        try:
            if damage is not None:
                raise damage
            store = self._new(self._folder / DATABASE, self._streams)
        except OutboxDamagedError as err:
            damage = err
            self._set_aside(err)
            store = self._new(self._folder / DATABASE, self._streams)
        try:
            self._begin(store, known, said=damage is not None)
        except BaseException:
            store.close(clean=False)
            raise
        return store, damage is not None

    def in_memory(self, known: Mapping[str, int]) -> Store:
        """A database in memory, with its limits."""
        store = self._new(None, self._limited)
        store.begin(self._boot_id, self._next(known), time.time())
        return store

    def note(self, store: Store) -> None:
        """Keeps the numbers of a store on disk beside it."""
        if self._guard and store.durable:
            self._guard.note({name: store.next_seq(name) for name in self._streams})

    def close(self) -> None:
        """Lets another process have the folder."""
        if self._guard:
            self._guard.close()

    def _hold(self) -> None:
        if self._guard is None:
            try:
                self._guard = Guard(self._folder)
            except OutboxLockedError as err:
                raise OutboxDiskError(err.message) from err

    def _new(self, path: Path | None, streams: Mapping[str, Stream]) -> Store:
        return Store(path, streams, self._quarantine_max_bytes)

    def _next(self, known: Mapping[str, int]) -> dict[str, int]:
        noted = noted_numbers(self._folder)
        return {name: max(noted.get(name, 1), known.get(name, 1)) for name in self._streams}

    def _begin(self, store: Store, known: Mapping[str, int], *, said: bool) -> None:
        """Numbers go on where they were; what the file has lost is said, if it was not already."""
        noted = noted_numbers(self._folder)
        lost = {
            name: noted[name] - next_seq
            for name in self._streams
            if noted.get(name, 1) > (next_seq := store.next_seq(name))
        }
        store.begin(self._boot_id, self._next(known), time.time())
        if lost and not said:
            told = ", ".join(f"up to {number} of {name}" for name, number in sorted(lost.items()))
            log.error("the outbox's file has lost events: %s", told)
            self._metrics.count("outbox_failures_total", "damaged")
            self._report(OutboxDamaged(time.time(), f"events were lost: {told}", ""))
        self.note(store)

    def _set_aside(self, err: OutboxDamagedError) -> None:
        name = set_aside(self._folder, time.time())
        log.error("the outbox is damaged and begins anew; the old file is %s: %s", name, err)
        self._metrics.count("outbox_failures_total", "damaged")
        self._report(OutboxDamaged(time.time(), err.message, name))
