"""Builds engines anew in the background: one child process at a time, behind everything else.

After an upgrade of the runtime an engine fits no longer. What serves goes on; a child of low
priority builds the engine for what is here now, and the service takes it over as after a reload. A
child and not a systemd unit, since starting one takes rights that the service has not, and since it
is the same where there is no systemd.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from edged import sd_notify

log = logging.getLogger(__name__)

_NICE = 19
_OOM_SCORE = 1000  # where memory runs out, the kernel ends the build and nothing else
_LOOK_S = 0.2
_EXIT_S = 10.0


class Rebuilds:
    """The engines that are being built anew. One thread uses it.

    Args:
        command: builds one model; its name is appended.
        enabled: ``serve.rebuild``.
    """

    def __init__(self, command: Iterable[str], *, enabled: bool = True) -> None:
        self._command = tuple(command)
        self._enabled = enabled
        self._asked: set[str] = set()
        self._waiting: list[str] = []
        self._child: tuple[str, subprocess.Popen[bytes]] | None = None

    def __repr__(self) -> str:
        return f"<Rebuilds {self._child and self._child[0]}, {len(self._waiting)} wait>"

    @property
    def busy(self) -> bool:
        """Whether one is being built or waits."""
        return self._child is not None or bool(self._waiting)

    def look(self, outdated: Iterable[str]) -> bool:
        """Starts what is new, and takes note of what has ended; never waits.

        Each model is built once: what fails needs a person.

        Args:
            outdated: names of models whose engine fits no longer.

        Returns:
            Whether a new engine is in the store.
        """
        if self._enabled:
            new = sorted(set(outdated) - self._asked)
            self._asked |= set(new)
            self._waiting += new
        built = self._ended()
        if self._child is None and self._waiting:
            self._start(self._waiting.pop(0))
        return built

    def wait(self, outdated: Iterable[str], stopped: Callable[[], bool]) -> bool:
        """Builds all of them while there is nothing that could serve.

        Args:
            outdated: as for `look`.
            stopped: asked several times a second.

        Returns:
            Whether at least one new engine is in the store.
        """
        built = self.look(outdated)
        while self.busy and not stopped():
            names = ", ".join(sorted(self._asked))
            sd_notify.notify(status=f"building {names} anew", extend_timeout_s=60)
            if self._child is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._child[1].wait(_LOOK_S)
            built = self.look(()) or built
        if stopped():
            self.stop()
        return built

    def stop(self) -> None:
        """Ends what is being built; what it has finished is kept for the next build."""
        self._waiting.clear()
        if self._child is not None:
            _, child = self._child
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGTERM)
            try:
                child.wait(_EXIT_S)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
            self._child = None

    def _start(self, name: str) -> None:
        try:
            child = subprocess.Popen(
                [*self._command, name], stdin=subprocess.DEVNULL, start_new_session=True
            )
        except OSError as err:
            log.error("the engine of %s cannot be built anew: %s", name, err)  # noqa: TRY400  # no fault of ours
            return
        with contextlib.suppress(OSError):  # it may have ended already
            os.setpriority(os.PRIO_PROCESS, child.pid, _NICE)
            Path(f"/proc/{child.pid}/oom_score_adj").write_text(str(_OOM_SCORE), encoding="ascii")
        log.info("the engine of %s is built anew in the background", name)
        self._child = (name, child)

    def _ended(self) -> bool:
        if self._child is None or self._child[1].poll() is None:
            return False
        name, child = self._child
        self._child = None
        if child.returncode:
            log.error(
                "building the engine of %s anew failed with exit code %d; see the lines above, and "
                "build it by hand: edged build %s",
                name, child.returncode, name,
            )  # fmt: skip
            return False
        log.info("the engine of %s was built anew", name)
        return True


def build_command(engines: Path, calib: Path, config: Path | None) -> tuple[str, ...]:
    """The command that builds a model with the service's own paths; its name is missing."""
    settings = () if config is None else ("--config", str(config))
    paths = ("--engines", str(engines), "--calib", str(calib))
    return (sys.executable, "-m", "edged", "build", *settings, *paths)
