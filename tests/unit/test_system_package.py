""".ci/system-package: installs where it may, and otherwise says the one line to type."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "system-package"
PACKAGE = "python3.11-venv"


class Machine:
    """A folder as the only PATH, with package managers that write down how they were called."""

    def __init__(self, folder: Path) -> None:
        self._bin = folder / "bin"
        self._bin.mkdir()
        self._calls = folder / "calls"
        for name in ("sh", "env"):
            (self._bin / name).symlink_to(shutil.which(name) or name)

    @property
    def calls(self) -> list[str]:
        """Commands that were run, with their arguments."""
        return self._calls.read_text(encoding="utf-8").splitlines() if self._calls.exists() else []

    def command(self, name: str, body: str = "exit 0") -> None:
        """Adds a command; ``body`` is shell."""
        path = self._bin / name
        path.write_text(
            f'#!/bin/sh\necho "{name} $*" >> "{self._calls}"\n{body}\n', encoding="utf-8"
        )
        path.chmod(0o755)

    def run(self, **env: str) -> subprocess.CompletedProcess[str]:
        """Asks the script for a package."""
        return subprocess.run(
            ["/bin/sh", str(SCRIPT), PACKAGE],
            env={"PATH": str(self._bin), **env}, capture_output=True, text=True, check=False,
            timeout=60,
        )  # fmt: skip


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A Debian-like machine on which nothing has been called yet."""
    machine = Machine(tmp_path)
    machine.command("apt-get")
    return machine


def test_root_installs_without_asking(machine: Machine) -> None:
    """As root the package is installed and sudo is not needed."""
    machine.command("id", "echo 0")

    ended = machine.run()

    assert ended.returncode == 0, ended.stderr
    assert machine.calls[1:] == [f"apt-get install -y --no-install-recommends {PACKAGE}"]


def test_stale_package_lists_are_refreshed_once(machine: Machine) -> None:
    """If the first try fails the lists are refreshed and the install is tried once more.

    Here it fails again, so the line to type is said.
    """
    machine.command("id", "echo 0")
    machine.command("apt-get", '[ "$1" = update ]')

    ended = machine.run()

    assert [call.split()[1] for call in machine.calls[1:]] == ["install", "update", "install"]
    assert ended.returncode == 1
    assert "type: sudo apt-get install" in ended.stderr


def test_sudo_is_used_where_it_asks_no_password(machine: Machine) -> None:
    """A user with passwordless sudo gets the package through it."""
    machine.command("id", "echo 1000")
    machine.command("sudo", '[ "$2" = true ] || { shift; exec "$@"; }')

    ended = machine.run()

    assert ended.returncode == 0, ended.stderr
    assert machine.calls[-1] == f"apt-get install -y --no-install-recommends {PACKAGE}"


@pytest.mark.parametrize("env", [{}, {"NO_SUDO": "1"}], ids=["password", "told not to"])
def test_without_rights_the_line_to_type_is_said(machine: Machine, env: dict[str, str]) -> None:
    """Nothing is installed, the line is complete, and NO_SUDO=1 does not even ask sudo."""
    machine.command("id", "echo 1000")
    machine.command("sudo", "exit 0" if env else "exit 1")

    ended = machine.run(**env)

    assert ended.returncode == 1
    line = f"sudo apt-get install -y --no-install-recommends {PACKAGE}"
    assert ended.stderr.strip().endswith(f"type: {line}")
    assert [call for call in machine.calls if call.startswith("apt-get")] == []
    assert any(call.startswith("sudo") for call in machine.calls) is not bool(env)


def test_an_unknown_system_says_what_to_install(tmp_path: Path) -> None:
    """Without a package manager that is known here the message names the package."""
    ended = Machine(tmp_path).run()

    assert ended.returncode == 1
    assert PACKAGE in ended.stderr
    assert "by hand" in ended.stderr
