"""PUBLISH and PUBACK: what is written is read back by paho, and what is malformed is refused."""

from __future__ import annotations

from typing import Any

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edged.errors import BrokerProtocolError
from edged.mqtt.codec import (
    MQTT_3,
    MQTT_5,
    PUBLISH,
    again,
    decode_puback,
    decode_publish,
    encode_properties,
    encode_puback,
    encode_publish,
)
from edged.mqtt.properties import variable
from tests.doubles.packets import as_dict, field, publish_body, read_by_paho

MALFORMED, PROTOCOL = 0x81, 0x82


def test_paho_reads_what_was_written() -> None:
    """All five properties, in order, with text beyond ASCII and a length of two bytes."""
    user = (("a", "b"), ("ü", "c" * 300), ("a", "d"))
    read: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho has no types

    read.unpack(encode_properties(7, "application/json", b"\x00\xff", user, "a/ü"))

    assert read.CorrelationData == b"\x00\xff"
    assert read.ResponseTopic == "a/ü"
    assert read.ContentType == "application/json"
    assert read.MessageExpiryInterval == 7
    assert read.UserProperty == list(user)


def test_no_property_is_one_zero() -> None:
    """The length is there all the same."""
    assert encode_properties(None, "", None, ()) == b"\x00"


def test_a_property_that_is_too_long_is_refused() -> None:
    """A field's length has two bytes."""
    with pytest.raises(ValueError, match="65535"):
        encode_properties(None, "", b"x" * 65536, ())


@pytest.mark.parametrize(
    ("value", "encoded"), [(0, "00"), (127, "7f"), (128, "8001"), (16384, "808001")]
)
def test_lengths_are_variable_byte_integers(value: int, encoded: str) -> None:
    """The examples of MQTT 5, table 1-1; above four bytes there are none."""
    assert variable(value).hex() == encoded
    with pytest.raises(ValueError, match="268435455"):
        variable(268_435_456)


@pytest.mark.parametrize("version", [MQTT_5, MQTT_3])
@pytest.mark.parametrize("mid", [0, 1, 65535])
@pytest.mark.parametrize("size", [0, 1, 127, 128, 20_000])
def test_a_publish_is_what_paho_reads(version: int, mid: int, size: int) -> None:
    """Topic, identifier, retain flag and payload, in both versions, with any length of length."""
    packed = encode_properties(1, "x/y", None, (("k", "v"),)) if version == MQTT_5 else b""
    head = encode_publish("a/ü", packed, size, mid=mid, retain=True)
    start = 2 if len(head) + size < 130 else 3 if len(head) + size < 16_000 else 4
    body = head[start:] + b"\x07" * size

    read = read_by_paho(head[0], body, version)

    assert read is not None
    assert (read["topic"], read["mid"], read["retain"]) == ("a/ü", mid, True)
    assert (read["payload"], read["qos"]) == (b"\x07" * size, int(mid > 0))
    assert as_dict(decode_publish(head[0], memoryview(body), version)) == read


@pytest.mark.parametrize("topic", ["", "a/+", "#", "a\x00b", "x" * 65536])
def test_what_is_no_topic_name_is_not_written(topic: str) -> None:
    """Empty, with a wildcard or U+0000, or too long: an error before anything is sent."""
    with pytest.raises(ValueError, match=r"topic|65535"):
        encode_publish(topic, b"\x00", 0)


def test_a_packet_that_mqtt_cannot_carry_is_not_written() -> None:
    """More than 268,435,455 bytes."""
    with pytest.raises(ValueError, match="268435455"):
        encode_publish("t", b"\x00", 268_435_455)


def test_sent_again_has_the_dup_flag() -> None:
    """And nothing else is different."""
    head = encode_publish("t", b"\x00", 3, mid=9)
    message = decode_publish(again(head)[0], memoryview(again(head)[2:] + b"abc"))
    assert message.dup
    assert (message.mid, message.qos, bytes(message.payload)) == (9, 1, b"abc")
    assert again(head)[1:] == head[1:]


