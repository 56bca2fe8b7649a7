"""The request path: the order of its stages, their threads, and the queues between them.

mqtt        thread mqtt-net    broker -> Arrival
  | arrivals: bounded; full: dropped, counted. Cheap ones are decoded at once, without it
decode      threads intake-N   Arrival -> Request, or the error to answer with
admit                          Request -> waiting room, or the refusal to answer with
batch       (waiting room)     asks the timer
gpu         who brings it      Batch -> lane -> Done; large ones and armed times: thread gpu-N
  | inbox: bounded by slots; full: intake and devices wait
gather      thread mqtt-net    Done -> Outcome, once a request
encode                         Outcome -> Reply
publish                        Reply -> broker; its PUBACK -> the request's PUBACK

What arrives and what ends meet on one thread, the link's: each change of threads costs more than
decoding and encoding a small request does (docs/benchmarks.md). It never waits here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from threading import get_ident
from typing import TypeAlias

from edged import protocol
from edged.errors import EdgedError, NonFiniteOutputError
from edged.metrics import Metrics
from edged.serve.batch import WaitingRoom
from edged.serve.crash_journal import CrashJournal
from edged.serve.decode import Decoder
from edged.serve.duplicates import Duplicates
from edged.serve.encode import dead_letter, encode
from edged.serve.gather import Gatherer, rows_of
from edged.serve.gpu import Device, Done, superseded
from edged.serve.intake import ARRIVALS, Intake, IntakePorts
from edged.serve.link_handlers import LinkHandlers
from edged.serve.pipeline_ports import Sender, Watchers
from edged.serve.poison import PoisonCheck
from edged.serve.publish import Publisher, PublisherPorts
from edged.serve.request import (
    Arrival,
    LinkDown,
    LinkUp,
    Outcome,
    Receipt,
    Rejected,
    Reply,
    ReplyFormat,
    Request,
    Unanswerable,
)
from edged.serve.suspects import Suspects
from edged.serve.tally import Tally

log = logging.getLogger(__name__)

SLOTS = 256
"""Outcomes and batches of other threads that may wait to be answered."""
NON_FINITE = "the engine's answer holds NaN or infinity; look at the values that were sent"
BACKLOG = 1024
"""Replies that may wait for the broker before intake and devices are held back."""
LET_IN = 256
"""Arrivals that waited go on in one turn, at most."""
Item: TypeAlias = Outcome | Done | Unanswerable | Rejected | LinkUp | LinkDown | int
"""What has ended; an int is the packet identifier of a delivery."""


class Pipeline:
    """All stages and threads between the broker's delivery and the broker's acknowledgement.

    Args:
        decoder: bytes to requests.
        formats: what replies carry, for each model that is served.
        room: the waiting room.
        metrics: counters.
        watchers: who else wants to know.
        dead_topic: where requests are named that nobody can be answered for.
        duplicates: recognises requests that come again.
        journal: knows those that the process has died of.
    """

    def __init__(
        self,
        decoder: Decoder,
        formats: Mapping[str, ReplyFormat],
        room: WaitingRoom,
        metrics: Metrics,
        watchers: Watchers,
        *,
        dead_topic: str,
        duplicates: Duplicates | None = None,
        journal: CrashJournal | None = None,
    ) -> None:
        self._formats = formats
        self._dead_topic = dead_topic
        self._max_packet_bytes = 0
        self._room = room
        self._metrics = metrics
        self._watchers = watchers
        self._tally = Tally(metrics, watchers.answered)
        self._devices: tuple[Device, ...] = ()
        self._inbox: deque[Item] = deque()
        self._turning = threading.Lock()
        self._turner = 0  # the thread that is at it
        self._broken = False
        self._slots = threading.Semaphore(SLOTS)
        self._owed = 0  # slots taken up, given back once the backlog is short
        self._gatherer = Gatherer()
        self._sender: Sender | None = None
        ports = PublisherPorts(self._send, self._acknowledge, self._ended, self._repeated)
        self._publisher = Publisher(ports, duplicates or Duplicates())
        self._accepted = self._finished = 0  # written by mqtt-net alone
        self._connected = False
        self._draining = False
        self._idle = threading.Event()
        self._busy_since: dict[str, float] = {}
        journal = journal or CrashJournal(None, 0.0)
        self._suspects = Suspects(journal.deaths, journal.forget)
        self._intake = Intake(
            IntakePorts(
                decoder.reply_to,
                PoisonCheck(decoder.decode, journal, self._suspects.refused, self._bury),
                self._admit,
                self._unanswerable,
                self._hand_over,
            ),
            self._busy_since,
        )

    def __repr__(self) -> str:
        counts = f"{self._intake.waiting} arrived, {len(self._inbox)} to answer"
        return f"<Pipeline {self.outstanding} outstanding: {counts}, {self._publisher!r}>"

    # -------------------------------------------------------------- life

    def start(self, sender: Sender, devices: Iterable[Device]) -> None:
        """Starts all threads; requests may arrive from now on."""
        self._sender = sender
        self._devices = tuple(devices)
        for device in self._devices:
            device.thread.start()
        self._intake.start()
        sender.wake()

    @property
    def outstanding(self) -> int:
        """Requests that arrived and have not ended."""
        return self._accepted - self._finished

    def drain(self, timeout_s: float) -> int:
        """Refuses new requests, finishes those in hand; how many are left after ``timeout_s``."""
        self._draining = True
        self._room.drain()
        until = time.monotonic() + timeout_s
        while self.outstanding and (left := until - time.monotonic()) > 0:
            self._idle.wait(left)
            self._idle.clear()
        return self.outstanding

    def stop(self, timeout_s: float = 5.0) -> None:
        """Ends all threads. What is still in hand is left to the broker to deliver again."""
        self._room.close()
        self._slots.release(SLOTS + BACKLOG)  # nobody is to wait for a place any more
        self._intake.stop(timeout_s)
        for device in self._devices:
            device.thread.join(timeout_s)
        self.turn()

    def dead(self) -> str | None:
        """Name of a thread that has died, which ends the service."""
        if self._broken:
            return "mqtt-net"
        dead = next((name for device in self._devices if (name := device.dead())), None)
        return dead or self._intake.dead()

    def stuck(self, now: float, stuck_s: float) -> str | None:
        """Why the watchdog should not be fed: work that has not moved for ``stuck_s``."""
        for device in self._devices:
            if (running := device.running_s(now)) > stuck_s:
                return f"a batch has been on {device.name} for {running:.0f} s"
        if self._connected:  # without a broker, replies wait and hold everything back: no fault
            for name, since in list(self._busy_since.items()):
                if now - since > stuck_s:
                    return f"thread {name} has made no progress for {now - since:.0f} s"
        return None

    # -------------------------------------------------------------- on mqtt-net: arrivals

    def handlers(self, status: Callable[[str, int], bytes]) -> LinkHandlers:
        """What the broker link calls; ``status``: see there."""
        return LinkHandlers(
            self.arrived, self.delivered, self.link_changed, status, self.turn, self.settled
        )

    def arrived(self, arrival: Arrival) -> bool:
        """Takes a PUBLISH over; False if there is no room, which is counted.

        QoS 0 is lost then. QoS 1 gets no acknowledgement, so the broker delivers it again on the
        next connection; while the service drains that is where it is left.
        """
        self._metrics.count("arrivals_total")
        # Counted first: either `drain` awaits it, or what it has set is seen here.
        self._accepted += 1
        if self._draining and arrival.receipt.qos:
            return self._not_taken("draining")
        if self._publisher.arrived(arrival):
            return True
        if self._suspects.waiting >= ARRIVALS and not arrival.receipt.qos:
            return self._not_taken("arrivals_full")
        # What has to wait goes on in a turn.
        if self._suspects.arrived(arrival) and not self._take(arrival):
            self._suspects.ended(arrival.receipt)
            self._publisher.not_taken(arrival.receipt)
            return self._not_taken("arrivals_full")
        return True

    def _take(self, arrival: Arrival) -> bool:
        held_back = self._publisher.backlog + len(self._inbox) >= BACKLOG
        return self._intake.take(arrival, at_once=self._sender is not None and not held_back)

    def _let_in(self) -> None:
        """What waited for suspects to be tried, so many in a turn that replies are not held up."""
        for _ in range(LET_IN):
            if (arrival := self._suspects.next()) is None:
                return
            if not self._take(arrival):
                self._suspects.back(arrival)
                return
        self._wake()

    def _not_taken(self, reason: str) -> bool:
        self._tally.dropped(reason)
        self._accepted -= 1
        self._look_idle()
        return False

    def delivered(self, mid: int, accepted: bool = True) -> None:  # noqa: FBT001, FBT002  # a plain fact
        """The broker acknowledged a PUBLISH of ours, or rejected it; `turn` does the rest."""
        self._inbox.append(mid if accepted else Rejected(mid))

    def link_changed(self, change: LinkUp | LinkDown) -> None:
        """The connection came or went; `turn` does the rest."""
        self._inbox.append(change)

    # -------------------------------------------------------------- on any thread: hand over

    def _unanswerable(self, arrival: Arrival, error: EdgedError) -> Unanswerable:
        document = dead_letter(arrival, error, ts=time.time())
        letter = Reply(self._dead_topic, document, content_type=protocol.JSON)
        return Unanswerable(arrival.receipt, error.code, letter)

    def _bury(self, arrival: Arrival, error: EdgedError) -> None:
        if (letter := self._unanswerable(arrival, error).letter) is not None:
            self._send(letter)

    def _hand_over(self, item: Outcome | Done | Unanswerable, wait: bool = True) -> None:  # noqa: FBT001, FBT002  # `IntakePorts`
        """For `turn`. Waits for a slot where it may."""
        if wait and get_ident() != self._turner:
            self._slots.acquire()
            self._inbox.append(item)
            self._wake()
        else:
            self._inbox.append(item)
            self._owed -= 1  # it took no slot

    def _admit(self, request: Request, wait: bool) -> None:  # noqa: FBT001  # `IntakePorts`
        """Into the waiting room; what it takes the place of is answered."""
        if older := self._room.put(request, call=wait):
            self._hand_over(superseded(older), wait)

    def _wake(self) -> None:
        if self._sender is not None:
            self._sender.wake()

    def done(self, done: Done) -> None:
        """Parts ended; devices wait here while too much waits for the broker, but on mqtt-net."""
        self._tally.batch(done)
        self._hand_over(done)

    # -------------------------------------------------------------- on mqtt-net: what has ended

    def turn(self) -> None:
        """Answers what has ended, and has devices start what is due by what has arrived."""
        if self._sender is None or not (self._inbox or self._room.call_due):
            return
        with self._turning:  # of one thread's, but for the last turn of `stop`
            self._turner = get_ident()
            try:
                self._answer_all()
                if self._room.due():
                    for device in self._devices:
                        device.pull()
                    self._answer_all()
            except Exception:
                self._broken = True  # and the process ends: what was in hand comes again
                raise
            finally:
                self._turner = 0
            if self._owed > 0 and self._publisher.backlog < BACKLOG:
                self._slots.release(self._owed)
                self._owed = 0
            self._let_in()

    def settled(self) -> None:
        """Wakes the devices' threads, once for all of a turn."""
        self._room.call()

    def _answer_all(self) -> None:
        while self._inbox:
            self._handle(self._inbox.popleft())

    def _handle(self, item: Item) -> None:
        if isinstance(item, int):
            self._publisher.delivered(item)
            return
        self._owed += isinstance(item, (Done, Outcome, Unanswerable))
        if isinstance(item, Done):
            self._gather(item)
        elif isinstance(item, Outcome):
            self._answer(item)
        elif isinstance(item, Rejected):
            self._publisher.rejected(item.mid)
        elif isinstance(item, Unanswerable):
            self._drop(item)
        else:
            self._link_changed(item)

    def _link_changed(self, change: LinkUp | LinkDown) -> None:
        self._connected = isinstance(change, LinkUp)
        if isinstance(change, LinkUp):
            self._max_packet_bytes = change.max_packet_bytes
            self._publisher.connected(change.epoch, change.window)
        else:
            self._publisher.disconnected()
        self._watchers.link(change)

    def _gather(self, done: Done) -> None:
        row = 0
        for index, part in enumerate(done.parts):
            rows = rows_of(done.outputs, row, part, done.length_axes)
            row += part.samples
            error = NonFiniteOutputError(NON_FINITE) if index in done.nonfinite else done.error
            outcome = self._gatherer.add(part, rows, done.timings(part), error, done.version)
            if outcome is not None:
                self._answer(outcome)

    def _answer(self, outcome: Outcome) -> None:
        self._suspects.ended(outcome.receipt)
        self._publisher.reply(outcome, self._encode(outcome))

    def _encode(self, outcome: Outcome) -> Reply | None:
        shape = self._formats.get(outcome.model, ReplyFormat())
        try:
            return encode(
                outcome,
                now=time.monotonic(),
                version=outcome.version or shape.version,
                labels=shape.labels,
                max_packet_bytes=self._max_packet_bytes,
            )
        except Exception:
            # One reply that trips over a fault of ours must not end all others.
            log.exception("a reply could not be encoded", extra={"model": outcome.model})
            return None

    def _drop(self, item: Unanswerable) -> None:
        self._tally.dropped(item.reason)
        if item.letter is not None:
            self._send(item.letter)
        self._suspects.ended(item.receipt)
        self._publisher.dropped(item.receipt)
        self._count_end()

    def _send(self, reply: Reply) -> int | None:
        return self._sender.publish(reply) if self._sender is not None else None

    def _acknowledge(self, receipt: Receipt) -> bool:
        if self._sender is not None and self._sender.acknowledge(receipt):
            return True
        self._metrics.count("acknowledgements_void_total")
        return False

    def _ended(self, outcome: Outcome, sent: bool) -> None:  # noqa: FBT001  # a plain fact
        self._tally.ended(outcome, sent=sent)
        self._count_end()

    def _repeated(self, how: str) -> None:
        self._tally.repeated(how)
        self._count_end()

    def _count_end(self) -> None:
        self._finished += 1
        self._look_idle()

    def _look_idle(self) -> None:
        if self._draining and not self.outstanding:
            self._idle.set()
