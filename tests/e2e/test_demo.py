"""`make demo` as a user runs it: builds, serves, measures, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.doubles.service import clean_environment, copy_model


@contextmanager
def running_demo(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The demo in a copy of the checkout's data, output as it comes."""
    copy_model("digits", folder)
    process = subprocess.Popen(
        [sys.executable, "-m", "edged", "demo", "--seconds", "2"],
        cwd=folder,
        env=clean_environment(PYTHONUNBUFFERED="1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """Output up to the line with this text."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"the demo ended without saying {text!r}:\n{seen}")


def processes_in(folder: Path) -> list[psutil.Process]:
    """Processes that work in this folder: the demo and its children."""
    return [each for each in psutil.process_iter() if working_folder(each) == str(folder)]


def working_folder(process: psutil.Process) -> str:
    """A process's current folder; "" once it is gone."""
    try:
        return process.cwd()
    except (psutil.Error, OSError):
        return ""


def test_demo_answers_everything_right_and_leaves_nothing(tmp_path: Path) -> None:
    """Exit code 0, a table with accuracy, counts and reasons, no process and no stray file."""
    with running_demo(tmp_path) as demo:
        out, _ = demo.communicate(timeout=100)
    assert demo.returncode == 0, out
    for text in (
        "0 refused, 0 lost, 0 duplicates",
        "closed because",
        "engine over MQTT",
        "720 of 720",
        "every answer is right",
        "volatile",
        "what the control plane received",
        "720 records in",
        "0 missing, 0 twice",
    ):
        assert text in out
    assert processes_in(tmp_path) == []
    assert {path.name for path in tmp_path.iterdir()} == {"engines", "calib"}


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)]
)
def test_ended_in_the_middle_it_takes_broker_and_daemon_along(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """Ctrl-C and SIGTERM stop the daemon and the broker; even kill -9 leaves none running."""
    with running_demo(tmp_path) as demo:
        read_until(demo, "edged serve is online")
        running = [each for each in processes_in(tmp_path) if each.pid != demo.pid]
        assert len(running) == 2, running
        os.kill(demo.pid, number)
        demo.communicate(timeout=60)
        assert demo.returncode == code
        _, alive = psutil.wait_procs(running, timeout=40)
        for process in alive:
            process.kill()
        assert alive == []
    if number != signal.SIGKILL:
        assert {path.name for path in tmp_path.iterdir()} == {"engines", "calib"}


def test_demo_fails_when_the_model_cannot_be_built(tmp_path: Path) -> None:
    """A damaged model ends the demo with exit code 1 and the reason, and leaves nothing."""
    copy_model("digits", tmp_path)
    (tmp_path / "engines" / "digits" / "model.onnx").write_bytes(b"garbage")
    ended = subprocess.run(
        [sys.executable, "-m", "edged", "demo"],
        cwd=tmp_path,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert "demo failed: " in ended.stdout
    assert not (tmp_path / ".demo").exists()
