"""A private, real mosquitto on a free loopback port."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import final

_BINARIES = ("mosquitto", "/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto")


def free_port() -> int:
    """A loopback port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@final
class Mosquitto:
    """A mosquitto process of one's own.

    ``with Mosquitto(tmp_path) as broker`` starts and stops it; ``stop``, ``kill`` and ``start``
    take it away and bring it back on the same port, for tests of reconnecting.

    Args:
        folder: gets the config file, the log and, with persistence, the database.
        lines: further lines of the config file, e.g. ``["max_inflight_messages 5"]``.
        port: loopback port; 0: a free one.
        persistent: keep sessions over a restart.
    """

    def __init__(
        self, folder: Path, lines: Sequence[str] = (), *, port: int = 0, persistent: bool = False
    ) -> None:
        self.host = "127.0.0.1"
        self.port = port or free_port()
        self._folder = folder
        self._lines = list(lines)
        self._persistent = persistent
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        state = "stopped" if self._process is None else f"running as {self._process.pid}"
        return f"<Mosquitto {self.host}:{self.port} {state}>"

    @property
    def pid(self) -> int:
        """Of the process; it must run."""
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Mosquitto:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def log(self) -> str:
        """What the broker has logged so far."""
        return (self._folder / "mosquitto.log").read_text(encoding="utf-8", errors="replace")

    def start(self, timeout_s: float = 20.0) -> None:
        """Starts it and waits until the port accepts.

        Raises:
            RuntimeError: no mosquitto is installed, or it ends or does not listen in time.
        """
        binary = next((found for name in _BINARIES if (found := shutil.which(name))), None)
        if binary is None:
            raise RuntimeError("mosquitto is not installed; `make setup` installs it")
        self._folder.mkdir(parents=True, exist_ok=True)
        config = self._folder / "mosquitto.conf"
        config.write_text(self._config(), encoding="utf-8")
        with (self._folder / "mosquitto.log").open("ab") as log:
            self._process = subprocess.Popen(
                [binary, "-c", str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        until = time.monotonic() + timeout_s
        while not self._accepts():
            if time.monotonic() > until or self._ended_within(0.02):
                self.kill()
                raise RuntimeError(f"mosquitto did not start:\n{self._config()}\n{self.log}")

    def stop(self) -> None:
        """Ends it by SIGTERM; it saves its sessions if it is persistent. May be called twice."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it by SIGKILL, as a power cut would. May be called twice."""
        self._end(signal.SIGKILL)

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _accepts(self) -> bool:
        try:
            with socket.create_connection((self.host, self.port), timeout=1):
                return True
        except OSError:
            return False

    def _ended_within(self, seconds: float) -> bool:
        if self._process is None:
            return True
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _config(self) -> str:
        lines = [
            f"listener {self.port} {self.host}",
            "allow_anonymous true",
            "set_tcp_nodelay true",
            f"persistence {'true' if self._persistent else 'false'}",
        ]
        if os.geteuid() == 0:
            lines.append("user root")  # the user it would change to cannot read pytest's folders
        if self._persistent:
            lines += [f"persistence_location {self._folder}/", "autosave_on_changes true",
                      "autosave_interval 1"]  # fmt: skip
        return "\n".join([*lines, *self._lines]) + "\n"
