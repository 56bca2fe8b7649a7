"""How fast a desired change is applied, and how a backlog drains.

``python -m tests.bench.reporting RESULT.json [--quick]``:

1. a desired change, from its publication until ``applied`` is reported;
2. a backlog that was stored while there was no broker, drained at a limited rate under live events.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tests.doubles.broker import Mosquitto
from tests.doubles.cloud import Cloud
from tests.doubles.reporting import TOPICS, Line, event, numbers


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    changes: int
    backlog: int


FULL = Size(50, 20_000)
QUICK = Size(10, 1_000)
REPLAY_RATE = 1000.0
LIVE_HZ = 20.0


# ------------------------------------------------------------------ desired settings


def desired_ms(folder: Path, size: Size) -> dict[str, Any]:
    """From the publication of a desired change until ``applied`` is here."""
    took = []
    with (
        Mosquitto(folder / "broker2") as broker,
        Cloud(broker, TOPICS) as cloud,
        Line(folder / "line2", broker),
    ):
        cloud.wait_reported(lambda _document: True)
        for version in range(1, size.changes + 1):
            began = time.perf_counter()
            cloud.desire(version, serve={"drain_s": version})
            cloud.wait(
                lambda version=version: cloud.reported()[-1]["applied_version"] == version,  # type: ignore[misc]  # a lambda's default
                "the change",
            )
            took.append((time.perf_counter() - began) * 1e3)
    took.sort()
    return {"changes": size.changes, "p50_ms": round(median(took), 2), "max_ms": round(took[-1], 2)}


# ------------------------------------------------------------------ backlog


def drain(folder: Path, size: Size) -> dict[str, Any]:
    """A backlog drained at the limited rate, and how late live events are meanwhile."""
    limits = {"event_max_bytes": 1 << 30}
    with Mosquitto(folder / "broker3") as broker:
        broker.stop()
        line = Line(
            folder / "line3", broker, outbox=limits,
            uplink={"replay_rate": REPLAY_RATE, "batch_delay_s": 0.2},
        )  # fmt: skip
        with line:
            for start in range(0, size.backlog, 1000):
                line.emit(*range(start, start + 1000))
                line.wait_stats(
                    lambda s, n=start: s["event"]["rows"] >= n + 1000,  # type: ignore[misc]  # a lambda's default
                    "the backlog",
                )
            broker.start()
            with Cloud(broker, TOPICS) as cloud:
                cloud.wait_records("event", "stopping", 1)
                began, live = time.monotonic(), size.backlog
                ended = threading.Event()
                while cloud.count("event") < size.backlog and not ended.wait(1 / LIVE_HZ):
                    line.line.emit(event(live))
                    live += 1
                took = time.monotonic() - began
                cloud.wait(lambda: cloud.count("event") >= live, "all")
                records = cloud.records("event", "stopping")
                late = cloud.lateness("event", "live")
                gaps = len(cloud.gaps("event"))
            line.wait_stats(lambda s: s["event"]["rows"] == 0, "an empty outbox")
    return {
        "backlog": size.backlog,
        "replay_rate": REPLAY_RATE,
        "seconds": round(took, 1),
        "live": live - size.backlog,
        "live_late_s": {"p50": round(median(late), 3), "max": round(max(late), 3)},
        "gaps": gaps,
        "lost": live - len(set(numbers(records))),
    }


def main() -> None:
    """Measures, and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("line2", "line3"):
            (folder / part).mkdir()
        measured = {
            "machine": {"cpus": os.cpu_count(), "python": platform.python_version()},
            "quick": options.quick,
            "desired": desired_ms(folder, size),
            "drain": drain(folder, size),
        }
    text = json.dumps(measured, indent=2)
    options.result.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
