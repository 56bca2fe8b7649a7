"""Counters and histograms in memory, and their snapshot. One lock, increments only.

Gauges are not kept: they are what the batch timers say of themselves when a snapshot is made.

`METRICS` is the list of all of them; docs/metrics.md is tested against it, and a name that is not
listed is an error. Label values come from closed sets (models served, codes, reasons), so the
number of series is bounded.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
LATENESS = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
SAMPLES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        kind: counter, histogram or gauge.
        labels: names of its labels.
        help: what it counts or tells, in one sentence.
        buckets: upper bounds of a histogram's buckets.
    """

    kind: Literal["counter", "histogram", "gauge"]
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()


TIMER = ("queue", "device")
"""Labels of what a batch timer says of itself."""

METRICS: dict[str, Metric] = {
    "arrivals_total": Metric("counter", (), "Requests that the broker delivered."),
    "arrivals_dropped_total": Metric(
        "counter", ("reason",), "Requests that ended without a reply, by reason."
    ),
    "duplicates_total": Metric(
        "counter", ("how",), "Requests that came again and were not run again, by what was done."
    ),
    "replies_total": Metric("counter", ("model", "status"), "Replies sent, by model and status."),
    "errors_total": Metric("counter", ("code",), "Requests answered with an error, by its code."),
    "samples_total": Metric("counter", ("model",), "Samples that were answered."),
    "batches_total": Metric(
        "counter", ("model", "reason"), "Batches run, by why the timer closed them."
    ),
    "batch_failures_total": Metric("counter", ("model",), "Batches on which the engine failed."),
    "batch_samples": Metric("histogram", ("model",), "Samples in a batch.", SAMPLES),
    "positions_total": Metric(
        "counter", ("model",), "Length of all samples run, padding included (variable length)."
    ),
    "positions_padded_total": Metric(
        "counter", ("model",), "Of positions_total, those that are padding."
    ),
    "timer_lateness_seconds": Metric(
        "histogram", ("device",), "From the armed time until the device's thread woke.", LATENESS
    ),
    "queue_seconds": Metric(
        "histogram", ("model",), "From arrival to the start of the batch.", SECONDS
    ),
    "compute_seconds": Metric("histogram", ("model",), "A batch on the device.", SECONDS),
    "latency_seconds": Metric(
        "histogram", ("model",), "From arrival until the broker has the reply.", SECONDS
    ),
    "device_faults_total": Metric("counter", ("device",), "Faults of a device."),
    "broker_losses_total": Metric("counter", (), "Connections to the broker that were lost."),
    "sessions_lost_total": Metric(
        "counter", (), "Reconnections at which the broker had not kept the session."
    ),
    "subscriptions_refused_total": Metric("counter", (), "Subscriptions that the broker refused."),
    "replies_rejected_total": Metric("counter", (), "Messages of ours that the broker rejected."),
    "acknowledgements_void_total": Metric(
        "counter", (), "Acknowledgements dropped because their connection was gone."
    ),
    "callback_failures_total": Metric(
        "counter", (), "Faults of ours that were caught in the broker link."
    ),
    "uplink_losses_total": Metric(
        "counter", (), "Connections to the control plane that were lost."
    ),
    "uplink_messages_total": Metric(
        "counter", ("stream", "mode"), "Batches that the control plane's broker took."
    ),
    "uplink_records_total": Metric("counter", ("stream", "mode"), "Records in those batches."),
    "uplink_bytes_total": Metric(
        "counter", ("encoding",), "Bytes of those batches, by content encoding."
    ),
    "uplink_unsaid_total": Metric(
        "counter", (), "Answers and reported documents that were too large, or too many at once."
    ),
    "uplink_refused_total": Metric(
        "counter", (), "Records that the control plane or its broker refused."
    ),
    "uplink_resent_total": Metric(
        "counter", ("stream",), "Records that were sent again, as nobody had acknowledged them."
    ),
    "commands_total": Metric("counter", ("command", "status"), "Commands that were answered."),
    "commands_dropped_total": Metric(
        "counter", (), "Commands without a response topic that may be answered to."
    ),
    "desired_total": Metric("counter", ("status",), "Desired documents, by what became of them."),
    "outbox_stored_total": Metric("counter", ("stream",), "Reports that the outbox stored."),
    "outbox_confirmed_total": Metric(
        "counter", ("stream",), "Reports that arrived and were deleted from the outbox."
    ),
    "outbox_quarantined_total": Metric(
        "counter", ("stream",), "Reports put into quarantine, as the control plane refused them."
    ),
    "outbox_dropped_total": Metric(
        "counter", ("stream", "reason"), "Reports that the outbox dropped, by reason."
    ),
    "outbox_failures_total": Metric(
        "counter", ("reason",), "Times the outbox lost its disk or found its file damaged."
    ),
    "traces_exported_total": Metric("counter", (), "Requests whose spans were exported."),
    "traces_dropped_total": Metric(
        "counter", ("reason",), "Requests whose spans were dropped, by reason."
    ),
    "events_dropped_total": Metric("counter", ("kind",), "Events that could not be reported."),
    "timer_price": Metric("gauge", TIMER, "c, seconds of latency that a device second is worth."),
    "timer_phi": Metric("gauge", TIMER, "How many times slower the device is than at warm-up."),
    "timer_arrivals_per_second": Metric("gauge", TIMER, "lambda, samples that arrive in a second."),
    "timer_limit_samples": Metric("gauge", TIMER, "M, waiting samples that close a batch."),
    "timer_hold_seconds": Metric("gauge", TIMER, "T, how long the oldest sample is held at most."),
    "timer_tuned": Metric("gauge", TIMER, "1 while a choice of the tuner is gone by, else 0."),
    "timer_fallback": Metric("gauge", TIMER, "1 while waiting is distrusted, else 0."),
    "timer_predicted_seconds": Metric("gauge", TIMER, "J that the tuner expects of its choice."),
    "timer_achieved_seconds": Metric("gauge", TIMER, "J that the last batches came to."),
    "timer_greedy_seconds": Metric("gauge", TIMER, "J that serving at once would have come to."),
}
TIMER_GAUGES: dict[str, tuple[str, float]] = {
    "timer_price": ("price", 1.0),
    "timer_phi": ("phi", 1.0),
    "timer_arrivals_per_second": ("rate", 1.0),
    "timer_limit_samples": ("limit", 1.0),
    "timer_hold_seconds": ("hold_ms", 1e-3),
    "timer_tuned": ("tuned", 1.0),
    "timer_fallback": ("fallback", 1.0),
    "timer_predicted_seconds": ("predicted_ms", 1e-3),
    "timer_achieved_seconds": ("achieved_ms", 1e-3),
    "timer_greedy_seconds": ("greedy_ms", 1e-3),
}
"""By gauge, the member of a timer's state that it is, and by what that is multiplied."""


