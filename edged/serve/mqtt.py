"""The broker link: connect, subscribe, receive, publish, acknowledge.

One thread, ``mqtt-net``, owns the connection. In each turn it reads all that has come, hands it
over, lets the pipeline do its part, and sends all acknowledgements and replies of the turn at once.
What its handlers raise is caught, logged and counted. Each connection has a number, the epoch: an
acknowledgement that belongs to an earlier one is void, because packet identifiers start again.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from edged.backoff import Backoff
from edged.errors import BrokerError, BrokerProtocolError
from edged.metrics import Metrics
from edged.mqtt import codec, control, reason_codes
from edged.mqtt.address import open_stream
from edged.mqtt.codec import MQTT_5, PUBACK, PUBLISH, Publish
from edged.mqtt.connection import Connection, Wake
from edged.mqtt.control import (
    CONNACK,
    DISCONNECT,
    PINGRESP,
    SUBACK,
    UNSUBACK,
    ConnAck,
    Will,
)
from edged.mqtt.keep_alive import KeepAlive
from edged.mqtt.receiver import OWN_BUFFER_BYTES
from edged.serve.broker_address import address_of, connect_of
from edged.serve.fingerprint import fingerprint
from edged.serve.link_handlers import LinkHandlers
from edged.serve.request import Arrival, LinkDown, LinkUp, Receipt, Reply
from edged.serve.sending import Sending
from edged.serve.subscriptions import Subscriptions
from edged.settings import BrokerSettings

log = logging.getLogger(__name__)
Result = TypeVar("Result")

LOOP_S = 1.0
"""Keep-alive is looked at so often at least."""


class BrokerLink:
    """The connection to the request broker, kept up until it is stopped.

    Attributes:
        connected: set while the broker has accepted the connection.
        subscriptions: what requests are asked for.
        publish: `Sending.publish`, from any thread.
        acknowledge: `Sending.acknowledge`, from any thread.

    Args:
        settings: the ``[broker]`` section.
        client_id: stable over restarts, so that the broker keeps the session.
        status_topic: where birth, will and farewell go.
        subscriptions: filters of the requests.
        handlers: whom to tell.
        metrics: counters.

    Raises:
        ConfigError: a certificate or key cannot be read.
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
        self._client_id = client_id
        self._status_topic = status_topic
        self._handlers = handlers
        self._metrics = metrics
        self._address = address_of(settings)
        self._version = MQTT_5
        self.connected = threading.Event()
        self._order = 0
        self._was_connected = self._said_down = self._said_rejected = False
        self._malformed = 0  # packet identifier of the PUBLISH that ended the last connection
        self._backoff = Backoff(settings.backoff_min_s, settings.backoff_max_s)
        self._keep_alive = KeepAlive(0, 0)
        self._wake = Wake()
        self._out = Sending(self._wake)
        self.subscriptions = Subscriptions(subscriptions, self._out, metrics)
        self.publish = self._out.publish
        self.acknowledge = self._out.acknowledge
        self._busy_since = 0.0
        self._stop = threading.Event()
        self._farewell = 0
        self._farewell_taken = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mqtt-net", daemon=True)

    def __repr__(self) -> str:
        state = "connected" if self.connected.is_set() else "not connected"
        return f"<BrokerLink {self._address} {state}, connection {self.epoch}>"

    @property
    def epoch(self) -> int:
        """Number of the connection that stands or is being made."""
        return self._out.epoch

    # -------------------------------------------------------------- life

    def start(self, *, subscribe: bool = True) -> None:
        """Starts to connect; returns at once.

        Args:
            subscribe: False: not before `Subscriptions.ask` is called. Requests that a kept session
                holds come all the same.
        """
        self.subscriptions.on = subscribe
        self._thread.start()

    def alive(self) -> bool:
        """Whether the network thread lives; being connected is no evidence of that."""
        return self._thread.is_alive()

    def stuck(self, now: float, stuck_s: float) -> str | None:
        """Why the watchdog should not be fed: the network thread waits for nobody in its turn."""
        since = self._busy_since
        if since and now - since > stuck_s:
            return f"thread {self._thread.name} has made no progress for {now - since:.0f} s"
        return None

    def wake(self) -> None:
        """Has the network thread run ``turn``; from any thread."""
        self._wake.wake()

    def stop(self, farewell: bytes, timeout_s: float = 5.0) -> None:
        """Publishes the farewell status, disconnects, and ends the thread.

        A clean DISCONNECT suppresses the will.
        """
        if self.connected.is_set() and self._thread.is_alive():
            self._farewell_taken.clear()
            with self._out.lock:
                mid = self.publish(Reply(self._status_topic, farewell, 1, retain=True))
                self._farewell = mid or 0
            if mid and not self._farewell_taken.wait(timeout_s):
                log.debug("farewell not delivered")
        self._stop.set()
        self._wake.wake()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    # -------------------------------------------------------------- the network thread

    def _run(self) -> None:
        while not self._stop.is_set():
            reason = "it ended the connection before it had answered"
            try:
                reason = self._exchange(self._connect())
            except BrokerProtocolError as err:
                with self._out.lock, contextlib.suppress(OSError):
                    self._out.disconnect(err.reason)
                reason = err.message
            except (OSError, BrokerError) as err:
                reason = str(err) or type(err).__name__
            except Exception as err:
                self._metrics.count("callback_failures_total")
                log.exception("the network loop failed; connecting anew")
                reason = type(err).__name__
            self._disconnected(reason)
            self._busy_since = 0.0
            if not self._stop.is_set():
                chance = random.random()  # noqa: S311  # jitter, not a secret
                self._pause(self._backoff.pause_s(time.monotonic(), chance))

    def _pause(self, seconds: float) -> None:
        """Replies that can no longer be sent are still to be counted meanwhile."""
        until = time.monotonic() + seconds
        while not self._stop.is_set() and (left := until - time.monotonic()) > 0:
            self._wake.wait(left)
            self._busy_since = time.monotonic()
            with self._out.lock:
                self._guarded(self._handlers.turn)
            self._busy_since = 0.0

    def _connect(self) -> Connection:
        settings = self._settings
        epoch = self._out.next_epoch()
        self._order = 0
        will = Will(
            self._status_topic, self._handlers.status("offline", epoch), settings.will_delay_s
        )
        asked = connect_of(settings, self._client_id, will)
        stream = open_stream(self._address, settings.connect_timeout_s)
        connection = Connection(stream, asked.max_packet_bytes, self._wake)
        self._out.opened(connection, asked.version)
        self._version = asked.version
        connection.put(control.encode_connect(asked))
        connection.flush()
        self._keep_alive = KeepAlive(settings.keepalive_s, time.monotonic())
        return connection

    def _exchange(self, connection: Connection) -> str:
        """Reads, writes and keeps alive until the connection ends; returns why it did."""
        until = time.monotonic() + self._settings.connect_timeout_s
        while True:
            self._busy_since = 0.0
            readable = connection.wait(LOOP_S)
            self._busy_since = now = time.monotonic()
            with self._out.lock:
                if readable:
                    self._keep_alive.received(now)
                    for first, body in connection.packets():
                        if ended := self._handle(first, body):
                            return ended
                self._guarded(self._handlers.turn)
                if self._stop.is_set():
                    self._out.disconnect(reason_codes.SUCCESS)
                    return "stopped"
                if connection.unsent and connection.flush():
                    self._keep_alive.sent(now)
                self._guarded(self._handlers.settled)
                if ended := self._silent(connection, now):
                    return ended
                if now > until and not self.connected.is_set():
                    return f"no answer within {self._settings.connect_timeout_s:g} s"

    def _silent(self, connection: Connection, now: float) -> str:
        due = self._keep_alive.due(now)
        if due == "ping":
            connection.put(control.PINGREQ)
            connection.flush()
        return reason_codes.name(reason_codes.KEEP_ALIVE_TIMEOUT) if due == "dead" else ""

    def _disconnected(self, reason: str) -> None:
        """The connection is gone, or there never was one."""
        was_up = self._out.closed()
        self.connected.clear()
        self._farewell_taken.set()  # or never
        self._guarded(self._handlers.settled)
        if not self._stop.is_set():
            if was_up:
                self._metrics.count("broker_losses_total")
            self._say_down(reason)
        if was_up:
            self._guarded(self._handlers.changed, LinkDown(self.epoch, reason))

    def _say_down(self, reason: str) -> None:
        if not self._said_down:
            self._said_down = True
            log.warning(
                "no broker at %s (%s); trying again until there is one", self._address, reason
            )

    def _guarded(self, handler: Callable[..., Result], *about: object) -> Result | None:
        try:
            return handler(*about)
        except Exception:
            self._metrics.count("callback_failures_total")
            log.exception("%s failed", getattr(handler, "__name__", handler))
            return None

    # -------------------------------------------------------------- in, on mqtt-net

    def _handle(self, first: int, body: memoryview) -> str:
        """One packet; why the connection ends with it, else ""."""
        kind = first & 0xF0
        if not self.connected.is_set():
            if kind != CONNACK:
                raise BrokerProtocolError(
                    f"it answers CONNECT with a packet of type {first >> 4}",
                    reason_codes.PROTOCOL_ERROR,
                )
            return self._on_connack(control.decode_connack(body, self._version))
        if kind == PUBLISH:
            self._on_publish(first, body)
        elif kind == PUBACK:
            self._on_puback(*codec.decode_puback(body, self._version))
        elif kind == SUBACK:
            self.subscriptions.answered(*control.decode_suback(body, self._version))
        elif kind == UNSUBACK:
            self.subscriptions.left(control.decode_unsuback(body, self._version))
        elif kind == DISCONNECT:
            return self._on_disconnect(control.decode_disconnect(body))
        elif kind != PINGRESP:
            raise BrokerProtocolError(
                f"the broker sent a packet of type {first >> 4}", reason_codes.PROTOCOL_ERROR
            )
        return ""

    def _on_connack(self, granted: ConnAck) -> str:
        if granted.reason >= reason_codes.FAILURE or (granted.reason and self._version != MQTT_5):
            return f"it refuses this client: {reason_codes.name(granted.reason)}"
        now = time.monotonic()
        self._backoff.connected(now)
        self._said_down = self._said_rejected = False
        if granted.keepalive_s is not None:
            self._keep_alive = KeepAlive(granted.keepalive_s, now)
        self.connected.set()
        kept = granted.session_present
        log.info(
            "connected to the broker", extra={"connection": self.epoch, "session_present": kept}
        )
        if self._was_connected and not kept:
            self._metrics.count("sessions_lost_total")
            log.warning("the broker did not keep the session: requests sent meanwhile are lost")
        self._was_connected = True
        window = min(self._settings.send_window, granted.receive_maximum)
        self._out.accepted(window, granted.max_packet_bytes, session_present=kept)
        # Before subscribing: a kept session delivers at once.
        up = LinkUp(self.epoch, kept, window, granted.max_packet_bytes)
        self._guarded(self._handlers.changed, up)
        self.subscriptions.connected(shared=granted.shared)
        # Behind what is sent again: an older status among it would win.
        born = self._handlers.status("online", self.epoch)
        self.publish(Reply(self._status_topic, born, 1, retain=True))
        return ""

    def _on_publish(self, first: int, body: memoryview) -> None:
        received = time.monotonic()
        try:
            message = codec.decode_publish(first, body, self._version)
        except BrokerProtocolError as err:
            message = self._given_up(first, body, err)
        except Exception:
            self._metrics.count("callback_failures_total")
            log.exception("a message of the broker could not be read")
            fault = BrokerProtocolError("it met a fault of ours", reason_codes.FAILURE)
            message = self._given_up(first, body, fault)
        order = self._order + 1 if message.qos else 0
        mark = fingerprint(message) if message.qos else 0
        payload = message.payload
        arrival = Arrival(
            message.topic,
            payload if len(body) >= OWN_BUFFER_BYTES else bytes(payload),
            Receipt(self.epoch, order, message.mid, message.qos, mark),
            received,
            message.response_topic,
            message.correlation,
            message.content_type,
            message.expiry_s,
            message.user or {},
            message.retain,
        )
        # A number that nobody answers for would hold up all later ones.
        if self._guarded(self._handlers.arrived, arrival) and order:
            self._order = order

    def _given_up(self, first: int, body: memoryview, error: BrokerProtocolError) -> Publish:
        """A malformed PUBLISH ends the connection; the second time it becomes an empty request.

        A broker that checks less than it should would else deliver it at each connection for ever.

        Raises:
            BrokerProtocolError: it came for the first time.
        """
        mid = codec.identifier_of(first, body)
        if not mid or mid != self._malformed:
            self._malformed = mid
            raise error
        self._malformed = 0
        log.error("a message that ended the connection before is taken as empty: %s", error)
        return Publish("", body[:0], 1, mid)

    def _on_puback(self, mid: int, reason: int) -> None:
        accepted = reason < reason_codes.FAILURE
        if not accepted:
            self._metrics.count("replies_rejected_total")
            if not self._said_rejected:
                self._said_rejected = True
                log.warning("the broker rejects messages of ours: %s", reason_codes.name(reason))
        if not self._out.acknowledged(mid):
            return  # nothing of that identifier is on its way
        if mid == self._farewell:
            self._farewell_taken.set()
        self._guarded(self._handlers.delivered, mid, accepted)

    def _on_disconnect(self, reason: int) -> str:
        if reason == reason_codes.SESSION_TAKEN_OVER:
            log.error(
                "another client has this device's MQTT client id; give each its own device.name"
            )
        return reason_codes.name(reason)
