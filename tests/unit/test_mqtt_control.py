"""CONNECT, SUBSCRIBE, DISCONNECT and the answers to them, byte by byte."""

from __future__ import annotations

import pytest

from edged.errors import BrokerProtocolError
from edged.mqtt import reason_codes
from edged.mqtt.codec import MQTT_3, MQTT_5
from edged.mqtt.control import (
    ConnAck,
    Connect,
    Will,
    decode_connack,
    decode_disconnect,
    decode_suback,
    decode_unsuback,
    encode_connect,
    encode_disconnect,
    encode_subscribe,
    encode_unsubscribe,
)
from tests.doubles.packets import field, packet

WILL = Will("s", b"gone", 5)


def test_connect_of_mqtt_5() -> None:
    """Never clean, with will, session expiry, receive maximum and packet size, and a login."""
    asked = Connect("me", WILL, MQTT_5, 30, 3600, 256, 4096, "user", "secret")
    properties = bytes.fromhex("11 00000e10 21 0100 27 00001000")
    body = (
        field(b"MQTT") + bytes((5, 0b1110_1100)) + b"\x00\x1e" + bytes((len(properties),))
        + properties + field(b"me") + bytes.fromhex("05 18 00000005") + field(b"s")
        + field(b"gone") + field(b"user") + field(b"secret")
    )  # fmt: skip
    assert encode_connect(asked) == packet(0x10, body)
    assert "secret" not in repr(asked)


def test_connect_of_mqtt_3() -> None:
    """Level 4 and no properties; a user name without a password is no login with one."""
    body = field(b"MQTT") + bytes((4, 0b1010_1100)) + b"\x00\x1e"
    body += field(b"me") + field(b"s") + field(b"gone") + field(b"user")
    assert encode_connect(Connect("me", WILL, MQTT_3, username="user")) == packet(0x10, body)


def test_connect_without_a_will_and_clean() -> None:
    """A client that leaves nothing behind has neither will nor its properties."""
    properties = bytes.fromhex("11 00000000 21 ffff 27 0fffffff")
    body = field(b"MQTT") + bytes((5, 0b0000_0010)) + b"\x00\x1e" + bytes((len(properties),))
    body += properties + field(b"me")
    assert encode_connect(Connect("me", None, clean_start=True)) == packet(0x10, body)


@pytest.mark.parametrize(
    ("body", "version", "granted"),
    [
        ("00 00 00", MQTT_5, ConnAck(0)),
        ("01 00 00", MQTT_5, ConnAck(0, session_present=True)),
        ("00 87 00", MQTT_5, ConnAck(0x87)),
        ("00 00 03 21 0014", MQTT_5, ConnAck(0, receive_maximum=20)),
        ("00 00 0a 27 00001388 13 000a 24 01", MQTT_5,
         ConnAck(0, max_packet_bytes=5000, keepalive_s=10, max_qos=1)),
        ("00 00 02 25 00", MQTT_5, ConnAck(0, retain=False)),
        ("00 00 0a 2a 00 11 0000003c 22 000a", MQTT_5,
         ConnAck(0, shared=False, session_expiry_s=60, topic_alias_maximum=10)),
        ("01 00", MQTT_3, ConnAck(0, session_present=True)),
        ("00 05", MQTT_3, ConnAck(0x87)),
        ("00 01", MQTT_5, ConnAck(0x84)),
    ],
)  # fmt: skip
def test_a_connack_says_what_is_granted(body: str, version: int, granted: ConnAck) -> None:
    """Limits of the broker, and refusals of both versions by MQTT 5's reason codes."""
    assert decode_connack(memoryview(bytes.fromhex(body)), version) == granted


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("", 0x81), ("00", 0x81), ("02 00 00", 0x81), ("00 00", 0x81), ("00 00 01", 0x81),
        ("00 00 00 00", 0x81), ("00 00 03 21 0000", 0x82), ("00 00 05 27 00000000", 0x82),
        ("00 00 05 02 00000001", 0x81),
    ],
)  # fmt: skip
def test_a_connack_that_mqtt_does_not_allow_is_refused(body: str, reason: int) -> None:
    """Cut off, unknown flags, misplaced properties, limits of 0."""
    with pytest.raises(BrokerProtocolError) as caught:
        decode_connack(memoryview(bytes.fromhex(body)))
    assert caught.value.reason == reason


