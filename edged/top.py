"""`edged top`: what a device's batch timers do at the moment, one line a model and device.

It reads the device's telemetry and status from the broker, and asks the device for nothing. Rates
and quantiles are those between the last two telemetry documents, or since the start with one alone.
"""

from __future__ import annotations

import itertools
import json
import math
import secrets
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from edged.client import Endpoint
from edged.client.endpoint import Delivery
from edged.client.link import Link
from edged.errors import BrokerError
from edged.metrics import METRICS, quantile
from edged.protocol import Topics

CONNECT_S = 5.0
CLEAR = "\x1b[H\x1b[2J"
"""Cursor home, screen cleared (ECMA-48)."""
UNKNOWN = "-"
Document = Mapping[str, Any]
Row = tuple[str, ...]

HEADINGS: Row = (
    "MODEL", "DEVICE", "REQ/S", "P50 ms", "P99 ms", "BATCH", "WAIT", "RATE/S", "M", "T ms", "PHI",
    "C", "J PRED", "J NOW", "J GREEDY", "GPU %", "TEMP C", "CLOSED BY",
)  # fmt: skip


@dataclass(frozen=True)
class TopOptions:
    """What to look at.

    Attributes:
        endpoint: broker and device.
        once: print one table and end.
        timeout_s: to wait for the first telemetry; it comes every `report.telemetry_interval_s`.
    """

    endpoint: Endpoint
    once: bool = False
    timeout_s: float = 30.0


def run(options: TopOptions, out: TextIO = sys.stdout) -> int:
    """Prints tables until it is interrupted, or one of them.

    Raises:
        BrokerError: no broker, or no telemetry in time.
    """
    endpoint = options.endpoint
    watch = Watch(Topics(endpoint.root, endpoint.device))
    link = Link(endpoint, f"edged-top-{secrets.token_hex(4)}", watch.topics, watch.take, CONNECT_S)
    link.connect()
    try:
        seen = 0
        while True:
            if not watch.wait(seen, options.timeout_s):
                if seen:
                    continue  # what is shown stays; the head says how old it is
                raise BrokerError(
                    f"no telemetry of {endpoint.device!r} within {options.timeout_s:g} s; is that "
                    "its name (device.name), is it running, and report.telemetry_interval_s "
                    "shorter than --timeout?"
                )
            seen, text = watch.shown()
            out.write(text if options.once or not out.isatty() else CLEAR + text)
            out.flush()
            if options.once:
                return 0
    finally:
        link.close()


class Watch:
    """What a device has told: its status and its last two telemetry documents. Thread-safe."""

    def __init__(self, topics: Topics) -> None:
        self._status_topic, self._telemetry_topic = topics.status, topics.telemetry("metrics")
        self.topics = (self._status_topic, self._telemetry_topic)
        self._changed = threading.Condition()
        self._status: Document = {}
        self._earlier: Document | None = None
        self._later: Document | None = None
        self._count = 0

    def __repr__(self) -> str:
        return f"<Watch {self._count} telemetry documents>"

    def take(self, delivery: Delivery) -> None:
        """On the network thread: a document came; what is no JSON object is left out."""
        try:
            document = json.loads(delivery.payload)
        except ValueError:
            return
        if not isinstance(document, dict):
            return
        with self._changed:
            if delivery.topic == self._status_topic:
                self._status = document
            else:
                self._earlier, self._later = self._later, document
                self._count += 1
            self._changed.notify_all()

    def wait(self, seen: int, timeout_s: float) -> bool:
        """Waits for more telemetry documents than were seen; False if none comes."""
        with self._changed:
            return self._changed.wait_for(lambda: self._count > seen, timeout_s)

    def shown(self) -> tuple[int, str]:
        """How many documents there were, and the text for the last one."""
        with self._changed:
            if self._later is None:
                return 0, ""
            text = head(self._status, self._later, time.time())
            return self._count, text + table(rows(self._earlier, self._later))


# ------------------------------------------------------------------ documents -> text, pure


def head(status: Document, telemetry: Document, now: float) -> str:
    """One line about the device; ``now`` is Unix seconds."""
    age_s = max(0.0, now - _number(telemetry, "time", now))
    return (
        f"{status.get('state', 'state unknown')}, edged {status.get('version', UNKNOWN)}, "
        f"up {_number(telemetry, 'uptime_s', 0.0):.0f} s, "
        f"{telemetry.get('outstanding', UNKNOWN)} outstanding, "
        f"{telemetry.get('waiting_samples', UNKNOWN)} waiting; {age_s:.0f} s ago\n"
    )


