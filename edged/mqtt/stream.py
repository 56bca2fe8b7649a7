"""Bytes to a broker and back: what a connection needs of a socket, plain or with TLS."""

from __future__ import annotations

import socket
import ssl
from typing import Protocol


class Stream(Protocol):
    """A connected byte stream that does not block."""

    def fileno(self) -> int:
        """For polling."""

    def recv_into(self, space: memoryview) -> int:
        """Receives what there is; 0: the other side has closed.

        Raises:
            BlockingIOError: nothing has come.
            OSError: the connection is broken.
        """

    def send(self, data: bytes | memoryview) -> int:
        """Takes as much as fits now.

        Raises:
            BlockingIOError: nothing fits.
            OSError: the connection is broken.
        """

    def pending(self) -> bool:
        """Whether something was received that polling does not see."""

    def unsent(self) -> bool:
        """Whether something that `send` took is still here; the next `send` sends it first."""

    def close(self) -> None:
        """Ends it."""


class SocketStream:
    """A plain socket.

    Args:
        sock: connected.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)  # noqa: FBT003  # the interface
        self._socket = sock
        self.fileno = sock.fileno
        self.recv_into = sock.recv_into
        self.send = sock.send

    def pending(self) -> bool:
        """Polling sees everything."""
        return False

    def unsent(self) -> bool:
        """Nothing is kept."""
        return False

    def close(self) -> None:
        """Closes it."""
        self._socket.close()


class TlsStream:
    """A TLS socket after its handshake.

    Args:
        sock: connected.
    """

    def __init__(self, sock: ssl.SSLSocket) -> None:
        sock.setblocking(False)  # noqa: FBT003  # the interface
        self._socket = sock
        self.fileno = sock.fileno

    def recv_into(self, space: memoryview) -> int:
        """See `Stream.recv_into`."""
        try:
            return self._socket.recv_into(space)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as err:
            raise BlockingIOError from err

    def send(self, data: bytes | memoryview) -> int:
        """See `Stream.send`."""
        try:
            return self._socket.send(data)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as err:
            raise BlockingIOError from err

    def pending(self) -> bool:
        """A record may be decrypted in part."""
        return self._socket.pending() > 0

    def unsent(self) -> bool:
        """Nothing is kept."""
        return False

    def close(self) -> None:
        """Closes it without waiting for the other side."""
        self._socket.close()
