"""What is on its way to the control plane's broker, and what is said as soon as there is room.

A broker takes so many messages of QoS 1 without having answered them (Receive Maximum, MQTT 5,
3.2.2.3.3). Everything counts: batches, answers, reported documents, the status. One thread only.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from edged.metrics import Metrics
from edged.report.link_messages import Connected, Delivered, Outgoing
from edged.report.sending import Batch
from edged.report_settings import UplinkSettings

log = logging.getLogger(__name__)

MOST_WAITING = 100
"""Answers and reported documents that wait for room; what is more is dropped and counted."""

Flight = tuple[int, Batch]
"""A batch that was sent, under its number."""


class Window:
    """The messages of one connection after the other.

    Args:
        settings: ``[uplink]``.
        publish: (message, number of the connection) -> packet identifier, or None if it is gone.
        metrics: counters.

    Attributes:
        connection: the one that stands, or None.
    """

    def __init__(
        self,
        settings: UplinkSettings,
        publish: Callable[[Outgoing, int], int | None],
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._publish = publish
        self._metrics = metrics
        self.connection: Connected | None = None
        self._flights: dict[int, Flight | None] = {}  # None: it is no batch
        self._waiting: deque[Outgoing] = deque()

    def __len__(self) -> int:
        """Messages on their way."""
        return len(self._flights)

    def __repr__(self) -> str:
        return f"<Window {len(self._flights)} on their way, {len(self._waiting)} wait>"

    @property
    def busy(self) -> bool:
        """Whether anything is on its way, or waits to be."""
        return bool(self._flights or self._waiting)

    @property
    def full(self) -> bool:
        """Whether the broker takes no more now. One place is left for the farewell."""
        if self.connection is None:
            return True
        most = min(self._settings.send_window, max(1, self.connection.window - 1))
        return len(self._flights) >= most

    @property
    def most_bytes(self) -> int:
        """Largest message that may be sent, topic and properties included. Any thread."""
        connection, wanted = self.connection, self._settings.max_message_bytes
        taken = connection.max_packet_bytes if connection is not None else 0
        return min(wanted, taken) if taken else wanted

    def connected(self, connection: Connected) -> None:
        """A connection stands; its status is on its way."""
        self.connection = connection
        self._flights = {connection.status: None}

    def lost(self) -> None:
        """The connection is gone; what waited to be said on it is, too."""
        self.connection = None
        self._flights.clear()
        self._waiting.clear()

    def say(self, message: Outgoing) -> None:
        """Has a message that is no batch sent, before any batch; lost without a connection.

        A retained one takes the place of what waits for its topic. One that is larger than the
        broker takes would end the connection, and is dropped.
        """
        if self.connection is None:
            return
        size = wire_bytes(message)
        if size > self.most_bytes:
            self._drop(f"it has {size} bytes, {self.most_bytes} may be sent", message)
            return
        if message.retain:
            self._waiting = deque(
                each for each in self._waiting if not (each.retain and each.topic == message.topic)
            )
        if len(self._waiting) >= MOST_WAITING:
            self._drop(f"{MOST_WAITING} wait already for the broker", message)
        else:
            self._waiting.append(message)

    def _drop(self, why: str, message: Outgoing) -> None:
        self._metrics.count("uplink_unsaid_total")
        log.warning("a message to the control plane is dropped: %s", why,
                    extra={"topic": message.topic})  # fmt: skip

    def flush(self) -> bool:
        """Sends what waits to be said; whether there is room for more."""
        while self._waiting and not self.full:
            if not self.send(self._waiting.popleft(), None):
                return False
        return not self.full

    def send(self, message: Outgoing, flight: Flight | None) -> bool:
        """Sends a message; False if the connection is gone, and then `Lost` is on its way."""
        if self.connection is None:
            return False
        mid = self._publish(message, self.connection.epoch)
        if mid is None:
            return False
        self._flights[mid] = flight
        return True

    def delivered(self, change: Delivered) -> Flight | None:
        """The broker has answered a message; the batch that it was, None if it was none."""
        if self.connection is None or change.epoch != self.connection.epoch:
            return None
        return self._flights.pop(change.mid, None)


def wire_bytes(message: Outgoing) -> int:
    """Bytes of a PUBLISH on the wire, at most (MQTT 5, 3.3): what Maximum Packet Size counts."""
    fixed = 5 + 2 + 2 + 4  # header, length of the topic, packet identifier, length of properties
    content_type = 3 + len(message.content_type.encode())
    user = sum(5 + len(name.encode()) + len(value.encode()) for name, value in message.user)
    correlation = 0 if message.correlation is None else 3 + len(message.correlation)
    head = fixed + len(message.topic.encode()) + content_type + user + correlation
    return head + len(message.payload)
