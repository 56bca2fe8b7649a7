"""One MQTT connection of the load generator. It never waits: whoever has all of them polls."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator

from edged.client import Endpoint
from edged.client.endpoint import Publication
from edged.errors import BrokerError, PayloadTooLargeError
from edged.mqtt import codec, control, reason_codes
from edged.mqtt.address import Address, open_stream
from edged.mqtt.codec import PUBACK, PUBLISH, Publish
from edged.mqtt.connection import Connection, Wake
from edged.mqtt.control import CONNACK, DISCONNECT, SUBACK, Connect
from edged.mqtt.in_flight import InFlight, Outgoing
from edged.tls import client_context

KEEPALIVE_S = 60
CONNECT_S = 10.0
_MAX_PACKET_BYTES = 268_435_455


class Template:
    """A request that is sent many times; only packet identifier and correlation data differ.

    Args:
        publication: of eight bytes of correlation data.
        qos: 0 or 1.

    Raises:
        ValueError: the topic is none, or something is too long for its field.
    """

    def __init__(self, publication: Publication, qos: int) -> None:
        mark = secrets.token_bytes(8)
        marked = Publication(
            publication.topic,
            publication.payload,
            publication.response_topic,
            mark,
            publication.content_type,
            publication.user,
            publication.expiry_s,
        )
        head = marked.head(1 if qos else 0)
        at = head.index(mark)
        topic_end = head.index(publication.topic.encode()) + len(publication.topic.encode())
        self._before = head[:topic_end]
        self._between = head[topic_end + (2 if qos else 0) : at]
        self._after = head[at + 8 :]
        self.payload = publication.payload
        self.size = len(head) + len(publication.payload)

    def head(self, mid: int, correlation: bytes) -> bytes:
        """What is sent before the payload; ``mid`` 0 for QoS 0."""
        number = mid.to_bytes(2, "big") if mid else b""
        return b"".join((self._before, number, self._between, correlation, self._after))


class LoadConnection:
    """A connection that sends requests and reads answers.

    Attributes:
        is_up: its subscription was granted.
        nobody: the broker said that nobody takes the requests.
        refused: requests that the broker rejected, by reason.

    Args:
        endpoint: the broker.
        reply_topic: where its answers go; with the client id as its last level.
        extra: further topics that it hears.
        wake: shared by all connections.

    Raises:
        BrokerError: the broker cannot be reached.
        ConfigError: a certificate or key cannot be read.
    """

    def __init__(
        self, endpoint: Endpoint, reply_topic: str, extra: tuple[str, ...], wake: Wake
    ) -> None:
        tls = endpoint.tls or endpoint.ca_file or endpoint.cert_file
        context = client_context(endpoint, "the client's endpoint") if tls else None
        address = Address(
            endpoint.host, endpoint.port, endpoint.transport, context, endpoint.websocket_path
        )
        try:
            stream = open_stream(address, CONNECT_S)
        except OSError as err:
            raise BrokerError(
                f"no MQTT broker at {address} ({err}); start it, or correct host and port"
            ) from err
        self._address = address
        self._connection = Connection(stream, _MAX_PACKET_BYTES, wake)
        self.fileno = stream.fileno
        self.reply_topic = reply_topic
        self._filters = (reply_topic, *extra)
        self._in_flight = InFlight()
        self.max_packet_bytes = 0
        self.is_up = False
        self.nobody = False
        self.refused: dict[int, int] = {}
        self._connection.put(
            control.encode_connect(
                Connect(
                    reply_topic.rpartition("/")[2],
                    None,
                    keepalive_s=KEEPALIVE_S,
                    username=endpoint.username,
                    password=endpoint.password if endpoint.username is not None else None,
                    clean_start=True,
                )
            )
        )

    # ------------------------------------------------------------------ sending

    @property
    def waiting(self) -> int:
        """QoS 1 requests that the broker has not acknowledged, or may not be sent yet."""
        return len(self._in_flight)

    @property
    def unsent(self) -> bool:
        """Whether bytes wait for the socket."""
        return self._connection.unsent

    def send(self, template: Template, correlation: bytes, qos: int) -> None:
        """Sends a request, or keeps it until the broker's receive maximum has room."""
        if not qos:
            self._connection.put(template.head(0, correlation))
            self._connection.put(template.payload)
            return
        mid = self._in_flight.identifier()
        self._in_flight.put(Outgoing(mid, template.head(mid, correlation), template.payload))
        self._send_due()

    def check(self, template: Template) -> None:
        """Whether the broker takes such a request.

        Raises:
            PayloadTooLargeError: it does not.
        """
        if self.max_packet_bytes and template.size > self.max_packet_bytes:
            raise PayloadTooLargeError(
                f"a request needs a packet of {template.size} bytes, the broker takes at most "
                f"{self.max_packet_bytes}; send fewer samples in one, or raise the broker's limit"
            )

    def ping(self) -> None:
        """Keeps a silent connection alive."""
        self._connection.put(control.PINGREQ)

    def flush(self) -> None:
        """Sends what fits.

        Raises:
            OSError: the connection is broken.
        """
        if self._connection.unsent:
            self._connection.flush()

    def close(self) -> None:
        """Says farewell and ends it."""
        try:
            self._connection.put(control.encode_disconnect())
            self._connection.flush()
        except OSError:
            pass
        self._connection.close()

    def _send_due(self) -> None:
        put = self._connection.put
        for message in self._in_flight.due():
            put(message.head)
            put(message.payload)

    # ------------------------------------------------------------------ receiving

    def receive(self) -> Iterator[Publish]:
        """What has come; each message is valid until the next one.

        Raises:
            BrokerError: the broker refuses, or ends the connection.
            OSError: the connection is broken.
        """
        for first, body in self._connection.packets():
            kind = first & 0xF0
            if kind == PUBLISH:
                message = codec.decode_publish(first, body)
                if message.qos:
                    self._connection.put(codec.encode_puback(message.mid))
                yield message
            elif kind == PUBACK:
                self._on_puback(*codec.decode_puback(body))
            elif handler := _HANDLERS.get(kind):
                handler(self, body)

    def _on_puback(self, mid: int, reason: int) -> None:
        self._in_flight.acknowledged(mid)
        if reason:
            self.nobody |= reason == reason_codes.NO_MATCHING_SUBSCRIBERS
            self.refused[reason] = self.refused.get(reason, 0) + 1
        self._send_due()

    def _on_connack(self, body: memoryview) -> None:
        granted = control.decode_connack(body)
        if granted.reason:
            raise BrokerError(
                f"the MQTT broker at {self._address} did not let us in: "
                f"{reason_codes.name(granted.reason)}"
            )
        self.max_packet_bytes = granted.max_packet_bytes
        self._in_flight.connected(granted.receive_maximum, session_present=False)
        self._connection.put(control.encode_subscribe(self._in_flight.identifier(), self._filters))

    def _on_suback(self, body: memoryview) -> None:
        mid, reasons = control.decode_suback(body)
        self._in_flight.release(mid)
        if reasons[0] >= reason_codes.FAILURE:
            raise BrokerError(
                f"subscribing to {self.reply_topic} was refused: {reason_codes.name(reasons[0])}"
            )
        self.is_up = True

    def _on_disconnect(self, body: memoryview) -> None:
        raise BrokerError(
            f"the broker ended a connection: {reason_codes.name(control.decode_disconnect(body))}"
        )


_HANDLERS: dict[int, Callable[[LoadConnection, memoryview], None]] = {
    CONNACK: LoadConnection._on_connack,  # noqa: SLF001  # its own
    SUBACK: LoadConnection._on_suback,  # noqa: SLF001
    DISCONNECT: LoadConnection._on_disconnect,  # noqa: SLF001
}
