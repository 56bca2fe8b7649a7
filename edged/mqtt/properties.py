"""Properties of MQTT 5 packets (MQTT 5, 2.2.2): one table, one pass, linear time. Pure."""

from __future__ import annotations

import struct
from enum import IntEnum
from functools import lru_cache
from typing import Any

from edged.errors import BrokerProtocolError
from edged.mqtt.reason_codes import MALFORMED_PACKET, PROTOCOL_ERROR


class Property(IntEnum):
    """Identifiers (MQTT 5, table 2-4)."""

    PAYLOAD_FORMAT = 0x01
    MESSAGE_EXPIRY = 0x02
    CONTENT_TYPE = 0x03
    RESPONSE_TOPIC = 0x08
    CORRELATION_DATA = 0x09
    SUBSCRIPTION_IDENTIFIER = 0x0B
    SESSION_EXPIRY = 0x11
    ASSIGNED_CLIENT_IDENTIFIER = 0x12
    SERVER_KEEP_ALIVE = 0x13
    AUTHENTICATION_METHOD = 0x15
    AUTHENTICATION_DATA = 0x16
    WILL_DELAY = 0x18
    RESPONSE_INFORMATION = 0x1A
    SERVER_REFERENCE = 0x1C
    REASON_STRING = 0x1F
    RECEIVE_MAXIMUM = 0x21
    TOPIC_ALIAS_MAXIMUM = 0x22
    TOPIC_ALIAS = 0x23
    MAXIMUM_QOS = 0x24
    RETAIN_AVAILABLE = 0x25
    USER = 0x26
    MAXIMUM_PACKET_SIZE = 0x27
    WILDCARD_SUBSCRIPTION_AVAILABLE = 0x28
    SUBSCRIPTION_IDENTIFIER_AVAILABLE = 0x29
    SHARED_SUBSCRIPTION_AVAILABLE = 0x2A


_BYTE, _TWO, _FOUR, _VARIABLE, _TEXT, _BINARY, _PAIR = range(7)
P = Property
_KINDS: dict[int, int] = {
    P.PAYLOAD_FORMAT: _BYTE, P.MAXIMUM_QOS: _BYTE, P.RETAIN_AVAILABLE: _BYTE,
    P.WILDCARD_SUBSCRIPTION_AVAILABLE: _BYTE, P.SUBSCRIPTION_IDENTIFIER_AVAILABLE: _BYTE,
    P.SHARED_SUBSCRIPTION_AVAILABLE: _BYTE,
    P.SERVER_KEEP_ALIVE: _TWO, P.RECEIVE_MAXIMUM: _TWO, P.TOPIC_ALIAS_MAXIMUM: _TWO,
    P.TOPIC_ALIAS: _TWO,
    P.MESSAGE_EXPIRY: _FOUR, P.SESSION_EXPIRY: _FOUR, P.WILL_DELAY: _FOUR,
    P.MAXIMUM_PACKET_SIZE: _FOUR,
    P.SUBSCRIPTION_IDENTIFIER: _VARIABLE,
    P.CONTENT_TYPE: _TEXT, P.RESPONSE_TOPIC: _TEXT, P.ASSIGNED_CLIENT_IDENTIFIER: _TEXT,
    P.AUTHENTICATION_METHOD: _TEXT, P.RESPONSE_INFORMATION: _TEXT, P.SERVER_REFERENCE: _TEXT,
    P.REASON_STRING: _TEXT,
    P.CORRELATION_DATA: _BINARY, P.AUTHENTICATION_DATA: _BINARY,
    P.USER: _PAIR,
}  # fmt: skip
_WIDTHS = {_BYTE: 1, _TWO: 2, _FOUR: 4}


def _table(*allowed: Property) -> dict[int, int]:
    """Kinds of the properties that one sort of packet may carry, by identifier."""
    return {int(each): _KINDS[each] for each in allowed}


PUBLISH = _table(
    P.PAYLOAD_FORMAT, P.MESSAGE_EXPIRY, P.CONTENT_TYPE, P.RESPONSE_TOPIC, P.CORRELATION_DATA,
    P.SUBSCRIPTION_IDENTIFIER, P.TOPIC_ALIAS, P.USER,
)  # fmt: skip
CONNACK = _table(
    P.SESSION_EXPIRY, P.ASSIGNED_CLIENT_IDENTIFIER, P.SERVER_KEEP_ALIVE, P.AUTHENTICATION_DATA,
    P.AUTHENTICATION_METHOD, P.RESPONSE_INFORMATION, P.SERVER_REFERENCE, P.RECEIVE_MAXIMUM,
    P.TOPIC_ALIAS_MAXIMUM, P.MAXIMUM_QOS, P.RETAIN_AVAILABLE, P.MAXIMUM_PACKET_SIZE,
    P.WILDCARD_SUBSCRIPTION_AVAILABLE, P.SUBSCRIPTION_IDENTIFIER_AVAILABLE,
    P.SHARED_SUBSCRIPTION_AVAILABLE, P.USER, P.REASON_STRING,
)  # fmt: skip
ACKNOWLEDGEMENT = _table(P.USER, P.REASON_STRING)
DISCONNECT = _table(P.SESSION_EXPIRY, P.SERVER_REFERENCE, P.USER, P.REASON_STRING)

