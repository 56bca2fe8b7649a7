"""The small pure parts of the MQTT client: cutting, numbering, keeping alive, WebSocket frames."""

from __future__ import annotations

import hashlib
from base64 import b64encode

import pytest

from edged.errors import BrokerError, BrokerProtocolError
from edged.mqtt import websocket
from edged.mqtt.in_flight import InFlight, Outgoing
from edged.mqtt.keep_alive import KeepAlive
from edged.mqtt.receiver import OWN_BUFFER_BYTES, Receiver
from tests.doubles.packets import packet


def put(receiver: Receiver, data: bytes) -> int:
    """Gives it as much as fits; how much that was."""
    space = receiver.space()
    taken = min(len(space), len(data))
    space[:taken] = data[:taken]
    receiver.received(taken)
    return taken


def test_a_large_packet_has_a_buffer_of_its_own() -> None:
    """It is received in place, and stays valid while others follow."""
    receiver = Receiver(1 << 20)
    body = bytes(range(256)) * 400
    data = packet(0x30, body) + packet(0xD0, b"")
    while (got := receiver.next()) is None:
        data = data[put(receiver, data) :]
    while receiver.next() is None:
        data = data[put(receiver, data) :]
    put(receiver, packet(0x40, b"\x00\x01") * 100)
    assert (got[0], bytes(got[1])) == (0x30, body)
    assert len(body) >= OWN_BUFFER_BYTES


def test_a_packet_above_the_limit_is_refused_before_it_is_received() -> None:
    """By its length alone, with the reason code for it."""
    receiver = Receiver(2000)
    put(receiver, packet(0x30, bytes(1997))[:10])
    assert receiver.next() is None
    receiver = Receiver(2000)
    put(receiver, packet(0x30, bytes(1998))[:10])
    with pytest.raises(BrokerProtocolError) as caught:
        receiver.next()
    assert caught.value.reason == 0x95


def test_a_length_of_five_bytes_is_malformed() -> None:
    """MQTT allows four."""
    receiver = Receiver(1 << 28)
    put(receiver, b"\x30\xff\xff\xff\xff")
    with pytest.raises(BrokerProtocolError) as caught:
        receiver.next()
    assert caught.value.reason == 0x81


def message(in_flight: InFlight) -> Outgoing:
    """A new one, put into its turn."""
    mid = in_flight.identifier()
    made = Outgoing(mid, bytes((0x32, mid)), b"")
    in_flight.put(made)
    return made


def test_what_was_not_acknowledged_is_due_again_in_its_order_and_first() -> None:
    """Marked as sent again if the broker kept the session, within the window of the new one."""
    in_flight = InFlight()
    in_flight.connected(3, session_present=False)
    for _ in range(5):
        message(in_flight)
    assert [m.mid for m in in_flight.due()] == [1, 2, 3]
    assert in_flight.acknowledged(2)
    in_flight.disconnected()
    assert list(in_flight.due()) == []

    in_flight.connected(2, session_present=True)
    assert [(m.mid, m.begin()[0]) for m in in_flight.due()] == [(1, 0x3A), (3, 0x3A)]
    assert in_flight.acknowledged(1)
    assert [(m.mid, m.begin()[0]) for m in in_flight.due()] == [(4, 0x32)]


def test_a_new_session_gets_the_same_as_new() -> None:
    """The broker has forgotten them, so nothing is sent again in its eyes."""
    in_flight = InFlight()
    in_flight.connected(3, session_present=False)
    message(in_flight)
    assert len(list(in_flight.due())) == 1
    in_flight.connected(3, session_present=False)
    assert [m.begin()[0] for m in in_flight.due()] == [0x32]


def test_identifiers_are_never_taken_twice() -> None:
    """They go round, leave out what is still taken, and there are 65,535 of them."""
    in_flight = InFlight()
    taken = [in_flight.identifier() for _ in range(65535)]
    assert sorted(taken) == list(range(1, 65536))
    with pytest.raises(ValueError, match="65535"):
        in_flight.identifier()
    in_flight.release(77)
    assert in_flight.identifier() == 77


def test_an_acknowledgement_of_nothing_is_told_apart() -> None:
    """A message that still waits is not acknowledged by a stray packet."""
    in_flight = InFlight()
    in_flight.connected(1, session_present=False)
    message(in_flight)
    message(in_flight)
    assert [m.mid for m in in_flight.due()] == [1]
    assert not in_flight.acknowledged(2)
    assert not in_flight.acknowledged(99)
    assert len(in_flight) == 2
    assert "1 of 1 sent, 1 wait" in repr(in_flight)