class Metrics:
    """The values of all metrics of one service. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[tuple[str, tuple[str, ...]], int] = {}
        self._histograms: dict[tuple[str, tuple[str, ...]], list[float]] = {}

    def __repr__(self) -> str:
        return f"<Metrics {len(self._counters) + len(self._histograms)} series>"

    def count(self, name: str, *labels: str, by: int = 1) -> None:
        """Adds to a counter.

        Raises:
            KeyError: no such counter, or another number of labels: a fault of the caller.
        """
        key = (name, labels)
        with self._lock:
            if key not in self._counters:
                self._counters[_key(name, labels, "counter")] = 0
            self._counters[key] += by

    def observe(self, name: str, value: float, *labels: str) -> None:
        """Adds a value to a histogram.

        Raises:
            KeyError: no such histogram, or another number of labels: a fault of the caller.
        """
        key = (name, labels)
        with self._lock:
            series = self._histograms.get(key)
            if series is None:
                size = len(METRICS[name].buckets) + 2 if name in METRICS else 0
                series = self._histograms[_key(name, labels, "histogram")] = [0.0] * size
            series[bisect_left(METRICS[name].buckets, value)] += 1
            series[-1] += value

    def value(self, name: str, *labels: str) -> int:
        """A counter's value; 0 if it never counted."""
        return self._counters.get(_key(name, labels, "counter"), 0)

    def total(self, name: str) -> int:
        """A counter's sum over all label values."""
        with self._lock:
            return sum(count for (metric, _), count in self._counters.items() if metric == name)

    def snapshot(self) -> dict[str, list[dict[str, object]]]:
        """All series: name -> list of labels with ``value``, or ``count``, ``sum``, ``buckets``.

        A histogram's ``buckets`` are cumulative counts by upper bound, as Prometheus has them; its
        ``p50`` and ``p99`` are interpolated in them.
        """
        with self._lock:
            counters = dict(self._counters)
            histograms = {key: list(series) for key, series in self._histograms.items()}
        result: dict[str, list[dict[str, object]]] = {}
        for (name, labels), count in sorted(counters.items()):
            entry: dict[str, object] = dict(zip(METRICS[name].labels, labels, strict=True))
            result.setdefault(name, []).append({**entry, "value": count})
        for (name, labels), series in sorted(histograms.items()):
            entry = dict(zip(METRICS[name].labels, labels, strict=True))
            result.setdefault(name, []).append({**entry, **_summary(name, series)})
        return result


