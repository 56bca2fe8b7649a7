"""Requests that the broker, or their sender, delivers again are answered again, not run again.

At-least-once delivery repeats messages. The same response topic and correlation data are the same
request, if the rest of it has the same fingerprint: who uses correlation data anew for another
request gets its own answer. Pure, and owned by one thread.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal, TypeAlias

from edged.serve.request import Arrival, Receipt, Reply

MOST_BYTES = 16 * 1024 * 1024
MOST_S = 300.0
OVERHEAD_BYTES = 1024
"""What a kept reply takes besides its payload, about."""

_Key: TypeAlias = tuple[str, bytes, int]


@dataclass(slots=True)
class _InHand:
    key: _Key
    received: float
    reply: Reply | None = None
    joined: tuple[Receipt, ...] = ()


class Duplicates:
    """What is in hand, and what was answered of late.

    Only requests of QoS 1 with correlation data are known, and only answers that would come out the
    same again are kept: after a retryable error the same request may be sent again, and is run.

    Args:
        most_bytes: of replies that are kept; the oldest goes first. 0: none is kept, and what is in
            hand is recognised all the same.
        most_s: for so long after its arrival a request is known.
    """

    def __init__(self, most_bytes: int = MOST_BYTES, most_s: float = MOST_S) -> None:
        self._most_bytes = most_bytes
        self._most_s = most_s
        self._in_hand: dict[_Key, _InHand] = {}
        self._of: dict[int, _InHand] = {}
        # Ordered: the oldest of a plain dict is found by walking over all that were taken out.
        self._done: OrderedDict[_Key, tuple[float, Reply]] = OrderedDict()
        self._bytes = 0

    def __repr__(self) -> str:
        return f"<Duplicates {len(self._of)} in hand, {len(self._done)} kept: {self._bytes} bytes>"

    @property
    def kept_bytes(self) -> int:
        """Size of the replies that are kept."""
        return self._bytes

    def arrived(self, arrival: Arrival) -> Reply | Literal["new", "joined"]:
        """What is to be done with an arrival.

        Returns:
            ``"new"``: run it, and tell `ended`. ``"joined"``: it is in hand, and its receipt is
            given back when that one has ended. A reply: send that.
        """
        receipt = arrival.receipt
        if not (receipt.qos and arrival.correlation and arrival.response_topic) or arrival.retained:
            return "new"
        key = (arrival.response_topic, arrival.correlation, receipt.fingerprint)
        if (first := self._in_hand.get(key)) is not None:
            first.joined += (receipt,)
            return "joined"
        if (done := self._done.get(key)) is not None and arrival.received - done[0] <= self._most_s:
            return done[1]
        self._in_hand[key] = self._of[_number(receipt)] = _InHand(key, arrival.received)
        return "new"

    def answered(self, receipt: Receipt, reply: Reply) -> None:
        """A request has a reply that may be sent again, once it is with the broker."""
        if (entry := self._of.get(_number(receipt))) is not None:
            entry.reply = reply

    def ended(self, receipt: Receipt, *, sent: bool) -> tuple[Receipt, ...]:
        """A request has ended, or was not taken over; the receipts that joined it.

        Args:
            receipt: of the request.
            sent: its reply is with the broker.
        """
        entry = self._of.pop(_number(receipt), None)
        if entry is None:
            return ()
        del self._in_hand[entry.key]
        if sent and entry.reply is not None:
            self._keep(entry, entry.reply)
        return entry.joined

    def _keep(self, entry: _InHand, reply: Reply) -> None:
        self._forget(entry.key)
        self._done[entry.key] = (entry.received, reply)
        self._bytes += _size(reply)
        while self._done:
            oldest = next(iter(self._done))
            late = entry.received - self._done[oldest][0] > self._most_s
            if not late and self._bytes <= self._most_bytes:
                return
            self._forget(oldest)

    def _forget(self, key: _Key) -> None:
        if (done := self._done.pop(key, None)) is not None:
            self._bytes -= _size(done[1])


def _size(reply: Reply) -> int:
    return len(reply.payload) + OVERHEAD_BYTES


def _number(receipt: Receipt) -> int:
    return receipt.epoch << 32 | receipt.order
