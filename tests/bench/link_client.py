"""One client alone against a broker that costs it nothing, for tests/bench/link.py.

``python -m tests.bench.link_client WHO WHAT PORT COUNT`` with WHO ``edged`` or ``paho`` and WHAT
``receive`` or ``publish`` prints the CPU microseconds of this process for each message.
``python -m tests.bench.link_client broker`` is that broker: it prints its port, and a line of two
numbers on its input, size and count, says what the next client gets.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edged.metrics import Metrics
from edged.mqtt import codec
from edged.mqtt.receiver import Receiver
from edged.serve.link_handlers import LinkHandlers
from edged.serve.mqtt import BrokerLink
from edged.serve.request import Arrival, Reply
from edged.settings import BrokerSettings
from tests.doubles.packets import field, packet, publish_body

WINDOW = 100
PROPERTIES = (
    b"\x02\x00\x00\x00\x3c\x03" + field(b"application/octet-stream")
    + b"\x08" + field(b"edged/v1/bench/reply/load") + b"\x09" + field(b"0123456789abcdef")
    + b"\x26" + field(b"traceparent") + field(b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01")
)  # fmt: skip
"""Expiry, content type, response topic, correlation, one user property."""
USER = (("status", "200"), ("inference-header-content-length", "151"))


class Counted:
    """CPU time of this process from the hundredth message to the last one."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._seen = 0
        self._begun = 0.0
        self.cost_us = 0.0
        self.done = threading.Event()

    def one(self) -> None:
        """A message."""
        self._seen += 1
        if self._seen == WINDOW:
            self._begun = time.process_time()
        elif self._seen == self._count:
            self.cost_us = (time.process_time() - self._begun) / (self._count - WINDOW) * 1e6
            self.done.set()


# ------------------------------------------------------------------ the broker


def broker() -> None:
    """Serves one client after the other until the input ends."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sys.stdout.write(f"{server.getsockname()[1]}\n")
        sys.stdout.flush()
        for line in sys.stdin:
            size, count = map(int, line.split())
            connection, _ = server.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with connection, contextlib.suppress(ConnectionResetError):
                serve(connection, size, count)


def serve(connection: socket.socket, size: int, count: int) -> None:
    """Acknowledges what comes, and after a SUBSCRIBE sends so many messages of QoS 1."""
    receiver = Receiver(1 << 28)
    made = [
        packet(0x32, publish_body(b"edged/v1/bench/infer/echo", PROPERTIES, bytes(size), mid))
        for mid in range(1, 2 * WINDOW + 1)
    ]
    sent = count
    while (got := connection.recv_into(receiver.space())) > 0:
        receiver.received(got)
        answer = b""
        window = 0
        while (found := receiver.next()) is not None:
            kind, body = found[0] & 0xF0, found[1]
            if kind == 0x10:
                answer += bytes.fromhex("2003000000")
            elif kind == 0x80:
                answer += packet(0x90, bytes(body[:2]) + b"\x00\x01")
                sent, window = 0, WINDOW
            elif kind == 0x30:
                answer += codec.encode_puback(codec.identifier_of(found[0], body))
            elif kind == 0x40:
                window += 1
        pieces = [answer]
        for _ in range(min(window, count - sent)):
            pieces.append(made[sent % len(made)])
            sent += 1
        if size < 100_000:
            connection.sendall(b"".join(pieces))
        else:
            for piece in pieces:
                connection.sendall(piece)


# ------------------------------------------------------------------ ours


def ours(what: str, port: int, count: int) -> float:
    """`BrokerLink`, acknowledging or publishing on its own thread."""
    counted = Counted(count)
    reply = Reply(
        "edged/v1/bench/reply/load", bytes(1000), 1, b"0123456789abcdef",
        "application/octet-stream", 60, USER,
    )  # fmt: skip
    out = [0, 0]

    def arrived(arrival: Arrival) -> bool:
        link.acknowledge(arrival.receipt)
        counted.one()
        return True

    def delivered(_mid: int, _accepted: bool) -> None:  # noqa: FBT001  # the interface
        out[1] += 1
        counted.one()

    def turn() -> None:
        while what == "publish" and out[0] < count and out[0] - out[1] < WINDOW:
            link.publish(reply)
            out[0] += 1

    link = BrokerLink(
        BrokerSettings(port=port, send_window=WINDOW), "bench", "s", ("edged/v1/bench/infer/+",),
        LinkHandlers(arrived, delivered, lambda _change: None, lambda _s, _n: b"", turn), Metrics(),
    )  # fmt: skip
    link.start(subscribe=what == "receive")
    counted.done.wait(300)
    return counted.cost_us


# ------------------------------------------------------------------ paho


def theirs(what: str, port: int, count: int) -> float:
    """As users of paho write it: its own loop, and it acknowledges by itself."""
    counted = Counted(count)
    free = threading.Semaphore(WINDOW)
    client = mqtt.Client(CallbackAPIVersion.VERSION2, "bench", protocol=MQTTProtocolVersion.MQTTv5)
    connected = threading.Event()

    def on_connect(*_: Any) -> None:
        if what == "receive":
            client.subscribe("edged/v1/bench/infer/+", 1)
        connected.set()

    def on_message(_client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
        _ = (message.topic, message.payload, getattr(message.properties, "ResponseTopic", ""))
        counted.one()

    def on_publish(*_: Any) -> None:
        free.release()
        counted.one()

    client.on_connect, client.on_message, client.on_publish = on_connect, on_message, on_publish
    client.max_inflight_messages_set(WINDOW)
    client.connect("127.0.0.1", port)
    client.loop_start()
    connected.wait(30)
    for _ in range(count if what == "publish" else 0):
        free.acquire()
        properties: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho's
        properties.CorrelationData = b"0123456789abcdef"
        properties.ContentType = "application/octet-stream"
        properties.MessageExpiryInterval = 60
        properties.UserProperty = list(USER)
        client.publish("edged/v1/bench/reply/load", bytes(1000), 1, properties=properties)
    counted.done.wait(300)
    return counted.cost_us


CLIENTS: dict[str, Callable[[str, int, int], float]] = {"edged": ours, "paho": theirs}

if __name__ == "__main__":
    if sys.argv[1] == "broker":
        broker()
    else:
        _, who, what, port, count = sys.argv
        sys.stdout.write(f"{CLIENTS[who](what, int(port), int(count)):.2f}\n")
