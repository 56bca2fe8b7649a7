"""The connection to the control plane's broker: one MQTT session a connection, nothing kept in it.

Every connection begins a clean session: what waits for an acknowledgement is kept in the outbox,
certificates that were renewed are read again, and the retained desired document is delivered anew.
One thread, ``uplink-net``, connects and reads; it hands over what comes and waits for nobody.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from edged.backoff import Backoff
from edged.errors import BrokerError, BrokerProtocolError, ConfigError
from edged.metrics import Metrics
from edged.mqtt import codec, control, reason_codes
from edged.mqtt.address import Address, open_stream
from edged.mqtt.codec import PUBACK, PUBLISH
from edged.mqtt.connection import Connection, Wake
from edged.mqtt.control import CONNACK, DISCONNECT, PINGRESP, SUBACK, ConnAck, Connect, Will
from edged.mqtt.in_flight import InFlight
from edged.mqtt.keep_alive import KeepAlive
from edged.report.link_messages import Change, Connected, Delivered, Incoming, Lost, Outgoing
from edged.settings import BrokerSettings
from edged.tls import client_context

log = logging.getLogger(__name__)

MAX_INCOMING_BYTES = 16 * 1024 * 1024
"""Largest packet that the broker may send here. Far above what is read: a desired document that is
too large is answered so, where brokers end the connection over a packet above this limit."""
RECEIVE_MAXIMUM = 20
LOOP_S = 1.0
"""Keep-alive is looked at so often at least."""


@dataclass(frozen=True)
class LinkOptions:
    """What the link connects to and as what.

    Attributes:
        broker: address, login, TLS, back-off.
        client_id: of this device.
        subscriptions: filters.
        status_topic: where birth and will go.
        status: (state, number of the connection) -> its document.
    """

    broker: BrokerSettings
    client_id: str
    subscriptions: tuple[str, ...]
    status_topic: str
    status: Callable[[str, int], bytes]


class ControlLink:
    """Keeps up the connection until it is stopped.

    Args:
        options: where to, and as what.
        changed: takes over what happens, in order; must not wait.
        metrics: counters.
    """

    def __init__(
        self, options: LinkOptions, changed: Callable[[Change], None], metrics: Metrics
    ) -> None:
        self._options = options
        self._changed = changed
        self._metrics = metrics
        self.epoch = 0
        self._lock = threading.Lock()  # the connection, and all that belongs to it
        self._connection: Connection | None = None
        self._wake = Wake()
        self._keep_alive = KeepAlive(0, 0)
        self._begin(None)
        self._said_down = False
        self._backoff = Backoff(options.broker.backoff_min_s, options.broker.backoff_max_s)
        self._stop = threading.Event()
        self.thread = threading.Thread(target=self._run, name="uplink-net", daemon=True)

    def __repr__(self) -> str:
        state = "connected" if self.connected else "not connected"
        where = f"{self._options.broker.host}:{self._options.broker.port}"
        return f"<ControlLink {where} {state}, connection {self.epoch}>"

    def _begin(self, connection: Connection | None) -> None:
        self._connection = connection
        self._granted: ConnAck | None = None
        self._up = False
        self._identifiers = InFlight()
        self._sent: set[int] = set()
        # Brokers deliver what is retained before they say that the subscription stands.
        self._early: list[Incoming] = []

    @property
    def connected(self) -> bool:
        """Whether a connection stands."""
        return self._up

    def start(self) -> None:
        """Starts to connect; returns at once."""
        self.thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Disconnects, with a farewell that takes the will's place, and ends the thread."""
        farewell = self._options.status("offline", self.epoch)
        self.publish(Outgoing(self._options.status_topic, farewell, retain=True), self.epoch)
        self._stop.set()
        self._wake.wake()
        if self.thread.is_alive():
            self.thread.join(timeout_s)

    def publish(self, message: Outgoing, epoch: int) -> int | None:
        """Sends a message of QoS 1; never waits.

        Args:
            message: what.
            epoch: on this connection alone.

        Returns:
            The packet identifier that `Delivered` will name; None if that connection is gone.

        Raises:
            ValueError: the message is none that MQTT can carry.
        """
        with self._lock:
            connection = self._connection
            if connection is None or not self._up or epoch != self.epoch:
                return None
            mid = self._put(connection, message)
            with contextlib.suppress(OSError):  # the thread will find out
                connection.flush()
            if connection.unsent:
                self._wake.wake()
        return mid

    def _put(self, connection: Connection, message: Outgoing) -> int:
        packed = codec.encode_properties(
            None, message.content_type, message.correlation, message.user
        )
        mid = self._identifiers.identifier()
        size = len(message.payload)
        try:
            head = codec.encode_publish(message.topic, packed, size, mid=mid, retain=message.retain)
        except ValueError:
            self._identifiers.release(mid)
            raise
        self._sent.add(mid)
        connection.put(head)
        if size:
            connection.put(message.payload)
        return mid

    # -------------------------------------------------------------- the network thread

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                reason = self._exchange(self._connect())
            except BrokerProtocolError as err:
                self._say(control.encode_disconnect(err.reason))
                reason = err.message
            except (OSError, BrokerError, ConfigError) as err:
                reason = str(err) or type(err).__name__
            except Exception as err:
                self._metrics.count("callback_failures_total")
                log.exception("the uplink's network loop failed; connecting anew")
                reason = type(err).__name__
            self._close(reason)
            if not self._stop.is_set():
                chance = random.random()  # noqa: S311  # jitter, not a secret
                self._stop.wait(self._backoff.pause_s(time.monotonic(), chance))

    def _connect(self) -> Connection:
        with self._lock:
            self.epoch += 1
        settings = self._options.broker
        stream = open_stream(_address(settings), settings.connect_timeout_s)
        connection = Connection(stream, MAX_INCOMING_BYTES, self._wake)
        with self._lock:
            self._begin(connection)
            connection.put(control.encode_connect(self._asked(settings)))
        self._keep_alive = KeepAlive(settings.keepalive_s, time.monotonic())
        return connection

    def _asked(self, settings: BrokerSettings) -> Connect:
        last_words = self._options.status("offline", self.epoch)
        password = settings.password if settings.username is not None else None
        return Connect(
            self._options.client_id,
            Will(self._options.status_topic, last_words, settings.will_delay_s),
            keepalive_s=settings.keepalive_s,
            receive_maximum=RECEIVE_MAXIMUM,
            max_packet_bytes=MAX_INCOMING_BYTES,
            username=settings.username,
            password=password.get_secret_value() if password else None,
            clean_start=True,
        )

    def _exchange(self, connection: Connection) -> str:
        """Reads, writes and keeps alive until the connection ends; returns why it did."""
        timeout_s = self._options.broker.connect_timeout_s
        until = time.monotonic() + timeout_s
        readable = False
        while not self._stop.is_set():
            with self._lock:
                if ended := self._turn(connection, readable=readable):
                    return ended
            if not self._up and time.monotonic() > until:
                return f"no answer within {timeout_s:g} s"
            readable = connection.wait(min(LOOP_S, timeout_s))
        self._say(control.encode_disconnect())
        return "stopped"

    def _turn(self, connection: Connection, *, readable: bool) -> str:
        now = time.monotonic()
        if readable:
            self._keep_alive.received(now)
            for first, body in connection.packets():
                if ended := self._handle(connection, first, body):
                    return ended
        due = self._keep_alive.due(now)
        if due == "ping":
            connection.put(control.PINGREQ)
        if connection.unsent and connection.flush():
            self._keep_alive.sent(now)
        return reason_codes.name(reason_codes.KEEP_ALIVE_TIMEOUT) if due == "dead" else ""

    def _say(self, farewell: bytes) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self._connection is not None and self._granted is not None:
                self._connection.put(farewell)
                self._connection.flush()

    def _close(self, reason: str) -> None:
        with self._lock:
            connection, was_up = self._connection, self._up
            self._begin(None)
        if connection is not None:
            connection.close()
        self._say_down(reason)
        if was_up:
            if not self._stop.is_set():
                self._metrics.count("uplink_losses_total")
            self._changed(Lost(self.epoch))

    def _say_down(self, reason: str) -> None:
        if not self._said_down and not self._stop.is_set():
            self._said_down = True
            log.warning(
                "no uplink to %s:%d (%s); reports wait in the outbox",
                self._options.broker.host,
                self._options.broker.port,
                reason,
            )

    # -------------------------------------------------------------- packets, under the lock

    def _handle(self, connection: Connection, first: int, body: memoryview) -> str:
        """One packet; why the connection ends with it, else ""."""
        kind = first & 0xF0
        if self._granted is None and kind == CONNACK:
            return self._on_connack(connection, control.decode_connack(body))
        if self._granted is None or kind not in {PUBLISH, PUBACK, SUBACK, DISCONNECT, PINGRESP}:
            raise BrokerProtocolError(
                f"it sent a packet of type {first >> 4} out of turn", reason_codes.PROTOCOL_ERROR
            )
        if kind == PUBLISH:
            self._on_publish(connection, first, body)
        elif kind == PUBACK:
            self._on_puback(*codec.decode_puback(body))
        elif kind == SUBACK:
            self._on_suback(connection, self._granted, *control.decode_suback(body))
        elif kind == DISCONNECT:
            return reason_codes.name(control.decode_disconnect(body))
        return ""

    def _on_connack(self, connection: Connection, granted: ConnAck) -> str:
        if granted.reason >= reason_codes.FAILURE:
            return f"it refuses this client: {reason_codes.name(granted.reason)}"
        self._granted = granted
        if granted.keepalive_s is not None:
            self._keep_alive = KeepAlive(granted.keepalive_s, time.monotonic())
        mid = self._identifiers.identifier()
        connection.put(control.encode_subscribe(mid, self._options.subscriptions))
        return ""

    def _on_suback(
        self, connection: Connection, granted: ConnAck, mid: int, reasons: tuple[int, ...]
    ) -> None:
        self._identifiers.release(mid)
        refused = [reason_codes.name(reason) for reason in reasons if reason >= 0x80]
        if refused:
            self._metrics.count("subscriptions_refused_total")
            log.error(
                "the control plane's broker refuses subscriptions (%s): allow this client to read "
                "%s",
                ", ".join(refused),
                ", ".join(self._options.subscriptions),
            )
        self._backoff.connected(time.monotonic())
        self._said_down = False
        self._up = True
        online = self._options.status("online", self.epoch)
        born = self._put(connection, Outgoing(self._options.status_topic, online, retain=True))
        log.info("connected to the control plane", extra={"connection": self.epoch})
        self._changed(
            Connected(self.epoch, granted.receive_maximum, granted.max_packet_bytes, born)
        )
        for message in self._early:
            self._changed(message)

    def _on_publish(self, connection: Connection, first: int, body: memoryview) -> None:
        message = codec.decode_publish(first, body)
        # Acknowledged at once: what is retained comes again, an acknowledgement of the control
        # plane that is lost is given again, and a command must not run hours later.
        if message.qos:
            connection.put(codec.encode_puback(message.mid))
        incoming = Incoming(
            message.topic,
            bytes(message.payload),
            message.retain,
            message.response_topic,
            message.correlation,
        )
        if self._up:
            self._changed(incoming)
        else:
            self._early.append(incoming)

    def _on_puback(self, mid: int, code: int) -> None:
        if mid in self._sent:
            self._sent.discard(mid)
            self._identifiers.release(mid)
            self._changed(Delivered(self.epoch, mid, code))


def _address(settings: BrokerSettings) -> Address:
    """Where the broker listens; certificates are read anew.

    Raises:
        ConfigError: one cannot be read.
    """
    context = client_context(settings, "the broker or the uplink") if settings.tls else None
    return Address(
        settings.host, settings.port, settings.transport, context, settings.websocket_path
    )
