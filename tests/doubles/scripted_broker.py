"""A broker that a test plays by hand, packet by packet."""

from __future__ import annotations

import contextlib
import socket
from types import TracebackType
from typing import final

from edged.mqtt.receiver import Receiver
from tests.doubles.packets import packet
from tests.doubles.wire import WAIT_S

ACCEPTED = bytes.fromhex("2003000000")
RESUMED = bytes.fromhex("2003010000")


@final
class Peer:
    """One connection, seen from the broker."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(WAIT_S)
        self._socket = connection
        self._receiver = Receiver(1 << 24)

    def read(self) -> tuple[int, bytes]:
        """The next packet: first byte and body.

        Raises:
            TimeoutError: none comes.
            ConnectionError: the client has closed.
        """
        while (got := self._receiver.next()) is None:
            count = self._socket.recv_into(self._receiver.space())
            if not count:
                raise ConnectionResetError("the client has closed")
            self._receiver.received(count)
        return got[0], bytes(got[1])

    def send(self, first: int, body: bytes = b"") -> None:
        """Sends a packet."""
        self._socket.sendall(packet(first, body))

    def send_raw(self, data: bytes) -> None:
        """Sends bytes, whatever they are."""
        with contextlib.suppress(OSError):  # the client may have had enough already
            self._socket.sendall(data)

    def finish(self) -> None:
        """Sends no more, and waits until the client closes too."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            while self._socket.recv(4096):
                pass
        self._socket.close()

    def accept_client(self, answer: bytes = ACCEPTED) -> None:
        """Reads its CONNECT and answers."""
        assert self.read()[0] == 0x10
        self._socket.sendall(answer)

    def grant(self) -> None:
        """Reads its SUBSCRIBE and grants it."""
        first, body = self.read()
        assert first == 0x82
        self.send(0x90, body[:2] + b"\x00\x01\x01")

    def take(self) -> tuple[int, bytes, bytes]:
        """Reads a PUBLISH of QoS 1: first byte, identifier, rest."""
        first, body = self.read()
        assert first & 0xF6 == 0x32, hex(first)
        at = 2 + int.from_bytes(body[:2], "big")
        return first, body[at : at + 2], body[at + 3 :]

    def close(self) -> None:
        """Ends the connection without a word."""
        self._socket.close()


@final
class ScriptedBroker:
    """Listens on a free loopback port; a context manager."""

    host = "127.0.0.1"

    def __init__(self) -> None:
        self._server = socket.create_server((self.host, 0))
        self._server.settimeout(WAIT_S)
        self.port = int(self._server.getsockname()[1])
        self._peers: list[Peer] = []

    def __enter__(self) -> ScriptedBroker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.hang_up()

    def hang_up(self) -> None:
        """Closes all connections, and takes no more."""
        self._server.close()
        for peer in self._peers:
            peer.close()

    def accept(self) -> Peer:
        """The next connection."""
        peer = Peer(self._server.accept()[0])
        self._peers.append(peer)
        return peer
