"""The client's connection to the broker, over `edged.mqtt`, and the thread that keeps it up.

The thread owns the socket; any thread may publish, which sends at once where the socket takes it.
What has come is handed over without the lock: whoever is told may publish, and may take locks of
its own.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from edged.backoff import Backoff
from edged.client.endpoint import Delivery, Endpoint, Publication
from edged.errors import (
    BadParameterError,
    BrokerError,
    BrokerProtocolError,
    PayloadTooLargeError,
)
from edged.mqtt import codec, control, reason_codes
from edged.mqtt.address import Address, open_stream
from edged.mqtt.codec import PUBACK, PUBLISH
from edged.mqtt.connection import Connection, Wake
from edged.mqtt.control import CONNACK, DISCONNECT, PINGRESP, SUBACK, Connect
from edged.mqtt.in_flight import InFlight, Outgoing
from edged.mqtt.keep_alive import KeepAlive
from edged.tls import client_context

_LOG = logging.getLogger(__name__)
_KEEPALIVE_S = 30
_SESSION_S = 120
"""The broker keeps answers for so long while the connection is away."""
_BACKOFF_S = (0.25, 10.0)
_LOOP_S = 1.0
_MAX_PACKET_BYTES = 268_435_455

Deliver = Callable[[Delivery], None]
Rejected = Callable[[bytes, int], None]


def _nobody(_correlation: bytes, _reason: int) -> None:
    pass


class Link:
    """A connection with its subscriptions, mended in the background after a loss.

    Args:
        endpoint: the broker.
        client_id: MQTT client id.
        subscriptions: topic filters, QoS 1; the connection is ready when all are granted.
        deliver: called with each delivery on the link's thread; must not wait.
        timeout_s: for the connection and the subscriptions.
        rejected: called likewise with the correlation data of a message that the broker refuses or
            has nobody for, and the reason code.

    Raises:
        ConfigError: a certificate or key cannot be read.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        client_id: str,
        subscriptions: Sequence[str],
        deliver: Deliver,
        timeout_s: float,
        rejected: Rejected = _nobody,
    ) -> None:
        tls = endpoint.tls or endpoint.ca_file or endpoint.cert_file
        context = client_context(endpoint, "the client's endpoint") if tls else None
        self._address = Address(
            endpoint.host, endpoint.port, endpoint.transport, context, endpoint.websocket_path
        )
        self._endpoint = endpoint
        self._client_id = client_id
        self._subscriptions = tuple(subscriptions)
        self._deliver = deliver
        self._rejected = rejected
        self._timeout_s = timeout_s
        self._started: Future[None] = Future()
        self._stopping = threading.Event()
        self._wake = Wake()
        self._backoff = Backoff(*_BACKOFF_S)
        self._keep_alive = KeepAlive(0, 0)
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._is_up = self._granted = self._clean_start = False
        self._in_flight = InFlight()
        self._sent: dict[int, bytes] = {}  # packet identifier -> correlation data
        self._max_packet_bytes = 0
        self._subscribing = 0
        self._arrived: list[Delivery | tuple[bytes, int]] = []
        self._thread = threading.Thread(target=self._run, name=client_id, daemon=True)

    def __repr__(self) -> str:
        state = "connected" if self._is_up else "not connected"
        return f"<Link {self._address} {state}, {self._in_flight!r}>"

    # ------------------------------------------------------------------ any thread

    @property
    def is_up(self) -> bool:
        """Whether the broker has accepted the connection."""
        return self._is_up

    def start(self) -> Future[None]:
        """Begins to connect; done when every subscription is granted.

        It ends with `BrokerError` if the broker cannot be reached or refuses; it may be tried
        again then. Later losses are mended without a word.
        """
        if not self._thread.is_alive():
            self._started = Future()
            self._started.set_running_or_notify_cancel()  # from now on it cannot be cancelled
            self._thread = threading.Thread(target=self._run, name=self._client_id, daemon=True)
            self._thread.start()
        return self._started

    def connect(self) -> None:
        """Connects, and returns when every subscription is granted.

        Raises:
            BrokerError: the broker cannot be reached or refuses; the message says which.
        """
        self.start().result()

    def close(self) -> None:
        """Disconnects and ends the thread. May be called twice, and before `start`."""
        self._stopping.set()
        self._wake.wake()
        if self._thread.is_alive() and not self.on_its_thread():
            self._thread.join()

    def on_its_thread(self) -> bool:
        """Whether the caller was called by this link, and must not wait for it."""
        return threading.current_thread() is self._thread

    def publish(self, publication: Publication) -> None:
        """Hands one message over, QoS 1; while the broker is away it is kept.

        Raises:
            BadParameterError: the topic is none, or a property is too long.
            PayloadTooLargeError: larger than the broker takes.
        """
        with self._lock:
            mid = 0
            try:
                mid = self._in_flight.identifier()
                head = publication.head(mid)
            except ValueError as err:
                self._in_flight.release(mid)
                raise BadParameterError(f"the request cannot be sent: {err}") from err
            size = len(head) + len(publication.payload)
            # Sent all the same, it would end the connection, and again at every reconnect.
            if self._max_packet_bytes and size > self._max_packet_bytes:
                self._in_flight.release(mid)
                raise PayloadTooLargeError(
                    f"the request needs a packet of {size} bytes, the broker takes at most "
                    f"{self._max_packet_bytes}; send fewer samples, or raise the broker's limit"
                )
            self._sent[mid] = publication.correlation
            self._in_flight.put(Outgoing(mid, head, publication.payload))
            self._send_due()
            self._flush()

    def forget(self, correlation: bytes) -> None:
        """Takes a message back if it was never sent, so that nothing piles up without a broker."""
        with self._lock:
            for mid, sent in self._sent.items():
                if sent == correlation:
                    if self._in_flight.forget(mid):
                        del self._sent[mid]
                    return

    def _send_due(self) -> None:
        if (connection := self._connection) is not None and self._is_up:
            for message in self._in_flight.due():
                connection.put(message.begin())
                if message.payload:
                    connection.put(message.payload)

    def _flush(self) -> None:
        if (connection := self._connection) is not None:
            with contextlib.suppress(OSError):  # the thread will find out
                connection.flush()
            if connection.unsent:
                self._wake.wake()

    # ------------------------------------------------------------------ the link's thread

    def _run(self) -> None:
        while not self._stopping.is_set():
            reason = self._live()
            with self._lock:
                connection, self._connection = self._connection, None
                self._is_up = False
                self._in_flight.release(self._subscribing)
                self._in_flight.disconnected()
            if connection is not None:
                connection.close()
            self._hand_over()
            if not self._started.done():
                if connection is not None:
                    reason = f"the MQTT broker at {self._address} did not let us in: {reason}"
                self._started.set_exception(BrokerError(reason))
                return
            if not self._stopping.is_set():
                _LOG.info("connection to %s lost (%s); connecting anew", self._address, reason)
                chance = random.random()  # noqa: S311  # jitter, not a secret
                self._stopping.wait(self._backoff.pause_s(time.monotonic(), chance))
        if not self._started.done():
            self._started.set_exception(BrokerError("the client is closed; make a new one"))

    def _live(self) -> str:
        """One connection from its beginning to its end; returns why it ended."""
        try:
            stream = open_stream(self._address, self._timeout_s)
        except (OSError, BrokerError) as err:
            return f"no MQTT broker at {self._address} ({err}); start it, or correct host and port"
        try:
            connection = Connection(stream, _MAX_PACKET_BYTES, self._wake)
            with self._lock:
                self._connection = connection
                connection.put(control.encode_connect(self._asked()))
            return self._exchange(connection)
        except BrokerProtocolError as err:
            # What it holds of the session may be what cannot be read: not again.
            self._clean_start = True
            self._say(control.encode_disconnect(err.reason))
            return err.message
        except (OSError, ValueError) as err:
            return str(err)
        except Exception as err:
            _LOG.exception("the client's network loop failed; connecting anew")
            return type(err).__name__

    def _asked(self) -> Connect:
        endpoint = self._endpoint
        asked = Connect(
            self._client_id,
            None,
            keepalive_s=_KEEPALIVE_S,
            session_expiry_s=_SESSION_S,
            username=endpoint.username,
            password=endpoint.password if endpoint.username is not None else None,
            clean_start=self._clean_start,
        )
        self._clean_start = False
        return asked

    def _exchange(self, connection: Connection) -> str:
        until = time.monotonic() + self._timeout_s
        self._keep_alive = KeepAlive(_KEEPALIVE_S, time.monotonic())
        self._granted = False
        while not self._stopping.is_set():
            with self._lock:
                self._flush_now(connection)
            readable = connection.wait(min(_LOOP_S, self._timeout_s))
            with self._lock:
                ended = self._turn(connection, readable=readable)
            self._hand_over()
            if ended:
                return ended
            if not self._granted and time.monotonic() > until:
                return f"no answer within {self._timeout_s:g} s; does it speak MQTT 5?"
        self._say(control.encode_disconnect(end_session=True))
        return "the client was closed"

    def _flush_now(self, connection: Connection) -> None:
        if connection.unsent and connection.flush():
            self._keep_alive.sent(time.monotonic())

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
        self._flush_now(connection)
        return reason_codes.name(reason_codes.KEEP_ALIVE_TIMEOUT) if due == "dead" else ""

    def _say(self, farewell: bytes) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self._connection is not None and self._is_up:
                self._connection.put(farewell)
                self._connection.flush()

    def _hand_over(self) -> None:
        """Tells what has come, without the lock."""
        arrived, self._arrived = self._arrived, []
        for item in arrived:
            try:
                if isinstance(item, Delivery):
                    self._deliver(item)
                else:
                    self._rejected(*item)
            except Exception:  # noqa: PERF203  # one that fails must not end the others
                _LOG.exception("a message from the broker could not be handled")

    # ------------------------------------------------------------------ packets, under the lock

    def _handle(self, connection: Connection, first: int, body: memoryview) -> str:
        """One packet; why the connection ends with it, else ""."""
        kind = first & 0xF0
        if not self._is_up and kind == CONNACK:
            return self._on_connack(connection, control.decode_connack(body))
        if not self._is_up or kind not in {PUBLISH, PUBACK, SUBACK, DISCONNECT, PINGRESP}:
            raise BrokerProtocolError(
                f"it sent a packet of type {first >> 4} out of turn", reason_codes.PROTOCOL_ERROR
            )
        if kind == PUBLISH:
            self._on_publish(connection, first, body)
        elif kind == PUBACK:
            self._on_puback(*codec.decode_puback(body))
        elif kind == SUBACK:
            return self._on_suback(*control.decode_suback(body))
        elif kind == DISCONNECT:
            return reason_codes.name(control.decode_disconnect(body))
        return ""

    def _on_connack(self, connection: Connection, granted: control.ConnAck) -> str:
        if granted.reason:
            return reason_codes.name(granted.reason)
        now = time.monotonic()
        self._backoff.connected(now)
        if granted.keepalive_s is not None:
            self._keep_alive = KeepAlive(granted.keepalive_s, now)
        self._is_up = True
        self._max_packet_bytes = granted.max_packet_bytes
        # Before what is sent again: its answers must find the subscription.
        self._subscribing = self._in_flight.identifier()
        connection.put(control.encode_subscribe(self._subscribing, self._subscriptions))
        self._in_flight.connected(granted.receive_maximum, session_present=granted.session_present)
        self._send_due()
        return ""

    def _on_suback(self, mid: int, reasons: tuple[int, ...]) -> str:
        self._in_flight.release(mid)
        refused = [
            f"subscribing to {topic} was refused: {reason_codes.name(reason)}"
            for topic, reason in zip(self._subscriptions, reasons, strict=False)
            if reason >= reason_codes.FAILURE
        ]
        self._granted = not refused
        if not refused and not self._started.done():
            self._started.set_result(None)
        return "; ".join(refused)

    def _on_publish(self, connection: Connection, first: int, body: memoryview) -> None:
        message = codec.decode_publish(first, body)
        if message.qos:
            connection.put(codec.encode_puback(message.mid))
        self._arrived.append(
            Delivery(
                message.topic,
                bytes(message.payload),
                message.correlation or b"",
                message.content_type,
                message.user or {},
                time.monotonic(),
            )
        )

    def _on_puback(self, mid: int, reason: int) -> None:
        if self._in_flight.acknowledged(mid):
            correlation = self._sent.pop(mid, b"")
            if reason:
                self._arrived.append((correlation, reason))
            self._send_due()
