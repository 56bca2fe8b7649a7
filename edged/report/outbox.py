"""The outbox: events wait on disk until the control plane has them. One thread writes.

    emit -> hand-over -> [thread outbox: group -> transaction] -> take -> uplink -> confirm

`emit` never waits for the disk. Events are stored in groups, so that a synchronous write is paid
once for many. If the disk cannot be written, events wait in memory, and move to the disk when it is
back. docs/reporting.md has the promises, docs/decisions/0007 the reasons.
"""

from __future__ import annotations

import threading
import time as clocks
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as AnswerTimeoutError
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from edged.errors import OutboxBusyError
from edged.metrics import Metrics
from edged.report.draft import Draft, OutboxStats, Position, Row, Selection
from edged.report.fallback import StoreWithFallback
from edged.report.hand_over import HANDOVER_FULL, HandOver
from edged.report.streams import streams_from
from edged.report.writer import Hooks, Writer
from edged.settings import OutboxSettings

T = TypeVar("T")

GROUP_ROWS = 50
GROUP_S = 0.02
"""A group is stored when it has so many events, or when its first has waited so long."""
MAX_GROUP_ROWS = 500
"""Of events that have piled up meanwhile, so many go into one transaction."""
SETTLE_S = 0.25
"""What was confirmed is deleted with the next group, or so long after the last one."""
CARE_S = 1.0
"""Age limits, space to give back, messages to send again and a disk that is back: how often."""
ANSWER_S = 10.0
"""`Outbox.take` waits so long for the thread, which may wait for the disk."""
STOPPED = "stopped"


