"""The client's connection to the broker; the only client file that knows paho.

Callbacks run on paho's network thread. They hand a `Delivery` over or set an event, and no
exception leaves them: paho's thread would die of one silently.
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edged import protocol
from edged.errors import BrokerError, PayloadTooLargeError

_LOG = logging.getLogger(__name__)
# paho does not honour the broker's Receive Maximum, and takes no other window once connected. 20 is
# mosquitto's default and the smallest of a common broker; more requests wait inside paho.
_SEND_WINDOW = 20
# What a PUBLISH needs besides its payload: fixed header, topics and properties, generously.
_PACKET_OVERHEAD = 1024


@dataclass(frozen=True)
class Endpoint:
    """Where a device is reached.

    Attributes:
        device: its name, a level of every topic.
        host: the broker's.
        port: the broker's MQTT 5 listener.
        root: first levels of every topic.
        username: None: no login.
        password: for the login.
        tls: encrypt, and check the broker's certificate.
        ca_file: certificate authorities instead of the system's; implies tls.
    """

    device: str
    host: str = "127.0.0.1"
    port: int = 1883
    root: str = protocol.DEFAULT_ROOT
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    ca_file: Path | None = None


@dataclass(frozen=True)
class Delivery:
    """One PUBLISH that the broker delivered; absent properties are empty.

    Attributes:
        topic: topic name.
        payload: the body.
        correlation: Correlation Data.
        content_type: Content Type.
        user: user properties; of a name given twice the last one.
        received: monotonic seconds, stamped on the network thread.
    """

    topic: str
    payload: bytes
    correlation: bytes
    content_type: str
    user: Mapping[str, str]
    received: float


@dataclass(frozen=True)
class Publication:
    """One PUBLISH to send; empty or None properties are left out."""

    topic: str
    payload: bytes
    response_topic: str
    correlation: bytes
    content_type: str
    user: Sequence[tuple[str, str]] = ()
    expiry_s: int | None = None

    def properties(self) -> Properties:
        """The MQTT 5 properties."""
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho's
        properties.ResponseTopic = self.response_topic
        properties.CorrelationData = self.correlation
        properties.ContentType = self.content_type
        if self.user:
            properties.UserProperty = list(self.user)
        if self.expiry_s is not None:
            properties.MessageExpiryInterval = max(1, self.expiry_s)
        return properties


class Link:
    """A connection with its subscriptions, mended in the background after a loss.

    Args:
        endpoint: the broker.
        client_id: MQTT client id.
        subscriptions: topic filters, QoS 1; the connection is ready when all are granted.
        deliver: called with each delivery on the network thread; must not wait.
        timeout_s: for the connection and the subscriptions.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        client_id: str,
        subscriptions: Sequence[str],
        deliver: Callable[[Delivery], None],
        timeout_s: float,
    ) -> None:
        self._where = f"{endpoint.host}:{endpoint.port}"
        self._address = (endpoint.host, endpoint.port)
        self._subscriptions = tuple(subscriptions)
        self._deliver = deliver
        self._timeout_s = timeout_s
        self._max_packet: int | None = None
        self._ready = threading.Event()
        self._refused: str | None = None
        self._mqtt = self._make(endpoint, client_id)

    def connect(self) -> None:
        """Connects, and returns when every subscription is granted.

        Raises:
            BrokerError: the broker cannot be reached or refuses; the message says which.
        """
        try:
            self._mqtt.connect(*self._address, keepalive=30)
        except (OSError, ValueError) as err:
            raise BrokerError(
                f"no MQTT broker at {self._where} ({err}); start it, or correct host and port"
            ) from err
        self._mqtt.loop_start()
        if not self._ready.wait(self._timeout_s) or self._refused:
            why = self._refused or f"no answer within {self._timeout_s:g} s; does it speak MQTT 5?"
            self.close()
            raise BrokerError(f"the MQTT broker at {self._where} did not let us in: {why}")

    def close(self) -> None:
        """Disconnects and ends the network thread. May be called twice."""
        self._mqtt.disconnect()
        self._mqtt.loop_stop()

    def publish(self, publication: Publication) -> None:
        """Hands one message to paho, QoS 1; while the broker is away paho keeps it.

        Raises:
            PayloadTooLargeError: larger than the broker takes.
        """
        size = len(publication.payload) + _PACKET_OVERHEAD
        # Sent all the same, it would end the connection, and again at every reconnect.
        if self._max_packet is not None and size > self._max_packet:
            raise PayloadTooLargeError(
                f"the request needs about {size} bytes, the broker takes packets of at most "
                f"{self._max_packet}; send fewer samples, or raise the broker's limit"
            )
        self._mqtt.publish(
            publication.topic, publication.payload, qos=1, properties=publication.properties()
        )

    # ------------------------------------------------------------------ paho's side

    def _make(self, endpoint: Endpoint, client_id: str) -> mqtt.Client:
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id, protocol=MQTTProtocolVersion.MQTTv5
        )
        client.suppress_exceptions = True  # the network thread must outlive any callback
        client.connect_timeout = self._timeout_s
        client.max_inflight_messages_set(_SEND_WINDOW)
        client.reconnect_delay_set(1, 10)
        if endpoint.username is not None:
            client.username_pw_set(endpoint.username, endpoint.password)
        if endpoint.tls or endpoint.ca_file:
            client.tls_set_context(ssl.create_default_context(cafile=endpoint.ca_file))
        client.on_socket_open = _without_delay
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        return client

    def _on_connect(
        self,
        client: mqtt.Client,
        userdata: object,
        flags: mqtt.ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:  # network thread
        del userdata, flags
        if reason.is_failure:
            self._refused = str(reason)
            self._ready.set()
            return
        self._max_packet = getattr(properties, "MaximumPacketSize", None)
        client.subscribe([(topic, SubscribeOptions(qos=1)) for topic in self._subscriptions])

    def _on_subscribe(
        self,
        client: mqtt.Client,
        userdata: object,
        mid: int,
        reasons: list[ReasonCode],
        properties: Properties | None,
    ) -> None:  # network thread
        del client, userdata, mid, properties
        refused = [
            f"subscribing to {topic} was refused: {reason}"
            for topic, reason in zip(self._subscriptions, reasons, strict=False)
            if reason.is_failure
        ]
        self._refused = "; ".join(refused) or None
        self._ready.set()

    def _on_message(
        self, client: mqtt.Client, userdata: object, message: mqtt.MQTTMessage
    ) -> None:  # network thread
        received = time.monotonic()
        del client, userdata
        properties = message.properties
        delivery = Delivery(
            message.topic,
            bytes(message.payload),
            getattr(properties, "CorrelationData", b""),
            getattr(properties, "ContentType", ""),
            dict(getattr(properties, "UserProperty", ())),
            received,
        )
        try:
            self._deliver(delivery)
        except Exception:
            _LOG.exception("a message from the broker could not be handled")


def _without_delay(client: mqtt.Client, userdata: object, sock: Any) -> None:
    """Turns Nagle's algorithm off, which would hold a small packet back for up to 40 ms."""
    del client, userdata
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
