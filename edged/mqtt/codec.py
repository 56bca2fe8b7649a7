"""PUBLISH and PUBACK, both ways: the packets of which there are thousands a second. Pure.

Nothing here copies a payload: a decoded one is a view of the packet, and an encoded one stays
where it is, beside the bytes that go before it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from edged.errors import BrokerProtocolError
from edged.mqtt import properties
from edged.mqtt.properties import Property, malformed
from edged.mqtt.reason_codes import PROTOCOL_ERROR

PUBLISH, PUBACK = 0x30, 0x40
MQTT_3, MQTT_5 = 4, 5
"""Protocol levels of CONNECT: 3.1.1 and 5."""

_ACK = struct.Struct("!BBH")
# Plain numbers: an enumeration's are looked up anew each time.
_FORMAT, _EXPIRY, _CONTENT_TYPE, _RESPONSE_TOPIC, _CORRELATION, _ALIAS = map(
    int,
    (
        Property.PAYLOAD_FORMAT, Property.MESSAGE_EXPIRY, Property.CONTENT_TYPE,
        Property.RESPONSE_TOPIC, Property.CORRELATION_DATA, Property.TOPIC_ALIAS,
    ),
)  # fmt: skip


@dataclass(slots=True)
class Publish:
    """A PUBLISH from the broker.

    Attributes:
        topic: topic name, without wildcards.
        payload: a view of the packet.
        qos: 0 or 1.
        mid: packet identifier, 0 with QoS 0.
        retain: the broker had kept it.
        dup: the broker has sent it before.
        response_topic: "" if absent.
        correlation: None if absent.
        content_type: "" if absent.
        expiry_s: None if absent.
        user: of a name given twice the last one.
    """

    topic: str
    payload: memoryview
    qos: int = 0
    mid: int = 0
    retain: bool = False
    dup: bool = False
    response_topic: str = ""
    correlation: bytes | None = None
    content_type: str = ""
    expiry_s: int | None = None
    user: dict[str, str] | None = None


def decode_publish(first: int, body: memoryview, version: int = MQTT_5) -> Publish:
    """Reads a PUBLISH.

    Args:
        first: first byte of the packet.
        body: what follows the fixed header, exactly.
        version: `MQTT_5` or `MQTT_3`.

    Raises:
        BrokerProtocolError: it is malformed, of QoS 2 (never subscribed), or uses a topic alias
            (never offered).
    """
    size = len(body)
    at = 2 + int.from_bytes(body[:2], "big")
    qos = (first >> 1) & 3
    if size < 2 or at + (2 if qos else 0) > size:
        raise malformed("a PUBLISH ends within its topic")
    message = Publish(
        properties.read_text(body[2:at]), body, qos, 0, bool(first & 1), bool(first & 8)
    )
    if qos:
        message.mid = int.from_bytes(body[at : at + 2], "big")
        at += 2
        if qos > 1 or not message.mid:
            raise BrokerProtocolError(
                f"the broker sent a PUBLISH of QoS {qos} with identifier {message.mid}; "
                "QoS 1 was subscribed",
                PROTOCOL_ERROR,
            )
    if version == MQTT_5:
        length, at = properties.read_variable(body, at)
        if at + length > size:
            raise malformed("a PUBLISH ends within its properties")
        if length:
            _read_properties(message, bytes(body[at : at + length]))
        at += length
    topic = message.topic
    if not topic or "+" in topic or "#" in topic:
        raise BrokerProtocolError(
            f"the broker sent a PUBLISH to {topic[:80]!r}, which is no topic name", PROTOCOL_ERROR
        )
    message.payload = body[at:]
    return message


def _read_properties(message: Publish, data: bytes) -> None:
    values, pairs = properties.read_properties(data, properties.PUBLISH)
    if pairs:
        message.user = dict(pairs)
    get = values.get
    message.response_topic = get(_RESPONSE_TOPIC, "")
    message.correlation = get(_CORRELATION)
    message.content_type = get(_CONTENT_TYPE, "")
    message.expiry_s = get(_EXPIRY)
    if _ALIAS in values or get(_FORMAT, 0) > 1:
        raise BrokerProtocolError(
            "the broker sent a topic alias that was not offered, or an unknown payload format",
            PROTOCOL_ERROR,
        )


def identifier_of(first: int, body: memoryview) -> int:
    """The packet identifier of a PUBLISH that may be malformed; 0 if it has none."""
    at = 2 + int.from_bytes(body[:2], "big")
    return int.from_bytes(body[at : at + 2], "big") if first & 6 else 0


def decode_puback(body: memoryview, version: int = MQTT_5) -> tuple[int, int]:
    """Reads a PUBACK: packet identifier and reason code.

    Raises:
        BrokerProtocolError: it is malformed.
    """
    size = len(body)
    if size < 2 or (version != MQTT_5 and size > 2):
        raise malformed(f"a PUBACK of {size} bytes")
    mid = int.from_bytes(body[:2], "big")
    if not mid:
        raise malformed("a PUBACK of identifier 0")
    if size > 3:
        length, at = properties.read_variable(body, 3)
        if at + length != size:
            raise malformed("the property length of a PUBACK is wrong")
        properties.read_properties(bytes(body[at:]), properties.ACKNOWLEDGEMENT)
    return mid, body[2] if size > 2 else 0


def encode_puback(mid: int) -> bytes:
    """A PUBACK of success; the same four bytes in both versions."""
    return _ACK.pack(PUBACK, 2, mid)


def encode_properties(
    expiry_s: int | None,
    content_type: str,
    correlation: bytes | None,
    user: Iterable[tuple[str, str]],
    response_topic: str = "",
) -> bytes:
    """The properties of a PUBLISH behind their length (MQTT 5, 3.3.2.3).

    Args:
        expiry_s: Message Expiry Interval, None for none.
        content_type: "" for none.
        correlation: Correlation Data, None for none.
        user: user properties in their order.
        response_topic: "" for none.

    Raises:
        ValueError: one is longer than 65,535 bytes.
    """
    fields = b"".join([properties.user(name, value) for name, value in user])
    if correlation is not None:
        fields = bytes((_CORRELATION,)) + properties.field(correlation) + fields
    if response_topic:
        fields = properties.text(Property.RESPONSE_TOPIC, response_topic) + fields
    if content_type:
        fields = _content_type(content_type) + fields
    if expiry_s is not None:
        fields = bytes((_EXPIRY,)) + expiry_s.to_bytes(4, "big") + fields
    return properties.variable(len(fields)) + fields


@lru_cache(maxsize=32)
def _content_type(value: str) -> bytes:
    return properties.text(Property.CONTENT_TYPE, value)


def encode_publish(
    topic: str, packed: bytes, payload_bytes: int, *, mid: int = 0, retain: bool = False
) -> bytes:
    """The beginning of a PUBLISH; the payload follows it.

    Args:
        topic: topic name.
        packed: its properties from `encode_properties`; b"" for MQTT 3.1.1.
        payload_bytes: size of the payload.
        mid: packet identifier of QoS 1; 0: QoS 0.
        retain: whether the broker keeps it.

    Raises:
        ValueError: the topic is empty, too long or holds a wildcard, or the packet is too large.
    """
    name = topic.encode()
    if not name or b"+" in name or b"#" in name or b"\x00" in name:
        raise ValueError(f"{topic[:80]!r} is no topic name: it is empty or holds a wildcard")
    head = properties.field(name)
    if mid:
        head += mid.to_bytes(2, "big")
    size = len(head) + len(packed) + payload_bytes
    first = PUBLISH | (2 if mid else 0) | retain
    return bytes((first,)) + properties.variable(size) + head + packed


def again(packet: bytes) -> bytes:
    """The beginning of a PUBLISH that is sent again: its DUP flag is set (MQTT 5, 3.3.1.1)."""
    return bytes((packet[0] | 8,)) + packet[1:]
