"""Arrivals in, requests into the waiting room, in the order in which they came.

What is cheap to decode is decoded where it arrives, on the link's thread: to hand it to another one
would cost more. Large JSON and images go to a few threads of their own, where the decoders let go
of the interpreter lock; while any of those is in work everything goes that way, so that no request
overtakes another.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import TypeAlias

from edged import protocol
from edged.errors import EdgedError, InternalError
from edged.serve.request import Arrival, Outcome, ReplyTo, Request, Unanswerable

log = logging.getLogger(__name__)

ARRIVALS = 1024
"""QoS 0 requests that wait to be decoded."""
ARRIVAL_BYTES = 256 * 1024 * 1024
"""Bodies that wait to be decoded; QoS 1 may fill as much again, as mosquitto 2.0.11 does not keep
to our receive maximum while acknowledgements flow."""
CHEAP_BYTES = 4096
"""JSON up to this size is decoded in less time than a change of threads takes."""
THREADS = min(4, os.cpu_count() or 1)

Ended: TypeAlias = Outcome | Unanswerable


@dataclass(frozen=True)
class IntakePorts:
    """What the intake calls.

    Attributes:
        reply_to: where a request's answer goes; raises `EdgedError` if nowhere.
        decode: the request itself; raises `EdgedError`.
        put: admits a request and, if asked to, wakes the devices; raises `EdgedError`.
        letter: what ends a request that nobody can be answered for.
        ended: takes over what has ended already; the flag: it may wait.
    """

    reply_to: Callable[[Arrival], ReplyTo]
    decode: Callable[[Arrival, ReplyTo], Request]
    put: Callable[[Request, bool], None]
    letter: Callable[[Arrival, EdgedError], Unanswerable]
    ended: Callable[[Ended, bool], None]


class Intake:
    """Decodes and admits.

    Args:
        ports: what it calls.
        busy_since: gets the monotonic time since when each of its threads has been at work.
        threads: for what is not cheap.
    """

    def __init__(
        self,
        ports: IntakePorts,
        busy_since: MutableMapping[str, float],
        threads: int = THREADS,
    ) -> None:
        self._ports = ports
        self._busy_since = busy_since
        self._queue: queue.SimpleQueue[tuple[int, Arrival] | None] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._queued = 0  # written by the link's thread alone
        self._bytes_in = 0  # likewise
        self._order = threading.Lock()
        self._decoded: list[tuple[int, Arrival, Request | Ended]] = []  # a heap
        self._next = 0  # number of the next one to be admitted
        self._bytes_out = 0
        self._threads = tuple(
            threading.Thread(target=self._work, name=f"intake-{n}", daemon=True)
            for n in range(threads)
        )

    def __repr__(self) -> str:
        return f"<Intake {self.waiting} wait to be decoded>"

    @property
    def waiting(self) -> int:
        """Arrivals that are queued or in work."""
        return self._queued - self._next

    def start(self) -> None:
        """Starts the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float) -> None:
        """Ends the threads once all that is queued was admitted or has ended."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout_s)

    def dead(self) -> str | None:
        """Name of a thread that has died."""
        return next((each.name for each in self._threads if not each.is_alive()), None)

    # -------------------------------------------------------------- on the link's thread

    def take(self, arrival: Arrival, *, at_once: bool) -> bool:
        """Takes an arrival over; False if there is no room.

        Args:
            arrival: from the link.
            at_once: it may be decoded here, if it is cheap.
        """
        if at_once and self._queued == self._next and is_cheap(arrival):
            self._admit(self._decode(arrival), at_once=True)
            return True
        qos, size = arrival.receipt.qos, len(arrival.payload)
        held = self._bytes_in - self._bytes_out
        # In number, QoS 1 is bounded by the packet identifiers. One always fits.
        if held and held + size > ARRIVAL_BYTES * (1 + qos):
            return False
        if not qos and self._queue.qsize() >= ARRIVALS:
            return False
        self._bytes_in += size
        self._queued += 1
        self._queue.put((next(self._numbers), arrival))
        return True

    # -------------------------------------------------------------- on its own threads

    def _work(self) -> None:
        name = threading.current_thread().name
        while (numbered := self._queue.get()) is not None:
            number, arrival = numbered
            self._busy_since[name] = time.monotonic()
            self._in_order(number, arrival, self._decode(arrival))
            self._busy_since.pop(name, None)

    def _in_order(self, number: int, arrival: Arrival, decoded: Request | Ended) -> None:
        """Admits what is next; what was decoded too early waits for the one before it."""
        with self._order:
            heapq.heappush(self._decoded, (number, arrival, decoded))
            while self._decoded and self._decoded[0][0] == self._next:
                _, arrival, decoded = heapq.heappop(self._decoded)
                self._admit(decoded, at_once=False)
                self._bytes_out += len(arrival.payload)
                self._next += 1

    # -------------------------------------------------------------- on either

    def _decode(self, arrival: Arrival) -> Request | Ended:
        """The request, or how it has ended; never raises."""
        try:
            to = self._ports.reply_to(arrival)
        except EdgedError as err:
            return self._ports.letter(arrival, err)
        except Exception:
            log.exception("a request could not be read", extra={"topic": arrival.topic[:200]})
            return Unanswerable(arrival.receipt, InternalError.code)
        try:
            return self._ports.decode(arrival, to)
        except EdgedError as err:
            # With its traceback it would keep the whole body until the next collection.
            return unreadable(arrival, to, err.with_traceback(None))
        except Exception:
            # A message that trips over a fault of ours must not come back for ever.
            log.exception("a request could not be decoded", extra={"topic": arrival.topic[:200]})
            why = "the request could not be read; the device's log has the details"
            return unreadable(arrival, to, InternalError(why))

    def _admit(self, decoded: Request | Ended, *, at_once: bool) -> None:
        if isinstance(decoded, Request):
            try:
                self._ports.put(decoded, not at_once)
            except EdgedError as err:
                decoded = refused(decoded, err.with_traceback(None))
            except Exception:
                log.exception("a request could not be admitted", extra={"model": decoded.model})
                why = "the request could not be admitted; the device's log has the details"
                decoded = refused(decoded, InternalError(why))
            else:
                return
        self._ports.ended(decoded, not at_once)


def unreadable(arrival: Arrival, to: ReplyTo, error: EdgedError) -> Outcome:
    """The end of a request that was not understood."""
    return Outcome(arrival.receipt, to, model="", error=error, received=arrival.received)


def refused(request: Request, error: EdgedError) -> Outcome:
    """The end of a request that was not let in."""
    return Outcome(
        receipt=request.receipt,
        reply_to=request.reply_to,
        model=request.model,
        id=request.id,
        error=error,
        received=request.received,
        deadline=request.deadline,
    )


def is_cheap(arrival: Arrival) -> bool:
    """Whether decoding takes some ten microseconds at most: a short JSON header, or little JSON."""
    length = arrival.user.get(protocol.HEADER_LENGTH)
    if length is not None:  # tensors behind the header are views, whatever their size
        return len(length) < 4 or len(arrival.payload) <= CHEAP_BYTES
    return len(arrival.payload) <= CHEAP_BYTES and not arrival.content_type.startswith("image/")
