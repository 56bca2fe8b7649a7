"""The other packets against paho as the reference: each reads what the other writes.

tests/property/test_mqtt_properties.py has PUBLISH as it is received.
"""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from edged.errors import BrokerProtocolError
from edged.mqtt import codec, control
from edged.mqtt.codec import MQTT_3, MQTT_5
from tests.doubles.packets import read_by_paho

TEXT = st.text(
    st.characters(codec="utf-8", exclude_characters="\x00\ufeff"), max_size=20
)  # U+FEFF: paho refuses it
TOPIC = TEXT.filter(lambda text: text and not set("+#") & set(text))
PAIRS = st.lists(st.tuples(TEXT, TEXT), max_size=3)
REASON = {"ReasonString": TEXT, "UserProperty": PAIRS.filter(bool)}
GRANTED = REASON | {
    "SessionExpiryInterval": st.integers(0, 2**32 - 1),
    "ReceiveMaximum": st.integers(1, 65535),
    "MaximumQoS": st.integers(0, 1),
    "RetainAvailable": st.integers(0, 1),
    "MaximumPacketSize": st.integers(1, 268_435_455),
    "AssignedClientIdentifier": TEXT,
    "TopicAliasMaximum": st.integers(0, 65535),
    "WildcardSubscriptionAvailable": st.integers(0, 1),
    "SubscriptionIdentifierAvailable": st.integers(0, 1),
    "SharedSubscriptionAvailable": st.integers(0, 1),
    "ServerKeepAlive": st.integers(0, 65535),
    "ResponseInformation": TEXT,
    "ServerReference": TEXT,
}


def block(kind: int, values: dict[str, Any]) -> bytes:
    """Properties behind their length, written by paho."""
    made: Any = Properties(kind)  # type: ignore[no-untyped-call]  # paho has no types
    for name, value in values.items():
        setattr(made, name, value)
    return bytes(made.pack())


@given(st.booleans(), st.fixed_dictionaries({}, optional=GRANTED))
@settings(max_examples=100, deadline=None)
def test_a_connack_is_read_as_paho_wrote_it(present: bool, values: dict[str, Any]) -> None:  # noqa: FBT001  # a field
    """Every property that a CONNACK may have, in any selection; cut off anywhere it is refused."""
    body = bytes((present, 0)) + block(PacketTypes.CONNACK, values)
    granted = control.decode_connack(memoryview(body))
    assert granted.session_present == present
    assert granted.receive_maximum == values.get("ReceiveMaximum", 65535)
    assert granted.max_packet_bytes == values.get("MaximumPacketSize", 0)
    assert granted.keepalive_s == values.get("ServerKeepAlive")
    assert granted.max_qos == values.get("MaximumQoS", 2)
    assert granted.retain == bool(values.get("RetainAvailable", 1))
    assert granted.shared == bool(values.get("SharedSubscriptionAvailable", 1))
    assert granted.session_expiry_s == values.get("SessionExpiryInterval")
    assert granted.topic_alias_maximum == values.get("TopicAliasMaximum", 0)
    for end in range(len(body)):
        with pytest.raises(BrokerProtocolError):
            control.decode_connack(memoryview(body[:end]))


@given(
    st.integers(1, 65535),
    st.lists(st.sampled_from([0, 1, 2, 0x80, 0x87]), min_size=1, max_size=4),
    st.fixed_dictionaries({}, optional=REASON),
)
@settings(max_examples=60, deadline=None)
def test_acknowledgements_are_read_as_paho_wrote_them(
    mid: int, reasons: list[int], values: dict[str, Any]
) -> None:
    """SUBACK, PUBACK and DISCONNECT with reason strings and user properties, and without."""
    number = struct.pack("!H", mid)
    body = number + block(PacketTypes.SUBACK, values) + bytes(reasons)
    assert control.decode_suback(memoryview(body)) == (mid, tuple(reasons))
    body = number + bytes(reasons[:1]) + block(PacketTypes.PUBACK, values)
    assert codec.decode_puback(memoryview(body)) == (mid, reasons[0])
    body = bytes((0x8E,)) + block(PacketTypes.DISCONNECT, values)
    assert control.decode_disconnect(memoryview(body)) == 0x8E


@given(
    TOPIC,
    st.tuples(
        st.none() | st.integers(0, 2**32 - 1), TEXT, st.none() | st.binary(max_size=300), PAIRS
    ),
    st.binary(max_size=300),
    st.tuples(st.integers(0, 65535), st.booleans(), st.sampled_from([MQTT_3, MQTT_5])),
)
@settings(max_examples=150, deadline=None)
def test_a_publish_is_read_by_paho_as_we_wrote_it(
    topic: str,
    given_properties: tuple[int | None, str, bytes | None, list[tuple[str, str]]],
    payload: bytes,
    how: tuple[int, bool, int],
) -> None:
    """Any topic, properties, payload, QoS and retain flag, in both versions."""
    expiry_s, content_type, correlation, user = given_properties
    mid, retain, version = how
    packed = b""
    if version == MQTT_5:
        packed = codec.encode_properties(expiry_s, content_type, correlation, user)
    head = codec.encode_publish(topic, packed, len(payload), mid=mid, retain=retain)
    at = 2
    while head[at - 1] & 0x80:
        at += 1
    read = read_by_paho(head[0], head[at:] + payload, version)
    assert read is not None
    has = version == MQTT_5
    assert read == {
        "topic": topic, "payload": payload, "qos": int(mid > 0), "mid": mid,
        "retain": retain, "dup": False, "response_topic": "",
        "correlation": correlation if has else None,
        "content_type": content_type if has else "",
        "expiry_s": expiry_s if has else None,
        "user": dict(user) if has else {},
    }  # fmt: skip


@given(st.lists(TOPIC, min_size=1, max_size=3), st.integers(1, 65535))
@settings(max_examples=40, deadline=None)
def test_a_subscribe_has_paho_s_options(filters: list[str], mid: int) -> None:
    """Each filter is followed by the byte that paho writes for QoS 1."""
    option = bytes(SubscribeOptions(qos=1).pack())  # type: ignore[no-untyped-call]  # paho
    body = struct.pack("!H", mid) + b"\x00"
    body += b"".join(struct.pack("!H", len(f.encode())) + f.encode() + option for f in filters)
    packet = control.encode_subscribe(mid, filters)
    assert packet.endswith(body)
    assert packet[0] == 0x82
