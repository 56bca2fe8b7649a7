"""What goes out to the broker: replies and reports, acknowledgements, subscriptions.

Any thread may publish; one lock, held for a moment by each and by the network thread for its turn,
keeps packets whole and an acknowledgement from meeting another connection. The network thread
sends all of its turn at once; everybody else sends at once.
"""

from __future__ import annotations

import logging
import threading

from edged.mqtt import codec, control
from edged.mqtt.codec import MQTT_5
from edged.mqtt.connection import Connection, Wake
from edged.mqtt.in_flight import InFlight, Outgoing
from edged.serve.request import Receipt, Reply

log = logging.getLogger(__name__)

MOST_UNSENT_BYTES = 16 * 1024 * 1024
"""Bytes that a slow broker has not read yet; beyond it QoS 0 messages are dropped and counted."""


class Sending:
    """The outgoing half of the broker link.

    Attributes:
        lock: held while anything here is called from within the link.
        connection: the one that stands or is being made, None without one.
        is_up: the broker has accepted the connection.
        epoch: its number.

    Args:
        wake: has the network thread send what did not fit.
    """

    def __init__(self, wake: Wake) -> None:
        self.lock = threading.RLock()  # a handler may publish
        self.connection: Connection | None = None
        self.is_up = False
        self.epoch = 0
        self._wake = wake
        self._in_flight = InFlight()
        self._version = MQTT_5
        self._max_packet_bytes = 0
        self._subscribe_mid = 0
        self._network: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<Sending on connection {self.epoch}, {self._in_flight!r}>"

    # -------------------------------------------------------------- for any thread

    def publish(self, reply: Reply) -> int | None:
        """Hands a reply over for sending; never waits.

        Returns:
            The packet identifier that ``delivered`` will name, 0 for QoS 0; None if it was not
            taken: QoS 0 without a connection or behind too much unsent, no topic name, or too
            large a packet.
        """
        with self.lock:
            mid = 0
            try:
                if reply.qos:
                    mid = self._in_flight.identifier()
                head = self._head(reply, mid)
            except ValueError as err:
                self._in_flight.release(mid)
                log.warning("not published: %s", err, extra={"topic": reply.topic})
                return None
            if reply.qos:
                self._in_flight.put(Outgoing(mid, head, reply.payload))
                self.send_due()
            elif not self._send_unnumbered(head, reply.payload):
                return None
            self._flush()
            return mid

    def acknowledge(self, receipt: Receipt) -> bool:
        """Sends the PUBACK of a request; False if its connection is gone and it is void."""
        with self.lock:  # no reconnection comes between the check and the acknowledgement
            connection = self.connection
            if receipt.epoch != self.epoch or connection is None or not self.is_up:
                return False
            connection.put(codec.encode_puback(receipt.mid))
            self._flush()
            return True

    def subscribe(self, filters: tuple[str, ...]) -> None:
        """Asks for QoS 1, if there is a connection."""
        with self.lock:
            if (connection := self.connection) is not None and self.is_up:
                # A SUBSCRIBE of a connection that was lost gets no answer any more.
                self._in_flight.release(self._subscribe_mid)
                self._subscribe_mid = mid = self._in_flight.identifier()
                connection.put(control.encode_subscribe(mid, filters, self._version))
                self._flush()

    def unsubscribe(self, filters: tuple[str, ...]) -> None:
        """Asks for these no more, if there is a connection."""
        with self.lock:
            if (connection := self.connection) is not None and self.is_up:
                mid = self._in_flight.identifier()
                connection.put(control.encode_unsubscribe(mid, filters, self._version))
                self._flush()

    def _head(self, reply: Reply, mid: int) -> bytes:
        packed = b""
        if self._version == MQTT_5:
            packed = codec.encode_properties(
                reply.expiry_s, reply.content_type, reply.correlation, reply.user
            )
        head = codec.encode_publish(
            reply.topic, packed, len(reply.payload), mid=mid, retain=reply.retain
        )
        size = len(head) + len(reply.payload)
        if self._max_packet_bytes and size > self._max_packet_bytes:
            raise ValueError(
                f"it has {size} bytes, the broker takes packets of at most {self._max_packet_bytes}"
            )
        return head

    def _send_unnumbered(self, head: bytes, payload: bytes) -> bool:
        """QoS 0: no window holds it back, so a broker that reads slowly must not pile it up."""
        connection = self.connection
        if connection is None or not self.is_up:
            return False
        if connection.unsent_bytes and connection.unsent_bytes + len(payload) > MOST_UNSENT_BYTES:
            return False
        connection.put(head)
        if payload:
            connection.put(payload)
        return True

    def _flush(self) -> None:
        connection = self.connection
        if connection is None or threading.current_thread() is self._network:
            return
        try:
            connection.flush()
        except OSError as err:
            log.debug("could not send: %s", err)  # the network thread will find out, and say so
        if connection.unsent:
            self._wake.wake()

    # -------------------------------------------------------------- for the network thread

    def next_epoch(self) -> int:
        """A new connection is going to be made: what belongs to the one before is void."""
        with self.lock:
            self._network = threading.current_thread()
            self.epoch += 1
            return self.epoch

    def opened(self, connection: Connection, version: int) -> None:
        """A socket stands."""
        with self.lock:
            self.connection = connection
            self._version = version

    def accepted(self, window: int, max_packet_bytes: int, *, session_present: bool) -> None:
        """The broker has accepted the connection: what it may lack is due again."""
        self.is_up = True
        self._max_packet_bytes = max_packet_bytes
        self._in_flight.connected(window, session_present=session_present)
        self.send_due()

    def send_due(self) -> None:
        """Sends what the window has room for."""
        if (connection := self.connection) is not None and self.is_up:
            for message in self._in_flight.due():
                connection.put(message.begin())
                if message.payload:
                    connection.put(message.payload)

    def acknowledged(self, mid: int) -> bool:
        """The broker has taken or rejected a message; False if none of that identifier was sent."""
        if not self._in_flight.acknowledged(mid):
            return False
        self.send_due()
        return True

    def subscribed(self, mid: int) -> None:
        """A SUBSCRIBE or an UNSUBSCRIBE was answered."""
        self._in_flight.release(mid)

    def disconnect(self, reason: int) -> None:
        """Says farewell, or why the connection ends; it is sent as far as fits."""
        if (connection := self.connection) is not None and self.is_up:
            connection.put(control.encode_disconnect(reason, self._version))
            connection.flush()

    def closed(self) -> bool:
        """The connection is gone, or there never was one; whether the broker had accepted it."""
        with self.lock:
            connection, self.connection = self.connection, None
            if connection is not None:
                connection.close()
            self._in_flight.disconnected()
            was_up, self.is_up = self.is_up, False
            return was_up
