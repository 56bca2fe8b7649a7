"""The uplink: what waits in the outbox goes to the control plane, and what it says is heard.

    outbox -> take -> batch -> pack -> link -> PUBACK -> (acknowledgement) -> confirm
    link -> desired settings, commands, acknowledgements -> their handlers

One thread, ``uplink``, does all of this. What is live goes first, at once; what waited for the
connection follows at a limited rate. Nothing leaves the outbox before the broker has it, and, for
streams that ask for it, before the control plane has acknowledged it.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from edged.errors import BatchError, OutboxBusyError
from edged.metrics import Metrics
from edged.protocol import Topics
from edged.report.batch_message import batch_message, encoding
from edged.report.link_messages import Change, Connected, Delivered, Incoming, Lost, Outgoing
from edged.report.outbox import Outbox
from edged.report.sending import Awaiting, Batch, Pace, Verdict, parse_ack, split, verdict
from edged.report.stream_gates import StreamGates
from edged.report.window import Window, wire_bytes
from edged.report_settings import UplinkSettings

log = logging.getLogger(__name__)

MOST_ROWS = 512
"""Rows that are taken out of the outbox at once."""
LOOK_S = 0.1
"""While there is backlog, and for what was not acknowledged, the thread looks so often."""
IDLE_S = 1.0
AGAIN_S = 1.0
"""So often the outbox is looked into unasked: nobody announces what came back with its disk."""
TOLD_S = 3.0
"""A first connection that takes longer is told as an absence."""


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
        restored: the connection is there after so many seconds without.
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

    Attributes:
        window: what is on its way.
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
        self._gates = StreamGates(outbox.streams)
        self.window = Window(settings, ports.publish, metrics)
        self._down_since: float | None = None
        self._told_s = TOLD_S  # an absence that is shorter is not told
        self._number = 0  # of the last batch
        self._ready: deque[Batch] = deque()
        self._again: set[int] = set()  # rows that were sent before
        self._alone: set[int] = set()  # rows that are sent one by one
        self._live_at: float | None = None  # when to look for live rows
        self._backlog = False  # whether there may be some
        self._again_at = 0.0  # when to look for both of itself
        self._finishing: threading.Event | None = None
        self.thread = threading.Thread(target=self._work, name="uplink", daemon=True)

    def __repr__(self) -> str:
        state = "connected" if self.window.connection else "not connected"
        return f"<Uplink {state}, {self.window!r}, {self._awaiting!r}>"

    # -------------------------------------------------------------- for other threads

    def start(self) -> None:
        """Starts the thread."""
        self._down_since = time.monotonic()
        self.thread.start()

    def finish(self, timeout_s: float) -> bool:
        """Waits until what is live has been sent and taken; False: not in time, or no connection.

        Nothing is lost otherwise: it is sent at the next start.
        """
        done = threading.Event()
        self._signals.put(Finish(done))
        return done.wait(timeout_s if self.window.connection is not None else 0.0)

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
            if self.window.connection is not None:
                self._resend(now)
                self._send(now)
            if self._finishing is not None and not self._busy():
                self._finishing.set()
                self._finishing = None

    def _busy(self) -> bool:
        return bool(self.window.busy or self._ready or self._live_at is not None)

    def _wait_s(self, now: float) -> float:
        """Seconds until there is something to do by itself."""
        if self.window.connection is None:
            return IDLE_S
        if self.window.full:
            return LOOK_S  # an acknowledgement wakes it
        waits = self._backlog or self._ready or self._awaiting.rows or self._gates.any_shut
        pause = LOOK_S if waits else IDLE_S
        return pause if self._live_at is None else min(pause, max(0.0, self._live_at - now))

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
            self.window.say(signal)
        elif isinstance(signal, Connected):
            self._connected(signal, now)
        else:
            self._lost(signal, now)

    # -------------------------------------------------------------- the connection

    def _connected(self, connection: Connected, now: float) -> None:
        self.window.connected(connection)
        self._outbox.begin_backlog()
        self._backlog = True
        self._live_at = now
        self._gates.connected()
        for message in self._ports.greeting():
            self.window.say(message)
        if self._down_since is not None and now - self._down_since > self._told_s:
            self._ports.restored(now - self._down_since)
        self._down_since, self._told_s = None, 0.0

    def _lost(self, change: Lost, now: float) -> None:
        del change
        self.window.lost()
        self._down_since = now
        self._ready.clear()
        self._again.clear()
        self._alone.clear()
        self._awaiting.clear()
        self._outbox.release_all()

    # -------------------------------------------------------------- out

    def _send(self, now: float) -> None:
        """Sends what the window lets through: live rows first, then backlog at its rate."""
        if now >= self._again_at:
            self._again_at = now + AGAIN_S
            self._backlog = True
            self._live_at = now if self._live_at is None else self._live_at
        with contextlib.suppress(OutboxBusyError):  # it is looked for again
            self._send_what_waits(now)

    def _send_what_waits(self, now: float) -> None:
        while self._flush(now):
            if self._gates.look(now, self._awaiting.by_stream):
                self._backlog, self._live_at = True, now
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
        """Takes rows out of the outbox; how many.

        Raises:
            OutboxBusyError: it did not answer; that says nothing about what is in it.
        """
        most = self._settings.max_message_bytes
        taken = self._outbox.take(rows, most, backlog, self._gates.open)
        replayed = {row.id for row in taken} if backlog else self._again
        limit = self.window.most_bytes
        for row in [row for row in taken if row.id in self._alone]:
            self._ready += split([row], limit, replayed)
        together = [row for row in taken if row.id not in self._alone]
        self._ready += split(together, limit, replayed)
        self._alone.difference_update(row.id for row in taken)
        return len(taken)

    def _flush(self, now: float) -> bool:
        """Sends batches that are ready; whether the window has room for more."""
        while self.window.flush():
            if not self._ready:
                return True
            batch = self._ready.popleft()
            if not self._send_batch(batch, now):
                return False
        return False

    def _send_batch(self, batch: Batch, now: float) -> bool:
        """Sends a batch, or puts it aside; False if the connection is gone."""
        self._number += 1
        message = batch_message(
            batch, self._number, self._topics, self._boot_id, compress=self._settings.compress
        )
        size, limit = wire_bytes(message), self.window.most_bytes
        if size > limit:
            self._refuse(batch, f"the record makes a message of {size} bytes; {limit} may be sent")
            return True
        if not self.window.send(message, (self._number, batch)):
            return False  # everything is sent again at the next connection
        if batch.stream in self._asked:
            self._awaiting.add(self._number, batch, now)
        self._metrics.count("uplink_bytes_total", encoding(message), by=len(message.payload))
        return True

    def _refuse(self, batch: Batch, reason: str) -> None:
        for row in batch.rows:
            self._outbox.quarantine(row.id, reason)
        self._again.difference_update(batch.ids)
        self._metrics.count("uplink_refused_total", by=len(batch.rows))

    # -------------------------------------------------------------- what became of it

    def _delivered(self, change: Delivered, now: float) -> None:
        flight = self.window.delivered(change)
        if flight is None:
            return
        number, batch = flight
        needs = self._settings.require_subscriber
        result = verdict(change.code, len(batch.rows), needs_subscriber=needs)
        if result is Verdict.TAKEN:
            self._gates.taken(batch.stream)
            self._outbox.sent(batch.ids)
            labels = (batch.stream, batch.mode)
            self._metrics.count("uplink_messages_total", *labels)
            self._metrics.count("uplink_records_total", *labels, by=len(batch.rows))
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
        elif (pause_s := self._gates.turned_down(batch.stream, now)) is not None:
            why = "nobody subscribes" if result is Verdict.UNHEARD else "the broker is busy"
            log.info("reports wait %.0f s: %s", pause_s, why, extra={"stream": batch.stream})
            for each in [each for each in self._ready if each.stream == batch.stream]:
                self._ready.remove(each)
                self._release(each.ids)

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
            self.window.say(answer)

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
