"""Logs: one event is one line, whatever is in it."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged import logs
from edged.errors import ConfigError


@contextmanager
def _logging_to(stream: io.StringIO, level: str = "debug", form: str = "json") -> Iterator[None]:
    """`logs.configure` for a while; the root logger is as before afterwards."""
    root = logging.getLogger()
    before, before_level = list(root.handlers), root.level
    root.handlers.clear()  # pytest's own handler raises where ours must not
    logs.configure(level, form, stream)
    try:
        yield
    finally:
        logging.captureWarnings(capture=False)
        root.handlers[:] = before
        root.setLevel(before_level)


def _documents(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


LOGGER = logging.getLogger("edged.test")


def test_a_json_line_has_time_level_logger_thread_and_extras() -> None:
    """The time is the event's, in UTC; extra fields stand beside the message."""
    stream, begun = io.StringIO(), datetime.now(timezone.utc)
    with _logging_to(stream):
        thread = threading.Thread(
            target=lambda: LOGGER.warning("queue %s", "full", extra={"model": "digits", "n": 7}),
            name="intake",
        )
        thread.start()
        thread.join()

    (document,) = _documents(stream)
    when = datetime.fromisoformat(document.pop("ts").replace("Z", "+00:00"))
    assert begun <= when <= datetime.now(timezone.utc)
    assert document == {
        "level": "warning", "logger": "edged.test", "thread": "intake",
        "message": "queue full", "model": "digits", "n": 7,
    }  # fmt: skip


@given(message=st.text(), extra=st.text(), form=st.sampled_from(logs.FORMATS))
def test_no_message_can_forge_a_line_or_move_a_cursor(message: str, extra: str, form: str) -> None:
    """Line breaks, escape sequences and direction marks come out as printable escapes."""
    stream = io.StringIO()
    with _logging_to(stream, form=form):
        LOGGER.info("%s", message, extra={"given": extra})

    line = stream.getvalue()
    assert line.endswith("\n")
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", line[:-1])
    line.encode("utf-8")
    if form == "json":
        document = json.loads(line)
        assert (document["message"], document["given"]) == (message, extra)


@pytest.mark.parametrize("form", logs.FORMATS)
def test_a_traceback_is_kept_and_cannot_forge_a_line(form: str) -> None:
    """In JSON it is a field; in text each of its lines is marked as belonging to the one before."""
    stream, failure = io.StringIO(), ValueError("first\n2030-01-01T00:00:00Z INFO forged")
    with _logging_to(stream, form=form):
        LOGGER.error("it failed", exc_info=failure)

    first, *rest = stream.getvalue().splitlines()
    assert "it failed" in first
    if form == "json":
        assert rest == []
        assert "ValueError: first" in json.loads(first)["exception"]
    else:
        assert any("ValueError: first" in line for line in rest)
        assert all(line.startswith("  | ") for line in rest)


def test_text_shows_extras_after_the_message() -> None:
    """A person at a terminal sees the fields too."""
    stream = io.StringIO()
    with _logging_to(stream, form="text"):
        LOGGER.info("warm", extra={"model": "digits", "ms": 1.5})

    assert re.fullmatch(
        r"\S+Z INFO {4}\[MainThread\] edged\.test: warm model=digits ms=1\.5\n", stream.getvalue()
    )


def test_odd_values_lose_no_event() -> None:
    """Not a number, a failing str(), a taken name, wrong placeholders: the line is still valid."""

    class Failing:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    stream = io.StringIO()
    with _logging_to(stream):
        LOGGER.info(
            "odd", extra={"a": float("nan"), "b": Failing(), "level": "mine", "c": {1: (2,)}}
        )
        LOGGER.info("%d apples", "many")

    odd, apples = _documents(stream)
    assert (odd["a"], odd["b"], odd["c"]) == ("nan", "<Failing>", {"1": [2]})
    assert (odd["level"], odd["level_"]) == ("info", "mine")
    assert apples["message"] == "%d apples (its arguments do not fit)"


def test_long_values_are_cut() -> None:
    """A payload in a message cannot fill the journal; the line says how long it was."""
    stream = io.StringIO()
    with _logging_to(stream):
        LOGGER.info("x" * 100_000, extra={"payload": "y" * 100_000})

    (document,) = _documents(stream)
    assert document["message"].endswith("[... 100000 characters]")
    assert len(stream.getvalue()) < 3 * logs.MAX_TEXT


def test_the_level_is_kept_and_a_second_call_replaces_the_first() -> None:
    """One handler, the later level: configuring twice does not write twice."""
    stream = io.StringIO()
    with _logging_to(io.StringIO(), "debug"), _logging_to(stream, "warning"):
        LOGGER.info("not written")
        LOGGER.warning("written once")

    assert [document["message"] for document in _documents(stream)] == ["written once"]


def test_warnings_of_libraries_become_lines() -> None:
    """A DeprecationWarning would otherwise break the JSON stream with plain text."""
    stream = io.StringIO()
    with _logging_to(stream), warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn("soon gone", DeprecationWarning, stacklevel=1)

    (document,) = _documents(stream)
    assert document["logger"] == "py.warnings"
    assert "soon gone" in document["message"]


def test_under_journald_a_line_carries_its_priority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Journald reads "<4>" as a warning and takes it away; it does so for its own stream only."""
    with (tmp_path / "stream").open("w+", encoding="utf-8") as stream:
        stat = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{stat.st_dev}:{stat.st_ino}")
        with _logging_to(io.StringIO()):
            logs.configure("debug", "json", stream)
            for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.CRITICAL):
                LOGGER.log(level, "event")
        stream.seek(0)
        assert [line[:4] for line in stream] == ["<7>{", "<6>{", "<4>{", "<2>{"]


@pytest.mark.parametrize(("level", "form"), [("loud", "json"), ("info", "xml")])
def test_an_unknown_choice_says_what_is_allowed(level: str, form: str) -> None:
    """The message names the value and the allowed ones."""
    with pytest.raises(ConfigError, match=r"(loud|xml).*use one of"):
        logs.configure(level, form)
