"""What reporting costs a request: p99 and CPU with every result reported, against none.

``python -m tests.bench.reporting_cost RESULT.json [--rounds N] [--requests N]``

Two services with the digits model, one with an uplink and ``report.results = "all"``, one without,
get the same open-loop load in turns. Both run on the machine's last core, and everything else that
takes part on the others: mosquitto, the load generator, and who takes the reports. So what is
compared is the daemon's own, with all of its threads on one core: its worst case.

A round of each of three belongs together: off, on, and off again, in changing order. Percentiles
are of all requests of a kind; how well they are known is told by the bootstrap, which draws rounds
with replacement (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). What
off differs from itself by is what this method cannot see.
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
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from edged.answer_check import read_expected
from edged.build.pipeline import build_model
from edged.client import Endpoint, InferClient, Message, Result
from edged.engine_store import EngineStore
from edged.load_generator import Load, open_loop
from edged.protocol import Topics
from tests.doubles.broker import Mosquitto
from tests.doubles.cloud import Cloud
from tests.doubles.service import clean_environment, copy_model

MODEL = "digits"
RATE_HZ = 150.0
KINDS = ("off", "on", "off again")
DRAWS = 2000

Rounds = dict[str, list[list[float]]]
"""Kind -> rounds -> latencies in ms."""


@contextlib.contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """What is started within runs on these cores alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def service(folder: Path, broker: Mosquitto, name: str, **extra: str) -> Iterator[int]:
    """A service called ``name`` on the model in ``folder``; its process id."""
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
        yield process.pid
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


def one_round(
    client: InferClient, messages: list[Message], requests: int, seed: int
) -> list[float]:
    """Latencies in ms of an open-loop round, from the intended send times."""

    def submit(index: int) -> Future[Result]:
        return client.submit(MODEL, messages[index % len(messages)])

    answers, _ = open_loop(submit, Load(RATE_HZ, requests, seed=seed).schedule())
    return [each.latency_s * 1e3 for each in answers if each.latency_s is not None]


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and its threads."""
    return sum(
        int((task / "schedstat").read_text(encoding="ascii").split()[0])
        for task in Path(f"/proc/{pid}/task").iterdir()
    ) / 1e9  # fmt: skip


def moved(rounds: Rounds, one: str, other: str, percent: float) -> dict[str, object]:
    """By how much a percentile of ``one`` is above that of ``other``, and how sure that is."""

    def ratio(chosen: Sequence[int]) -> float:
        above, below = (
            np.percentile(np.concatenate([rounds[kind][number] for number in chosen]), percent)
            for kind in (one, other)
        )
        return float(above / below) - 1

    count = len(rounds[one])
    chance = np.random.default_rng(0)
    draws = [ratio(chance.integers(count, size=count).tolist()) for _ in range(DRAWS)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return {
        "by": round(ratio(range(count)), 4),
        "ci95": [round(float(low), 4), round(float(high), 4)],
    }


def measure(folder: Path, rounds: int, requests: int, cores: tuple[set[int], set[int]]) -> Any:
    """All rounds, with the services where they are to be."""
    engines, calib = copy_model(MODEL, folder)
    build_model(MODEL, engines=engines, calib=calib, runner="onnx")
    messages = list(read_expected(EngineStore(engines).current(MODEL), calib / MODEL).messages)
    latencies: Rounds = {kind: [] for kind in KINDS}
    cpu = dict.fromkeys(KINDS, 0.0)
    topics = Topics("edged/v1", "on")
    own, others = cores
    on = {"EDGED_UPLINK__ENABLED": "true", "EDGED_REPORT__RESULTS": "all"}
    with contextlib.ExitStack() as stack:
        stack.enter_context(on_cores(others))
        broker = stack.enter_context(Mosquitto(folder / "broker"))
        stack.enter_context(listener(broker, topics))
        with on_cores(own):
            pids = {
                "off": stack.enter_context(service(folder, broker, "off")),
                "on": stack.enter_context(service(folder, broker, "on", **on)),
            }
        clients = {}
        for name in pids:
            endpoint = Endpoint(name, broker.host, broker.port)
            clients[name] = stack.enter_context(InferClient(endpoint))
            clients[name].wait_status("online", 60)
            one_round(clients[name], messages, 150, 0)
        for number in range(rounds):
            shift = number % len(KINDS)
            for kind in KINDS[shift:] + KINDS[:shift]:
                name = kind.split()[0]
                before = cpu_s(pids[name])
                latencies[kind].append(one_round(clients[name], messages, requests, number))
                cpu[kind] += cpu_s(pids[name]) - before
        with Cloud(broker, topics) as cloud:
            _, told = cloud.ask("get-metrics")
    return latencies, cpu, told["result"]["metrics"]


def figures(latencies: Rounds, cpu: dict[str, float], told: dict[str, Any]) -> dict[str, Any]:
    """What is written."""
    total = {kind: sum(map(len, latencies[kind])) for kind in KINDS}
    pooled = {kind: np.concatenate(latencies[kind]) for kind in KINDS}
    return {
        "rate_hz": RATE_HZ,
        "rounds": len(latencies["off"]),
        "requests": total,
        "p50_ms": {kind: round(float(np.percentile(pooled[kind], 50)), 3) for kind in KINDS},
        "p99_ms": {kind: round(float(np.percentile(pooled[kind], 99)), 3) for kind in KINDS},
        "p50_moves": moved(latencies, "on", "off", 50),
        "p99_moves": moved(latencies, "on", "off", 99),
        "p99_off_moves_by_itself": moved(latencies, "off again", "off", 99),
        "daemon_cpu_us_a_request": {
            kind: round(cpu[kind] / total[kind] * 1e6, 1) for kind in KINDS
        },
        "results_stored": told["outbox_stored_total"],
        "records_sent": told["uplink_records_total"],
    }


def main() -> None:
    """Measures, and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--requests", type=int, default=900, help="in a round")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    own, others = {cores[-1]}, set(cores[:-1]) or {cores[-1]}
    with tempfile.TemporaryDirectory() as name:
        measured = measure(Path(name), options.rounds, options.requests, (own, others))
    text = json.dumps(
        {
            "machine": {"cpus": os.cpu_count(), "python": platform.python_version()},
            "cores": {"services": sorted(own), "everything else": sorted(others)},
            **figures(*measured),
        },
        indent=2,
    )
    options.result.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
