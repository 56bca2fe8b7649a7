"""kill -9 of the daemon and of the broker under load: what is lost, repeated, or out of order.

    python -m tests.bench.chaos [--kills 20] [--rate 500] RESULT.json

A real `edged serve` with the bundled digits model, a real mosquitto, four requesters of QoS 1.
Three rounds: nothing is killed; the daemon is, so many times; the broker is. Each is killed at a
random moment after answers have come again, and started anew after a second, as a service manager
does.

mosquitto acknowledges a message before it has written it, so a kill costs what it has taken since
it wrote last (mosquitto.conf(5), autosave_interval). In its round the requesters send what is
unanswered at the end again, as a requester that waits for an answer does; the result says how many.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, final

from edged.build.pipeline import build_model
from tests.bench.chaos_load import Load
from tests.doubles.broker import Mosquitto
from tests.doubles.daemon import TOPICS, Daemon, wait_online
from tests.doubles.service import copy_model
from tests.doubles.wire import WireClient

CLIENTS = 4
RESTART_S = 1.0
LONGEST_S = 2.0
"""A kill comes so long, at most, after answers have come again."""
BETWEEN = 200
"""Answers that show that the service is back."""
WAIT_S = 60.0


@dataclass(frozen=True)
class Storm:
    """How much of it.

    Attributes:
        kills: of each kind.
        rate: requests/s.
        quiet_s: when nothing has come for so long, what is unanswered is lost.
    """

    kills: int = 20
    rate: float = 500.0
    quiet_s: float = 20.0


BROKER_LINES = ["max_inflight_messages 200", "max_queued_messages 0"]
SAVING = ["autosave_interval 200"]
"""Changes after which mosquitto writes its whole database, four or five a request. After each one
it would be the bottleneck."""
ROOMY = {"serve__queue_samples": "100000", "log__level": "warning"}
"""What piles up while the daemon is away finds room: mosquitto 2.0.11 goes beyond our receive
maximum while acknowledgements flow."""


@final
class Site:
    """A broker, a daemon, and a folder for both; a context manager.

    Args:
        folder: gets both logs and the broker's database.
        engines: with the digits engine.
        persistent: the broker writes its sessions.
    """

    def __init__(self, folder: Path, engines: Path, *, persistent: bool) -> None:
        folder.mkdir()
        lines = [*BROKER_LINES, *(SAVING if persistent else [])]
        self.broker = Mosquitto(folder / "broker", lines, persistent=persistent)
        self.daemon = Daemon(folder, engines, self.broker, **ROOMY)
        self._stack = ExitStack()

    def __enter__(self) -> Site:
        self._stack.enter_context(self.broker)
        self._stack.enter_context(self.daemon)
        with WireClient(self.broker) as client:
            wait_online(client)  # before it has subscribed, requests have nobody to go to
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def nothing(self) -> None:
        """The round that all others are compared with."""

    def kill_daemon(self) -> None:
        """SIGKILL, and a new one."""
        self.daemon.kill()
        time.sleep(RESTART_S)
        self.daemon.start()

    def kill_broker(self) -> None:
        """SIGKILL, and a new one that reads what it had written."""
        self.broker.kill()
        time.sleep(RESTART_S)
        self.broker.start()


def one_round(site: Site, kill: Callable[[], None], storm: Storm) -> dict[str, Any]:
    """A load of its own, so many kills, and what came of all requests."""
    chance = random.Random(storm.kills)
    away = []
    with Load(site.broker, TOPICS, storm.rate, CLIENTS, kill.__name__) as load:
        load.wait_more(BETWEEN, WAIT_S)
        for number in range(storm.kills):
            time.sleep(chance.random() * LONGEST_S)
            begun = time.monotonic()
            kill()
            load.wait_more(1, WAIT_S)
            away.append(time.monotonic() - begun)
            load.wait_more(BETWEEN, WAIT_S)
            sys.stderr.write(f"{kill.__name__} {number + 1}: back after {away[-1]:.1f} s\n")
        load.stop()
        load.settle(storm.quiet_s)
        again = 0
        if kill == site.kill_broker and (again := load.send_again()):
            load.settle(storm.quiet_s)
        return {
            "kills": storm.kills,
            "seconds_until_answers_came_again": round(median(away), 2),
            "sent_again_at_the_end": again,
            **load.verdict(),
        }


def run(folder: Path, engines: Path, storm: Storm) -> dict[str, Any]:
    """All three rounds, in an empty folder."""
    result: dict[str, Any] = {"rate": storm.rate, "clients": CLIENTS}
    with Site(folder / "one", engines, persistent=False) as site:
        result["nothing_killed"] = one_round(site, site.nothing, storm)
        result["daemon_killed"] = one_round(site, site.kill_daemon, storm)
        result["exit_codes"] = [site.daemon.stop()]
    with Site(folder / "two", engines, persistent=True) as site:
        result["broker_killed"] = one_round(site, site.kill_broker, storm)
        result["exit_codes"].append(site.daemon.stop())
    return result


def failures(result: dict[str, Any]) -> list[str]:
    """What must not be."""
    found = []
    for name in ("nothing_killed", "daemon_killed", "broker_killed"):
        one = result[name]
        if one["lost"] or one["different_answers"]:
            found.append(f"{name}: {one['lost']} lost, {one['different_answers']} different")
        if set(one["first_answers_by_status"]) != {"200"}:
            found.append(f"{name}: {one['first_answers_by_status']}")
    if result["nothing_killed"]["answered_twice_or_more"]:
        found.append("answers came twice although nothing was killed")
    return found


def main() -> int:
    """Reads arguments, runs, prints."""
    parser = argparse.ArgumentParser(description="kill -9 of daemon and broker under load")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rate", type=float, default=500.0)
    parser.add_argument("result", type=Path)
    options = parser.parse_args()
    # The broker writes its whole database each time: in memory, which outlives a process.
    memory = Path("/dev/shm")  # noqa: S108  # a folder of one's own in it
    where = memory if memory.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="edged-chaos-", dir=where) as name:
        engines, calib = copy_model("digits", Path(name))
        build_model("digits", engines=engines, calib=calib, precision="int8")
        result = run(Path(name), engines, Storm(options.kills, options.rate))
    result["failures"] = failures(result)
    text = json.dumps(result, indent=1)
    sys.stdout.write(text + "\n")
    options.result.write_text(text + "\n", encoding="utf-8")
    return bool(result["failures"])


if __name__ == "__main__":
    sys.exit(main())
