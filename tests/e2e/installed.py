"""The wheel in an environment of its own, and how the tests run its command."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Installed:
    """The wheel in a virtual environment outside the checkout.

    Attributes:
        wheel: the wheel that was installed.
        python: the environment's interpreter.
        command: the environment's `edged`.
    """

    wheel: Path
    python: Path
    command: Path

    def run(
        self, *arguments: str, cwd: Path, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs ``edged ...`` to its end, which may be any exit code."""
        return subprocess.run(
            [str(self.command), *arguments],
            cwd=cwd,
            env=environment(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    def start(
        self, *arguments: str, cwd: Path, env: dict[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Starts ``edged ...``; standard error goes to ``stderr.log`` under cwd."""
        with (cwd / "stderr.log").open("ab") as log:
            return subprocess.Popen(
                [str(self.command), *arguments],
                cwd=cwd,
                env=environment(env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
            )


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what would lead back into the checkout.

    Also without what the Makefile, or a continuous integration, sets to keep ONNX Runtime from
    reporting its use: edged has to see to that by itself.
    """
    dropped = {"PYTHONPATH", "VIRTUAL_ENV", "COV_CORE_SOURCE", "COV_CORE_CONFIG"}
    dropped |= {"CI", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"}
    return {k: v for k, v in os.environ.items() if k not in dropped} | (extra or {})


def folder_settings(home: Path) -> dict[str, str]:
    """The settings that make edged use ``home/engines`` and ``home/calib``."""
    return {
        "EDGED_PATHS__ENGINES": str(home / "engines"),
        "EDGED_PATHS__CALIB": str(home / "calib"),
    }
