"""Counters and histograms: what is counted, summed and refused."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.latency import LatencyCurve
from edged.metrics import (
    LATENESS,
    METRICS,
    SAMPLES,
    SECONDS,
    TIMER_GAUGES,
    Metrics,
    timer_gauges,
)
from edged.serve.timer import BatchTimer


def series(metrics: Metrics, name: str) -> dict[str, object]:
    """The only series of a metric."""
    (found,) = metrics.snapshot()[name]
    return found


def test_counters_count() -> None:
    """Each combination of labels counts for itself; a total adds them up."""
    metrics = Metrics()
    metrics.count("replies_total", "digits", "200")
    metrics.count("replies_total", "digits", "200", by=4)
    metrics.count("replies_total", "watch", "429")
    metrics.count("arrivals_total")

    assert metrics.value("replies_total", "digits", "200") == 5
    assert metrics.value("replies_total", "digits", "500") == 0
    assert metrics.total("replies_total") == 6
    assert metrics.total("errors_total") == 0
    assert metrics.snapshot() == {
        "arrivals_total": [{"value": 1}],
        "replies_total": [
            {"model": "digits", "status": "200", "value": 5},
            {"model": "watch", "status": "429", "value": 1},
        ],
    }
    assert repr(metrics) == "<Metrics 3 series>"


def test_histogram_buckets_are_cumulative_and_inclusive() -> None:
    """A value on a bound is in its bucket; what lies above the last is in the count alone."""
    metrics = Metrics()
    for value in (1, 2, 3, 256, 1000):
        metrics.observe("batch_samples", value, "digits")

    found = series(metrics, "batch_samples")

    assert found["model"] == "digits"
    assert (found["count"], found["sum"]) == (5, 1262)
    assert found["buckets"] == {
        "1": 1, "2": 2, "4": 3, "8": 3, "16": 3, "32": 3, "64": 3, "128": 3, "256": 4,
    }  # fmt: skip


@given(st.lists(st.floats(1e-6, 9.9), min_size=1, max_size=200))
def test_quantiles_lie_in_the_right_bucket(values: list[float]) -> None:
    """p50 and p99 are in the bucket that holds that share of the values."""
    metrics = Metrics()
    for value in values:
        metrics.observe("queue_seconds", value, "m")
    found = series(metrics, "queue_seconds")

    assert found["sum"] == pytest.approx(sum(values), abs=1e-5)
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        exact = float(np.quantile(values, share, method="inverted_cdf"))
        at = next(position for position, bound in enumerate(SECONDS) if exact <= bound)
        low = SECONDS[at - 1] if at else 0.0
        quantile = found[name]
        assert isinstance(quantile, float)
        assert low - 1e-6 <= quantile <= SECONDS[at] + 1e-6


def test_a_quantile_above_the_last_bound_is_the_last_bound() -> None:
    """What was not resolved is not made up."""
    metrics = Metrics()
    metrics.observe("latency_seconds", 100.0, "m")

    assert series(metrics, "latency_seconds")["p50"] == SECONDS[-1]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda m: m.count("no_such_metric"),
        lambda m: m.observe("no_such_metric", 1.0),
        lambda m: m.value("no_such_metric"),
        lambda m: m.count("arrivals_total", "label"),
        lambda m: m.count("replies_total", "digits"),
        lambda m: m.observe("batch_samples", 1.0),
        lambda m: m.value("errors_total"),
        lambda m: m.count("batch_samples", "digits"),
        lambda m: m.observe("samples_total", 1.0, "digits"),
    ],
)
def test_a_metric_that_is_not_listed_is_refused(wrong: Callable[[Metrics], object]) -> None:
    """A wrong name, kind or number of labels is a fault at the caller, and counts nothing."""
    metrics = Metrics()

    with pytest.raises(KeyError):
        wrong(metrics)

    assert metrics.snapshot() == {}


def test_threads_lose_no_count() -> None:
    """Several threads count at once while another reads, and every count arrives."""
    metrics = Metrics()
    begin = threading.Barrier(5)
    stop = threading.Event()

    def count() -> None:
        begin.wait(30)
        for number in range(2000):
            metrics.count("samples_total", "m", by=2)
            metrics.observe("compute_seconds", number / 1000, "m")

    def read() -> None:
        begin.wait(30)
        while not stop.is_set():
            json.dumps(metrics.snapshot())

    reader = threading.Thread(target=read)
    counters = [threading.Thread(target=count) for _ in range(4)]
    for thread in (reader, *counters):
        thread.start()
    for thread in counters:
        thread.join(60)
    stop.set()
    reader.join(60)

    assert metrics.value("samples_total", "m") == 16_000
    assert series(metrics, "compute_seconds")["count"] == 8000


def test_gauges_tell_what_each_timer_says_of_itself() -> None:
    """Milliseconds become seconds; what is not known yet has no series, an infinite price has."""
    timer = BatchTimer(LatencyCurve((1, 8), (0.002, 0.004)), 8, price=math.inf)
    state = timer.state(0.0) | {"predicted_ms": 6.68}

    found = timer_gauges({"m@64": {"cuda:0": state, "cuda:1": state | {"price": 2.0}}})

    where = [{"queue": "m@64", "device": f"cuda:{number}"} for number in (0, 1)]
    assert found["timer_price"] == [where[0] | {"value": math.inf}, where[1] | {"value": 2.0}]
    assert found["timer_limit_samples"] == [at | {"value": 8.0} for at in where]
    assert found["timer_predicted_seconds"] == [at | {"value": 0.00668} for at in where]
    assert {"timer_hold_seconds", "timer_achieved_seconds", "timer_greedy_seconds"}.isdisjoint(
        found
    )
    gauges = {name for name, metric in METRICS.items() if metric.kind == "gauge"}
    assert gauges == set(TIMER_GAUGES)
    with pytest.raises(KeyError, match="timer_phi is a gauge, not a counter"):
        Metrics().count("timer_phi", "m", "cpu")


def test_the_list_keeps_the_field_s_conventions() -> None:
    """Counters end in _total, histograms have ascending bounds and a unit, all have a sentence."""
    for name, metric in METRICS.items():
        assert (metric.kind == "counter") == name.endswith("_total")
        assert (metric.kind == "histogram") == bool(metric.buckets)
        assert metric.help.endswith(".")
        if metric.kind == "histogram":
            assert name.endswith(("_seconds", "_samples"))
            finer = name == "timer_lateness_seconds"
            seconds = LATENESS if finer else SECONDS
            assert metric.buckets == (seconds if name.endswith("_seconds") else SAMPLES)
            assert list(metric.buckets) == sorted(set(metric.buckets))