def test_subscribe_asks_for_qos_1() -> None:
    """Two filters, in both versions."""
    filters = field(b"a/+") + b"\x01" + field(b"b") + b"\x01"
    assert encode_subscribe(7, ["a/+", "b"]) == packet(0x82, b"\x00\x07\x00" + filters)
    assert encode_subscribe(7, ["a/+", "b"], MQTT_3) == packet(0x82, b"\x00\x07" + filters)


def test_a_suback_answers_each_filter() -> None:
    """Reason codes in order; properties are skipped; cut off it is malformed."""
    assert decode_suback(memoryview(b"\x00\x07\x00\x01\x87")) == (7, (1, 0x87))
    assert decode_suback(memoryview(b"\x00\x07\x04\x1f\x00\x01x\x01")) == (7, (1,))
    assert decode_suback(memoryview(b"\x00\x07\x01\x80"), MQTT_3) == (7, (1, 0x80))
    for cut in (b"\x00", b"\x00\x07", b"\x00\x07\x05\x1f"):
        with pytest.raises(BrokerProtocolError):
            decode_suback(memoryview(cut))


def test_disconnect_says_why() -> None:
    """Ours has a reason in MQTT 5 alone; the broker's may have properties."""
    assert encode_disconnect() == b"\xe0\x00"
    assert encode_disconnect(0x81) == b"\xe0\x01\x81"
    ending = packet(0xE0, bytes.fromhex("00 05 11 00000000"))
    assert encode_disconnect(end_session=True) == ending
    assert encode_disconnect(0, MQTT_3, end_session=True) == b"\xe0\x00"
    assert encode_disconnect(0x81, MQTT_3) == b"\xe0\x00"
    assert decode_disconnect(memoryview(b"")) == 0
    assert decode_disconnect(memoryview(b"\x8e")) == reason_codes.SESSION_TAKEN_OVER
    assert decode_disconnect(memoryview(b"\x8b\x04\x1f\x00\x01x")) == 0x8B
    with pytest.raises(BrokerProtocolError):
        decode_disconnect(memoryview(b"\x8b\x04\x1f"))


def test_an_unknown_reason_code_is_shown_as_a_number() -> None:
    """A newer broker may have more of them."""
    assert reason_codes.name(0x87) == "Not authorized"
    assert reason_codes.name(0xEE) == "reason code 0xee"


def test_unsubscribe_and_its_answer() -> None:
    """Both versions, with an identifier; MQTT 3.1.1 has no properties and no reason codes."""
    assert encode_unsubscribe(7, ["a/+"]) == packet(0xA2, b"\x00\x07\x00" + field(b"a/+"))
    assert encode_unsubscribe(7, ["a"], MQTT_3) == packet(0xA2, b"\x00\x07" + field(b"a"))
    assert decode_unsuback(memoryview(b"\x00\x07\x00\x11")) == 7
    assert decode_unsuback(memoryview(b"\x00\x07"), MQTT_3) == 7
    with pytest.raises(BrokerProtocolError):
        decode_unsuback(memoryview(b"\x00"))


def test_a_client_may_come_without_a_will_start_clean_and_end_its_session() -> None:
    """No will flag and no will properties; a DISCONNECT that gives the session up."""
    properties = bytes.fromhex("11 00000000 21 ffff 27 0fffffff")
    body = (
        field(b"MQTT") + bytes((5, 2)) + b"\x00\x1e" + bytes((len(properties),)) + properties
        + field(b"me")
    )  # fmt: skip
    assert encode_connect(Connect("me", None, clean_start=True)) == packet(0x10, body)
    assert encode_disconnect(end_session=True) == bytes.fromhex("e0 07 00 05 11 00000000")
