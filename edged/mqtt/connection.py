"""One connection to a broker: its socket, what is received, and what is to be sent.

Not thread-safe. Nothing waits here but `wait`, and whoever holds a lock while it calls the rest
holds it for a moment.
"""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Iterator

from edged.mqtt.receiver import Receiver
from edged.mqtt.stream import Stream

JOIN_BYTES = 64 * 1024
"""Pieces up to this size are sent in one call; larger ones go out as they are, uncopied."""
_READS = 16
"""Calls of the socket in one turn, so that replies are not held back by a flood of requests."""


class Wake:
    """Ends another thread's sleep."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._woken = False

    def __del__(self) -> None:
        os.close(self.fd)

    def wake(self) -> None:
        """From any thread, after what it is about was queued; many at once cost one call."""
        if not self._woken:
            self._woken = True
            os.eventfd_write(self.fd, 1)

    def clear(self) -> None:
        """By the woken thread, before it looks at what was queued."""
        os.eventfd_read(self.fd)
        self._woken = False

    def wait(self, timeout_s: float) -> None:
        """Sleeps until it is woken."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        if poll.poll(timeout_s * 1e3):
            self.clear()


class Connection:
    """Buffers around a stream.

    Args:
        stream: connected.
        max_packet_bytes: largest packet that is taken.
        wake: ends a `wait`.
    """

    def __init__(self, stream: Stream, max_packet_bytes: int, wake: Wake) -> None:
        self._stream = stream
        self._receiver = Receiver(max_packet_bytes)
        self._wake = wake
        self._out: deque[bytes | memoryview] = deque()
        self._sending: memoryview | None = None
        self.unsent_bytes = 0
        self._poll = select.poll()
        self._poll.register(wake.fd, select.POLLIN)
        self._events = select.POLLIN
        self._poll.register(stream, select.POLLIN)

    def __repr__(self) -> str:
        return f"<Connection {self.unsent_bytes} bytes to send, {self._receiver!r}>"

    def wait(self, timeout_s: float) -> bool:
        """Waits for the broker or for a wake; whether there is something to receive."""
        events = select.POLLIN | (select.POLLOUT if self.unsent else 0)
        if events != self._events:
            self._events = events
            self._poll.modify(self._stream, events)
        pending = self._stream.pending()
        seen = dict(self._poll.poll(0 if pending else timeout_s * 1e3))
        if seen.pop(self._wake.fd, 0):
            self._wake.clear()
        # Anything but "may be written": also an error or an end shows up as bytes that are missing.
        return pending or any(event & ~select.POLLOUT for event in seen.values())

    def packets(self) -> Iterator[tuple[int, memoryview]]:
        """What has come; see `Receiver.next` for how long it is valid.

        Raises:
            ConnectionError: the broker has closed, or the connection is broken.
            BrokerProtocolError: it is no MQTT.
        """
        receiver, stream = self._receiver, self._stream
        for _ in range(_READS):
            space = receiver.space()
            try:
                count = stream.recv_into(space)
            except BlockingIOError:
                return
            if not count:
                raise ConnectionResetError("the broker closed the connection")
            receiver.received(count)
            while (packet := receiver.next()) is not None:
                yield packet
            if count < len(space) and not stream.pending():
                return

    def put(self, data: bytes | memoryview) -> None:
        """Queues bytes; `flush` sends them."""
        self._out.append(data)
        self.unsent_bytes += len(data)

    @property
    def unsent(self) -> bool:
        """Whether something waits for the socket."""
        return bool(self.unsent_bytes) or self._stream.unsent()

    def flush(self) -> bool:
        """Sends what fits; whether anything went out.

        Raises:
            OSError: the connection is broken.
        """
        before = self.unsent_bytes
        try:
            if not before and self._stream.unsent():
                self._stream.send(b"")
            while self.unsent_bytes:
                if self._sending is None:
                    self._sending = self._next()
                count = self._stream.send(self._sending)
                self.unsent_bytes -= count
                self._sending = self._sending[count:] if count < len(self._sending) else None
        except BlockingIOError:
            pass
        return self.unsent_bytes < before

    def _next(self) -> memoryview:
        """Small pieces together, a large one alone."""
        out = self._out
        first = out.popleft()
        if not out or len(first) >= JOIN_BYTES:
            return memoryview(first)
        pieces, size = [first], len(first)
        while out and size + len(out[0]) <= JOIN_BYTES:
            pieces.append(out.popleft())
            size += len(pieces[-1])
        return memoryview(b"".join(pieces))

    def close(self) -> None:
        """Ends the connection."""
        self._stream.close()
