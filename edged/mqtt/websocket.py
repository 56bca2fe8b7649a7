"""MQTT in WebSocket frames (RFC 6455; MQTT 5, 6): the upgrade, and a stream over another one."""

from __future__ import annotations

import base64
import hashlib
import os
import struct

from edged.errors import BrokerError, BrokerProtocolError
from edged.mqtt.reason_codes import PROTOCOL_ERROR
from edged.mqtt.stream import Stream

MAX_HEAD_BYTES = 16 * 1024
"""Of the HTTP answer."""
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CONTINUATION, _BINARY, _CLOSE, _PING, _PONG = 0, 2, 8, 9, 10
_KNOWN = {_CONTINUATION, _BINARY, _CLOSE, _PING, _PONG}
_READ_BYTES = 64 * 1024
_MAX_CONTROL_BYTES = 125
_MAX_UNSENT_BYTES = 256 * 1024
"""Masked bytes that are kept for a slow server."""


def new_key(random: bytes) -> str:
    """A ``Sec-WebSocket-Key`` of 16 random bytes."""
    return base64.b64encode(random).decode()


def request(where: str, path: str, key: str) -> bytes:
    """The HTTP request for the upgrade."""
    lines = (
        f"GET {path} HTTP/1.1",
        f"Host: {where}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Protocol: mqtt",
    )
    return "\r\n".join((*lines, "", "")).encode("ascii")


def check_answer(head: bytes, key: str) -> bytes:
    """Checks the HTTP answer; returns what came behind it.

    Raises:
        BrokerError: the server does not speak MQTT over WebSocket there.
    """
    text, _, rest = head.partition(b"\r\n\r\n")
    status, *lines = text.split(b"\r\n")
    fields = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(b":") for line in lines)
    }
    # SHA-1 proves no secret here: it only shows that the server has understood the request.
    digest = hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()
    accepted = fields.get(b"sec-websocket-accept") == base64.b64encode(digest)
    if status.split(b" ")[1:2] != [b"101"] or not accepted:
        raise BrokerError(
            f"the server answers {status[:60].decode('ascii', 'replace')!r} instead of opening a "
            "WebSocket; check broker.port and broker.websocket_path"
        )
    return rest


def mask(data: bytes | memoryview, key: bytes) -> bytes:
    """Data XOR the repeated key (RFC 6455, 5.3), in linear time without a loop."""
    size = len(data)
    pad = int.from_bytes((key * (size // 4 + 1))[:size], "little")
    return (int.from_bytes(data, "little") ^ pad).to_bytes(size, "little")


def frame(opcode: int, data: bytes | memoryview, key: bytes) -> bytes:
    """One whole frame from a client.

    Args:
        opcode: kind of the frame.
        data: its payload.
        key: four random bytes.
    """
    size = len(data)
    if size < 126:
        head = struct.pack("!BB", 0x80 | opcode, 0x80 | size)
    elif size < 65536:
        head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, size)
    return head + key + mask(data, key)


class Frames:
    """Cuts frames from a server into the stream of MQTT bytes. Pure.

    Attributes:
        answers: frames to send back: pongs, and the answer to a close.
        closed: the server has closed.
    """

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.closed = False
        self._raw = bytearray()
        self._left = 0  # of the payload of the data frame that is being read

    def feed(self, data: bytes | memoryview) -> bytes:
        """Takes received bytes; returns MQTT's bytes among them.

        Raises:
            BrokerProtocolError: a frame is masked, compressed, of text, or a control frame is cut
                in pieces or too large.
        """
        raw = self._raw
        raw += data
        found = []
        while raw and not self.closed:
            if self._left:
                piece = bytes(raw[: self._left])
                del raw[: len(piece)]
                self._left -= len(piece)
                found.append(piece)
            elif not self._header():
                break
        return b"".join(found)

    def _header(self) -> bool:
        """Reads the next frame's header, and a control frame whole; False: more must come."""
        raw = self._raw
        if len(raw) < 2:
            return False
        opcode, size, at = raw[0] & 0x0F, raw[1], 2
        if raw[0] & 0x70 or size & 0x80 or opcode not in _KNOWN:
            raise BrokerProtocolError(
                f"the server sent a WebSocket frame of bytes {bytes(raw[:2]).hex()}: masked, "
                "compressed, or of another kind than binary",
                PROTOCOL_ERROR,
            )
        if size >= 126:
            at += 2 if size == 126 else 8
            if len(raw) < at:
                return False
            size = int.from_bytes(raw[2:at], "big")
        if opcode in {_CONTINUATION, _BINARY}:
            del raw[:at]
            self._left = size
            return True
        if size > _MAX_CONTROL_BYTES or not raw[0] & 0x80:
            raise BrokerProtocolError(
                f"the server sent a WebSocket control frame of {size} bytes or in pieces",
                PROTOCOL_ERROR,
            )
        if len(raw) < at + size:
            return False
        data = bytes(raw[at : at + size])
        del raw[: at + size]
        self._control(opcode, data)
        return True

    def _control(self, opcode: int, data: bytes) -> None:
        if opcode == _PING:
            self.answers.append(frame(_PONG, data, os.urandom(4)))
        elif opcode == _CLOSE:
            self.answers.append(frame(_CLOSE, data[:2], os.urandom(4)))
            self.closed = True


class WebSocketStream:
    """MQTT bytes over a WebSocket. Implements `edged.mqtt.stream.Stream`.

    Args:
        below: the stream that carries the frames.
        rest: what came behind the HTTP answer.
    """

    def __init__(self, below: Stream, rest: bytes = b"") -> None:
        self._below = below
        self._frames = Frames()
        self._read = memoryview(bytearray(_READ_BYTES))
        self._ready = memoryview(self._frames.feed(rest))
        self._unsent = bytearray()
        self.fileno = below.fileno

    def recv_into(self, space: memoryview) -> int:
        """See `Stream.recv_into`."""
        while not self._ready:
            if self._frames.closed:
                return 0
            count = self._below.recv_into(self._read)
            if not count:
                return 0
            self._ready = memoryview(self._frames.feed(self._read[:count]))
            self._unsent += b"".join(self._frames.answers)
            self._frames.answers.clear()
        count = min(len(space), len(self._ready))
        space[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def send(self, data: bytes | memoryview) -> int:
        """See `Stream.send`; with no data it sends what is left of the last frame."""
        self._push()
        if len(self._unsent) > _MAX_UNSENT_BYTES:
            raise BlockingIOError
        if len(data):
            self._unsent += frame(_BINARY, data, os.urandom(4))
            self._push()
        return len(data)

    def _push(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._below.send(bytes(self._unsent[:_READ_BYTES]))]
        except BlockingIOError:
            return

    def pending(self) -> bool:
        """Whether MQTT bytes or a TLS record are here already."""
        return bool(self._ready) or self._below.pending()

    def unsent(self) -> bool:
        """Whether a part of a frame is left."""
        return bool(self._unsent)

    def close(self) -> None:
        """Closes it."""
        self._below.close()
