"""The uplink: what waits in the outbox goes to the control plane, and what it says is heard.

    outbox -> take -> batch -> pack -> link -> PUBACK -> (acknowledgement) -> confirm
    link -> desired settings, commands, acknowledgements -> their handlers

One thread, ``uplink``, does all of this. What is live goes first, at once; what waited for the
connection follows at a limited rate. Nothing leaves the outbox before the broker has it, and, for
streams that ask for it, before the control plane has acknowledged it.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from edged.backoff import Backoff
from edged.errors import BatchError
from edged.metrics import Metrics
from edged.protocol import Topics
from edged.report.batch_message import batch_message, encoding
from edged.report.control_link import Change, Connected, Delivered, Incoming, Lost, Outgoing
from edged.report.outbox import Outbox
from edged.report.sending import Awaiting, Batch, Pace, Verdict, parse_ack, split, verdict
from edged.report_settings import UplinkSettings

log = logging.getLogger(__name__)

MOST_ROWS = 512
"""Rows that are taken out of the outbox at once."""
LOOK_S = 0.1
"""While there is backlog, and for what was not acknowledged, the thread looks so often."""
IDLE_S = 1.0
MOST_AWAITED = 20_000
"""Rows that wait for an acknowledgement of the control plane; beyond it no more are sent."""
PAUSE_S = (1.0, 60.0)
"""Shortest and longest pause while the broker is busy or nobody listens."""


@dataclass(frozen=True)
class Wake:
    """The outbox has stored something; ``stop``: the thread ends."""

    stop: bool = False


@dataclass(frozen=True)
class Finish:
    """Tell when nothing is left to be sent at once."""

    done: threading.Event


Signal: TypeAlias = Change | Wake | Finish | Outgoing


@dataclass(frozen=True)
class UplinkPorts:
    """What the uplink works with. All are called on its thread.

    Attributes:
        publish: (message, number of the connection) -> packet identifier, or None if it is gone.
        heard: a desired document or a command came; what is to be answered.
        greeting: what is said at the beginning of each connection.
        restored: the connection is back after so many seconds.
    """

    publish: Callable[[Outgoing, int], int | None]
    heard: Callable[[Incoming], list[Outgoing]]
    greeting: Callable[[], list[Outgoing]]
    restored: Callable[[float], None]


class Uplink:
    """Sends and hears on one connection after the other.

    Args:
        settings: ``[uplink]``.
        topics: of this device.
        boot_id: identifies this run of the daemon.
        outbox: what is sent.
        ports: what it works with.
        metrics: counters.
    """

    def __init__(
        self,
        settings: UplinkSettings,
        topics: Topics,
        boot_id: str,
        outbox: Outbox,
        ports: UplinkPorts,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._topics = topics
        self._boot_id = boot_id
        self._outbox = outbox
        self._ports = ports
        self._metrics = metrics
        self._signals: queue.SimpleQueue[Signal] = queue.SimpleQueue()
        self._woken = threading.Event()  # a wake-up is in the queue
        self._asked = {name for name, each in outbox.streams.items() if each.application_ack}
        self._awaiting = Awaiting(settings.ack_timeout_s)
        self._pace = Pace(settings.replay_rate)
        self._pause = Backoff(*PAUSE_S)
        self._connection: Connected | None = None
        self._down_since: float | None = None
        self._flights: dict[int, tuple[int, Batch] | None] = {}  # None: an answer
        self._number = 0  # of the last batch
        self._ready: deque[Batch] = deque()
        self._again: set[int] = set()  # rows that were sent before
        self._alone: set[int] = set()  # rows that are sent one by one
        self._paused_until = 0.0
        self._live_at: float | None = None  # when to look for live rows
        self._backlog = False  # whether there may be some
        self._finishing: threading.Event | None = None
        self.thread = threading.Thread(target=self._work, name="uplink", daemon=True)

    def __repr__(self) -> str:
        state = "connected" if self._connection else "not connected"
        return f"<Uplink {state}, {len(self._flights)} on their way, {self._awaiting!r}>"

    # -------------------------------------------------------------- for other threads

    def start(self) -> None:
        """Starts the thread."""
        self.thread.start()

    def finish(self, timeout_s: float) -> bool:
        """Waits until what is live has been sent and taken; False: not in time, or no connection.

        Nothing is lost otherwise: it is sent at the next start.
        """
        done = threading.Event()
        self._signals.put(Finish(done))
        return done.wait(timeout_s if self._connection is not None else 0.0)

    def stop(self, timeout_s: float) -> None:
        """Ends the thread; what is on its way is sent again at the next start."""
        self._signals.put(Wake(stop=True))
        self.thread.join(timeout_s)

    def changed(self, change: Change) -> None:
        """The link has something to tell."""
        self._signals.put(change)

    def stored(self) -> None:
        """The outbox has something new."""
        if not self._woken.is_set():
            self._woken.set()
            self._signals.put(Wake())

    def say(self, message: Outgoing) -> None:
        """Sends a message that is no record; it is lost without a connection."""
        self._signals.put(message)

    # -------------------------------------------------------------- the thread

    def _work(self) -> None:
        while True:
            try:
                signal = self._signals.get(timeout=self._wait_s(time.monotonic()))
            except queue.Empty:
                signal = None
            if isinstance(signal, Wake) and signal.stop:
                return
            now = time.monotonic()
            if signal is not None:
                self._handle(signal, now)
            if self._connection is not None:
                self._resend(now)
                self._send(now)
            if self._finishing is not None and not self._busy():
                self._finishing.set()
                self._finishing = None

    def _busy(self) -> bool:
        return bool(self._flights or self._ready or self._live_at is not None)

    def _wait_s(self, now: float) -> float:
        """Seconds until there is something to do by itself."""
        if self._connection is None:
            return IDLE_S
        if len(self._flights) >= self._window() or self._awaiting.rows >= MOST_AWAITED:
            return LOOK_S  # an acknowledgement wakes it
        pause = LOOK_S if self._backlog or self._ready or self._awaiting.rows else IDLE_S
        if self._live_at is not None:
            pause = min(pause, max(0.0, self._live_at - now))
        return max(pause, min(LOOK_S, self._paused_until - now))

    def _handle(self, signal: Signal, now: float) -> None:
        if isinstance(signal, Delivered):
            self._delivered(signal, now)
        elif isinstance(signal, Wake):
            self._woken.clear()
            if self._live_at is None:
                self._live_at = now + self._settings.batch_delay_s
        elif isinstance(signal, Finish):
            self._finishing = signal.done
            self._live_at = now
        elif isinstance(signal, Incoming):
            self._heard(signal)
        elif isinstance(signal, Outgoing):
            self._publish(signal, None)
        elif isinstance(signal, Connected):
            self._connected(signal, now)
        else:
            self._lost(signal, now)

    # -------------------------------------------------------------- the connection

    def _connected(self, connection: Connected, now: float) -> None:
        self._connection = connection
        self._outbox.begin_backlog()
        self._backlog = True
        self._live_at = now
        self._paused_until = 0.0
        for message in self._ports.greeting():
            self._publish(message, None)
        if self._down_since is not None:
            self._ports.restored(now - self._down_since)
            self._down_since = None

    def _lost(self, change: Lost, now: float) -> None:
        del change
        self._connection = None
        self._down_since = now
        self._flights.clear()
        self._ready.clear()
        self._again.clear()
        self._alone.clear()
        self._awaiting.clear()
        self._outbox.release_all()

    # -------------------------------------------------------------- out

    def _send(self, now: float) -> None:
        """Sends what the window lets through: live rows first, then backlog at its rate."""
        if now < self._paused_until or self._awaiting.rows >= MOST_AWAITED:
            return
        while self._flush(now):
            if self._live_at is not None and now >= self._live_at:
                if not self._fill(backlog=False, rows=MOST_ROWS):
                    self._live_at = None
            elif self._backlog and (rows := min(self._pace.allowed(now), MOST_ROWS)):
                taken = self._fill(backlog=True, rows=rows)
                self._backlog = bool(taken)
                self._pace.spend(taken)
            else:
                return

    def _fill(self, *, backlog: bool, rows: int) -> int:
        """Takes rows out of the outbox; how many."""
        taken = self._outbox.take(rows, self._settings.max_message_bytes, backlog)
        replayed = {row.id for row in taken} if backlog else self._again
        for row in [row for row in taken if row.id in self._alone]:
            self._ready += split([row], self._limit(), replayed)
        together = [row for row in taken if row.id not in self._alone]
        self._ready += split(together, self._limit(), replayed)
        self._alone.difference_update(row.id for row in taken)
        return len(taken)

    def _limit(self) -> int:
        most = self._connection.max_packet_bytes if self._connection else 0
        wanted = self._settings.max_message_bytes
        return min(wanted, most) if most else wanted

    def _flush(self, now: float) -> bool:
        """Sends batches that are ready; whether the window has room for more."""
        while self._connection is not None and len(self._flights) < self._window():
            if not self._ready:
                return True
            batch = self._ready.popleft()
            if not self._send_batch(batch, now):
                return False
        return False

    def _window(self) -> int:
        most = self._connection.window if self._connection else 0
        return min(self._settings.send_window, most)

    def _send_batch(self, batch: Batch, now: float) -> bool:
        """Sends a batch, or puts it aside; False if the connection is gone."""
        self._number += 1
        message = batch_message(
            batch, self._number, self._topics, self._boot_id, compress=self._settings.compress
        )
        size, limit = len(message.payload), self._limit()
        if size > limit:
            self._refuse(batch, f"the record makes a message of {size} bytes; {limit} may be sent")
            return True
        if not self._publish(message, batch):
            return False
        if batch.stream in self._asked:
            self._awaiting.add(self._number, batch, now)
        self._metrics.count("uplink_bytes_total", encoding(message), by=size)
        return True

    def _publish(self, message: Outgoing, batch: Batch | None) -> bool:
        if self._connection is None:
            return False
        mid = self._ports.publish(message, self._connection.epoch)
        if mid is None:
            return False  # `Lost` is on its way, and everything is sent again then
        self._flights[mid] = (self._number, batch) if batch is not None else None
        return True

    def _refuse(self, batch: Batch, reason: str) -> None:
        for row in batch.rows:
            self._outbox.quarantine(row.id, reason)
        self._again.difference_update(batch.ids)
        self._metrics.count("uplink_refused_total", by=len(batch.rows))

    # -------------------------------------------------------------- what became of it

    def _delivered(self, change: Delivered, now: float) -> None:
        if self._connection is None or change.epoch != self._connection.epoch:
            return
        flight = self._flights.pop(change.mid, None)
        if flight is None:
            return
        number, batch = flight
        needs = self._settings.require_subscriber
        result = verdict(change.code, len(batch.rows), needs_subscriber=needs)
        if result is Verdict.TAKEN:
            self._pause = Backoff(*PAUSE_S)
            self._outbox.sent(batch.ids)
            self._metrics.count("uplink_messages_total", batch.stream, batch.mode)
            self._metrics.count(
                "uplink_records_total", batch.stream, batch.mode, by=len(batch.rows)
            )
            if batch.stream not in self._asked:
                self._again.difference_update(batch.ids)
            return
        self._awaiting.drop(number)
        if result is Verdict.NEVER:
            self._refuse(batch, f"the broker refuses it (reason code 0x{change.code:02x})")
        else:
            self._send_later(batch, result, now)

    def _send_later(self, batch: Batch, result: Verdict, now: float) -> None:
        self._release(batch.ids)
        if result is Verdict.SPLIT:
            self._alone.update(batch.ids)
            return
        if now >= self._paused_until:
            self._paused_until = now + self._pause.pause_s(now, 0.5)
            why = "nobody subscribes" if result is Verdict.UNHEARD else "the broker is busy"
            log.info("reports wait %.0f s: %s", self._paused_until - now, why)

    def _release(self, ids: tuple[int, ...]) -> None:
        self._again.update(ids)
        self._outbox.release(ids)
        self._backlog = True
        self._live_at = 0.0

    def _resend(self, now: float) -> None:
        """What the control plane has not acknowledged in time is sent again."""
        for batch in self._awaiting.overdue(now):
            self._metrics.count("uplink_resent_total", batch.stream, by=len(batch.rows))
            self._release(batch.ids)

    # -------------------------------------------------------------- in

    def _heard(self, message: Incoming) -> None:
        if message.topic == self._topics.ack:
            self._acknowledged(message.payload)
            return
        try:
            answers = self._ports.heard(message)
        except Exception:  # what is retained would come again at each start, for ever
            self._metrics.count("callback_failures_total")
            log.exception("a message of the control plane failed", extra={"topic": message.topic})
            return
        for answer in answers:
            self._publish(answer, None)

    def _acknowledged(self, payload: bytes) -> None:
        try:
            ack = parse_ack(payload)
        except BatchError as err:
            log.warning("%s", err.message)
            return
        if ack.boot_id != self._boot_id:
            return  # of an earlier run: what it was about is sent again
        stored, refused = self._awaiting.acknowledged(ack)
        self._outbox.confirm(stored)
        for row, reason in refused.items():
            self._outbox.quarantine(row, f"the control plane refuses it: {reason}")
        self._again.difference_update(stored, refused)
        if refused:
            self._metrics.count("uplink_refused_total", by=len(refused))
