"""A day offline, drained through the real uplink: 4.32 million results of 1 KB.

``python -m tests.bench.day_offline RESULT.json [--events N] [--rate EVENTS_A_SECOND] [--folder F]``

The day is not waited for: the results of a day at 50 a second are stored as fast as the outbox
takes them, without a broker. Then mosquitto is started and a control plane in a process of its own,
and the uplink replays at ``uplink.replay_rate`` while 50 results a second go on coming in. The
control plane reads every record, checks that numbers follow each other, and acknowledges each batch
(``outbox.application_ack`` has the stream).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from edged import protocol
from edged.control_plane import ack_document, unpack
from edged.report.streams import RESULT
from tests.bench.outbox import PIECE, SPACE_BYTES, WAIT_S, bytes_in
from tests.doubles.broker import Mosquitto
from tests.doubles.reporting import TOPICS, Line

LIVE_HZ = 50.0
PADDING = b"0123456789abcdef" * 60
SMALL_BYTES = 2_000_000


def body(number: int) -> bytes:
    """1,000 bytes of JSON, of which zstd leaves about a third."""
    text = b'{"n":%d,"values":"%s' % (number, os.urandom(250).hex().encode())
    return text + PADDING[: 998 - len(text)] + b'"}'


class Receiver:
    """What came, without keeping it.

    Args:
        backlog: numbers up to this one were there before the connection.
    """

    def __init__(self, backlog: int) -> None:
        self.found = {"records": 0, "bytes": 0, "duplicates": 0, "out_of_order": 0}
        self.late: list[float] = []
        self._backlog = backlog
        self._seen = bytearray(2 * backlog + 100_000)
        self._last = 0

    def missing(self) -> int:
        """Numbers below the largest one that never came."""
        came = self._seen.rindex(1)
        return self._seen.count(0, 1, came)

    def batch(self, payload: bytes, encoding: str) -> dict[str, object]:
        """Takes a batch; its acknowledgement."""
        batch = unpack(payload, encoding)
        ack = ack_document(batch["boot_id"], batch["batch"])
        if batch["stream"] != RESULT:
            return ack
        mode, now, found = batch["mode"], time.time(), self.found
        found["bytes"] += len(payload)
        for record in batch["records"]:
            seq = record["seq"]
            found["records"] += 1
            if self._seen[seq]:
                found["duplicates"] += 1
                continue
            self._seen[seq] = 1
            if seq <= self._backlog:
                found["out_of_order"] += seq < self._last
                self._last = seq
            if mode == "live":
                self.late.append(now - record["time"])
        return ack


def control_plane(host: str, port: int, told: Connection, backlog: int) -> None:
    """The control plane's process: answers each question with what it has found so far."""
    receiver = Receiver(backlog)
    client = mqtt.Client(CallbackAPIVersion.VERSION2, "day", protocol=MQTTProtocolVersion.MQTTv5)

    def heard(client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        user = dict(getattr(message.properties, "UserProperty", ()))
        ack = receiver.batch(bytes(message.payload), user.get(protocol.CONTENT_ENCODING, ""))
        client.publish(TOPICS.ack, json.dumps(ack).encode(), 1)

    client.on_message = heard
    client.on_subscribe = lambda *_: told.send("subscribed")
    client.connect(host, port)
    client.subscribe(TOPICS.report("+"), 1)
    client.loop_start()
    while told.recv() != "end":
        told.send(dict(receiver.found))
    client.loop_stop()
    late = sorted(receiver.late)
    told.send({"p50": late[len(late) // 2], "p99": late[int(len(late) * 0.99)], "max": late[-1]})
    told.send(receiver.missing())


def store(line: Line, events: int) -> float:
    """Stores a day's events; the seconds that it took."""
    outbox = line.line._outbox  # what waits is stored as the service would
    assert outbox is not None
    began = time.perf_counter()
    for first in range(0, events, PIECE):
        for number in range(first, min(first + PIECE, events)):
            outbox.emit(RESULT, body(number), kind="result")
        outbox.flush(WAIT_S)
    return time.perf_counter() - began


def drain(line: Line, broker: Mosquitto, events: int, folder: Path) -> dict[str, Any]:
    """Drains it while more comes in."""
    outbox = line.line._outbox  # as above
    assert outbox is not None
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=control_plane, args=(broker.host, broker.port, theirs, events)
    )
    process.start()
    assert ours.recv() == "subscribed"
    ending, live = threading.Event(), 0

    def come_in() -> None:
        nonlocal live
        while not ending.wait(1 / LIVE_HZ):
            outbox.emit(RESULT, body(live), kind="live")
            live += 1

    thread = threading.Thread(target=come_in)
    thread.start()
    began = time.perf_counter()
    found: dict[str, int] = {"records": 0, "duplicates": 0}
    while found["records"] - found["duplicates"] - live < events - LIVE_HZ:
        time.sleep(0.5)
        ours.send("?")
        found = ours.recv()
    seconds = time.perf_counter() - began
    ending.set()
    thread.join()
    while found["records"] - found["duplicates"] < events + live:
        time.sleep(0.1)
        ours.send("?")
        found = ours.recv()
    until = time.perf_counter() + WAIT_S
    while bytes_in(folder) >= SMALL_BYTES and time.perf_counter() < until:
        time.sleep(0.1)
    after_s = time.perf_counter() - began - seconds
    ours.send("end")
    late, missing = ours.recv(), ours.recv()
    process.join(WAIT_S)
    return {
        "drained_in_s": round(seconds, 1),
        "replayed_per_s": round(events / seconds),
        "live_events": live,
        "live_late_s": {name: round(value, 3) for name, value in late.items()},
        "sent_mb": round(found["bytes"] / 1e6, 1),
        "missing": missing,
        "out_of_order": found["out_of_order"],
        "duplicates": found["duplicates"],
        "connections_lost": line.metrics.total("uplink_losses_total"),
        "sent_again_unacknowledged": line.metrics.total("uplink_resent_total"),
        "small_again_after_s": round(after_s, 1),
        "file_mb_afterwards": round(bytes_in(folder) / 1e6, 2),
    }


def main() -> None:
    """Measures, and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("--events", type=int, default=4_320_000)
    parser.add_argument("--rate", type=float, default=4_000.0, help="uplink.replay_rate")
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk that is measured")
    options = parser.parse_args()
    sys.setswitchinterval(0.0005)  # as the service does
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        with Mosquitto(folder / "broker") as broker:
            broker.stop()
            line = Line(
                folder, broker,
                outbox={"result_max_bytes": SPACE_BYTES, "application_ack": ["result"]},
                uplink={"replay_rate": options.rate, "batch_delay_s": 0.2, "ack_timeout_s": 60.0},
            )  # fmt: skip
            with line:
                stored_s = store(line, options.events)
                most = bytes_in(folder / "outbox")
                broker.start()
                drained = drain(line, broker, options.events, folder / "outbox")
    measured = {
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version()},
        "events": options.events,
        "event_bytes": len(body(0)),
        "replay_rate": options.rate,
        "stored_in_s": round(stored_s, 1),
        "file_mb_full": round(most / 1e6, 1),
        **drained,
    }
    text = json.dumps(measured, indent=2)
    options.result.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