@pytest.mark.parametrize(
    ("first", "body", "reason"),
    [
        pytest.param(PUBLISH, b"", MALFORMED, id="nothing"),
        pytest.param(PUBLISH, b"\x00\x05ab", MALFORMED, id="topic cut off"),
        pytest.param(PUBLISH, field(b"\xff") + b"\x00", MALFORMED, id="topic no UTF-8"),
        pytest.param(PUBLISH, field(b"a\x00") + b"\x00", MALFORMED, id="topic with U+0000"),
        pytest.param(PUBLISH, field(b"\xed\xa0\x80") + b"\x00", MALFORMED, id="half a pair"),
        pytest.param(PUBLISH, field(b"a/#") + b"\x00", PROTOCOL, id="wildcard"),
        pytest.param(PUBLISH, field(b"") + b"\x00", PROTOCOL, id="empty topic"),
        pytest.param(PUBLISH | 2, field(b"a") + b"\x00", MALFORMED, id="identifier cut off"),
        pytest.param(PUBLISH | 2, field(b"a") + b"\x00\x00\x00", PROTOCOL, id="identifier 0"),
        pytest.param(PUBLISH | 4, field(b"aaaa") + b"\x00\x01\x00\x00", PROTOCOL, id="QoS 2"),
        pytest.param(PUBLISH | 6, field(b"aaaa") + b"\x00\x01\x00\x00\x00", PROTOCOL, id="QoS 3"),
        pytest.param(PUBLISH, field(b"a"), MALFORMED, id="no properties"),
        pytest.param(PUBLISH, field(b"a") + b"\xff\xff\xff\xff\x01", MALFORMED, id="five bytes"),
        pytest.param(PUBLISH, field(b"a") + b"\x05\x02\x00", MALFORMED, id="properties cut off"),
        pytest.param(PUBLISH, publish_body(b"a", b"\x7f"), MALFORMED, id="unknown property"),
        pytest.param(PUBLISH, publish_body(b"a", b"\x21\x00\x01"), MALFORMED, id="misplaced"),
        pytest.param(PUBLISH, publish_body(b"a", b"\x02\x00"), MALFORMED, id="number cut off"),
        pytest.param(PUBLISH, publish_body(b"a", b"\x09\x00"), MALFORMED, id="length cut off"),
        pytest.param(PUBLISH, publish_body(b"a", b"\x09\x00\x02a"), MALFORMED, id="data cut off"),
        pytest.param(PUBLISH, publish_body(b"a", b"\x26\x00\x01a"), MALFORMED, id="half a pair of"),
        pytest.param(PUBLISH, publish_body(b"a", b"\x03\x00\x01\xff"), MALFORMED, id="no UTF-8"),
        pytest.param(PUBLISH, publish_body(b"a", b"\x02\0\0\0\1" * 2), PROTOCOL, id="twice"),
        pytest.param(PUBLISH, publish_body(b"a", b"\x23\x00\x01"), PROTOCOL, id="topic alias"),
        pytest.param(PUBLISH, publish_body(b"a", b"\x01\x02"), PROTOCOL, id="payload format 2"),
    ],
)
def test_a_publish_that_mqtt_does_not_allow_is_refused(
    first: int, body: bytes, reason: int
) -> None:
    """With the reason code that the broker is told."""
    with pytest.raises(BrokerProtocolError) as caught:
        decode_publish(first, memoryview(body))
    assert caught.value.reason == reason


def test_several_subscription_identifiers_are_no_fault() -> None:
    """The broker sends one for each subscription that matches."""
    message = decode_publish(PUBLISH, memoryview(publish_body(b"a", b"\x0b\x01\x0b\x80\x01")))
    assert message.topic == "a"


def test_the_payload_is_a_view() -> None:
    """No copy: it changes with the packet."""
    packet = bytearray(publish_body(b"a", b"", b"xyz"))
    message = decode_publish(PUBLISH, memoryview(packet))
    packet[-1:] = b"!"
    assert bytes(message.payload) == b"xy!"


@pytest.mark.parametrize(
    ("body", "version", "read"),
    [
        (b"\x00\x07", MQTT_5, (7, 0)),
        (b"\x00\x07", MQTT_3, (7, 0)),
        (b"\x00\x07\x10", MQTT_5, (7, 0x10)),
        (b"\xff\xff\x97\x00", MQTT_5, (65535, 0x97)),
        (b"\x00\x07\x87\x05\x1f\x00\x02no", MQTT_5, (7, 0x87)),
    ],
)
def test_a_puback_says_what_became_of_it(body: bytes, version: int, read: tuple[int, int]) -> None:
    """Identifier and reason code; without one it is success."""
    assert decode_puback(memoryview(body), version) == read


@pytest.mark.parametrize(
    ("body", "version"),
    [
        (b"", MQTT_5), (b"\x00", MQTT_5), (b"\x00\x00", MQTT_5), (b"\x00\x07\x00", MQTT_3),
        (b"\x00\x07\x00\x01", MQTT_5), (b"\x00\x07\x00\x01\x02", MQTT_5),
    ],
)  # fmt: skip
def test_a_malformed_puback_is_refused(body: bytes, version: int) -> None:
    """Cut off, identifier 0, or properties that are none of its own."""
    with pytest.raises(BrokerProtocolError) as caught:
        decode_puback(memoryview(body), version)
    assert caught.value.reason == MALFORMED


def test_our_puback_is_four_bytes() -> None:
    """Success needs no reason code in either version."""
    assert encode_puback(0x1234).hex() == "40021234"
