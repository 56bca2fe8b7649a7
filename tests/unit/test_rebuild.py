"""Engines that are built anew in the background: one at a time, once each, at low priority."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from edged.rebuild import Rebuilds, build_command

# What stands for `edged build`: it notes its model, waits for a file, and ends with its content.
_BUILD = """
import sys, time
from pathlib import Path
folder, name = Path(sys.argv[1]), sys.argv[2]
(folder / name).write_text("")
while not (folder / "go").exists():
    time.sleep(0.01)
sys.exit(int((folder / "go").read_text()))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the builds note that they were started."""
    return tmp_path


def rebuilds(folder: Path, *, enabled: bool = True) -> Rebuilds:
    """With a command that builds nothing."""
    return Rebuilds([sys.executable, "-c", _BUILD, str(folder)], enabled=enabled)


def let_go(folder: Path, code: int = 0) -> None:
    """Every build ends with this exit code from now on."""
    (folder / "new").write_text(str(code))
    (folder / "new").rename(folder / "go")


def until_built(work: Rebuilds) -> bool:
    """Looks until nothing is left; whether anything was built."""
    built, end = False, time.monotonic() + 30
    while work.busy and time.monotonic() < end:
        built = work.look(()) or built
    assert not work.busy
    return built


def test_each_model_is_built_once_and_one_after_the_other(folder: Path) -> None:
    """However often it is asked for."""
    work = rebuilds(folder)
    assert not work.look({"b", "a"})
    assert work.busy
    assert len(psutil.Process().children()) == 1
    let_go(folder)
    assert until_built(work)
    assert {path.name for path in folder.iterdir()} == {"a", "b", "go"}
    assert not work.look({"a", "b"})
    assert not work.busy


def test_a_build_stands_behind_everything_else(folder: Path) -> None:
    """Lowest priority, and the first to go when memory runs out."""
    work = rebuilds(folder)
    work.look({"a"})
    (child,) = psutil.Process().children()
    try:
        assert child.nice() == 19
        assert Path(f"/proc/{child.pid}/oom_score_adj").read_text().strip() == "1000"
    finally:
        work.stop()


def test_a_build_that_fails_is_told_and_not_tried_again(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It needs a person."""
    work = rebuilds(folder)
    let_go(folder, 1)
    work.look({"a"})
    assert not until_built(work)
    assert "exit code 1" in caplog.text
    assert "edged build a" in caplog.text
    work.look({"a"})
    assert not work.busy


def test_stop_leaves_no_process(folder: Path) -> None:
    """Nor does it start what still waits."""
    work = rebuilds(folder)
    work.look({"a", "b"})
    work.stop()
    assert psutil.Process().children() == []
    assert not work.busy


def test_wait_ends_with_the_builds_or_when_it_is_told_to(folder: Path) -> None:
    """With nothing to serve, there is nothing else to do."""
    asked: list[int] = []

    def stopped() -> bool:
        asked.append(1)
        return len(asked) > 2

    assert not rebuilds(folder).wait({"a"}, stopped)
    assert psutil.Process().children() == []
    let_go(folder)
    assert rebuilds(folder).wait({"a"}, lambda: False)


def test_nothing_is_built_where_it_is_switched_off(folder: Path) -> None:
    """``serve.rebuild = false``."""
    work = rebuilds(folder, enabled=False)
    assert not work.wait({"a"}, lambda: False)
    assert list(folder.iterdir()) == []


def test_a_command_that_cannot_be_started_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """The service goes on."""
    work = Rebuilds([os.devnull])
    work.look({"a"})
    assert not until_built(work)
    assert "cannot be built anew" in caplog.text


def test_the_command_builds_with_the_services_own_paths() -> None:
    """And its settings file, if it has one."""
    command = build_command(Path("/e"), Path("/c"), Path("/s.toml"))
    assert command[1:] == (
        "-m", "edged", "build", "--config", "/s.toml", "--engines", "/e", "--calib", "/c",
    )  # fmt: skip
    assert "--config" not in build_command(Path("/e"), Path("/c"), None)
