"""Send the reply, and only when the broker has it acknowledge the request. Owned by one thread.

Nothing here waits or locks: `Publisher` is a state machine that is fed with what happened
(an outcome, a delivery, a connection that came or went).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from edged.serve.duplicates import Duplicates
from edged.serve.request import Arrival, Outcome, Receipt, Reply


class AckQueue:
    """Releases acknowledgements in the order of arrival, as MQTT demands [MQTT-4.6.0-2].

    Receipts of one connection are numbered 1, 2, 3 ...; those of an earlier connection are void.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self._next = 1
        self._finished: list[tuple[int, Receipt]] = []

    def __repr__(self) -> str:
        return f"<AckQueue next {self._next}, {len(self._finished)} wait for it>"

    def connected(self, epoch: int) -> None:
        """A new connection: what was pending is void, the broker delivers it again."""
        if epoch <= self.epoch:  # a receipt of it, or of a later one, was here first
            return
        self.epoch = epoch
        self._next = 1
        self._finished.clear()

    def finished(self, receipt: Receipt) -> list[Receipt]:
        """A request has ended; returns the receipts to acknowledge now, in order.

        An arrival of a new connection may end before `connected` tells of it: with one of an
        earlier connection that ends late, and that it repeats.
        """
        if receipt.epoch > self.epoch:
            self.connected(receipt.epoch)
        if receipt.qos == 0 or receipt.epoch != self.epoch:
            return []
        heapq.heappush(self._finished, (receipt.order, receipt))
        ready = []
        while self._finished and self._finished[0][0] == self._next:
            ready.append(heapq.heappop(self._finished)[1])
            self._next += 1
        return ready


@dataclass(frozen=True)
class PublisherPorts:
    """What the publisher calls.

    Attributes:
        send: hands a PUBLISH to the link; the packet identifier, or None if it was not taken.
        acknowledge: sends a PUBACK; False if its connection is gone.
        ended: a request has ended, with its receipt and whether its reply went out.
        repeated: an arrival has ended that was not run, because it had come before: ``joined`` the
            one in hand, ``resent`` its reply, or ``unsent`` where that did not go out.
    """

    send: Callable[[Reply], int | None]
    acknowledge: Callable[[Receipt], bool]
    ended: Callable[[Outcome, bool], None]
    repeated: Callable[[str], None]


class Publisher:
    """Replies on their way out, within the broker's receive maximum.

    Args:
        ports: what it calls.
        duplicates: recognises what comes again.
    """

    def __init__(self, ports: PublisherPorts, duplicates: Duplicates) -> None:
        self._ports = ports
        self._duplicates = duplicates
        self._acks = AckQueue()
        self._connected = False
        self._window = 1
        # A receipt alone: of an arrival that is answered with a reply of before.
        self._sent: dict[int, Outcome | Receipt] = {}
        self._backlog: deque[tuple[Outcome | Receipt, Reply]] = deque()

    def __repr__(self) -> str:
        state = "connected" if self._connected else "not connected"
        return (
            f"<Publisher {state}, {len(self._sent)} of {self._window} in flight, "
            f"{len(self._backlog)} wait>"
        )

    @property
    def backlog(self) -> int:
        """Replies that wait for the window or the connection."""
        return len(self._backlog)

    def connected(self, epoch: int, window: int) -> None:
        """A connection stands; replies sent on an earlier one are sent again by the client."""
        self._acks.connected(epoch)
        self._connected = True
        self._window = window
        self._flush()

    def disconnected(self) -> None:
        """The connection is gone: QoS 1 replies wait, QoS 0 ones are dropped."""
        self._connected = False

    def arrived(self, arrival: Arrival) -> bool:
        """Whether a request has come before: then it is taken care of, and must not be run.

        Else `reply` or `dropped` ends it, or `not_taken`.
        """
        found = self._duplicates.arrived(arrival)
        if isinstance(found, Reply):
            self._backlog.append((arrival.receipt, found))
            self._flush()
        return found != "new"

    def not_taken(self, receipt: Receipt) -> None:
        """A request that `arrived` will come again."""
        self._duplicates.ended(receipt, sent=False)

    def reply(self, outcome: Outcome, reply: Reply | None) -> None:
        """Sends a reply, or keeps it until it may be sent; None: there is none to send."""
        if reply is None:
            self._end(outcome, sent=False)
        elif reply.qos == 0:
            sent = self._connected and self._ports.send(reply) is not None
            self._end(outcome, sent=sent)
        else:
            if outcome.error is None or not outcome.error.retryable:
                self._duplicates.answered(outcome.receipt, reply)
            self._backlog.append((outcome, reply))
            self._flush()

    def delivered(self, mid: int) -> None:
        """The broker acknowledged a PUBLISH of ours (which need not be a reply)."""
        outcome = self._sent.pop(mid, None)
        if outcome is not None:
            self._end(outcome, sent=True)
            self._flush()

    def rejected(self, mid: int) -> None:
        """The broker refused a PUBLISH of ours: a reply in it is lost, and counted as such."""
        outcome = self._sent.pop(mid, None)
        if outcome is not None:
            self._end(outcome, sent=False)
            self._flush()

    def dropped(self, receipt: Receipt) -> None:
        """An arrival ended without any reply; it must not hold up the order."""
        self._release(receipt, sent=False)

    def _flush(self) -> None:
        while self._connected and self._backlog and len(self._sent) < self._window:
            outcome, reply = self._backlog.popleft()
            mid = self._ports.send(reply)
            if mid is None:
                self._end(outcome, sent=False)
            else:
                self._sent[mid] = outcome

    def _end(self, ended: Outcome | Receipt, *, sent: bool) -> None:
        # In this order: a drain that has seen all end disconnects, owing the broker nothing.
        if isinstance(ended, Receipt):
            self._acknowledge(ended)
            self._ports.repeated("resent" if sent else "unsent")
            return
        self._release(ended.receipt, sent=sent)
        self._ports.ended(ended, sent)

    def _release(self, receipt: Receipt, *, sent: bool) -> None:
        """Acknowledges an arrival, and those that came after it for the same request."""
        self._acknowledge(receipt)
        for joined in self._duplicates.ended(receipt, sent=sent):
            self._acknowledge(joined)
            self._ports.repeated("joined")

    def _acknowledge(self, receipt: Receipt) -> None:
        for ready in self._acks.finished(receipt):
            self._ports.acknowledge(ready)
