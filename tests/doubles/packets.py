"""MQTT packets for tests: made byte by byte, and read by paho as the reference."""

from __future__ import annotations

import struct
from typing import Any

from paho.mqtt import _packet
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.exception import MalformedPacket

from edged.mqtt.codec import MQTT_5, Publish

PAHO = {MQTT_5: MQTTProtocolVersion.MQTTv5, 4: MQTTProtocolVersion.MQTTv311}


def field(data: bytes) -> bytes:
    """Bytes behind their length."""
    return struct.pack("!H", len(data)) + data


def length(value: int) -> bytes:
    """A Variable Byte Integer."""
    encoded = b""
    while value > 127:
        encoded += bytes((value % 128 | 128,))
        value //= 128
    return encoded + bytes((value,))


def publish_body(
    topic: bytes, properties: bytes = b"", payload: bytes = b"", mid: int = 0, version: int = MQTT_5
) -> bytes:
    """What follows the fixed header of a PUBLISH."""
    numbered = struct.pack("!H", mid) if mid else b""
    block = length(len(properties)) + properties if version == MQTT_5 else b""
    return field(topic) + numbered + block + payload


def packet(first: int, body: bytes) -> bytes:
    """A whole packet."""
    return bytes((first,)) + length(len(body)) + body


def read_by_paho(first: int, body: bytes, version: int = MQTT_5) -> dict[str, Any] | None:
    """What paho makes of a PUBLISH, None if it refuses it."""
    try:
        read = _packet.decode_publish(first, body, PAHO[version])
        topic = read.topic.decode()
    except (MalformedPacket, UnicodeDecodeError):
        return None
    get: Any = read.properties
    return {
        "topic": topic, "payload": bytes(read.payload), "qos": read.qos, "mid": read.mid,
        "retain": read.retain, "dup": read.dup,
        "response_topic": getattr(get, "ResponseTopic", ""),
        "correlation": getattr(get, "CorrelationData", None),
        "content_type": getattr(get, "ContentType", ""),
        "expiry_s": getattr(get, "MessageExpiryInterval", None),
        "user": dict(getattr(get, "UserProperty", [])),
    }  # fmt: skip


def as_dict(message: Publish) -> dict[str, Any]:
    """What our codec made of it."""
    return {
        "topic": message.topic, "payload": bytes(message.payload), "qos": message.qos,
        "mid": message.mid, "retain": message.retain, "dup": message.dup,
        "response_topic": message.response_topic, "correlation": message.correlation,
        "content_type": message.content_type, "expiry_s": message.expiry_s,
        "user": message.user or {},
    }  # fmt: skip
