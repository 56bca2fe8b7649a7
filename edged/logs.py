"""Logging to standard error, set up once: JSON lines for journald, or text for a terminal.

What a client sent may end up in a message, so no message can end a line or move a cursor: control
characters are escaped in both forms, and long values are cut. Under journald each line carries its
priority, so that ``journalctl -u edged -p warning`` works.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
import threading
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal, TextIO

from edged.errors import ConfigError

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["json", "text"]

LEVELS: tuple[str, ...] = ("debug", "info", "warning", "error")
FORMATS: tuple[str, ...] = ("json", "text")
MAX_TEXT = 4096
"""Characters of a message or of an extra field; journald splits lines of more than 48 KiB."""
MAX_DEPTH = 3
"""Levels of lists and objects in an extra field that stay such; deeper ones become text."""

_RESERVED = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {
    "message",
    "asctime",
    "taskName",  # an attribute since Python 3.12
}
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def configure(level: str = "info", format: str = "json", stream: TextIO | None = None) -> None:  # noqa: A002 the name of the setting
    """Sets the root logger up; a second call replaces what the first one did.

    Args:
        level: lowest level that is written, one of `LEVELS`.
        format: ``json`` or ``text``.
        stream: where to; None: standard error as it is now.

    Raises:
        ConfigError: level or format is none of the allowed ones.
    """
    if level not in LEVELS:
        raise ConfigError(f"log level {level!r} is unknown; use one of {', '.join(LEVELS)}")
    if format not in FORMATS:
        raise ConfigError(f"log format {format!r} is unknown; use one of {', '.join(FORMATS)}")
    handler = _Handler(stream or sys.stderr)
    handler.setFormatter(_Json() if format == "json" else _Text())
    root = logging.getLogger()
    for old in [each for each in root.handlers if isinstance(each, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)


if TYPE_CHECKING:
    _TextHandler = logging.StreamHandler[TextIO]
else:  # generic for type checkers alone before Python 3.11
    _TextHandler = logging.StreamHandler


class _Handler(_TextHandler):
    """Ours, so that a second `configure` finds what the first one added."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._journal = _is_journal(stream)

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"<{_priority(record.levelno)}>{text}" if self._journal else text


class _Json(logging.Formatter):
    """One JSON object a line, ASCII only: everything else is escaped by the encoder."""

    def format(self, record: logging.LogRecord) -> str:
        document: dict[str, Any] = {
            "ts": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "thread": record.threadName,
            "message": _cut(_message(record)),
        }
        if trace := _exception(record):
            document["exception"] = trace
        for name, value in _extras(record).items():
            document[f"{name}_" if name in document else name] = _plain(value)
        return json.dumps(document)


class _Text(logging.Formatter):
    """``time level [thread] logger: message name=value``; a traceback follows, indented."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={_plain(value)}" for name, value in _extras(record).items())
        line = _escape(
            f"{_timestamp(record)} {record.levelname:<7} [{record.threadName}] {record.name}: "
            f"{_cut(_message(record))}{fields}"
        )
        trace = _exception(record)
        return "\n".join([line, *(f"  | {_escape(each)}" for each in trace.split("\n") if each)])


def _timestamp(record: logging.LogRecord) -> str:
    when = datetime.fromtimestamp(record.created, tz=timezone.utc)
    return when.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # a wrong placeholder or a failing repr must not lose the event
        return f"{record.msg!s} (its arguments do not fit)"


def _exception(record: logging.LogRecord) -> str:
    if not record.exc_info or record.exc_info[0] is None:
        return ""
    text = logging.Formatter().formatException(record.exc_info)
    return text if len(text) <= 2 * MAX_TEXT else f"[...]{text[-2 * MAX_TEXT :]}"  # its end says it


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _RESERVED}


def _plain(value: Any, depth: int = 0) -> Any:
    """A value that JSON can carry: numbers, booleans, None, lists and objects; all else as text."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    try:
        if depth < MAX_DEPTH and isinstance(value, Mapping):
            return {_cut(str(name)): _plain(each, depth + 1) for name, each in value.items()}
        if depth < MAX_DEPTH and isinstance(value, (list, tuple)):
            return [_plain(each, depth + 1) for each in value]
        return _cut(str(value))
    except Exception:  # a failing __str__ must not lose the event
        return f"<{type(value).__name__}>"


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}[... {len(text)} characters]"


def _escape(text: str) -> str:
    return _UNSAFE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def _priority(level: int) -> int:
    """syslog(3) priority of a logging level."""
    limits = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
    return next((priority for limit, priority in limits if level >= limit), 7)


def _is_journal(stream: TextIO) -> bool:
    """Whether the stream is the journal's: its device and inode are those in JOURNAL_STREAM."""
    try:
        stat = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"


def end_process(fault: threading.ExceptHookArgs) -> None:
    """A thread of ours, a runner's or the loader's died: no part of the service may go missing."""
    name = fault.thread.name if fault.thread else "?"
    logging.getLogger(__name__).critical("thread %s died", name, exc_info=fault.exc_value)
    logging.shutdown()
    os._exit(os.EX_SOFTWARE)
