"""Where a broker listens, and the way there: TCP or a Unix socket, TLS, WebSocket on top."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from dataclasses import dataclass
from typing import Literal

from edged.errors import BrokerError
from edged.mqtt import websocket
from edged.mqtt.stream import SocketStream, Stream, TlsStream

Transport = Literal["tcp", "websockets", "unix"]


@dataclass(frozen=True)
class Address:
    """Where a broker listens.

    Attributes:
        host: name or address; with ``unix`` the path of the socket.
        port: without a meaning for ``unix``.
        transport: what carries MQTT.
        tls: how the broker is authenticated, None for no TLS.
        path: of the WebSocket's URL.
    """

    host: str
    port: int
    transport: Transport = "tcp"
    tls: ssl.SSLContext | None = None
    path: str = "/mqtt"

    def __str__(self) -> str:
        return self.host if self.transport == "unix" else f"{self.host}:{self.port}"


def open_stream(address: Address, timeout_s: float) -> Stream:
    """Connects.

    Args:
        address: where to.
        timeout_s: for each step: connecting, TLS, the upgrade to WebSocket.

    Raises:
        OSError: nobody listens, or TLS fails.
        BrokerError: the server refuses the WebSocket.
    """
    sock = _connect(address, timeout_s)
    try:
        if address.tls is not None:
            sock = address.tls.wrap_socket(sock, server_hostname=address.host)
        key = websocket.new_key(os.urandom(16))
        if address.transport == "websockets":
            where = f"{address.host}:{address.port}"
            sock.sendall(websocket.request(where, address.path, key))
            rest = websocket.check_answer(_read_head(sock), key)
        stream: Stream = TlsStream(sock) if isinstance(sock, ssl.SSLSocket) else SocketStream(sock)
        if address.transport == "websockets":
            stream = websocket.WebSocketStream(stream, rest)
    except BaseException:
        sock.close()
        raise
    return stream


def _connect(address: Address, timeout_s: float) -> socket.socket:
    if address.transport == "unix":
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(timeout_s)
        try:
            sock.connect(address.host)
        except BaseException:
            sock.close()
            raise
        return sock
    sock = socket.create_connection((address.host, address.port), timeout_s)
    # Nagle's algorithm would hold answers back for up to 40 ms.
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _read_head(sock: socket.socket) -> bytes:
    """The HTTP answer up to its empty line, and what may have come behind it."""
    head = b""
    while b"\r\n\r\n" not in head:
        piece = sock.recv(4096)
        if not piece or len(head) > websocket.MAX_HEAD_BYTES:
            raise BrokerError("the server ended the WebSocket's HTTP answer early, or never does")
        head += piece
    return head
