"""The MQTT codec against paho's own, and against whatever a socket may make of the bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable

from hypothesis import example, given, settings
from hypothesis import strategies as st

from edged.errors import BrokerProtocolError
from edged.mqtt.codec import MQTT_3, MQTT_5, decode_puback, decode_publish
from edged.mqtt.control import decode_connack, decode_disconnect, decode_suback
from edged.mqtt.receiver import Receiver
from edged.mqtt.websocket import Frames
from tests.doubles.packets import as_dict, field, packet, publish_body, read_by_paho

TEXT = st.text(
    st.characters(codec="utf-8", exclude_characters="\x00\ufeff"), max_size=20
)  # U+FEFF: paho refuses it, MQTT 5 (1.5.4-3) does not
TOPIC = TEXT.filter(lambda text: text and not set("+#") & set(text))


def encoded(text: str) -> bytes:
    """A string behind its length."""
    return field(text.encode())


SINGLE = st.fixed_dictionaries(
    {},
    optional={
        0x01: st.integers(0, 1).map(lambda n: bytes((1, n))),
        0x02: st.integers(0, 2**32 - 1).map(lambda n: b"\x02" + struct.pack("!I", n)),
        0x03: TEXT.map(lambda text: b"\x03" + encoded(text)),
        0x08: TOPIC.map(lambda text: b"\x08" + encoded(text)),
        0x09: st.binary(max_size=20).map(lambda data: b"\x09" + field(data)),
        0x0B: st.integers(1, 127).map(lambda n: bytes((0x0B, n))),
    },
)
PAIRS = st.lists(st.tuples(TEXT, TEXT), max_size=4).map(
    lambda pairs: [b"\x26" + encoded(name) + encoded(value) for name, value in pairs]
)


@st.composite
def publishes(draw: st.DrawFn, version: int = MQTT_5) -> tuple[int, bytes]:
    """First byte and body of a sound PUBLISH."""
    fields = draw(st.permutations([*draw(SINGLE).values(), *draw(PAIRS)]))
    mid = draw(st.integers(0, 65535))
    first = 0x30 | (2 if mid else 0) | draw(st.integers(0, 1)) | 8 * draw(st.integers(0, 1))
    body = publish_body(
        draw(TOPIC).encode(), b"".join(fields), draw(st.binary(max_size=60)), mid, version
    )
    return first, body


@given(publishes())
@settings(max_examples=150, deadline=None)
def test_a_sound_publish_is_read_as_paho_reads_it(made: tuple[int, bytes]) -> None:
    """Topic, payload, flags and every property that a request can have."""
    first, body = made
    assert as_dict(decode_publish(first, memoryview(body))) == read_by_paho(first, body)


@given(publishes(MQTT_3))
@settings(max_examples=60, deadline=None)
def test_a_sound_publish_of_mqtt_3_is_read_as_paho_reads_it(made: tuple[int, bytes]) -> None:
    """The same without properties."""
    first, body = made
    read = as_dict(decode_publish(first, memoryview(body), MQTT_3))
    assert read == read_by_paho(first, body, MQTT_3)


@given(publishes(), st.data())
@settings(max_examples=200, deadline=None)
def test_a_damaged_publish_is_refused_or_read_as_paho_reads_it(
    made: tuple[int, bytes], data: st.DataObject
) -> None:
    """Bytes changed, cut out or put in: nothing else is raised, and nothing else is read."""
    first, sound = made
    body = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, max(0, len(body) - 1)))
        body[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    try:
        message = decode_publish(first, memoryview(bytes(body)))
    except BrokerProtocolError:
        return
    read = read_by_paho(first, bytes(body))
    if read is None:  # what paho forbids beyond the specification, or we do not look at
        assert b"\xef\xbb\xbf" in body or 0x0B in body or set("+#") & set(message.response_topic)
        return
    assert as_dict(message) == read


@given(publishes())
@settings(max_examples=100, deadline=None)
def test_a_publish_that_is_cut_off_in_its_head_is_refused(made: tuple[int, bytes]) -> None:
    """At every place before the payload; never an error of another kind."""
    first, body = made
    message = decode_publish(first, memoryview(body))
    for end in range(len(body) - len(message.payload)):
        try:
            decode_publish(first, memoryview(body[:end]))
        except BrokerProtocolError:
            continue
        raise AssertionError(f"{body[:end]!r} was read")


def reason_of(decode: Callable[[], object]) -> int:
    """The reason code with which a packet is refused, 0 if it is read."""
    try:
        decode()
    except BrokerProtocolError as err:
        return err.reason
    return 0


@given(st.integers(0, 255), st.binary(max_size=80), st.sampled_from([MQTT_3, MQTT_5]))
@example(0x30, b"\x00\x01a\x00", MQTT_5)
@settings(max_examples=300, deadline=None)
def test_no_bytes_raise_anything_but_a_protocol_error(
    first: int, body: bytes, version: int
) -> None:
    """Every decoder of packets of a broker."""
    view = memoryview(body)
    for decode in (
        lambda: decode_publish(first, view, version), lambda: decode_puback(view, version),
        lambda: decode_connack(view, version), lambda: decode_suback(view, version),
        lambda: decode_disconnect(view),
    ):  # fmt: skip
        assert reason_of(decode) in {0, 0x81, 0x82}


PACKETS = st.lists(
    st.tuples(
        st.sampled_from([0x30, 0x32, 0x40, 0xD0]),
        st.one_of(
            st.binary(max_size=300),
            st.integers(16_300, 70_000).map(lambda size: bytes(range(251)) * (size // 251)),
        ),
    ),
    max_size=6,
)


@given(PACKETS, st.lists(st.integers(1, 40_000), min_size=1, max_size=10))
@settings(max_examples=120, deadline=None)
def test_packets_are_cut_out_of_pieces_of_any_size(
    packets: list[tuple[int, bytes]], pieces: list[int]
) -> None:
    """Whole, byte by byte, and with leftovers; large ones stay valid to the end."""
    data = b"".join(packet(first, body) for first, body in packets)
    receiver, found, kept, turn = Receiver(1 << 20), [], [], 0
    while data:
        space = receiver.space()
        count = min(len(space), pieces[turn % len(pieces)], len(data))
        turn += 1
        space[:count] = data[:count]
        data = data[count:]
        receiver.received(count)
        while (got := receiver.next()) is not None:
            first, body = got
            found.append((first, bytes(body)))
            kept.append(body if len(body) >= 16 * 1024 else None)
    assert found == packets
    assert all(
        view is None or bytes(view) == body for view, (_, body) in zip(kept, packets, strict=True)
    )


@given(publishes())
@settings(max_examples=20, deadline=None)
def test_a_packet_is_found_in_pieces_of_every_size(made: tuple[int, bytes]) -> None:
    """One PUBLISH and the beginning of the next, in equal pieces of 1, 2, 3 ... bytes."""
    whole = packet(*made)
    data = whole + whole[: len(whole) // 2]
    for size in range(1, len(data) + 1):
        receiver, found = Receiver(1 << 20), []
        for at in range(0, len(data), size):
            piece = data[at : at + size]
            receiver.space()[: len(piece)] = piece
            receiver.received(len(piece))
            while (got := receiver.next()) is not None:
                found.append((got[0], bytes(got[1])))
        assert found == [made]


@given(st.binary(max_size=200))
@settings(max_examples=150, deadline=None)
def test_no_bytes_break_the_websocket_frames(data: bytes) -> None:
    """Whatever a server sends is bytes, more to come, or a protocol error."""
    frames = Frames()
    assert reason_of(lambda: frames.feed(data)) in {0, 0x82}
