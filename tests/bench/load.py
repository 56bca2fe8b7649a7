"""A requester that costs little: one thread, one connection, our own codec, no client library."""

from __future__ import annotations

import select
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import quantiles

import numpy as np

from edged import v2
from edged.mqtt import codec, control, properties
from edged.mqtt.address import Address, open_stream
from edged.mqtt.codec import PUBACK, PUBLISH
from edged.mqtt.connection import Connection, Wake
from edged.protocol import HEADER_LENGTH, OCTET_STREAM, Topics


@dataclass
class Answered:
    """What came of a load.

    Attributes:
        count: replies with status 200.
        refused: replies with another one.
        wall_s: from the first request to the last reply.
        latencies_s: from sending, or in the open loop from when it was due, to the reply.
    """

    count: int = 0
    refused: int = 0
    wall_s: float = 0.0
    latencies_s: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Requests/s."""
        return self.count / self.wall_s

    def percentile_ms(self, percent: int) -> float:
        """Of the latencies, milliseconds."""
        return round(quantiles(self.latencies_s, n=100)[percent - 1] * 1e3, 3)


class Requester:
    """Sends requests of QoS 1 with five properties and takes the answers, QoS 1.

    Args:
        port: of a broker on loopback.
        topics: the device's.
        model: the model's name.
        shape: of a sample, float32.
    """

    def __init__(self, port: int, topics: Topics, model: str, shape: tuple[int, ...]) -> None:
        self._reply = topics.reply("load")
        rows = np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32)
        self.body, length = v2.write_request(v2.InferRequest(inputs=(v2.Tensor("x", rows),)))
        # Response topic, correlation, content type, expiry, one user property.
        self._before = (
            b"\x02\x00\x00\x00\x3c\x03" + _field(OCTET_STREAM) + b"\x08" + _field(self._reply)
        )
        self._after = b"\x26" + _field(HEADER_LENGTH) + _field(str(length))
        self._topic = topics.infer(model)
        self._wake = Wake()
        self._stream = open_stream(Address("127.0.0.1", port), 5)
        self._connection = Connection(self._stream, 1 << 26, self._wake)
        self._mid = 0
        self._sent: dict[int, float] = {}
        asked = control.Connect("load", control.Will("edged/load", b"gone"), session_expiry_s=0)
        self._connection.put(control.encode_connect(asked))
        self._connection.put(control.encode_subscribe(65535, [self._reply]))
        self._wait_for(control.SUBACK)

    def _wait_for(self, kind: int) -> None:
        while True:
            self._connection.flush()
            self._connection.wait(5)
            if any(first & 0xF0 == kind for first, _ in list(self._connection.packets())):
                return

    def _send(self, due: float) -> None:
        self._mid = self._mid % 60000 + 1
        correlation = self._mid.to_bytes(4, "big")
        fields = self._before + b"\x09\x00\x04" + correlation + self._after
        packed = properties.variable(len(fields)) + fields
        head = codec.encode_publish(self._topic, packed, len(self.body), mid=self._mid)
        self._sent[self._mid] = due
        self._connection.put(head + self.body)

    def _take(self, result: Answered) -> None:
        for first, body in self._connection.packets():
            kind = first & 0xF0
            if kind == PUBLISH:
                message = codec.decode_publish(first, body)
                self._connection.put(codec.encode_puback(message.mid))
                sent = self._sent.pop(int.from_bytes(message.correlation or b"", "big"))
                if (message.user or {}).get("status") != "200":
                    result.refused += 1
                    continue
                result.latencies_s.append(time.perf_counter() - sent)
                result.count += 1
            elif kind != PUBACK:
                raise RuntimeError(f"a packet of type {kind:#x}")

    def closed_loop(self, outstanding: int, seconds: float) -> Answered:
        """As fast as it goes with so many requests outstanding."""
        result = Answered()
        begun = time.perf_counter()
        while True:
            going = time.perf_counter() - begun < seconds
            while going and len(self._sent) < outstanding:
                self._send(time.perf_counter())
            self._connection.flush()
            if not self._sent:
                break
            self._connection.wait(5)
            self._take(result)
        result.wall_s = time.perf_counter() - begun
        return result

    def open_loop(self, rate: float, seconds: float) -> Answered:
        """So many requests/s at even intervals, whatever comes back."""
        return self.at([number / rate for number in range(int(rate * seconds))])

    def at(self, due: Sequence[float]) -> Answered:
        """Requests at these seconds from now, ascending, whatever comes back."""
        result = Answered()
        begun = time.perf_counter()
        sent, total = 0, len(due)
        while sent < total or self._sent:
            now = time.perf_counter() - begun
            while sent < total and due[sent] <= now:
                self._send(begun + due[sent])
                sent += 1
            self._connection.flush()
            left = begun + due[sent] - time.perf_counter() if sent < total else 1.0
            # poll(2) counts in whole milliseconds, which would make every other request late.
            if select.select([self._stream], [], [], max(0.0, left))[0]:
                self._connection.wait(0)
                self._take(result)
        self._connection.flush()
        result.wall_s = time.perf_counter() - begun
        return result


def _field(text: str) -> bytes:
    return properties.field(text.encode())
