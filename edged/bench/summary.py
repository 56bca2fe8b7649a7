"""A run in figures. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edged.bench.options import Share
from edged.bench.tally import GOOD, LOST, Tally, read_object
from edged.bench.usage import Usage

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ClassSummary:
    """One class of requests.

    Attributes:
        sent: requests sent.
        answered: with a result.
        refused: with an error.
        lost: not answered within the grace time.
        latency_ms: percentiles of the results' latency; empty without results.
    """

    sent: int
    answered: int
    refused: int
    lost: int
    latency_ms: Mapping[str, float]


@dataclass(frozen=True)
class Summary:
    """A run in figures; what came during the warm-up is not counted.

    Attributes:
        sent: requests sent.
        answered: with a result.
        refused: with an error, by code.
        lost: not answered within the grace time.
        unsent: not sent, as the broker took no more.
        duplicates: answers beyond one for a request.
        out_of_order: answers that came after that of a later request of their connection and class.
        foreign: messages on a reply topic that answer nothing of this run.
        offered_hz: requests a second as scheduled; 0 for a closed loop.
        answered_hz: results a second, from the first intended send time to the last answer.
        slo_ms: limit of a good answer; None: none was given.
        goodput_hz: results a second within it; None without one.
        good_share: of the requests, those with a result within it; None without one.
        latency_ms: percentiles of the results' latency from the intended send time.
        classes: the same by class, where there are several.
        queue_ms: median that the device says they waited; None if it does not say.
        compute_ms: median that the device says they took; None if it does not say.
        lag_ms: percentiles of how much later than intended requests were sent: the generator's
            part, and the broker's where its receive maximum holds them back.
        batches: results by the size of their batch and why it was closed, e.g. ``"8 full"``; a
            sample of them in a long run.
        devices: answers by device, where a pool was asked.
        usage: what a request cost the device.
        generator_cpu_us: processor time of this process for each request.
    """

    sent: int
    answered: int
    refused: Mapping[str, int]
    lost: int
    unsent: int
    duplicates: int
    out_of_order: int
    foreign: int
    offered_hz: float
    answered_hz: float
    slo_ms: float | None
    goodput_hz: float | None
    good_share: float | None
    latency_ms: Mapping[str, float]
    classes: Mapping[str, ClassSummary]
    queue_ms: float | None
    compute_ms: float | None
    lag_ms: Mapping[str, float]
    batches: Mapping[str, int]
    devices: Mapping[str, int]
    usage: Usage = field(default=Usage())
    generator_cpu_us: float = 0.0


@dataclass(frozen=True)
class Rows:
    """The requests of a run that count, as arrays of one length.

    Attributes:
        intended: seconds from the beginning of what counts.
        latency_s: from the intended send time; nan where there was no answer.
        lag_s: how much later it was sent; nan where it was not.
        outcome: see `edged.bench.tally.Tally`.
        class_: number of the class.
    """

    intended: Floats
    latency_s: Floats
    lag_s: Floats
    outcome: npt.NDArray[np.int64]
    class_: npt.NDArray[np.int64]

    @classmethod
    def of(cls, tally: Tally, since: float) -> Rows:
        """Those that should have been sent at ``since`` (monotonic seconds) or later."""
        intended = np.asarray(tally.intended, np.float64)
        counts = intended >= since
        return cls(
            (intended - since)[counts],
            (np.asarray(tally.answered, np.float64) - intended)[counts],
            (np.asarray(tally.sent, np.float64) - intended)[counts],
            np.asarray(tally.outcome, np.int64)[counts],
            np.asarray(tally.classes, np.int64)[counts],
        )

    def good_latency_s(self, class_: int | None = None) -> Floats:
        """Latency of the results, of one class or of all."""
        chosen = self.outcome == GOOD
        if class_ is not None:
            chosen &= self.class_ == class_
        latency: Floats = self.latency_s[chosen]
        return latency


def percentiles(seconds: Floats) -> dict[str, float]:
    """`PERCENTILES` in milliseconds; empty of nothing."""
    if not len(seconds):
        return {}
    values = np.percentile(seconds, list(PERCENTILES.values())) * 1e3
    return dict(zip(PERCENTILES, map(float, values), strict=True))


def summarize(
    tally: Tally,
    rows: Rows,
    mix: Sequence[Share],
    *,
    offered_hz: float = 0.0,
    slo_ms: float | None = None,
) -> Summary:
    """Sums a run up.

    Args:
        tally: its books.
        rows: what of them counts.
        mix: its classes.
        offered_hz: requests a second as scheduled.
        slo_ms: limit of a good answer.
    """
    good = rows.good_latency_s()
    counts = Counter(rows.outcome.tolist())
    unsent = int(np.isnan(rows.lag_s).sum())
    ends = (rows.intended + rows.latency_s)[rows.outcome == GOOD]
    wall_s = float(ends.max()) if len(ends) else 0.0
    within = int((good * 1e3 <= slo_ms).sum()) if slo_ms is not None else None
    parameters = _parameters(tally)
    return Summary(
        sent=len(rows.outcome) - unsent,
        answered=len(good),
        refused={tally.errors[at]: counts[at] for at in sorted(counts) if at > GOOD},
        lost=counts[LOST] - unsent,
        unsent=unsent,
        duplicates=tally.duplicates,
        out_of_order=tally.out_of_order,
        foreign=tally.foreign,
        offered_hz=offered_hz,
        answered_hz=len(good) / wall_s if wall_s > 0 else 0.0,
        slo_ms=slo_ms,
        goodput_hz=None if within is None else within / wall_s if wall_s > 0 else 0.0,
        good_share=None if within is None else within / max(1, len(rows.outcome)),
        latency_ms=percentiles(good),
        classes=_classes(rows, mix) if len(mix) > 1 else {},
        queue_ms=_median_ms(parameters, "queue_us"),
        compute_ms=_median_ms(parameters, "compute_us"),
        lag_ms=percentiles(rows.lag_s[~np.isnan(rows.lag_s)]),
        batches=_batches(parameters),
        devices=dict(sorted(tally.devices.items())),
    )


def _classes(rows: Rows, mix: Sequence[Share]) -> dict[str, ClassSummary]:
    found = {}
    for number, share in enumerate(mix):
        own = rows.class_ == number
        outcome = rows.outcome[own]
        sent = int((~np.isnan(rows.lag_s[own])).sum())
        answered, ended = int((outcome == GOOD).sum()), int((outcome != LOST).sum())
        limit = "" if share.deadline_ms is None else f" {share.deadline_ms:g} ms"
        found[f"{share.priority or 'normal'}{limit}"] = ClassSummary(
            sent, answered, ended - answered, sent - ended, percentiles(rows.good_latency_s(number))
        )
    return found


def _parameters(tally: Tally) -> list[Mapping[str, Any]]:
    found = (read_object(header).get("parameters") for header in tally.headers.values())
    return [each for each in found if isinstance(each, dict)]


def _median_ms(parameters: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [p[name] for p in parameters if isinstance(p.get(name), (int, float))]
    return float(np.median(values)) / 1e3 if values else None


def _batches(parameters: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    seen = Counter((p.get("batch_size", 0), str(p.get("batch_reason", "?"))) for p in parameters)
    return {f"{size} {reason}": count for (size, reason), count in sorted(seen.items())}