class Outbox:
    """Durable, bounded queues of events by stream. Thread-safe.

    Args:
        settings: folder and limits.
        metrics: counters.
        hooks: whom it tells.
    """

    def __init__(
        self, settings: OutboxSettings, metrics: Metrics, hooks: Hooks | None = None
    ) -> None:
        hooks = hooks or Hooks()
        self.streams = streams_from(settings)
        """By name, the most urgent first."""
        self._store = StoreWithFallback(settings, self.streams, metrics, hooks.report)
        self._condition = threading.Condition()
        self._queue = HandOver(self.streams)
        self._orders: list[Callable[[], None]] = []
        self._first_at = 0.0  # monotonic seconds when the oldest of the queue came
        self._hurry = False
        self._stopping = False
        self._ended = False
        self._care_at = self._settle_at = 0.0
        self._writer = Writer(settings, self._store, metrics, hooks)
        self.thread = threading.Thread(target=self._work, name="outbox", daemon=True)

    def __repr__(self) -> str:
        return f"<Outbox {self._store!r}, {self._queue.rows} events wait for it>"

    # -------------------------------------------------------------- from start to end

    def start(self) -> None:
        """Locks the folder and starts the thread, which opens the database.

        A folder or database that cannot be used is no error: events wait in memory, and it is tried
        again.

        Raises:
            OutboxLockedError: another process uses the folder.
        """
        self._store.lock()
        self.thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Stores what was handed over, closes the database; whether that was done in time.

        What is emitted afterwards is dropped and counted.
        """
        if self.thread.ident is None:
            return True  # it was never started
        with self._condition:
            self._stopping = True
            self._condition.notify()
        self.thread.join(timeout_s)
        return not self.thread.is_alive()

    # -------------------------------------------------------------- in

    def emit(
        self,
        stream: str,
        body: bytes | Callable[[], bytes],
        *,
        kind: str = "",
        key: str = "",
        time: float | None = None,
    ) -> None:
        """Reports an event. Any thread; never waits for the disk.

        It is accepted once it is stored, 20 ms and a write later; until then the end of the process
        loses it. `store` tells when.

        Args:
            stream: its stream, one of `edged.report.streams.STREAMS`.
            body: its bytes, or what makes them, called on the outbox's thread: making JSON is no
                work for the request path. What it refers to must not change any more.
            kind: what it is, for its receiver.
            key: what it is the latest word on; for streams that keep the latest of each key.
            time: Unix seconds when it happened; None: now.
        """
        self._add(Draft(stream, kind, key, clocks.time() if time is None else time, body))

    def store(
        self,
        stream: str,
        body: bytes | Callable[[], bytes],
        *,
        kind: str = "",
        key: str = "",
        time: float | None = None,
    ) -> Future[Position]:
        """Reports an event and tells when it is durable, as far as its stream promises that.

        Arguments are those of `emit`.

        Returns:
            Its position, once it is stored; `OutboxDropError` if it was dropped. While the disk
            cannot be written it is stored in memory, and `OutboxStats.durable` is False.
        """
        done: Future[Position] = Future()
        when = clocks.time() if time is None else time
        self._add(Draft(stream, kind, key, when, body, done))
        return done

    def flush(self, timeout_s: float) -> bool:
        """Waits until what was emitted before is stored, and what was confirmed is deleted.

        Returns:
            Whether that was done in time.
        """
        done = threading.Event()
        with self._condition:
            self._hurry = True
            self._orders.append(partial(self._after_queue, done, first=True))
            self._condition.notify()
        return done.wait(timeout_s)

    def _after_queue(self, done: threading.Event, *, first: bool) -> None:
        """Comes again until the queue has been empty, and the step that emptied it is over."""
        with self._condition:
            if first or self._queue.rows:
                self._hurry = True
                self._orders.append(partial(self._after_queue, done, first=False))
                return
        done.set()

    def _add(self, draft: Draft) -> None:
        with self._condition:
            dropped, reason = [draft], STOPPED
            if not self._stopping:
                dropped, reason = self._queue.add(draft), HANDOVER_FULL
                if self._queue.rows == 1:
                    self._first_at = clocks.monotonic()
                    self._condition.notify()
                elif self._queue.rows == GROUP_ROWS:
                    self._condition.notify()
        for each in dropped:
            self._writer.tell_dropped(each, reason)

    # -------------------------------------------------------------- out

    def begin_backlog(self) -> None:
        """What is stored now is backlog, to be replayed; what comes is live. At each connection."""
        self._order(self._store.begin_backlog)

    def take(
        self,
        limit_rows: int,
        limit_bytes: int,
        backlog: bool | None = None,  # noqa: FBT001  # three states, and the default is none of the two
        streams: Collection[str] | None = None,
    ) -> list[Row]:
        """Rows to be sent, by priority of their streams, then in their order.

        They stay stored, and are not taken again until they are released. Waits for the thread,
        and with a slow disk for the transaction that it is in.

        Args:
            limit_rows: at most so many.
            limit_bytes: of their bodies together; the first one is given whatever its size.
            backlog: True: only what was there at the last `begin_backlog`; False: only what came
                later; None: all.
            streams: only those; None: all.

        Raises:
            OutboxBusyError: the thread has not answered in time; what it takes late is released.
        """
        selection = Selection(limit_rows, limit_bytes, backlog, streams)
        answer = self._ask(partial(self._writer.take, selection))
        try:
            return answer.result(ANSWER_S)
        except CancelledError:
            return []
        except AnswerTimeoutError:
            # What is taken too late has nobody to send it.
            answer.add_done_callback(lambda late: self.release(row.id for row in late.result()))
            raise OutboxBusyError(f"the outbox has not answered within {ANSWER_S:g} s") from None

    def sent(self, ids: Iterable[int]) -> None:
        """The broker has them: streams that ask for no more than that let them go."""
        self._order(partial(self._writer.sent, tuple(ids)))

    def confirm(self, ids: Iterable[int]) -> None:
        """The control plane has them: they are deleted."""
        self._order(partial(self._writer.confirm, tuple(ids)))

    def release(self, ids: Iterable[int]) -> None:
        """They have to be sent again, before what comes after them."""
        self._order(partial(self._store.release, tuple(ids)))

    def release_all(self) -> None:
        """As `release`, for everything on its way: the connection is gone."""
        self._order(self._store.release_all)

    def quarantine(self, row: int, reason: str) -> None:
        """The control plane will never take it: it is put aside, out of the way of the others."""
        self._order(partial(self._writer.quarantine, row, reason))

    def stats(self) -> OutboxStats | None:
        """Numbers of all streams; None if the thread does not answer in time, or has ended."""
        try:
            return self._ask(self._numbers).result(ANSWER_S)
        except (AnswerTimeoutError, CancelledError):
            return None

    def _ask(self, question: Callable[[], T]) -> Future[T]:
        answer: Future[T] = Future()
        if not self._order(lambda: answer.set_result(question())):
            answer.cancel()
        return answer

    def _order(self, order: Callable[[], None]) -> bool:
        """Has the thread do something; whether it still does."""
        with self._condition:
            self._orders.append(order)
            self._condition.notify()
            return not self._ended

    # -------------------------------------------------------------- the thread

    def _work(self) -> None:
        self._store.open()
        while self._step():
            pass
        self._store.close()

    def _step(self) -> bool:
        """Waits for work and does it; False once the outbox is stopped and all is stored."""
        work = self._next()
        for order in work.orders:
            order()
        now = clocks.monotonic()
        settle = work.hurry or now >= min(self._settle_at, self._care_at)
        if self._writer.write(work.drafts, work.lost, settle=settle):
            now = clocks.monotonic()
            self._settle_at = now + SETTLE_S
        if now >= self._care_at:
            self._care_at = now if self._writer.take_care() else now + CARE_S
        return work.goes_on

    def _next(self) -> _Work:
        with self._condition:
            while (pause := self._pause_s(clocks.monotonic())) > 0:
                self._condition.wait(pause)
            orders, self._orders = self._orders, []
            now = clocks.monotonic()
            drafts = self._queue.take(MAX_GROUP_ROWS) if self._group_in_s(now) <= 0 else []
            if drafts:
                self._first_at = 0.0  # what is left has waited while others were stored
            hurry = self._hurry or self._stopping
            self._hurry = self._hurry and self._queue.rows > 0
            self._ended = self._stopping and not self._queue.rows
            return _Work(orders, drafts, self._queue.take_lost(), hurry, not self._ended)

    def _pause_s(self, now: float) -> float:
        """Seconds until there is something to do; 0 or less: now."""
        if self._orders or self._stopping:
            return 0.0
        settle_in = self._settle_at - now if self._writer.unsettled else CARE_S
        return min(self._group_in_s(now), self._care_at - now, settle_in)

    def _group_in_s(self, now: float) -> float:
        if not self._queue.rows:
            return CARE_S
        if self._stopping or self._hurry or self._queue.rows >= GROUP_ROWS:
            return 0.0
        return self._first_at + GROUP_S - now

    def _numbers(self) -> OutboxStats:
        with self._condition:
            waiting = self._queue.rows
        return OutboxStats(self._store.stats(), self._store.durable, waiting)


@dataclass(frozen=True)
class _Work:
    """What one step of the thread does.

    Attributes:
        orders: what others want of the store.
        drafts: events to be stored.
        lost: (stream, reason) -> events that were dropped before.
        hurry: whether somebody waits until all is stored and deleted.
        goes_on: whether another step follows.
    """

    orders: list[Callable[[], None]]
    drafts: list[Draft]
    lost: Counter[tuple[str, str]]
    hurry: bool
    goes_on: bool
