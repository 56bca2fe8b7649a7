"""What reporting costs a request, how fast a desired change is applied, how a backlog drains.

``python tests/bench/reporting.py RESULT.json [--quick]``. All on one mosquitto in one run:

1. two services with the digits model, one with an uplink and ``report.results = "all"``, one
   without; the same open-loop load in interleaved rounds; p99 of each, medians over rounds;
2. a desired change, from its publication until ``applied`` is reported;
3. a backlog that was stored while there was no broker, drained at a limited rate under live events.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from edged.answer_check import read_expected  # noqa: E402  # needs the path above
from edged.build.pipeline import build_model  # noqa: E402
from edged.client import Endpoint, InferClient, Message, Result  # noqa: E402
from edged.engine_store import EngineStore  # noqa: E402
from edged.load_generator import Load, open_loop  # noqa: E402
from edged.protocol import Topics  # noqa: E402
from tests.doubles.broker import Mosquitto  # noqa: E402
from tests.doubles.cloud import Cloud  # noqa: E402
from tests.doubles.reporting import TOPICS, Line, event, numbers  # noqa: E402
from tests.doubles.service import clean_environment, copy_model  # noqa: E402

MODEL = "digits"
RATE_HZ = 150.0


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    rounds: int
    requests: int
    changes: int
    backlog: int


FULL = Size(20, 900, 50, 20_000)
QUICK = Size(3, 200, 10, 1_000)
REPLAY_RATE = 1000.0
LIVE_HZ = 20.0


# ------------------------------------------------------------------ requests


@contextlib.contextmanager
def service(folder: Path, broker: Mosquitto, name: str, **extra: str) -> Iterator[InferClient]:
    """A service called ``name`` on the model in ``folder``."""
    environment = clean_environment(
        EDGED_BROKER__HOST=broker.host,
        EDGED_BROKER__PORT=str(broker.port),
        EDGED_DEVICE__NAME=name,
        EDGED_PATHS__ENGINES=str(folder / "engines"),
        EDGED_OUTBOX__PATH=str(folder / name),
        EDGED_PATHS__DESIRED=str(folder / f"{name}.json"),
        EDGED_SERVE__ONNX_THREADS="1",
        MALLOC_MMAP_THRESHOLD_="33554432",
        MALLOC_TRIM_THRESHOLD_="67108864",
        **extra,
    )
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "edged", "serve"],
            env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        with InferClient(Endpoint(name, broker.host, broker.port)) as client:
            client.wait_status("online", 60)
            yield client
    finally:
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def listener(broker: Mosquitto, topics: Topics) -> Iterator[None]:
    """Somebody who takes the reports in a process of its own, as a control plane does."""
    process = subprocess.Popen(
        ["mosquitto_sub", "-V", "5", "-q", "1", "-h", broker.host, "-p", str(broker.port),
         "-t", topics.report("+")],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


def p99_ms(client: InferClient, messages: list[Message], requests: int, seed: int) -> float:
    """99th percentile of an open-loop round, from the intended send times."""

    def submit(index: int) -> Future[Result]:
        return client.submit(MODEL, messages[index % len(messages)])

    answers, _ = open_loop(submit, Load(RATE_HZ, requests, seed=seed).schedule())
    latencies = sorted(answer.latency_s for answer in answers if answer.latency_s is not None)
    return latencies[int(0.99 * len(latencies))] * 1e3


def compare(folder: Path, size: Size) -> dict[str, Any]:
    """p99 with reporting on against off, and against itself: what the machine's noise is."""
    engines, calib = copy_model(MODEL, folder)
    build_model(MODEL, engines=engines, calib=calib, runner="onnx")
    engine = EngineStore(engines).current(MODEL)
    messages = list(read_expected(engine, calib / MODEL).messages)
    rounds: dict[str, list[float]] = {"off": [], "off again": [], "on": []}
    topics = Topics("edged/v1", "on")
    with Mosquitto(folder / "broker") as broker, listener(broker, topics):
        on = {"EDGED_UPLINK__ENABLED": "true", "EDGED_REPORT__RESULTS": "all"}
        with (
            service(folder, broker, "off") as off_client,
            service(folder, broker, "on", **on) as on_client,
        ):
            clients = {"off": off_client, "off again": off_client, "on": on_client}
            for client in clients.values():
                p99_ms(client, messages, 100, 0)
            for number in range(size.rounds):
                order = list(clients)
                shift = number % len(order)
                for name in order[shift:] + order[:shift]:
                    found = p99_ms(clients[name], messages, size.requests, number)
                    rounds[name].append(found)
            with Cloud(broker, topics) as cloud:
                _, told = cloud.ask("get-metrics")
    middle = {name: median(values) for name, values in rounds.items()}
    ratios = [on / off for on, off in zip(rounds["on"], rounds["off"], strict=True)]
    same = [a / b for a, b in zip(rounds["off again"], rounds["off"], strict=True)]
    return {
        "rate_hz": RATE_HZ,
        "rounds": size.rounds,
        "requests_a_round": size.requests,
        "p99_ms": {name: round(value, 3) for name, value in middle.items()},
        "p99_moves_by": round(median(ratios) - 1, 4),
        "p99_off_moves_by_itself": round(median(same) - 1, 4),
        "results_stored": told["result"]["metrics"]["outbox_stored_total"],
        "records_sent": told["result"]["metrics"]["uplink_records_total"],
    }


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
            "requests": compare(folder, size),
            "desired": desired_ms(folder, size),
            "drain": drain(folder, size),
        }
    text = json.dumps(measured, indent=2)
    options.result.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
