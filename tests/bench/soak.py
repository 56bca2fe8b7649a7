"""Memory over a million requests: what the request path takes at the end, and what it took early.

    python -m tests.bench.soak [--requests 1000000] [--leak] RESULT.json

The daemon's request path around an echo (tests/bench/echo_service.py), a real mosquitto, QoS 1
with correlation data both ways, 1 KB. The resident memory is read after each turn of two seconds;
from a tenth of the requests on, when caches are full, it may grow by 5 % at most, and neither
threads nor descriptors may be more. With ``--leak`` the service keeps 1 KiB of each answer, and the
check has to fail: that shows that it can.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from tests.bench.echo_service import ENTRIES, TOPICS
from tests.bench.load import Requester
from tests.doubles.broker import Mosquitto

OUTSTANDING = 32
MOST_GROWTH = 0.05
TURN_S = 2.0
BROKER = ["max_inflight_messages 200", "max_queued_messages 0"]


def watch(port: int, process: psutil.Process, requests: int) -> list[dict[str, Any]]:
    """Sends so many requests; what the service takes after each turn."""
    requester = Requester(port, TOPICS, "echo", (ENTRIES,))
    seen: list[dict[str, Any]] = []
    count, begun = 0, time.monotonic()
    while count < requests:
        answered = requester.closed_loop(OUTSTANDING, TURN_S)
        count += answered.count
        seen.append(
            {
                "requests": count,
                "seconds": round(time.monotonic() - begun, 1),
                "rss_mib": round(process.memory_info().rss / 2**20, 2),
                "threads": process.num_threads(),
                "descriptors": process.num_fds(),
            }
        )
    return seen


def verdict(seen: list[dict[str, Any]], requests: int) -> dict[str, Any]:
    """Growth from a tenth of the requests to the end, and a few of the readings."""
    early = next(each for each in seen if each["requests"] >= requests / 10)
    last = seen[-1]
    growth = last["rss_mib"] / early["rss_mib"] - 1
    steady = all(early[what] == last[what] for what in ("threads", "descriptors"))
    return {
        "requests": last["requests"],
        "requests_s": round(last["requests"] / last["seconds"]),
        "growth": round(growth, 4),
        "flat": growth < MOST_GROWTH and steady,
        "readings": [*seen[:: max(1, len(seen) // 20)], last],
    }


def run(requests: int, *, leak: bool) -> dict[str, Any]:
    """Broker, service, requests."""
    with (
        tempfile.TemporaryDirectory(prefix="edged-soak-") as name,
        Mosquitto(Path(name), BROKER) as broker,
    ):
        command = [sys.executable, "-m", "tests.bench.echo_service", str(broker.port)]
        process = subprocess.Popen(
            [*command, *(["leak"] if leak else [])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            if process.stdout is None or process.stdout.readline() != "listening\n":
                raise RuntimeError("the service did not start")
            seen = watch(broker.port, psutil.Process(process.pid), requests)
        finally:
            process.kill()
            process.wait()
    return verdict(seen, requests)


def main() -> int:
    """Reads arguments, runs, prints."""
    parser = argparse.ArgumentParser(description="memory over many requests")
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--leak", action="store_true")
    parser.add_argument("result", type=Path)
    options = parser.parse_args()
    result = run(options.requests, leak=options.leak)
    text = json.dumps(result, indent=1)
    sys.stdout.write(text + "\n")
    options.result.write_text(text + "\n", encoding="utf-8")
    return int(not result["flat"])


if __name__ == "__main__":
    sys.exit(main())
