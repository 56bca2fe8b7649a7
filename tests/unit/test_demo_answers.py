"""What the demo counts as right, and what it leaves behind."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edged.answer_check import Expected, accuracy, tolerance, wrong_answers
from edged.client import Endpoint, Result
from edged.demo import DemoOptions, _environment, _settings, _terminated_as_interrupt, _work_folder
from edged.load_generator import LOST, OK, Answer
from edged.settings import load_settings

VALUES = np.array([[1.0, 5.0], [4.0, 0.0], [2.0, 3.0]], np.float32)
EXPECTED = Expected([], np.array([1, 0, 0]), "y", VALUES, 1e-3, 1.0)


def answer(index: int, row: object, name: str = "y") -> Answer:
    """An answer with one row of output."""
    outputs = {name: np.asarray(row, np.float32)}
    return Answer(index, 0.001, 0.0, OK, Result(outputs, {}, 200, "1", 0.001))


def right(index: int) -> Answer:
    """The engine's own answer."""
    return answer(index, VALUES[index % 3 : index % 3 + 1])


def test_the_engines_own_answers_are_right() -> None:
    """Exact outputs, and outputs within the tolerance, are right; rounds repeat the samples."""
    answers = [right(index) for index in range(6)]
    answers.append(answer(6, VALUES[:1] + 9e-4))
    assert wrong_answers(answers, EXPECTED) == []
    assert accuracy(answers, EXPECTED) == pytest.approx(5 / 7)  # sample 2 is misread by the engine


def test_everything_else_is_wrong() -> None:
    """Too far, NaN, another sample's, another shape or output, refused and lost: all wrong."""
    answers = [
        answer(0, VALUES[:1] + 2e-3),
        answer(1, [[np.nan, np.nan]]),
        answer(2, VALUES[:1]),
        answer(3, VALUES[0]),
        answer(4, VALUES[1:2], name="z"),
        Answer(5, 0.001, 0.0, "queue_full"),
        Answer(6, None, 0.0, LOST),
    ]
    assert wrong_answers(answers, EXPECTED) == list(range(7))


def test_another_class_is_wrong_however_close() -> None:
    """A tie that falls to the other class is wrong even within the tolerance."""
    close = replace(EXPECTED, values=np.array([[1.0, 1.0005]], np.float32))
    assert wrong_answers([answer(0, [[1.0006, 1.0005]])], close) == [0]


def test_tolerance_follows_what_batches_differ_by() -> None:
    """Four times the measured difference, and at least 1e-5 of the largest value."""
    assert tolerance(VALUES, VALUES) == pytest.approx(5e-5)
    assert tolerance(VALUES, VALUES + np.float32(0.25)) == pytest.approx(1.0)


def test_settings_file_is_what_the_daemon_reads(tmp_path: Path) -> None:
    """The TOML loads, also with odd folder names, and names the demo's broker and model."""
    options = DemoOptions(engines=tmp_path / 'a "b" \\c', calib=tmp_path / "ä")
    file = tmp_path / "edged.toml"
    file.write_text(_settings(options, Endpoint("demo", port=1234), tmp_path), encoding="utf-8")
    settings = load_settings(file)
    assert (settings.broker.port, settings.device.name) == (1234, "demo")
    assert settings.serve.models == ("digits",)
    assert settings.paths.engines == tmp_path / 'a "b" \\c'


def test_the_users_settings_do_not_reach_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """EDGED_ variables and systemd's are kept from the daemon; others and malloc's are set."""
    monkeypatch.setenv("EDGED_BROKER__PORT", "1")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/other")
    monkeypatch.setenv("LANG", "C.UTF-8")
    environment = _environment()
    assert not [name for name in environment if name.startswith(("EDGED_", "NOTIFY_"))]
    assert environment["LANG"] == "C.UTF-8"
    assert environment["MALLOC_MMAP_THRESHOLD_"] == "33554432"


def test_work_folder_is_removed_also_after_an_error(tmp_path: Path) -> None:
    """The run's folder goes, and the one above it once nobody else uses it."""
    work = tmp_path / ".demo"
    with _work_folder(work) as other:
        with pytest.raises(KeyboardInterrupt), _work_folder(work) as folder:  # noqa: PT012
            (folder / "log").write_text("x")
            raise KeyboardInterrupt
        assert list(work.iterdir()) == [other]
    assert not work.exists()


def test_sigterm_unwinds_like_ctrl_c() -> None:
    """SIGTERM raises KeyboardInterrupt inside the block, and the old handler is back after it."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), _terminated_as_interrupt():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
