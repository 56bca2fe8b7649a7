"""The connection to the control plane's broker: one MQTT session a connection, nothing kept in it.

Every connection is a new paho client with a clean session: what waits for an acknowledgement is
kept in the outbox and not in paho, certificates that were renewed are read again, and the retained
desired document is delivered anew. One thread, ``uplink-net``, connects and reads; it hands over
what comes and never waits for anybody.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edged.backoff import Backoff
from edged.errors import ConfigError
from edged.metrics import Metrics
from edged.mqtt_client import new_client
from edged.settings import BrokerSettings
from edged.socket_loop import SocketLoop

log = logging.getLogger(__name__)

MAX_INCOMING_BYTES = 16 * 1024 * 1024
"""Largest packet that the broker may send here. Far above what is read: a desired document that is
too large is answered so, where brokers end the connection over a packet above this limit."""
RECEIVE_MAXIMUM = 20


@dataclass(frozen=True)
class Incoming:
    """One PUBLISH from the control plane. Nothing in it is trusted.

    Attributes:
        topic: its topic.
        payload: its body.
        retained: the broker sent it because it was retained.
        response_topic: MQTT 5 Response Topic, "" if absent.
        correlation: MQTT 5 Correlation Data, None if absent.
    """

    topic: str
    payload: bytes
    retained: bool = False
    response_topic: str = ""
    correlation: bytes | None = None


@dataclass(frozen=True)
class Outgoing:
    """One PUBLISH of QoS 1 to the control plane.

    Attributes:
        topic: its topic.
        payload: its body.
        retain: whether the broker keeps it for later subscribers.
        user: MQTT 5 user properties.
        correlation: MQTT 5 Correlation Data, None for none.
        content_type: MQTT 5 Content Type.
    """

    topic: str
    payload: bytes
    retain: bool = False
    user: tuple[tuple[str, str], ...] = ()
    correlation: bytes | None = None
    content_type: str = "application/json"


@dataclass(frozen=True)
class Connected:
    """A connection stands, and its subscriptions were granted.

    Attributes:
        epoch: number of the connection, from 1.
        window: messages that the broker takes unacknowledged.
        max_packet_bytes: largest packet that it takes; 0: it named none.
    """

    epoch: int
    window: int
    max_packet_bytes: int


@dataclass(frozen=True)
class Lost:
    """The connection is gone."""

    epoch: int


@dataclass(frozen=True)
class Delivered:
    """The broker has answered a PUBLISH of ours with this reason code (MQTT 5, 3.4.2.1)."""

    epoch: int
    mid: int
    code: int


Change: TypeAlias = Connected | Lost | Delivered | Incoming


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


@dataclass
class _Connection:
    """What belongs to one connection."""

    client: paho.Client
    loop: SocketLoop
    up: bool = False
    early: list[Incoming] = field(default_factory=list)
    """Brokers deliver what is retained before they say that the subscription stands."""


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
        self._lock = threading.Lock()  # which connection there is
        self._connection: _Connection | None = None
        self._said_down = False
        self._backoff = Backoff(options.broker.backoff_min_s, options.broker.backoff_max_s)
        self._stop = threading.Event()
        self.thread = threading.Thread(target=self._run, name="uplink-net", daemon=True)

    def __repr__(self) -> str:
        state = "connected" if self.connected else "not connected"
        where = f"{self._options.broker.host}:{self._options.broker.port}"
        return f"<ControlLink {where} {state}, connection {self.epoch}>"

    @property
    def connected(self) -> bool:
        """Whether a connection stands."""
        connection = self._connection
        return connection is not None and connection.up

    def start(self) -> None:
        """Starts to connect; returns at once."""
        self.thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Disconnects, with a farewell that takes the will's place, and ends the thread."""
        farewell = self._options.status("offline", self.epoch)
        self.publish(Outgoing(self._options.status_topic, farewell, retain=True), self.epoch)
        self._stop.set()
        with self._lock:
            if self._connection is not None:
                self._connection.client.disconnect()
                self._connection.loop.wake()
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
            if connection is None or not connection.up or epoch != self.epoch:
                return None
            with connection.loop.lock:
                info = connection.client.publish(
                    message.topic, message.payload, 1, message.retain, _publish_properties(message)
                )
                connection.loop.write()
        return info.mid if info.rc == paho.MQTT_ERR_SUCCESS else None

    # -------------------------------------------------------------- the network thread

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                connection = self._connect()
                connection.loop.exchange(lambda: None)
            except (OSError, ConfigError) as err:
                self._say_down(str(err) or type(err).__name__)
            except Exception as err:
                self._metrics.count("callback_failures_total")
                log.exception("the uplink's network loop failed; connecting anew")
                self._say_down(type(err).__name__)
            self._close()
            if not self._stop.is_set():
                chance = random.random()  # noqa: S311  # jitter, not a secret
                self._stop.wait(self._backoff.pause_s(time.monotonic(), chance))

    def _connect(self) -> _Connection:
        options = self._options
        client = new_client(options.broker, options.client_id)
        connection = _Connection(client, SocketLoop(client))
        client.on_connect = self._guarded(self._on_connect)
        client.on_subscribe = self._guarded(self._on_subscribe)
        client.on_message = self._guarded(self._on_message)
        client.on_publish = self._guarded(self._on_publish)
        with self._lock:
            self.epoch += 1
            self._connection = connection
        will = _properties(PacketTypes.WILLMESSAGE)
        will.WillDelayInterval = options.broker.will_delay_s
        last_words = options.status("offline", self.epoch)
        client.will_set(options.status_topic, last_words, qos=1, retain=True, properties=will)
        properties = _properties(PacketTypes.CONNECT)
        properties.ReceiveMaximum = RECEIVE_MAXIMUM
        properties.MaximumPacketSize = MAX_INCOMING_BYTES
        client.connect(
            options.broker.host,
            options.broker.port,
            keepalive=options.broker.keepalive_s,
            clean_start=True,
            properties=properties,
        )
        return connection

    def _close(self) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.loop.close()
        if connection is not None and connection.up:
            if not self._stop.is_set():
                self._metrics.count("uplink_losses_total")
            self._say_down("connection lost")
            self._changed(Lost(self.epoch))
        elif connection is not None:
            self._say_down("it ended the connection before it had answered")

    def _say_down(self, reason: str) -> None:
        if not self._said_down and not self._stop.is_set():
            self._said_down = True
            log.warning(
                "no uplink to %s:%d (%s); reports wait in the outbox",
                self._options.broker.host,
                self._options.broker.port,
                reason,
            )

    # -------------------------------------------------------------- callbacks

    def _guarded(self, callback: Callable[..., None]) -> Callable[..., None]:
        """What a callback raises must not end the thread: it is logged and counted."""

        def guarded(*args: Any) -> None:
            try:
                callback(*args)
            except Exception:
                self._metrics.count("callback_failures_total")
                log.exception("%s failed", callback.__name__)

        return guarded

    def _on_connect(
        self, client: paho.Client, _userdata: object, _flags: paho.ConnectFlags,
        reason: ReasonCode, properties: Properties | None,
    ) -> None:  # fmt: skip
        if reason.is_failure:
            self._say_down(f"it refuses this client: {reason}")
            client.disconnect()
            return
        self._window = getattr(properties, "ReceiveMaximum", 65535)
        self._max_packet_bytes = getattr(properties, "MaximumPacketSize", 0)
        client.subscribe([(topic, 1) for topic in self._options.subscriptions])

    def _on_subscribe(
        self, client: paho.Client, _userdata: object, _mid: int,
        reasons: list[ReasonCode], _properties: Properties | None,
    ) -> None:  # fmt: skip
        refused = [str(reason) for reason in reasons if reason.is_failure]
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
        connection = self._connection
        if connection is not None:
            connection.up = True
        status = self._options.status("online", self.epoch)
        client.publish(self._options.status_topic, status, 1, retain=True)
        log.info("connected to the control plane", extra={"connection": self.epoch})
        self._changed(Connected(self.epoch, self._window, self._max_packet_bytes))
        for message in connection.early if connection is not None else ():
            self._changed(message)

    def _on_message(
        self, client: paho.Client, _userdata: object, message: paho.MQTTMessage
    ) -> None:
        # Acknowledged at once: what is retained comes again, an acknowledgement of the control
        # plane that is lost is given again, and a command must not run hours later.
        client.ack(message.mid, message.qos)
        properties = message.properties
        incoming = Incoming(
            message.topic,
            bytes(message.payload),
            message.retain,
            getattr(properties, "ResponseTopic", ""),
            getattr(properties, "CorrelationData", None),
        )
        connection = self._connection
        if connection is not None and not connection.up:
            connection.early.append(incoming)
        else:
            self._changed(incoming)

    def _on_publish(
        self, _client: paho.Client, _userdata: object, mid: int,
        reason: ReasonCode, _properties: Properties | None,
    ) -> None:  # fmt: skip
        self._changed(Delivered(self.epoch, mid, reason.value))


def _properties(packet: int) -> Properties:
    return Properties(packet)  # type: ignore[no-untyped-call]  # paho has no types here


def _publish_properties(message: Outgoing) -> Properties:
    properties = _properties(PacketTypes.PUBLISH)
    properties.ContentType = message.content_type
    if message.user:
        properties.UserProperty = list(message.user)
    if message.correlation is not None:
        properties.CorrelationData = message.correlation
    return properties
