"""Who reads and who writes the socket of a paho client.

One thread, the network thread, reads. Any thread writes what it has queued, at once: to wake the
network thread for it would cost every reply another change of threads. paho writes without a lock
of its own, so everybody who writes holds ours; the socket does not block.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as paho

LOOP_S = 1.0
"""Keep-alive is looked at so often at least."""


class SocketLoop:
    """Reads and writes for one client.

    Attributes:
        lock: held by whoever publishes or acknowledges, together with the `write` that follows.

    Args:
        client: not connected yet.
    """

    def __init__(self, client: paho.Client) -> None:
        self.lock = threading.RLock()  # a callback may publish
        self._client = client
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        client.on_socket_open = _no_delay
        # With a writer registered paho only queues; without one it would write to the socket from
        # whatever thread publishes, without a lock.
        client.on_socket_register_write = _queue_only

    def write(self) -> None:
        """Sends what is queued; the network thread sends what did not fit. Holds `lock`."""
        if self._client.loop_write() != paho.MQTT_ERR_SUCCESS or self._client.want_write():
            self.wake()

    def wake(self) -> None:
        """Makes the network thread look, and send what is queued."""
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Gives the descriptor back; nothing of this loop may be used any more."""
        os.close(self._wake)

    def exchange(self, turn: Callable[[], None]) -> None:
        """Reads, writes and keeps alive until the connection ends: the network thread's work.

        Reading holds the lock too: paho writes while it handles a CONNACK, and a TLS socket may
        not be read and written at once.

        Args:
            turn: called after each reading, with the lock held; it may publish.
        """
        client = self._client
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        while (sock := client.socket()) is not None:
            poll.register(sock, select.POLLIN | (select.POLLOUT if client.want_write() else 0))
            pending = getattr(sock, "pending", None)  # TLS may have read ahead
            events = dict(poll.poll(0 if pending and pending() else LOOP_S * 1e3))
            if events.pop(self._wake, 0):
                os.eventfd_read(self._wake)
            with self.lock:
                if (events or (pending and pending())) and client.loop_read():
                    return
                turn()
                written = client.loop_write() if client.want_write() else paho.MQTT_ERR_SUCCESS
                if written or client.loop_misc():
                    return


def _no_delay(_client: paho.Client, _userdata: object, sock: Any) -> None:
    """Nagle's algorithm would hold answers back for up to 40 ms; paho leaves it on."""
    raw = sock if isinstance(sock, socket.socket) else getattr(sock, "_socket", None)
    if raw is not None and raw.family in {socket.AF_INET, socket.AF_INET6}:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _queue_only(_client: paho.Client, _userdata: object, _sock: object) -> None:
    """Whoever queued writes next; see `BrokerLink.publish`."""
