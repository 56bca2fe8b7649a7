"""The packets that come once in a while: CONNECT, SUBSCRIBE, PINGREQ, DISCONNECT and answers. Pure.

Written for clients that bring at most one will, and subscribe with QoS 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edged.errors import BrokerProtocolError
from edged.mqtt import properties
from edged.mqtt.codec import MQTT_3, MQTT_5
from edged.mqtt.properties import Property, malformed
from edged.mqtt.reason_codes import CONNACK_3, PROTOCOL_ERROR

CONNACK, SUBACK, UNSUBACK, PINGRESP, DISCONNECT = 0x20, 0x90, 0xB0, 0xD0, 0xE0
PINGREQ = bytes((0xC0, 0))

_CLEAN_START, _WILL, _WILL_QOS_1, _WILL_RETAIN, _PASSWORD, _USER_NAME = 2, 4, 8, 32, 64, 128


@dataclass(frozen=True)
class Will:
    """What the broker publishes when this client is gone without a farewell: retained, QoS 1.

    Attributes:
        topic: where.
        payload: what.
        delay_s: the broker waits so long first (MQTT 5).
    """

    topic: str
    payload: bytes
    delay_s: int = 0


@dataclass(frozen=True)
class Connect:
    """What a client asks for.

    Attributes:
        client_id: names the session.
        will: its will, None for none.
        version: `MQTT_5` or `MQTT_3`.
        keepalive_s: longest silence.
        session_expiry_s: the broker keeps the session for so long (MQTT 5).
        receive_maximum: QoS 1 messages that may be outstanding here (MQTT 5).
        max_packet_bytes: largest packet that is taken (MQTT 5).
        username: None for none.
        password: None for none; not shown.
        clean_start: the broker forgets the session that it may have.
    """

    client_id: str
    will: Will | None
    version: int = MQTT_5
    keepalive_s: int = 30
    session_expiry_s: int = 0
    receive_maximum: int = 65535
    max_packet_bytes: int = 268_435_455
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    clean_start: bool = False


@dataclass(frozen=True)
class ConnAck:
    """What the broker grants.

    Attributes:
        reason: reason code; those of MQTT 3.1.1 are translated.
        session_present: it has kept the session.
        receive_maximum: QoS 1 messages that may be outstanding there.
        max_packet_bytes: largest packet that it takes; 0: it names none.
        keepalive_s: longest silence that it wants instead; None: as asked for.
        max_qos: highest QoS that it takes.
        retain: whether it keeps messages.
        shared: whether it has shared subscriptions; only MQTT 5 says so.
        session_expiry_s: for how long it keeps the session instead; None: as asked for.
        topic_alias_maximum: topic aliases that it takes.
    """

    reason: int
    session_present: bool = False
    receive_maximum: int = 65535
    max_packet_bytes: int = 0
    keepalive_s: int | None = None
    max_qos: int = 2
    retain: bool = True
    shared: bool = True
    session_expiry_s: int | None = None
    topic_alias_maximum: int = 0


def _packet(first: int, body: bytes) -> bytes:
    return bytes((first,)) + properties.variable(len(body)) + body


def _block(*fields: bytes) -> bytes:
    joined = b"".join(fields)
    return properties.variable(len(joined)) + joined


def encode_connect(asked: Connect) -> bytes:
    """A CONNECT.

    Raises:
        ValueError: a field is longer than 65,535 bytes.
    """
    flags = _CLEAN_START if asked.clean_start else 0
    flags |= _USER_NAME if asked.username is not None else 0
    flags |= _PASSWORD if asked.password is not None else 0
    block = will_block = b""
    if asked.version == MQTT_5:
        block = _block(
            properties.number(Property.SESSION_EXPIRY, asked.session_expiry_s),
            properties.number(Property.RECEIVE_MAXIMUM, asked.receive_maximum),
            properties.number(Property.MAXIMUM_PACKET_SIZE, asked.max_packet_bytes),
        )
    texts = []
    if (will := asked.will) is not None:
        flags |= _WILL | _WILL_QOS_1 | _WILL_RETAIN
        texts = [will.topic.encode(), will.payload]
        if asked.version == MQTT_5:
            will_block = _block(properties.number(Property.WILL_DELAY, will.delay_s))
    texts += [text.encode() for text in (asked.username, asked.password) if text is not None]
    body = properties.field(b"MQTT") + bytes((asked.version, flags))
    body += asked.keepalive_s.to_bytes(2, "big") + block
    body += properties.field(asked.client_id.encode()) + will_block
    return _packet(0x10, body + b"".join(map(properties.field, texts)))


def decode_connack(body: memoryview, version: int = MQTT_5) -> ConnAck:
    """Reads a CONNACK.

    Raises:
        BrokerProtocolError: it is malformed.
    """
    if len(body) < 2 or body[0] > 1 or (version != MQTT_5 and len(body) != 2):
        raise malformed(f"a CONNACK of {len(body)} bytes")
    present, reason = bool(body[0]), body[1]
    if version != MQTT_5:
        return ConnAck(CONNACK_3.get(reason, reason), present)
    if len(body) == 2 and reason in CONNACK_3:  # a broker of 3.1.1 refuses in its own form
        return ConnAck(CONNACK_3[reason], present)
    values = _properties_at(body, 2, properties.CONNACK)
    granted = ConnAck(
        reason,
        present,
        values.get(Property.RECEIVE_MAXIMUM, 65535),
        values.get(Property.MAXIMUM_PACKET_SIZE, 0),
        values.get(Property.SERVER_KEEP_ALIVE),
        values.get(Property.MAXIMUM_QOS, 2),
        bool(values.get(Property.RETAIN_AVAILABLE, 1)),
        bool(values.get(Property.SHARED_SUBSCRIPTION_AVAILABLE, 1)),
        values.get(Property.SESSION_EXPIRY),
        values.get(Property.TOPIC_ALIAS_MAXIMUM, 0),
    )
    if not granted.receive_maximum or values.get(Property.MAXIMUM_PACKET_SIZE, 1) == 0:
        raise BrokerProtocolError(
            "the broker's receive maximum or maximum packet size is 0", PROTOCOL_ERROR
        )
    return granted


def encode_subscribe(mid: int, filters: Sequence[str], version: int = MQTT_5) -> bytes:
    """A SUBSCRIBE of QoS 1.

    Raises:
        ValueError: a filter is longer than 65,535 bytes.
    """
    body = mid.to_bytes(2, "big") + (b"\x00" if version == MQTT_5 else b"")
    return _packet(0x82, body + b"".join(properties.field(f.encode()) + b"\x01" for f in filters))


def encode_unsubscribe(mid: int, filters: Sequence[str], version: int = MQTT_5) -> bytes:
    """An UNSUBSCRIBE.

    Raises:
        ValueError: a filter is longer than 65,535 bytes.
    """
    body = mid.to_bytes(2, "big") + (b"\x00" if version == MQTT_5 else b"")
    return _packet(0xA2, body + b"".join(properties.field(f.encode()) for f in filters))


def decode_unsuback(body: memoryview, version: int = MQTT_5) -> int:
    """Reads an UNSUBACK: its packet identifier. What was not subscribed is not subscribed now.

    Raises:
        BrokerProtocolError: it is malformed.
    """
    return decode_suback(body, version)[0]


def decode_suback(body: memoryview, version: int = MQTT_5) -> tuple[int, tuple[int, ...]]:
    """Reads a SUBACK: packet identifier, and a reason code for each filter.

    Raises:
        BrokerProtocolError: it is malformed.
    """
    at = 2
    if len(body) < 2:
        raise malformed(f"a SUBACK of {len(body)} bytes")
    if version == MQTT_5:
        length, start = properties.read_variable(body, 2)
        at = start + length
        if at > len(body):
            raise malformed("the property length of a SUBACK is wrong")
        properties.read_properties(bytes(body[start:at]), properties.ACKNOWLEDGEMENT)
    return int.from_bytes(body[:2], "big"), tuple(body[at:])


def encode_disconnect(
    reason: int = 0, version: int = MQTT_5, *, end_session: bool = False
) -> bytes:
    """A DISCONNECT; with reason 0 the will is discarded.

    Args:
        reason: reason code.
        version: `MQTT_5` or `MQTT_3`.
        end_session: the broker need not keep the session (MQTT 5).
    """
    if version == MQTT_5 and end_session:
        block = _block(properties.number(Property.SESSION_EXPIRY, 0))
        return _packet(DISCONNECT, bytes((reason,)) + block)
    if version == MQTT_3 or not reason:
        return bytes((DISCONNECT, 0))
    return bytes((DISCONNECT, 1, reason))


def decode_disconnect(body: memoryview) -> int:
    """Reads a DISCONNECT of the broker (MQTT 5): its reason code.

    Raises:
        BrokerProtocolError: it is malformed.
    """
    if len(body) > 1:
        _properties_at(body, 1, properties.DISCONNECT)
    return body[0] if len(body) else 0


def _properties_at(body: memoryview, at: int, allowed: dict[int, int]) -> dict[int, int]:
    """Properties that fill the rest of a packet; their text and pairs are only checked."""
    length, start = properties.read_variable(body, at)
    if start + length != len(body):
        raise malformed("the property length is wrong")
    return properties.read_properties(bytes(body[start:]), allowed)[0]
