"""Cuts what was received into packets. Pure: whoever has the socket reads into its space.

Small packets share one buffer and are read many at a time; a large one gets a buffer of its own, of
its exact size, and is received in place.
"""

from __future__ import annotations

import numpy as np

from edged.errors import BrokerProtocolError
from edged.mqtt.properties import malformed
from edged.mqtt.reason_codes import PACKET_TOO_LARGE

OWN_BUFFER_BYTES = 16 * 1024
"""Packets from this size on have a buffer of their own; views of smaller ones end soon."""
_SHARED_BYTES = 4 * OWN_BUFFER_BYTES


class Receiver:
    """Bytes in, packets out.

    Args:
        max_packet_bytes: a larger packet is an error, before anything is allocated for it.
    """

    def __init__(self, max_packet_bytes: int) -> None:
        self._max = max_packet_bytes
        self._shared = memoryview(bytearray(_SHARED_BYTES))
        self._start = self._end = 0
        self._own: memoryview | None = None
        self._own_first = 0
        self._own_filled = 0

    def __repr__(self) -> str:
        own = f", {self._own_filled} of {len(self._own)} of a large one" if self._own else ""
        return f"<Receiver {self._end - self._start} bytes wait{own}>"

    def space(self) -> memoryview:
        """Where to receive into; never empty. Ends the views of small packets."""
        if self._own is not None:
            return self._own[self._own_filled :]
        if self._start:
            left = self._end - self._start
            if left:
                self._shared[:left] = bytes(self._shared[self._start : self._end])
            self._start, self._end = 0, left
        return self._shared[self._end :]

    def received(self, count: int) -> None:
        """So many bytes were put into `space`."""
        if self._own is not None:
            self._own_filled += count
        else:
            self._end += count

    def next(self) -> tuple[int, memoryview] | None:
        """The first byte and the body of the next packet; None: receive more.

        A body of less than `OWN_BUFFER_BYTES` is valid until `space` is called; a larger one for
        as long as somebody holds it.

        Raises:
            BrokerProtocolError: its length is malformed or above the limit.
        """
        if self._own is not None:
            return self._next_own()
        shared, start, end = self._shared, self._start, self._end
        if end - start < 2:
            return None
        # The length byte by byte, in this hottest of loops.
        length, at = shared[start + 1], start + 2
        if length >= 0x80:
            found = self._long_length(start, end)
            if found is None:
                return None
            length, at = found
        if at - start + length > self._max:
            raise BrokerProtocolError(
                f"the broker sent a packet of {at - start + length} bytes, "
                f"at most {self._max} are taken",
                PACKET_TOO_LARGE,
            )
        if length >= OWN_BUFFER_BYTES:
            self._begin_own(shared[start], length, at)
            return self._next_own()
        stop = at + length
        if stop > end:
            return None
        self._start = stop
        return shared[start], shared[at:stop]

    def _long_length(self, start: int, end: int) -> tuple[int, int] | None:
        value = 0
        for place in range(4):
            at = start + 1 + place
            if at >= end:
                return None
            value |= (self._shared[at] & 0x7F) << (7 * place)
            if self._shared[at] < 0x80:
                return value, at + 1
        raise malformed("a length has more than four bytes")

    def _begin_own(self, first: int, length: int, at: int) -> None:
        # Not cleared: it is overwritten from its first byte to its last.
        own = np.empty(length, np.uint8).data
        taken = min(length, self._end - at)
        own[:taken] = self._shared[at : at + taken]
        self._start = at + taken
        self._own, self._own_first, self._own_filled = own, first, taken

    def _next_own(self) -> tuple[int, memoryview] | None:
        own = self._own
        if own is None or self._own_filled < len(own):
            return None
        self._own = None
        return self._own_first, own
