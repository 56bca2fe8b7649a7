"""QoS 1 on its way out: packet identifiers, the send window, and what is sent again. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from edged.mqtt.codec import again

IDENTIFIERS = 65535


@dataclass(slots=True)
class Outgoing:
    """A PUBLISH of QoS 1.

    Attributes:
        mid: its packet identifier.
        head: everything before the payload, as it is sent for the first time.
        payload: the body.
        dup: the session that the broker has may have seen it.
    """

    mid: int
    head: bytes
    payload: bytes | memoryview
    dup: bool = False

    def begin(self) -> bytes:
        """What is sent before the payload."""
        return again(self.head) if self.dup else self.head


class InFlight:
    """What the broker has not acknowledged.

    At most a window of messages is on the wire, whatever they are; the others wait for their turn.
    """

    def __init__(self) -> None:
        self._sent: dict[int, Outgoing] = {}
        self._waiting: deque[Outgoing] = deque()
        self._taken: set[int] = set()
        self._last = 0
        self._window = 0

    def __repr__(self) -> str:
        return f"<InFlight {len(self._sent)} of {self._window} sent, {len(self._waiting)} wait>"

    def __len__(self) -> int:
        return len(self._sent) + len(self._waiting)

    def identifier(self) -> int:
        """A packet identifier that is free, and taken from now on until `release`.

        Raises:
            ValueError: all 65,535 are taken.
        """
        if len(self._taken) >= IDENTIFIERS:
            raise ValueError(f"all {IDENTIFIERS} packet identifiers are taken; nothing more fits")
        mid = self._last
        while True:
            mid = mid % IDENTIFIERS + 1
            if mid not in self._taken:
                self._last = mid
                self._taken.add(mid)
                return mid

    def release(self, mid: int) -> None:
        """An identifier is free again."""
        self._taken.discard(mid)

    def put(self, message: Outgoing) -> None:
        """A message is to be sent, in its turn."""
        self._waiting.append(message)

    def forget(self, mid: int) -> bool:
        """Takes back what was never sent; False if it was, or there is no such message."""
        for at, message in enumerate(self._waiting):
            if message.mid == mid and not message.dup:
                del self._waiting[at]
                self._taken.discard(mid)
                return True
        return False

    def due(self) -> Iterator[Outgoing]:
        """What may be sent now, in order; it counts as sent."""
        while self._waiting and len(self._sent) < self._window:
            message = self._waiting.popleft()
            self._sent[message.mid] = message
            yield message

    def acknowledged(self, mid: int) -> bool:
        """The broker has it; False if nothing of that identifier was sent."""
        if self._sent.pop(mid, None) is None:
            return False
        self._taken.discard(mid)
        return True

    def connected(self, window: int, *, session_present: bool) -> None:
        """A connection stands: what was sent and not acknowledged goes first, in its order.

        Args:
            window: the smaller of our own limit and the broker's receive maximum.
            session_present: the broker may have it already, so it is marked as sent again.
        """
        for message in self._sent.values():
            message.dup = True
        self._waiting.extendleft(reversed(self._sent.values()))
        if not session_present:
            for message in self._waiting:
                message.dup = False
        self._sent.clear()
        self._window = window

    def disconnected(self) -> None:
        """Nothing may be sent."""
        self._window = 0