def test_keep_alive_pings_and_gives_up() -> None:
    """A ping after an interval of silence on either side, the end after one and a half."""
    alive = KeepAlive(10, 100.0)
    assert alive.due(109.9) == ""
    assert alive.due(110.0) == "ping"
    assert alive.due(110.1) == ""
    alive.received(111.0)
    assert alive.due(119.9) == ""
    alive.sent(119.0)
    assert alive.due(120.9) == ""
    assert alive.due(121.0) == "ping"  # we talk, the broker is silent
    assert alive.due(126.0) == "dead"
    assert KeepAlive(0, 0.0).due(1e9) == ""


# ------------------------------------------------------------------ WebSocket


def server_frame(opcode: int, data: bytes, *, final: bool = True) -> bytes:
    """Unmasked, as servers send them."""
    head = bytes(((0x80 if final else 0) | opcode,))
    size = len(data)
    if size < 126:
        return head + bytes((size,)) + data
    if size < 65536:
        return head + b"\x7e" + size.to_bytes(2, "big") + data
    return head + b"\x7f" + size.to_bytes(8, "big") + data


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 100_000])
def test_frames_become_the_stream_of_their_bytes(piece: int) -> None:
    """Cut anywhere, continued, with a ping between and a close at the end."""
    body = bytes(range(256)) * 300
    data = server_frame(2, b"abc", final=False) + server_frame(9, b"hi") + server_frame(0, b"def")
    data += server_frame(2, b"") + server_frame(2, bytes(200)) + server_frame(2, body)
    data += server_frame(8, b"\x03\xe8bye") + b"ignored"
    frames = websocket.Frames()
    got = b"".join(frames.feed(data[at : at + piece]) for at in range(0, len(data), piece))
    assert got == b"abcdef" + bytes(200) + body
    assert frames.closed
    pong, close = frames.answers
    assert (pong[0], websocket.mask(pong[6:], pong[2:6])) == (0x8A, b"hi")
    assert (close[0], websocket.mask(close[6:], close[2:6])) == (0x88, b"\x03\xe8")


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(b"\x82\x81\x00\x00\x00\x00a", id="masked"),
        pytest.param(b"\xc2\x01a", id="compressed"),
        pytest.param(b"\x81\x01a", id="text"),
        pytest.param(b"\x09\x01a", id="ping in pieces"),
        pytest.param(b"\x89\x7e\x01\x00" + bytes(256), id="large ping"),
    ],
)
def test_frames_that_a_server_may_not_send_are_refused(bad: bytes) -> None:
    """With MQTT's code for a protocol error."""
    with pytest.raises(BrokerProtocolError) as caught:
        websocket.Frames().feed(bad)
    assert caught.value.reason == 0x82


@pytest.mark.parametrize("size", [0, 1, 4, 5, 125, 126, 65535, 65536])
def test_our_frames_are_masked(size: int) -> None:
    """With lengths of all three forms; masking twice gives the data back."""
    data = (bytes(range(256)) * 257)[:size]
    made = websocket.frame(2, data, b"\x01\x02\x03\x04")
    at = 2 + (0 if size < 126 else 2 if size < 65536 else 8)
    assert made[0] == 0x82
    assert made[1] & 0x80
    assert made[at : at + 4] == b"\x01\x02\x03\x04"
    assert made[at + 4 :] == bytes(byte ^ b"\x01\x02\x03\x04"[n % 4] for n, byte in enumerate(data))


def test_the_upgrade_is_checked() -> None:
    """A wrong key or another status is an error that says what to look at."""
    key = websocket.new_key(bytes(16))
    guid = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    digest = b64encode(hashlib.sha1(key.encode() + guid, usedforsecurity=False).digest())
    good = b"HTTP/1.1 101 Switching Protocols\r\nsec-websocket-ACCEPT: " + digest + b"\r\n\r\nrest"
    assert websocket.check_answer(good, key) == b"rest"
    for bad in (
        good.replace(b"101", b"200"), good.replace(digest, b"x"), b"HTTP/1.1 404 No\r\n\r\n", b"",
    ):  # fmt: skip
        with pytest.raises(BrokerError, match=r"websocket_path"):
            websocket.check_answer(bad, key)
    assert b"GET /mqtt HTTP/1.1\r\nHost: h:1\r\n" in websocket.request("h:1", "/mqtt", key)
