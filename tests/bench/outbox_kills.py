"""kill -9 at random moments: a process writes, takes and confirms, and is killed, again and again.

    python -m tests.bench.outbox_kills --kills 1000 --seed 1 [RESULT.json]

Each life goes on with the outbox that the one before has left. What a life says, it says before it
acts on it, so that what it said can be relied on:

- ``S``: the outbox has stored this event;
- ``G``: this event was taken, as if the control plane had received it; it may be confirmed next.

Afterwards everything that is left is taken. Then: everything stored was received; in each stream
events were received for the first time in the order in which they were stored; one position never
stands for two events, nor two positions for one.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import selectors
import signal
import sys
import tempfile
import time
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

from edged.metrics import Metrics
from edged.report.draft import Position
from edged.report.outbox import Outbox
from edged.report.streams import RESULT, TELEMETRY
from edged.settings import OutboxSettings

STREAMS = (RESULT, TELEMETRY)
LONGEST_S = 0.12
"""A life ends so late, at most, after it began."""


class Checker:
    """Hears what the lives said, and finds what must not be."""

    def __init__(self) -> None:
        self.stored: dict[str, list[int]] = {name: [] for name in STREAMS}
        self.first_seen: dict[str, list[int]] = {name: [] for name in STREAMS}
        self.by_position: dict[tuple[str, str, int], int] = {}
        self.by_event: dict[tuple[str, int], tuple[str, str, int]] = {}
        self.duplicates = 0
        self.mixed_up = 0

    def hear(self, line: str) -> None:
        """One line of a life."""
        word, stream, event, *rest = line.split()
        if word == "S":
            self.stored[stream].append(int(event))
            return
        position = (stream, rest[0], int(rest[1]))
        known = self.by_position.setdefault(position, int(event))
        other = self.by_event.setdefault((stream, int(event)), position)
        self.mixed_up += known != int(event) or other != position
        if int(event) in self._seen(stream):
            self.duplicates += 1
        else:
            self.first_seen[stream].append(int(event))
            self._seen(stream).add(int(event))

    def _seen(self, stream: str) -> set[int]:
        if not hasattr(self, "_sets"):
            self._sets: dict[str, set[int]] = {name: set() for name in STREAMS}
        return self._sets[stream]

    def verdict(self) -> dict[str, object]:
        """What was found."""
        lost = sum(len(set(self.stored[name]) - self._seen(name)) for name in STREAMS)
        reordered = sum(
            later < earlier
            for name in STREAMS
            for earlier, later in zip(
                self.first_seen[name], self.first_seen[name][1:], strict=False
            )
        )
        return {
            "stored": sum(map(len, self.stored.values())),
            "received": sum(map(len, self.first_seen.values())),
            "lost": lost,
            "reordered": reordered,
            "positions_mixed_up": self.mixed_up,
            "duplicates_with_the_same_position": self.duplicates,
            "epochs": len({(stream, epoch) for stream, epoch, _ in self.by_position}),
        }


def live(folder: Path, pipe: int, first: int, seed: int) -> None:
    """One life: stores, takes, confirms or releases, until it is killed."""
    chance = random.Random(seed)
    outbox = Outbox(OutboxSettings(path=folder), Metrics())
    outbox.start()
    event = first
    waiting: list[tuple[str, int, Future[Position]]] = []
    while True:
        for _ in range(chance.randrange(1, 40)):
            stream = chance.choice(STREAMS)
            body = str(event).encode() + b" " * chance.randrange(1000)
            waiting.append((stream, event, outbox.store(stream, body)))
            event += 1
        if chance.random() < 0.3:
            outbox.flush(10)
        done = [each for each in waiting if each[2].done()]
        waiting = [each for each in waiting if not each[2].done()]
        _say(pipe, [f"S {stream} {number}" for stream, number, _ in done])
        rows = outbox.take(chance.randrange(1, 120), 1 << 20)
        _say(
            pipe,
            [
                f"G {row.position.stream} {int(row.body)} {row.position.epoch} {row.position.seq}"
                for row in rows
            ],
        )
        kept = chance.randrange(len(rows) + 1) if chance.random() < 0.2 else len(rows)
        outbox.confirm([row.id for row in rows[:kept]])
        if kept < len(rows):
            outbox.release_all()


def _say(pipe: int, lines: list[str]) -> None:
    data = "".join(f"{line}\n" for line in lines).encode()
    while data:
        data = data[os.write(pipe, data) :]


def listen(pipe: int, until: float, child: int) -> bytes:
    """Hears a life until its end comes, and what it had said until then."""
    heard = b""
    os.set_blocking(pipe, False)
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while (left := until - time.monotonic()) > 0:
            if selector.select(left):
                heard += os.read(pipe, 1 << 16)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.set_blocking(pipe, True)
    while data := os.read(pipe, 1 << 16):
        heard += data
    return heard[: heard.rfind(b"\n") + 1]


def one_life(folder: Path, number: int, seed: int, seconds: float) -> bytes:
    """Starts a life in a process of its own and ends it after so long."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        with suppress(BaseException):
            live(folder, writer, number * 1_000_000, seed)
        os._exit(1)
    os.close(writer)
    try:
        return listen(reader, time.monotonic() + seconds, child)
    finally:
        os.close(reader)


def run(kills: int, seed: int) -> dict[str, object]:
    """All lives, and what is left after them."""
    chance = random.Random(seed)
    checker = Checker()
    with tempfile.TemporaryDirectory(prefix="outbox-kills-") as name:
        folder = Path(name)
        for number in range(kills):
            said = one_life(folder, number, chance.randrange(1 << 30), chance.random() * LONGEST_S)
            for line in said.decode().splitlines():
                checker.hear(line)
        outbox = Outbox(OutboxSettings(path=folder), Metrics())
        outbox.start()
        while rows := outbox.take(500, 1 << 24):
            for row in rows:
                position = row.position
                checker.hear(f"G {position.stream} {int(row.body)} {position.epoch} {position.seq}")
            outbox.confirm([row.id for row in rows])
        outbox.stop(10)
        aside = len(list(folder.glob("*damaged*")))
    return {"kills": kills, "seed": seed, **checker.verdict(), "databases_set_aside": aside}


def main() -> int:
    """Reads arguments, runs, prints."""
    parser = argparse.ArgumentParser(description="kill -9 at random moments")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("result", nargs="?", type=Path)
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    began = time.monotonic()
    result = run(options.kills, options.seed)
    result["seconds"] = round(time.monotonic() - began, 1)
    text = json.dumps(result, indent=1)
    sys.stdout.write(text + "\n")
    if options.result:
        options.result.write_text(text + "\n", encoding="utf-8")
    good = not (result["lost"] or result["reordered"] or result["positions_mixed_up"])
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
