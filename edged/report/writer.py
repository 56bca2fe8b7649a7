"""What the outbox's thread does: makes bodies, stores groups, deletes what arrived, tidies up."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import InvalidStateError
from dataclasses import dataclass

from edged.errors import OutboxDropError
from edged.events import Event
from edged.metrics import Metrics
from edged.report.draft import Draft, Row, Selection, storable
from edged.report.fallback import StoreWithFallback
from edged.report.outbox_store import FULL, Batch, Written
from edged.report.outbox_tables import EXPIRED_AT_ONCE
from edged.settings import OutboxSettings

log = logging.getLogger(__name__)

PAGES_AT_ONCE = 256
"""2 MiB are given back at once, so that events do not wait for it."""
MOST_UNSETTLED = 500
"""So many rows are deleted at once, and not later with others."""
TOO_LARGE = "too_large"
NOT_MADE = "not_made"


def _nothing() -> None:
    pass


def _unheard(event: Event) -> None:
    del event


@dataclass(frozen=True)
class Hooks:
    """Whom the outbox tells, on its own thread; they must not wait.

    Attributes:
        stored: events have come in and can be taken.
        report: something happened to the outbox itself.
    """

    stored: Callable[[], None] = _nothing
    report: Callable[[Event], None] = _unheard


class Writer:
    """Between the outbox's queue and its store. Used by one thread.

    Args:
        settings: limits.
        store: where rows are.
        metrics: counters.
        hooks: whom it tells.
    """

    def __init__(
        self,
        settings: OutboxSettings,
        store: StoreWithFallback,
        metrics: Metrics,
        hooks: Hooks,
    ) -> None:
        self._max_event_bytes = settings.max_event_bytes
        self._store = store
        self._metrics = metrics
        self._hooks = hooks
        self._arrived: set[int] = set()
        self._refused: dict[int, str] = {}

    def __repr__(self) -> str:
        return f"<Writer to {self._store!r}>"

    def take(self, selection: Selection) -> list[Row]:
        """Rows that are neither on their way nor about to be deleted."""
        return self._store.take(selection, lambda row: row in self._arrived or row in self._refused)

    def sent(self, ids: Iterable[int]) -> None:
        """The broker has rows: those of streams that ask for no more are deleted."""
        self.confirm(
            [
                row
                for row in ids
                if (stream := self._store.stream_of(row)) is not None
                and not self._store.streams[stream].application_ack
            ]
        )

    def confirm(self, ids: Iterable[int]) -> None:
        """The control plane has rows: they are deleted with the next batch."""
        for row, stream in self._store.settle(ids).items():
            self._arrived.add(row)
            self._metrics.count("outbox_confirmed_total", stream)

    def quarantine(self, row: int, reason: str) -> None:
        """A row goes into the quarantine with the next batch."""
        for known, stream in self._store.settle([row]).items():
            self._refused[known] = storable(reason)
            self._metrics.count("outbox_quarantined_total", stream)
            log.warning("the control plane refuses a message: %s", reason, extra={"stream": stream})

    def _made(
        self, drafts: list[Draft], lost: Counter[tuple[str, str]]
    ) -> list[tuple[Draft, bytes]]:
        """Drafts with their bodies; those that cannot be stored are dropped, and added to lost."""
        made: list[tuple[Draft, bytes]] = []
        for draft in drafts:
            try:
                body = draft.body if isinstance(draft.body, bytes) else draft.body()
            except Exception:  # a report that cannot be made must not end the service
                log.exception("an event of the kind %r cannot be made and is dropped", draft.kind)
                lost[draft.stream, NOT_MADE] += 1
                self.tell_dropped(draft, NOT_MADE)
                continue
            if len(body) > self._max_event_bytes:
                lost[draft.stream, TOO_LARGE] += 1
                self.tell_dropped(draft, TOO_LARGE)
            else:
                made.append((_storable(draft), body))
        return made

    @property
    def unsettled(self) -> bool:
        """Whether rows wait to be deleted, or put aside."""
        return bool(self._arrived or self._refused)

    def write(
        self, drafts: list[Draft], lost: Counter[tuple[str, str]], *, settle: bool = True
    ) -> bool:
        """Stores events, deletes what arrived, and tells whom it concerns.

        Args:
            drafts: events in their order.
            lost: (stream, reason) -> events that were dropped before they came here.
            settle: whether to delete also if there is nothing to store.

        Returns:
            Whether there was something to do.
        """
        batch = Batch(self._made(drafts, lost), self._arrived, self._refused, lost)
        settle = settle or len(self._arrived) + len(self._refused) >= MOST_UNSETTLED
        if not (batch.drafts or batch.lost or (settle and self.unsettled)):
            return False
        written = self._store.write(batch)
        durable = self._store.durable
        # What lies on a disk that cannot be written now is deleted when that is back.
        self._arrived = {row for row in self._arrived if (row > 0) != durable}
        self._refused = {row: why for row, why in self._refused.items() if (row > 0) != durable}
        for (draft, _), position in zip(batch.drafts, written.positions, strict=True):
            if position is None:
                _fail(draft, FULL)
            elif draft.stored is not None:
                with contextlib.suppress(InvalidStateError):  # its caller has given up
                    draft.stored.set_result(position)
        self._count(written, batch)
        return True

    def _count(self, written: Written, batch: Batch) -> None:
        stored = Counter(each.stream for each in written.positions if each is not None)
        for name, number in stored.items():
            self._metrics.count("outbox_stored_total", name, by=number)
        for (name, reason), number in (written.dropped - Counter(batch.lost)).items():
            self._metrics.count("outbox_dropped_total", name, reason, by=number)
        if stored:
            self._hooks.stored()

    def take_care(self) -> bool:
        """What is done now and then; whether there is more of it at once."""
        if self._store.recover():
            self._hooks.stored()
        if self._store.requeue():
            self._hooks.stored()
        dropped = self._store.expire()
        for (name, reason), number in dropped.items():
            self._metrics.count("outbox_dropped_total", name, reason, by=number)
        more = max(dropped.values(), default=0) >= EXPIRED_AT_ONCE
        return self._store.give_back(PAGES_AT_ONCE) or more

    def tell_dropped(self, draft: Draft, reason: str) -> None:
        """Counts an event that was dropped before it was stored. Any thread."""
        self._metrics.count("outbox_dropped_total", draft.stream, reason)
        _fail(draft, reason)


def _storable(draft: Draft) -> Draft:
    return draft._replace(kind=storable(draft.kind), key=storable(draft.key))


def _fail(draft: Draft, reason: str) -> None:
    if draft.stored is not None:
        with contextlib.suppress(InvalidStateError):  # its caller has given up
            draft.stored.set_exception(OutboxDropError(f"event was dropped: {reason}"))