_MAX_FIELD = 65535


def malformed(what: str) -> BrokerProtocolError:
    """The error for a packet that cannot be read."""
    return BrokerProtocolError(f"the broker sent a malformed packet: {what}", MALFORMED_PACKET)


# ------------------------------------------------------------------ reading


def read_variable(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """A Variable Byte Integer (MQTT 5, 1.5.5) and where it ends.

    Raises:
        BrokerProtocolError: it has more than four bytes, or the data end within it.
    """
    value = shift = 0
    for place in range(at, at + 4):
        if place >= len(data):
            raise malformed("it ends within a length")
        value |= (data[place] & 0x7F) << shift
        if data[place] < 0x80:
            return value, place + 1
        shift += 7
    raise malformed("a length has more than four bytes")


def read_text(data: bytes | memoryview) -> str:
    """A UTF-8 string (MQTT 5, 1.5.4).

    Raises:
        BrokerProtocolError: it is no UTF-8, or holds U+0000.
    """
    try:
        text = str(data, "utf-8")
    except UnicodeDecodeError as err:
        raise malformed(f"a string is no UTF-8 ({err.reason} at byte {err.start})") from err
    if "\x00" in text:
        raise malformed("a string holds U+0000")
    return text


def read_properties(
    data: bytes, allowed: dict[int, int]
) -> tuple[dict[int, Any], list[tuple[str, str]]]:
    """Reads the properties of a packet.

    Args:
        data: what follows the property length, exactly.
        allowed: one of this module's tables: what this sort of packet may carry.

    Returns:
        Values by identifier, and the user properties in their order.

    Raises:
        BrokerProtocolError: an unknown or misplaced property, one given twice, or a value that is
            cut off or no UTF-8.
    """
    values: dict[int, Any] = {}
    pairs: list[tuple[str, str]] = []
    at, end = 0, len(data)
    while at < end:
        identifier = data[at]
        kind = allowed.get(identifier)
        if kind is None:
            raise malformed(f"property 0x{identifier:02x} may not stand there")
        if kind == _PAIR:
            name, at = _field(data, at + 1)
            value, at = _field(data, at)
            pairs.append((read_text(name), read_text(value)))
            continue
        if identifier in values and kind != _VARIABLE:  # one identifier for each subscription
            raise BrokerProtocolError(
                f"the broker sent property 0x{identifier:02x} twice", PROTOCOL_ERROR
            )
        values[identifier], at = _read_value(kind, data, at + 1)
    return values, pairs


def _read_value(kind: int, data: bytes, at: int) -> tuple[Any, int]:
    if kind >= _TEXT:
        field, at = _field(data, at)
        return (read_text(field) if kind == _TEXT else field), at
    if kind == _VARIABLE:
        return read_variable(data, at)
    end = at + _WIDTHS[kind]
    if end > len(data):
        raise malformed("it ends within a property")
    return int.from_bytes(data[at:end], "big"), end


def _field(data: bytes, at: int) -> tuple[bytes, int]:
    start = at + 2
    end = start + int.from_bytes(data[at:start], "big")
    if end > len(data):  # also where the length itself is cut off: then start is beyond it
        raise malformed("it ends within a property")
    return data[start:end], end


# ------------------------------------------------------------------ writing


def variable(value: int) -> bytes:
    """A Variable Byte Integer (MQTT 5, 1.5.5).

    Raises:
        ValueError: it is above 268,435,455.
    """
    if value < 0x80:
        return bytes((value,))
    encoded = bytearray()
    while value:
        encoded.append((value & 0x7F) | (0x80 if value > 0x7F else 0))
        value >>= 7
    if len(encoded) > 4:
        raise ValueError("a packet has more than the 268435455 bytes that MQTT allows")
    return bytes(encoded)


def field(data: bytes) -> bytes:
    """Binary data or a string behind its length (MQTT 5, 1.5.4 and 1.5.6).

    Raises:
        ValueError: it has more than 65,535 bytes.
    """
    if len(data) > _MAX_FIELD:
        raise ValueError(f"a field has {len(data)} bytes, at most {_MAX_FIELD} are allowed")
    return struct.pack("!H", len(data)) + data


def number(identifier: Property, value: int) -> bytes:
    """A property that is a number."""
    return bytes((identifier,)) + value.to_bytes(_WIDTHS[_KINDS[identifier]], "big")


def text(identifier: Property, value: str) -> bytes:
    """A property that is a string; ValueError if it is too long."""
    return bytes((identifier,)) + field(value.encode())


@lru_cache(maxsize=512)
def user(name: str, value: str) -> bytes:
    """A user property; ValueError if it is too long. Most replies carry the same few."""
    return bytes((Property.USER,)) + field(name.encode()) + field(value.encode())
