"""Recorded arrivals: a capture of times, as text, CSV, JSON or JSON lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edged.errors import InputFileError
from edged.simulate.arrivals import Arrivals

TIME_NAMES = ("time", "t", "timestamp", "received", "ts")
"""Columns or keys that hold a time in seconds; the first one that is there."""
SOURCE_NAMES = ("source", "camera", "topic", "client")
"""Columns or keys that say where a request came from; optional."""


def read_recorded(path: Path) -> Arrivals:
    """Reads a capture; the first arrival becomes second 0, the order does not matter.

    Understood are one time a line; CSV with a header; a JSON list of times or of objects; and one
    JSON object a line. Times are seconds, from any beginning.

    Raises:
        InputFileError: it cannot be read, or is none of these.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise InputFileError(f"{path.name} cannot be read as text: {err}") from err
    try:
        rows = _rows(text)
        times = np.asarray([_time(row) for row in rows], dtype=np.float64)
    except (ValueError, KeyError, TypeError, csv.Error) as err:
        raise InputFileError(
            f"{path.name} is no capture ({err}); give one time in seconds a line, CSV with a "
            f"column {' or '.join(TIME_NAMES)}, or JSON with such keys"
        ) from err
    if not len(times) or not np.isfinite(times).all():
        raise InputFileError(f"{path.name} must hold at least one time, and finite ones only")
    names = {name: number for number, name in enumerate(dict.fromkeys(map(_source, rows)))}
    sources = np.asarray([names[_source(row)] for row in rows], dtype=np.int64)
    order = np.argsort(times, kind="stable")
    return Arrivals(times[order] - times.min(), sources[order])


def _rows(text: str) -> list[Any]:
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return []
    if lines[0].lstrip().startswith("["):
        return list(json.loads(text))
    if lines[0].lstrip().startswith("{"):
        return [json.loads(line) for line in lines]
    try:
        float(lines[0].split(",")[0])
    except ValueError:
        return list(csv.DictReader(io.StringIO(text)))
    return [line.split(",")[0] for line in lines]


def _time(row: Any) -> float:
    if isinstance(row, Mapping):
        name = next((name for name in TIME_NAMES if name in row), TIME_NAMES[0])
        return float(row[name])
    return float(row)


def _source(row: Any) -> str:
    if not isinstance(row, Mapping):
        return ""
    return next((str(row[name]) for name in SOURCE_NAMES if name in row), "")
