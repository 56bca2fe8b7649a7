"""The broker link: connect, subscribe, receive, publish, acknowledge.

The only file here that knows paho. One thread, ``mqtt-net``, owns the socket and runs paho's loop.
Its callbacks stamp the time and hand over; whatever they raise is caught, logged and counted, since
paho's own thread would die of it and go on calling itself connected. Each connection has a number,
the epoch: an acknowledgement that belongs to an earlier one is void, because packet identifiers
start again.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edged.backoff import Backoff
from edged.metrics import Metrics
from edged.mqtt_client import new_client
from edged.serve.publish_properties import PublishProperties
from edged.serve.request import Arrival, LinkDown, LinkUp, Receipt, Reply
from edged.settings import BrokerSettings
from edged.socket_loop import SocketLoop

log = logging.getLogger(__name__)

SESSION_TAKEN_OVER = 0x8E
"""Reason code of a DISCONNECT (MQTT 5, 3.14.2.1)."""


MOST_UNSENT_BYTES = 16 * 1024 * 1024
"""QoS 0 messages that a slow broker has not read yet; beyond it they are dropped and counted."""


@dataclass(frozen=True)
class LinkHandlers:
    """Whom the link tells. All are called on the ``mqtt-net`` thread and must not wait.

    Attributes:
        arrived: a PUBLISH came; False: it could not be taken over and will not be acknowledged.
        delivered: (packet identifier of a QoS 1 PUBLISH of ours, whether the broker took it).
        changed: the connection came or went.
        status: retained status document: (state, session number) -> payload.
    """

    arrived: Callable[[Arrival], bool]
    delivered: Callable[[int, bool], None]
    changed: Callable[[LinkUp | LinkDown], None]
    status: Callable[[str, int], bytes]


class BrokerLink:
    """The connection to the request broker, kept up until it is stopped.

    Args:
        settings: the ``[broker]`` section.
        client_id: stable over restarts, so that the broker keeps the session.
        status_topic: where birth, will and farewell go.
        subscriptions: filters of the requests.
        handlers: whom to tell.
        metrics: counters.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        client_id: str,
        status_topic: str,
        subscriptions: tuple[str, ...],
        handlers: LinkHandlers,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._status_topic = status_topic
        self._subscriptions = subscriptions
        self._handlers = handlers
        self._metrics = metrics
        self.epoch = 0
        self.connected = threading.Event()
        self._order = 0
        self._max_packet_bytes = 0
        self._said_down = False
        self._subscribing = True
        self._birth_due = False
        self._said_rejected = False
        self._unacknowledged: set[int] = set()  # identifiers of our QoS 1 messages
        self._unsent_bytes = 0
        self._was_connected = False
        self._backoff = Backoff(settings.backoff_min_s, settings.backoff_max_s)
        self._stop = threading.Event()
        self._client = self._make_client(client_id)
        self._loop = SocketLoop(self._client)
        self._thread = threading.Thread(target=self._run, name="mqtt-net", daemon=True)

    def __repr__(self) -> str:
        state = "connected" if self.connected.is_set() else "not connected"
        where = f"{self._settings.host}:{self._settings.port}"
        return f"<BrokerLink {where} {state}, connection {self.epoch}>"

    # -------------------------------------------------------------- life

    def start(self, *, subscribe: bool = True) -> None:
        """Starts to connect; returns at once.

        Args:
            subscribe: False: not before `subscribe` is called. Requests that a kept session holds
                come all the same.
        """
        self._subscribing = subscribe
        self._thread.start()

    def subscribe(self) -> None:
        """Asks for requests, now and at each connection to come."""
        with self._loop.lock:
            self._subscribing = True
            if self.connected.is_set():
                self._client.subscribe([(topic, 1) for topic in self._subscriptions])
                self._loop.write()

    def alive(self) -> bool:
        """Whether the network thread lives; being connected is no evidence of that."""
        return self._thread.is_alive()

    def stop(self, farewell: bytes, timeout_s: float = 5.0) -> None:
        """Publishes the farewell status, disconnects, and ends the thread.

        A clean DISCONNECT suppresses the will.
        """
        if self.connected.is_set():
            info = self._client.publish(self._status_topic, farewell, qos=1, retain=True)
            self._loop.wake()
            if self._thread.is_alive():
                try:
                    info.wait_for_publish(timeout_s)
                except (RuntimeError, ValueError) as err:
                    log.debug("farewell not delivered: %s", err)
        self._stop.set()
        self._client.disconnect()
        self._loop.wake()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    # -------------------------------------------------------------- for the reply thread

    def publish(self, reply: Reply) -> int | None:
        """Hands a reply over for sending; never waits.

        Returns:
            The packet identifier that ``delivered`` will name; None if it was not taken: QoS 0
            without a connection or behind too much unsent, no topic name, or too large a packet.
        """
        try:
            properties = PublishProperties(reply)
            self._check(reply, len(properties.pack()))
            with self._loop.lock:
                if not reply.qos and not self._takes(len(reply.payload)):
                    return None
                info = self._client.publish(
                    reply.topic,
                    reply.payload,
                    reply.qos,
                    reply.retain,
                    properties,  # type: ignore[arg-type]  # paho only packs it
                )
                if reply.qos:
                    self._unacknowledged.add(info.mid)
                self._loop.write()
        except ValueError as err:
            log.warning("not published: %s", err, extra={"topic": reply.topic})
            return None
        if info.rc == paho.MQTT_ERR_SUCCESS or (reply.qos and info.rc == paho.MQTT_ERR_NO_CONN):
            return info.mid
        return None

    def _takes(self, size: int) -> bool:
        """Whether more may be queued for a broker that reads slowly: QoS 0 has no window."""
        if not self._client.want_write():
            self._unsent_bytes = 0
        self._unsent_bytes += size
        return self._unsent_bytes <= MOST_UNSENT_BYTES or self._unsent_bytes == size

    def _check(self, reply: Reply, property_bytes: int) -> None:
        if not reply.topic:
            raise ValueError("the topic is empty")
        size = 7 + len(reply.topic.encode()) + 2 + property_bytes + len(reply.payload)
        if self._max_packet_bytes and size > self._max_packet_bytes:
            raise ValueError(
                f"it has {size} bytes, the broker takes packets of at most {self._max_packet_bytes}"
            )

    def acknowledge(self, receipt: Receipt) -> bool:
        """Sends the PUBACK of a request; False if its connection is gone and it is void."""
        with self._loop.lock:  # no reconnection comes between the check and the acknowledgement
            if receipt.epoch != self.epoch or not self.connected.is_set():
                return False
            self._client.ack(receipt.mid, receipt.qos)
            self._loop.write()
            return True

    # -------------------------------------------------------------- the network thread

    def _make_client(self, client_id: str) -> paho.Client:
        client = new_client(self._settings, client_id)
        client.on_connect = self._guarded(self._on_connect)
        client.on_message = self._guarded(self._on_message)
        client.on_publish = self._guarded(self._on_publish)
        client.on_subscribe = self._guarded(self._on_subscribe)
        client.on_disconnect = self._guarded(self._on_disconnect)
        return client

    def _guarded(self, callback: Callable[..., None]) -> Callable[..., None]:
        def guarded(*args: Any) -> None:
            try:
                callback(*args)
            except Exception:
                self._metrics.count("callback_failures_total")
                log.exception("%s failed", callback.__name__)

        return guarded

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._connect()
                self._loop.exchange(self._give_birth)
            except OSError as err:
                self._say_down(str(err) or type(err).__name__)
            except Exception as err:
                self._metrics.count("callback_failures_total")
                log.exception("the network loop failed; connecting anew")
                self._say_down(type(err).__name__)
            if self.connected.is_set():
                self._lost("connection lost")
            else:
                self._say_down("it ended the connection before it had answered")
            if not self._stop.is_set():
                chance = random.random()  # noqa: S311  # jitter, not a secret
                self._stop.wait(self._backoff.pause_s(time.monotonic(), chance))

    def _connect(self) -> None:
        settings = self._settings
        with self._loop.lock:
            self.epoch += 1
            self._order = 0
        will = _properties(PacketTypes.WILLMESSAGE)
        will.WillDelayInterval = settings.will_delay_s
        self._client.will_set(
            self._status_topic,
            self._handlers.status("offline", self.epoch),
            qos=1,
            retain=True,
            properties=will,
        )
        properties = _properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = settings.session_expiry_s
        properties.ReceiveMaximum = settings.receive_maximum
        properties.MaximumPacketSize = settings.max_packet_bytes
        self._client.connect(
            settings.host,
            settings.port,
            keepalive=settings.keepalive_s,
            clean_start=False,
            properties=properties,
        )

    def _say_down(self, reason: str) -> None:
        if not self._said_down and not self._stop.is_set():
            self._said_down = True
            log.warning(
                "no broker at %s:%d (%s); trying again until there is one",
                self._settings.host,
                self._settings.port,
                reason,
            )

    def _lost(self, reason: str) -> None:
        self.connected.clear()
        if not self._stop.is_set():
            self._metrics.count("broker_losses_total")
            self._say_down(reason)
        self._handlers.changed(LinkDown(self.epoch, reason))

    # -------------------------------------------------------------- callbacks, on mqtt-net

    def _on_connect(
        self, _client: paho.Client, _userdata: object, flags: paho.ConnectFlags,
        reason: ReasonCode, properties: Properties | None,
    ) -> None:  # fmt: skip
        if reason.is_failure:
            self._say_down(f"it refuses this client: {reason}")
            self._client.disconnect()
            return
        self._backoff.connected(time.monotonic())
        self._said_down = False
        self._said_rejected = False
        offered = getattr(properties, "ReceiveMaximum", 65535)
        self._max_packet_bytes = getattr(properties, "MaximumPacketSize", 0)
        self.connected.set()
        log.info(
            "connected to the broker",
            extra={"connection": self.epoch, "session_present": flags.session_present},
        )
        if self._was_connected and not flags.session_present:
            self._metrics.count("sessions_lost_total")
            log.warning("the broker did not keep the session: requests sent meanwhile are lost")
        self._was_connected = True
        # Before subscribing: a kept session delivers at once.
        self._handlers.changed(
            LinkUp(
                self.epoch,
                flags.session_present,
                min(self._settings.send_window, offered),
                self._max_packet_bytes,
            )
        )
        if self._subscribing:
            self._client.subscribe([(topic, 1) for topic in self._subscriptions])
        self._birth_due = True

    def _give_birth(self) -> None:
        """Publishes the status after what paho sends again: an older one among it would win."""
        if self._birth_due:
            self._birth_due = False
            born = self._handlers.status("online", self.epoch)
            info = self._client.publish(self._status_topic, born, qos=1, retain=True)
            self._unacknowledged.add(info.mid)

    def _on_subscribe(
        self, _client: paho.Client, _userdata: object, _mid: int,
        reasons: list[ReasonCode], _properties: Properties | None,
    ) -> None:  # fmt: skip
        refused = [str(reason) for reason in reasons if reason.is_failure]
        if refused or len(reasons) != len(self._subscriptions):
            self._metrics.count("subscriptions_refused_total")
            log.error(
                "the broker refuses subscriptions (%s): allow this client to read %s",
                ", ".join(refused) or "no answer for some",
                ", ".join(self._subscriptions),
            )

    def _on_message(
        self, _client: paho.Client, _userdata: object, message: paho.MQTTMessage
    ) -> None:
        received = time.monotonic()
        order = self._order + 1 if message.qos else 0
        properties = message.properties
        arrival = Arrival(
            topic=message.topic,
            payload=bytes(message.payload),
            receipt=Receipt(self.epoch, order, message.mid, message.qos),
            received=received,
            response_topic=getattr(properties, "ResponseTopic", ""),
            correlation=getattr(properties, "CorrelationData", None),
            content_type=getattr(properties, "ContentType", ""),
            expiry_s=getattr(properties, "MessageExpiryInterval", None),
            user=dict(getattr(properties, "UserProperty", ())),
            retained=message.retain,
        )
        # A number that nobody answers for would hold up all later ones.
        if self._handlers.arrived(arrival) and order:
            self._order = order

    def _on_publish(
        self, _client: paho.Client, _userdata: object, mid: int,
        reason: ReasonCode, _properties: Properties | None,
    ) -> None:  # fmt: skip
        if reason.is_failure:
            self._metrics.count("replies_rejected_total")
            if not self._said_rejected:
                self._said_rejected = True
                log.warning("the broker rejects messages of ours: %s", reason)
        if mid in self._unacknowledged:  # paho tells of QoS 0 too, whose identifiers mean nothing
            self._unacknowledged.discard(mid)
            self._handlers.delivered(mid, not reason.is_failure)

    def _on_disconnect(
        self, _client: paho.Client, _userdata: object, _flags: paho.DisconnectFlags,
        reason: ReasonCode, _properties: Properties | None,
    ) -> None:  # fmt: skip
        if reason.value == SESSION_TAKEN_OVER:
            log.error(
                "another client has this device's MQTT client id; give each its own device.name"
            )
        if self.connected.is_set():
            self._lost(str(reason))


def _properties(packet: int) -> Properties:
    return Properties(packet)  # type: ignore[no-untyped-call]  # paho has no types here