def rows(earlier: Document | None, later: Document) -> list[Row]:
    """A line for each queue and device.

    Args:
        earlier: the telemetry before, None if there was none.
        later: the last one.
    """
    passed_s = _number(later, "uptime_s", 0.0)
    if earlier is not None:
        before_s = _number(earlier, "uptime_s", 0.0)
        restarted = before_s >= passed_s
        earlier = None if restarted else earlier
        passed_s -= 0.0 if restarted else before_s
    found = []
    models = _member(later, "models")
    for queue in sorted(models, key=_by_length):
        devices = _member(models, queue)
        model = queue.split("@")[0]
        traffic = _traffic(earlier, later, model, passed_s)
        for device in sorted(devices):
            state = _member(devices, device)
            before = _member(_member(_member(earlier or {}, "models"), queue), device)
            load = _member(_member(later, "devices"), device)
            found.append((queue, device, *traffic, *_timer(state), *_load(load),
                          closed_by(before, state)))  # fmt: skip
    return found


def _by_length(queue: str) -> tuple[str, int]:
    """``model@8`` before ``model@12``."""
    model, _, length = queue.partition("@")
    return model, int(length) if length.isdecimal() else 0


def _traffic(earlier: Document | None, later: Document, model: str, passed_s: float) -> Row:
    """Requests/s, p50 and p99 of the latency, mean batch; of the model on all devices."""
    replies = _difference(earlier, later, "replies_total", model, "value")
    batches = _difference(earlier, later, "batch_samples", model, "count")
    samples = _difference(earlier, later, "batch_samples", model, "sum")
    counts = _latencies(earlier, later, model)
    bounds = METRICS["latency_seconds"].buckets
    quantiles = [quantile(bounds, counts, q) for q in (0.5, 0.99)]
    return (
        f"{replies / passed_s:.1f}" if passed_s > 0 else UNKNOWN,
        *(UNKNOWN if seconds is None else f"{seconds * 1e3:.2f}" for seconds in quantiles),
        f"{samples / batches:.2f}" if batches else UNKNOWN,
    )


def _timer(state: Document) -> Row:
    """What one timer says of itself; docs/events.md has its members."""
    names = ("waiting", "rate", "limit", "hold_ms", "phi", "price", "predicted_ms", "achieved_ms",
             "greedy_ms")  # fmt: skip
    if state.get("price", 0.0) is None:  # JSON has no infinity: the price of "use-the-slo"
        state = {**state, "price": math.inf}
    return tuple(shown(state.get(name)) for name in names)


def _load(load: Document) -> Row:
    share = load.get("load")
    percent = share * 100 if isinstance(share, (int, float)) else None
    return shown(percent), shown(load.get("temperature_c"))


def closed_by(before: Document, state: Document) -> str:
    """Why batches were closed since the document before: all reasons that occurred."""
    prefix = "closed_"
    counts = {
        name.removeprefix(prefix): _number(state, name, 0.0) - _number(before, name, 0.0)
        for name in state
        if name.startswith(prefix)
    }
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return " ".join(f"{reason} {count:.0f}" for reason, count in ordered if count > 0) or UNKNOWN


def shown(value: object) -> str:
    """A number as short as it can be read; what is not known is a dash, never a 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return UNKNOWN
    if not math.isfinite(value):
        return "inf" if value > 0 else UNKNOWN
    return f"{value:.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def table(lines: list[Row]) -> str:
    """Columns under their headings, numbers to the right."""
    every = [HEADINGS, *lines]
    widths = [max(len(line[column]) for line in every) for column in range(len(HEADINGS))]
    left = {0, 1, len(HEADINGS) - 1}
    text = [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in every
    ]
    return "\n".join(text) + "\n"


def _member(document: Document, name: str) -> dict[str, Any]:
    value = document.get(name)
    return value if isinstance(value, dict) else {}


def _number(document: Document, name: str, default: float) -> float:
    value = document.get(name)
    return float(value) if isinstance(value, (int, float)) else default


def _series(document: Document | None, metric: str, model: str) -> list[Document]:
    series = _member(document or {}, "metrics").get(metric, [])
    return [each for each in series if each.get("model") == model]


def _difference(
    earlier: Document | None, later: Document, metric: str, model: str, member: str
) -> float:
    def total(document: Document | None) -> float:
        return sum(_number(each, member, 0.0) for each in _series(document, metric, model))

    return total(later) - total(earlier)


def _latencies(earlier: Document | None, later: Document, model: str) -> list[int]:
    """Latencies in each bucket, and above the last one."""

    def cumulative(document: Document | None) -> list[int]:
        series = _series(document, "latency_seconds", model)
        if not series:
            return [0] * (len(METRICS["latency_seconds"].buckets) + 1)
        return [*series[0]["buckets"].values(), series[0]["count"]]

    found = [b - a for a, b in zip(cumulative(earlier), cumulative(later), strict=True)]
    return [b - a for a, b in itertools.pairwise([0, *found])]
