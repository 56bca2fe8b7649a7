"""What a request costs the device: CPU time and energy, from its telemetry or from /proc."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edged.errors import BadParameterError

PROC = Path("/proc")


@dataclass(frozen=True)
class Usage:
    """What requests cost the device; None where it cannot be known.

    Attributes:
        cpu_ms: processor milliseconds of the daemon for each request.
        joules: for each request, idling between them included.
        source: where the processor time is from: ``process``, ``telemetry``, or "".
    """

    cpu_ms: float | None = None
    joules: float | None = None
    source: str = ""


@dataclass
class UsageMeter:
    """Reads at the beginning and at the end of a run.

    Attributes:
        pid: process of a daemon on this machine; None: telemetry alone.
        root: where /proc is mounted.
        documents: telemetry that came meanwhile, in its order.
    """

    pid: int | None = None
    root: Path = PROC
    documents: list[Mapping[str, Any]] = field(default_factory=list)
    _cpu_s: float | None = None

    def begin(self) -> None:
        """The run begins.

        Raises:
            BadParameterError: there is no process of that number.
        """
        self.documents.clear()
        if self.pid is not None:
            self._cpu_s = process_cpu_s(self.pid, self.root)
            if self._cpu_s is None:
                raise BadParameterError(
                    f"there is no process {self.pid} on this machine; leave --pid out for a device "
                    "elsewhere"
                )

    def end(self, requests: int) -> Usage:
        """The run has ended with so many answers."""
        told = from_telemetry(self.documents)
        if self.pid is None or self._cpu_s is None:
            return told
        now = process_cpu_s(self.pid, self.root)
        if now is None or not requests:
            return Usage(None, told.joules)
        return Usage((now - self._cpu_s) * 1e3 / requests, told.joules, "process")


def process_cpu_s(pid: int, root: Path = PROC) -> float | None:
    """Processor seconds that a process has used, in user and system mode (proc(5), stat).

    None where there is no such process.
    """
    try:
        text = (root / str(pid) / "stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    # The name in brackets may hold anything, so count from its end.
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def from_telemetry(documents: list[Mapping[str, Any]]) -> Usage:
    """Between the first and the last document of a run; see docs/events.md for their form."""
    if len(documents) < 2:
        return Usage()
    first, last = documents[0], documents[-1]
    replies = _replies(last) - _replies(first)
    if replies <= 0:
        return Usage()
    before, after = _cpu_s(first), _cpu_s(last)
    cpu_ms = (after - before) * 1e3 / replies if before is not None and after is not None else None
    return Usage(cpu_ms, _joules(documents, replies), "telemetry" if cpu_ms is not None else "")


def _replies(document: Mapping[str, Any]) -> float:
    rows = document.get("metrics", {}).get("replies_total", ())
    return float(sum(row.get("value", 0) for row in rows))


def _samples(document: Mapping[str, Any]) -> float:
    rows = document.get("metrics", {}).get("samples_total", ())
    return float(sum(row.get("value", 0) for row in rows))


def _cpu_s(document: Mapping[str, Any]) -> float | None:
    value = document.get("device", {}).get("process_cpu_s")
    return float(value) if isinstance(value, (int, float)) else None


def _joules(documents: list[Mapping[str, Any]], replies: float) -> float | None:
    """Each document tells the joules for each sample since the one before."""
    total = 0.0
    for before, after in itertools.pairwise(documents):
        each = after.get("device", {}).get("joules_per_sample")
        samples = _samples(after) - _samples(before)
        if samples and not isinstance(each, (int, float)):
            return None
        total += samples * float(each or 0.0)
    return total / replies if total else None


@dataclass
class OwnUsage:
    """Processor time of this process: the generator must not be what limits a run."""

    _cpu_s: float = field(default_factory=time.process_time)

    def cpu_us(self, requests: int) -> float:
        """Microseconds for each request since it was made."""
        return (time.process_time() - self._cpu_s) * 1e6 / max(1, requests)