def timer_gauges(
    states: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> dict[str, list[dict[str, object]]]:
    """What the batch timers say of themselves, as series like those of `Metrics.snapshot`.

    A value that is not known has no series; an infinite one stays infinite.

    Args:
        states: by queue and device (`edged.serve.batch.WaitingRoom.timer_states`).
    """
    found: dict[str, list[dict[str, object]]] = {}
    for name, (member, scale) in TIMER_GAUGES.items():
        series: list[dict[str, object]] = [
            {"queue": queue, "device": device, "value": round(state[member] * scale, 9)}
            for queue, devices in states.items()
            for device, state in devices.items()
            if not math.isnan(state[member])
        ]
        if series:
            found[name] = series
    return found


def _key(name: str, labels: tuple[str, ...], kind: str) -> tuple[str, tuple[str, ...]]:
    if METRICS[name].kind != kind:
        raise KeyError(f"metric {name} is a {METRICS[name].kind}, not a {kind}")
    if len(labels) != len(METRICS[name].labels):
        raise KeyError(f"metric {name} has labels {METRICS[name].labels}, got {labels}")
    return name, labels


def _summary(name: str, series: list[float]) -> dict[str, object]:
    bounds = METRICS[name].buckets
    counts, total = [int(n) for n in series[:-1]], series[-1]
    running, cumulative = 0, {}
    for bound, n in zip(bounds, counts, strict=False):
        running += n
        cumulative[f"{bound:g}"] = running
    return {
        "count": sum(counts),
        "sum": round(total, 6),
        "buckets": cumulative,
        "p50": quantile(bounds, counts, 0.5),
        "p99": quantile(bounds, counts, 0.99),
    }


def quantile(bounds: Sequence[float], counts: Sequence[int], q: float) -> float | None:
    """A quantile out of a histogram: linear inside the bucket.

    Args:
        bounds: upper bounds of the buckets.
        counts: values in each of them, not cumulative, and above the last.
        q: 0 to 1.

    Returns:
        The last bound for what lies above it; None without values.
    """
    wanted = q * sum(counts)
    if not wanted:
        return None
    running = 0
    for position, bound in enumerate(bounds):
        if running + counts[position] >= wanted:
            low = bounds[position - 1] if position else 0.0
            return round(low + (bound - low) * (wanted - running) / counts[position], 6)
        running += counts[position]
    return bounds[-1]
