"""`edged serve` as a process of its own, set up through its environment."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, final

from edged import protocol
from tests.doubles.service import clean_environment
from tests.doubles.wire import WAIT_S, Address, Message, WireClient

TOPICS = protocol.Topics("edged/v1", "edge")


@final
class Daemon:
    """A daemon called ``edge``; killed at the end of its ``with`` block if it still runs.

    Args:
        folder: gets the log; must exist.
        engines: folder of models.
        broker: where to.
        settings: ``section__field="value"``.

    Attributes:
        module: what Python runs; it takes the program's arguments.
    """

    module = "edged"

    def __init__(self, folder: Path, engines: Path, broker: Address, **settings: str) -> None:
        self._log = folder / "daemon.log"
        values = {
            "broker__host": broker.host,
            "broker__port": str(broker.port),
            "broker__backoff_min_s": "0.1",
            "broker__backoff_max_s": "0.5",
            "device__name": TOPICS.device,
            "paths__engines": str(engines),
            "paths__journal": str(folder / "crash.journal"),
        }
        self._environment = clean_environment(
            **{f"EDGED_{name.upper()}": text for name, text in (values | settings).items()}
        )
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Daemon:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process that was started last."""
        if self._process is None:
            raise RuntimeError("the daemon was not started")
        return self._process

    def start(self) -> None:
        """Starts it; see `wait_online`."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self.module, "serve"],
                env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        self.process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.signal(signal.SIGTERM)
        return self.process.wait(WAIT_S)

    def kill(self) -> None:
        """SIGKILL, as a power cut would. May be called twice."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def log(self) -> list[dict[str, Any]]:
        """What it has logged, a document a line; other lines (a traceback) under ``raw``."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return [json.loads(line) if line.startswith("{") else {"raw": line} for line in lines]

    def said(self, text: str) -> int:
        """How many log lines hold this text."""
        return sum(text in json.dumps(line, ensure_ascii=False) for line in self.log())

    def wait_said(self, text: str) -> None:
        """Waits until a log line holds this text.

        Raises:
            TimeoutError: none does in time, or the daemon has ended.
        """
        until, ended = time.monotonic() + WAIT_S, False
        while not self.said(text):
            if ended or time.monotonic() > until:
                raise TimeoutError(f"the daemon did not say {text!r}: {self.log()}")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.02)
                ended = True


def wait_online(client: WireClient, boots: int = 1) -> Message:
    """Waits for the birth of so many runs of the daemon; the last of them."""

    def births() -> dict[str, Message]:
        status = [message for message in client.messages(TOPICS.status) if message.payload]
        return {
            message.json()["boot_id"]: message
            for message in status
            if message.json()["state"] == "online"
        }

    client.wait_for(lambda _: len(births()) >= boots, f"birth number {boots}")
    return list(births().values())[-1]
