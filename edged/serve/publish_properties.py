"""Properties of an outgoing PUBLISH, as bytes (MQTT 5, 3.3.2.3). Pure.

paho's own `Properties` walks a table of all 27 names for each value that is set, which is most of
the cost of a small reply; for sending, paho only calls ``pack``.
"""

from __future__ import annotations

import struct

from edged.serve.request import Reply

_EXPIRY, _CONTENT_TYPE, _CORRELATION, _USER = 0x02, 0x03, 0x09, 0x26
_MAX_FIELD = 65535


class PublishProperties:
    """What paho asks of properties when it sends: their bytes.

    Args:
        reply: the properties of this one.

    Raises:
        ValueError: a property is longer than 65,535 bytes.
    """

    def __init__(self, reply: Reply) -> None:
        fields = bytearray()
        if reply.expiry_s is not None:
            fields += struct.pack("!BI", _EXPIRY, reply.expiry_s)
        if reply.content_type:
            fields += _field(_CONTENT_TYPE, reply.content_type.encode())
        if reply.correlation is not None:
            fields += _field(_CORRELATION, reply.correlation)
        for name, value in reply.user:
            fields += _field(_USER, name.encode())
            fields += _field(None, value.encode())
        self._packed = variable_length(len(fields)) + bytes(fields)

    def pack(self) -> bytes:
        """The property length and the properties."""
        return self._packed


def _field(identifier: int | None, data: bytes) -> bytes:
    if len(data) > _MAX_FIELD:
        raise ValueError(f"a property has {len(data)} bytes, at most {_MAX_FIELD} are allowed")
    if identifier is None:
        return struct.pack("!H", len(data)) + data
    return struct.pack("!BH", identifier, len(data)) + data


def variable_length(value: int) -> bytes:
    """A Variable Byte Integer (MQTT 5, 1.5.5)."""
    encoded = bytearray()
    while True:
        value, digit = divmod(value, 128)
        encoded.append(digit | (0x80 if value else 0))
        if not value:
            return bytes(encoded)
