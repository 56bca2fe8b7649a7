"""The outbox's figures: events/s by durability, what an emitter pays, a day offline, space.

    python -m tests.bench.outbox [--quick] [--day-events N] [--folder FOLDER] [RESULT.json]

FOLDER is to be on the disk that is measured, not on tmpfs; by default it is the current one.
A day offline is 50 events/s for 24 h, 4.32 million events of 1 KB, stored as fast as possible; then
it is drained at a limited rate while 50 events/s go on coming in.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

from edged.metrics import Metrics
from edged.report.outbox import Outbox
from edged.report.streams import RESULT, TELEMETRY
from edged.settings import OutboxSettings

BODY = os.urandom(1000)
PIECE = 4000
"""Events between two looks at whether the outbox keeps up: below the hand-over's limit."""
ROUNDS = 5
LIVE_HZ = 50.0
REPLAY_HZ = 10_000.0
SPACE_BYTES = 1 << 34
WAIT_S = 120.0


def opened(folder: Path) -> Outbox:
    """An outbox that runs, with room for all."""
    outbox = Outbox(
        OutboxSettings(path=folder, result_max_bytes=SPACE_BYTES, telemetry_max_bytes=SPACE_BYTES),
        Metrics(),
    )
    outbox.start()
    outbox.flush(WAIT_S)
    return outbox


def syncs_per_s(folder: Path) -> float:
    """Appending 8 KiB and fdatasync, one after the other."""
    path = folder / "sync"
    with path.open("wb", buffering=0) as file:
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < 1.0:
            file.write(bytes(8192))
            os.fdatasync(file.fileno())
            count += 1
    path.unlink()
    return count / (time.perf_counter() - began)


def rate(folder: Path, stream: str, events: int) -> dict[str, float]:
    """Stored events/s, and CPU microseconds an event on the emitting thread."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        outbox = opened(Path(name))
        began, cpu = time.perf_counter(), 0.0
        for _ in range(events // PIECE):
            before = time.thread_time()
            for _ in range(PIECE):
                outbox.emit(stream, BODY, kind="bench")
            cpu += time.thread_time() - before
            outbox.flush(WAIT_S)
        seconds = time.perf_counter() - began
        outbox.stop(WAIT_S)
    stored = events // PIECE * PIECE
    return {"events_per_s": round(stored / seconds), "emit_cpu_us": round(cpu / stored * 1e6, 2)}


def rates(folder: Path, stream: str, events: int, rounds: int) -> dict[str, object]:
    """Medians of some rounds, and their range."""
    found = [rate(folder, stream, events) for _ in range(rounds)]
    speeds = [each["events_per_s"] for each in found]
    return {
        "events_per_s": median(speeds),
        "range": [min(speeds), max(speeds)],
        "emit_cpu_us": median(each["emit_cpu_us"] for each in found),
    }


def one_by_one(folder: Path, events: int) -> dict[str, float]:
    """Milliseconds until a single power-cut safe event is durable, beside a flood of others."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        outbox = opened(Path(name))
        ending = threading.Event()

        def flood() -> None:
            while not ending.is_set():
                for _ in range(100):
                    outbox.emit(TELEMETRY, BODY)
                ending.wait(0.02)  # 5,000/s

        thread = threading.Thread(target=flood)
        thread.start()
        waits = []
        for _ in range(events):
            began = time.perf_counter()
            outbox.store(RESULT, BODY).result(WAIT_S)
            waits.append((time.perf_counter() - began) * 1e3)
        ending.set()
        thread.join()
        outbox.stop(WAIT_S)
    waits.sort()
    return {"p50_ms": round(median(waits), 2), "p99_ms": round(waits[int(len(waits) * 0.99)], 2)}


def bytes_in(folder: Path) -> int:
    """What the outbox's files use."""
    return sum(each.stat().st_size for each in folder.iterdir())


def day_offline(folder: Path, events: int) -> dict[str, object]:
    """Stores a day's events, then drains them while more come in."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        outbox = opened(Path(name))
        began = time.perf_counter()
        for first in range(0, events, PIECE):
            for _ in range(min(PIECE, events - first)):
                outbox.emit(RESULT, BODY, kind="bench")
            outbox.flush(WAIT_S)
        stored_s, most = time.perf_counter() - began, bytes_in(Path(name))
        began = time.perf_counter()
        drained = drain(outbox, events)
        seconds = time.perf_counter() - began
        until = time.perf_counter() + WAIT_S
        while bytes_in(Path(name)) >= 2_000_000 and time.perf_counter() < until:
            time.sleep(0.1)
        return {
            "events": events,
            "days_of_50_per_s": round(events / (50 * 86_400), 3),
            "stored_in_s": round(stored_s, 1),
            "file_mb_full": round(most / 1e6, 1),
            **drained,
            "drained_in_s": round(seconds, 1),
            "small_again_after_s": round(time.perf_counter() - began - seconds, 1),
            "file_mb_afterwards": round(bytes_in(Path(name)) / 1e6, 2),
            "stopped": outbox.stop(WAIT_S),
        }


def drain(outbox: Outbox, events: int) -> dict[str, object]:
    """Takes the backlog at `REPLAY_HZ` while events come live; how late those are taken."""
    outbox.begin_backlog()
    ending = threading.Event()

    def live() -> None:
        while not ending.wait(1 / LIVE_HZ):
            outbox.emit(RESULT, BODY, kind="live")

    thread = threading.Thread(target=live)
    thread.start()
    taken, late, numbers = 0, [], []
    began = time.perf_counter()
    while taken < events:
        fresh = outbox.take(100, 1 << 20, backlog=False)
        late += [time.time() - row.time for row in fresh]
        due = min(events, int((time.perf_counter() - began) * REPLAY_HZ) + 100) - taken
        old = outbox.take(min(500, due), 1 << 20, backlog=True) if due > 0 else []
        numbers += [row.position.seq for row in old]
        outbox.confirm([row.id for row in (*fresh, *old)])
        taken += len(old)
        if not old:
            time.sleep(0.01)
    ending.set()
    thread.join()
    while rows := outbox.take(500, 1 << 20):
        outbox.confirm([row.id for row in rows])
    late.sort()
    return {
        "in_order": numbers == list(range(1, events + 1)),
        "live_events": len(late),
        "live_late_s_p99": round(late[int(len(late) * 0.99)], 3),
        "live_late_s_max": round(late[-1], 3),
    }


def main() -> int:
    """Reads arguments, measures, prints."""
    parser = argparse.ArgumentParser(description="figures of the outbox")
    parser.add_argument("--quick", action="store_true", help="seconds, not minutes")
    parser.add_argument("--day-events", type=int, default=4_320_000)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("result", nargs="?", type=Path)
    options = parser.parse_args()
    events, rounds = (8_000, 1) if options.quick else (100_000, ROUNDS)
    day = min(options.day_events, 40_000) if options.quick else options.day_events
    folder = options.folder
    sys.setswitchinterval(0.0005)  # as the service does
    figures = {
        "machine": {"cores": os.cpu_count(), "machine": platform.machine()},
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "event_bytes": len(BODY),
        "fdatasyncs_per_s": round(syncs_per_s(folder)),
        "power_cut": rates(folder, RESULT, events, rounds),
        "crash": rates(folder, TELEMETRY, events, rounds),
        "one_beside_5000_per_s": one_by_one(folder, 20 if options.quick else 500),
        "day_offline": day_offline(folder, day),
    }
    text = json.dumps(figures, indent=1)
    sys.stdout.write(text + "\n")
    if options.result:
        options.result.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
