"""The broker link's cost: receiving and publishing against paho, and the whole path of an echo.

    python -m tests.bench.link RESULT.json [--quick]

CPU times are of the measured process alone, user and system. paho and edged take turns, three
rounds, and the medians count. The echo is the daemon's request path around a runner that computes
nothing, on a mosquitto with ``set_tcp_nodelay true``; its requester has a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.echo_service import ENTRIES, TOPICS
from tests.bench.load import Requester
from tests.doubles.broker import Mosquitto

QUICK = "--quick" in sys.argv
ROUNDS = 1 if QUICK else 3
SIZES = {1_000: 20_000, 150_000: 2_000, 1_000_000: 400}
"""Payload bytes, and messages of a round."""
SECONDS = 2.0 if QUICK else 8.0
# As systemd/edged.service sets them: receiving large messages is mostly page faults without.
ENVIRONMENT = os.environ | {
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "67108864",
}


@contextlib.contextmanager
def free_broker() -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """The broker that costs its client nothing."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.link_client", "broker"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline()), process
    finally:
        process.kill()
        process.wait()


def cost_us(who: str, what: str, size: int, count: int) -> float:
    """CPU microseconds of a client for one message."""
    with free_broker() as (port, process):
        assert process.stdin is not None
        process.stdin.write(f"{size} {count}\n")
        process.stdin.flush()
        found = subprocess.run(
            [sys.executable, "-m", "tests.bench.link_client", who, what, str(port), str(count)],
            check=True, capture_output=True, text=True, env=ENVIRONMENT, timeout=300,
        )  # fmt: skip
    return float(found.stdout)


def against_paho(what: str, size: int, count: int) -> dict[str, Any]:
    """Both in turn."""
    if QUICK:
        count = max(count // 10, 200)
    costs: dict[str, list[float]] = {"paho": [], "edged": []}
    for _ in range(ROUNDS):
        for who, found in costs.items():
            found.append(cost_us(who, what, size, count))
    middle = {f"{who}_us": round(median(found), 1) for who, found in costs.items()}
    row = {"what": what, "bytes": size, **middle}
    return row | {"ratio": round(median(costs["paho"]) / median(costs["edged"]), 1)}


class Echo:
    """The service in a process of its own."""

    def __init__(self, port: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.echo_service", str(port)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT,
        )  # fmt: skip
        self.ask()

    def ask(self, line: str = "") -> str:
        """Its next line; asked for with one."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if line:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        return self._process.stdout.readline()

    def cpu_s(self) -> float:
        """CPU seconds so far."""
        return float(self.ask("\n"))

    def end(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


def echo() -> list[dict[str, Any]]:
    """CPU for one request at 1000/s, and the rate that is sustained with 200 outstanding."""
    rows: list[dict[str, Any]] = []
    lines = ["max_inflight_messages 1000", "max_queued_messages 0"]
    with tempfile.TemporaryDirectory() as folder, Mosquitto(Path(folder), lines) as broker:
        service = Echo(broker.port)
        requester = Requester(broker.port, TOPICS, "echo", (ENTRIES,))
        requester.open_loop(1000, 1.0)
        for load in ("1000/s", "64 outstanding", "200 outstanding"):
            for _ in range(ROUNDS):
                before = service.cpu_s()
                if load == "1000/s":
                    answered = requester.open_loop(1000, SECONDS)
                else:
                    answered = requester.closed_loop(int(load.split()[0]), SECONDS)
                used = service.cpu_s() - before
                if answered.refused:
                    raise RuntimeError(f"{answered.refused} requests were refused")
                rows.append(
                    {
                        "load": load,
                        "bytes": len(requester.body),
                        "requests_s": round(answered.rate),
                        "cpu_us": round(used / answered.count * 1e6, 1),
                        "p50_ms": answered.percentile_ms(50),
                        "p99_ms": answered.percentile_ms(99),
                    }
                )
        service.end()
    return rows


def medians(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a load, each figure the median over its rounds."""
    merged = []
    for load in dict.fromkeys(row["load"] for row in rows):
        same = [row for row in rows if row["load"] == load]
        figures = {name: median(row[name] for row in same) for name in same[0] if name != "load"}
        merged.append({"load": load, **figures})
    return merged


def main() -> None:
    """Measures and writes the JSON."""
    rows = [against_paho("receive", size, count) for size, count in SIZES.items()]
    rows.append(against_paho("publish", 1_000, 20_000))
    document = {"cores": os.cpu_count(), "link": rows, "echo": medians(echo())}
    text = json.dumps(document, indent=1) + "\n"
    Path(sys.argv[1]).write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
