"""What a run amounts to: latencies, attainment, device time, batches, stability. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edged.simulate.device import Device, Run

QUANTILES = (0.5, 0.95, 0.99, 0.999)


@dataclass(frozen=True)
class Summary:
    """One run in figures. Milliseconds where the name says so.

    Attributes:
        requests: arrivals after the warm-up.
        served: of them, answered with a result.
        mean_ms: mean latency.
        p50_ms: median latency.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        p999_ms: 99.9th percentile.
        attainment: share of the requests that were answered within the SLO; 1 without one.
        goodput: answers within the SLO a second.
        device_ms: device time a served request.
        busy: share of the time in which the device ran.
        mean_batch: samples a batch.
        histogram: batches by size.
        reasons: batches by reason, over the whole run.
        last: attainment of the last tenth of the requests: what gets later and later shows there.
        offered: arrivals as a share of what the device can do at the most; 0: not known.
    """

    requests: int
    served: int
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    p999_ms: float
    attainment: float
    goodput: float
    device_ms: float
    busy: float
    mean_batch: float
    histogram: dict[int, int]
    reasons: dict[str, int]
    last: float = 1.0
    offered: float = 0.0

    def cost_ms(self, price: float) -> float:
        """``J_c = mean latency + c x device time a request`` in milliseconds.

        At an infinite price, where latency counts for nothing, the device time.
        """
        if math.isinf(price):
            return self.device_ms
        return self.mean_ms + price * self.device_ms


def summarize(run: Run, *, slo_s: float = math.inf, warm_up: float = 0.1) -> Summary:
    """Sums up a run.

    Args:
        run: what happened.
        slo_s: an answer counts for attainment and goodput if it takes no longer.
        warm_up: the first share of the arrivals, which is left out.
    """
    skipped = int(warm_up * len(run.arrivals))
    batches = run.first >= skipped
    kept = run.served() >= skipped
    latencies = run.latencies()[kept]
    sizes, service = run.sizes[batches], run.service_s[batches]
    requests = len(run.arrivals) - skipped
    within = int((latencies <= slo_s).sum())
    ends = run.closed[batches] + service
    span = float(ends[-1] - run.arrivals.times[skipped]) if len(ends) else 0.0
    quantiles = np.quantile(latencies, QUANTILES) if len(latencies) else [math.nan] * 4
    counts = zip(*np.unique(sizes, return_counts=True), strict=True)
    end = len(run.arrivals) - max(1, requests // 10)
    end_within = int((latencies[run.served()[kept] >= end] <= slo_s).sum())
    return Summary(
        requests=requests,
        served=len(latencies),
        mean_ms=float(latencies.mean()) * 1e3 if len(latencies) else math.nan,
        p50_ms=float(quantiles[0]) * 1e3,
        p95_ms=float(quantiles[1]) * 1e3,
        p99_ms=float(quantiles[2]) * 1e3,
        p999_ms=float(quantiles[3]) * 1e3,
        attainment=within / requests if requests else 1.0,
        goodput=within / span if span > 0 else 0.0,
        device_ms=float(service.sum() / sizes.sum()) * 1e3 if len(sizes) else math.nan,
        busy=min(1.0, float(service.sum()) / span) if span > 0 else 0.0,
        mean_batch=float(sizes.mean()) if len(sizes) else math.nan,
        histogram={int(size): int(count) for size, count in counts},
        reasons=dict(run.reasons),
        last=end_within / (len(run.arrivals) - end) if requests else 1.0,
    )


@dataclass(frozen=True)
class Stability:
    """How steady a set-point is on steady input.

    Attributes:
        mean: of the set-point.
        variation: its standard deviation over its mean (CV); 0 for a constant.
        lag1: correlation of one value with the next; near -1: it flips; 0 for a constant.
    """

    mean: float
    variation: float
    lag1: float


def stability(values: Sequence[float]) -> Stability:
    """Of a series of set-points; non-finite ones are left out."""
    series = np.asarray([value for value in values if math.isfinite(value)], dtype=np.float64)
    if len(series) < 3:
        return Stability(float(series.mean()) if len(series) else math.nan, 0.0, 0.0)
    mean, spread = float(series.mean()), float(series.std())
    centred = series - mean
    square = float((centred**2).sum())
    lag1 = float((centred[1:] * centred[:-1]).sum()) / square if square > 1e-18 else 0.0
    return Stability(mean, spread / abs(mean) if mean else 0.0, lag1)


def settle_batches(
    run: Run, scales: Sequence[float], device: Device, step: int, *, within: float = 0.1
) -> int | None:
    """Batches after a step of the device until a policy's scale of the curve is near the truth.

    Args:
        run: what happened.
        scales: of the curve, that the policy went by at each batch of the run.
        device: whose steps are the truth.
        step: number of the step, from 0; it lasts until the next one.
        within: how near, as a share.

    Returns:
        Number of batches that were started before the first one from which on ten in a row are as
        near; None if that never came to be.
    """
    at, factor = device.steps[step]
    following = device.steps[step + 1][0] if step + 1 < len(device.steps) else math.inf
    after = np.flatnonzero((run.closed >= at) & (run.closed < following))
    near = [abs(scales[index] / factor - 1) <= within for index in after.tolist()]
    return next((n for n in range(len(near) - 9) if all(near[n : n + 10])), None)
