"""Sends load and measures it: open loop, and the closed loop of one request at a time.

Open loop: the times of all requests are fixed before the first is sent, and latency counts from
the time at which a request *should* have been sent. A service that stalls is then measured with
the requests that would have come meanwhile; a loop that waits for answers would leave them out
(coordinated omission).
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Literal, TextIO

import numpy as np

from edged.client import Result
from edged.errors import BadParameterError, ReplyError

OK = "ok"
LOST = "lost"

Submit = Callable[[int], Future[Result]]
"""Sends request number ``index`` and returns at once."""
Progress = Callable[[int, int], None]
"""Called with (requests sent, requests in all), about ten times a second."""


@dataclass(frozen=True)
class Load:
    """When requests are sent.

    Attributes:
        rate_hz: mean rate.
        count: number of requests.
        arrivals: ``poisson``: independent of each other, as from many clients; ``uniform``: evenly.
        seed: of the Poisson process.
    """

    rate_hz: float
    count: int
    arrivals: Literal["poisson", "uniform"] = "poisson"
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.rate_hz <= 1e6 and self.count >= 1):
            raise BadParameterError(
                f"rate {self.rate_hz:g} and count {self.count}: the rate must be above 0 and at "
                "most 1000000 requests a second, and at least one request must be sent"
            )

    def schedule(self) -> list[float]:
        """Intended send times, seconds from the start, ascending; the first is 0."""
        if self.arrivals == "uniform":
            return [number / self.rate_hz for number in range(self.count)]
        numbers = random.Random(self.seed)  # noqa: S311  # arrivals of a load, no secret
        times, now = [], 0.0
        for _ in range(self.count):
            times.append(now)
            now += numbers.expovariate(self.rate_hz)
        return times


@dataclass(frozen=True)
class Answer:
    """What became of one request.

    Attributes:
        index: its number.
        latency_s: from its intended send time to its answer; None if it was lost.
        lag_s: how much later than intended it was sent: the generator's own fault.
        code: ``ok``, the code of the error reply, or ``lost``.
        result: of an ``ok``.
    """

    index: int
    latency_s: float | None
    lag_s: float
    code: str
    result: Result | None = None


@dataclass(frozen=True)
class Summary:
    """A run in figures.

    Attributes:
        sent: requests sent.
        answered: with a result.
        refused: with an error, by code.
        lost: not answered within the grace time.
        duplicates: answers beyond one for a request.
        offered_hz: requests a second as scheduled; 0 for one request at a time.
        answered_hz: results a second, from the first intended send time to the last answer.
        latency_ms: percentiles of the results' latency, by name; empty without results.
        queue_ms: median that the device says they waited; None if it does not say.
        compute_ms: median that the device says they took; None if it does not say.
        max_lag_ms: latest send after its intended time.
        batches: results by the size of their batch and why it was closed, e.g. ``"8 full"``.
    """

    sent: int
    answered: int
    refused: Mapping[str, int]
    lost: int
    duplicates: int
    offered_hz: float
    answered_hz: float
    latency_ms: Mapping[str, float]
    queue_ms: float | None
    compute_ms: float | None
    max_lag_ms: float
    batches: Mapping[str, int]


PERCENTILES = {"p50": 50, "p90": 90, "p99": 99, "p99.9": 99.9, "max": 100}


def summarize(
    answers: Sequence[Answer], *, wall_s: float, duplicates: int = 0, offered_hz: float = 0.0
) -> Summary:
    """Counts a run; pure.

    Args:
        answers: one for each request.
        wall_s: from the first intended send time to the last answer.
        duplicates: answers beyond one for a request.
        offered_hz: requests a second as scheduled.
    """
    good = [answer for answer in answers if answer.code == OK]
    codes = Counter(answer.code for answer in answers)
    lost = codes.pop(LOST, 0)
    codes.pop(OK, None)
    latencies = [answer.latency_s * 1e3 for answer in good if answer.latency_s is not None]
    parameters = [answer.result.parameters for answer in good if answer.result is not None]
    return Summary(
        sent=len(answers),
        answered=len(good),
        refused=dict(sorted(codes.items())),
        lost=lost,
        duplicates=duplicates,
        offered_hz=offered_hz,
        answered_hz=len(good) / wall_s if wall_s > 0 else 0.0,
        latency_ms={name: float(np.percentile(latencies, at)) for name, at in PERCENTILES.items()}
        if latencies
        else {},
        queue_ms=_median_ms(parameters, "queue_us"),
        compute_ms=_median_ms(parameters, "compute_us"),
        max_lag_ms=max((answer.lag_s for answer in answers), default=0.0) * 1e3,
        batches=_batches(parameters),
    )


def _median_ms(parameters: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [p[name] for p in parameters if isinstance(p.get(name), (int, float))]
    return float(np.median(values)) / 1e3 if values else None


def _batches(parameters: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    seen = Counter((p.get("batch_size", 0), str(p.get("batch_reason", "?"))) for p in parameters)
    return {f"{size} {reason}": count for (size, reason), count in sorted(seen.items())}


# ------------------------------------------------------------------ the two loops


class _Collector:
    """Gathers what becomes of the requests.

    Callbacks come from the client's network thread, and from the sender's for what is given up.
    """

    def __init__(self, count: int) -> None:
        self.answers: list[Answer | None] = [None] * count
        self.last = 0.0
        self._left = count
        self._lock = threading.Lock()
        self._all_done = threading.Event()

    def watch(self, future: Future[Result], index: int, intended: float, sent: float) -> None:
        future.add_done_callback(lambda done: self._done(done, index, intended, sent))

    def wait(self, seconds: float) -> bool:
        return self._all_done.wait(seconds)

    def _done(self, future: Future[Result], index: int, intended: float, sent: float) -> None:
        now = time.monotonic()
        code, result = _end_of(future)
        latency = None if code == LOST else now - intended
        self.answers[index] = Answer(index, latency, max(0.0, sent - intended), code, result)
        with self._lock:
            if code != LOST:
                self.last = max(self.last, now)
            self._left -= 1
            if not self._left:
                self._all_done.set()


def _end_of(future: Future[Result]) -> tuple[str, Result | None]:
    if future.cancelled():
        return LOST, None
    error = future.exception()
    if isinstance(error, ReplyError):
        return error.code, None
    return (LOST, None) if error else (OK, future.result())


def open_loop(
    submit: Submit,
    schedule: Sequence[float],
    *,
    grace_s: float = 5.0,
    progress: Progress = lambda _sent, _total: None,
) -> tuple[list[Answer], float]:
    """Sends every request at its time, whether or not earlier ones were answered.

    Args:
        submit: sends one request and returns at once.
        schedule: intended send times, seconds from the start, ascending.
        grace_s: seconds to wait for answers after the last request; what is missing then is lost.
        progress: told how far it is.

    Returns:
        One answer for each request in the order of sending, and the seconds from the first
        intended send time to the last answer.
    """
    collector = _Collector(len(schedule))
    futures = []
    start = time.monotonic()
    told = start
    for index, offset in enumerate(schedule):
        intended = start + offset
        while (left := intended - time.monotonic()) > 0:
            time.sleep(left)
        sent = time.monotonic()
        futures.append(submit(index))
        collector.watch(futures[-1], index, intended, sent)
        if sent - told > 0.1:
            told = sent
            progress(index + 1, len(schedule))
    progress(len(schedule), len(schedule))
    if not collector.wait(grace_s):
        for future in futures:
            future.cancel()
        collector.wait(grace_s)
    answers = [answer for answer in collector.answers if answer is not None]
    return answers, max(collector.last - start, 0.0)


def one_at_a_time(submit: Submit, count: int, *, timeout_s: float = 10.0) -> list[Answer]:
    """Sends each request when the one before is answered: the latency of an idle service."""
    answers: list[Answer] = []
    for index in range(count):
        collector = _Collector(1)
        sent = time.monotonic()
        future = submit(index)
        collector.watch(future, 0, sent, sent)
        if not collector.wait(timeout_s):
            future.cancel()
            collector.wait(timeout_s)
        answers += [replace(end, index=index) for end in collector.answers if end is not None]
    return answers


# ------------------------------------------------------------------ the table


def print_table(summary: Summary, out: TextIO) -> None:
    """Prints a run as people read it."""
    refused = ", ".join(f"{count} {code}" for code, count in summary.refused.items()) or "0"
    offered = f", offered {summary.offered_hz:.0f}/s" if summary.offered_hz else ", one at a time"
    counts = f"{summary.sent} sent: {summary.answered} answered, {refused} refused"
    rows = [
        ("requests", f"{counts}, {summary.lost} lost, {summary.duplicates} duplicates"),
        ("rate", f"{summary.answered_hz:.1f}/s answered{offered}"),
    ]
    if summary.latency_ms:
        latency = "  ".join(f"{name} {ms:.2f}" for name, ms in summary.latency_ms.items())
        rows.append(("latency, ms", f"{latency}  from the intended send time"))
    if summary.queue_ms is not None and summary.compute_ms is not None:
        rows.append(
            ("of it, ms", f"p50 {summary.queue_ms:.2f} queue, {summary.compute_ms:.2f} compute")
        )
    rows.append(("generator", f"{summary.max_lag_ms:.2f} ms: its latest send after the due time"))
    for name, text in rows:
        print(f"{name:<14}{text}", file=out)
    _print_batches(summary, out)


def _print_batches(summary: Summary, out: TextIO) -> None:
    if not summary.batches:
        return
    print(f"{'batches':<14}{'size':>4}  {'closed because':<22}{'requests':>8}", file=out)
    most = max(summary.batches.values())
    for name, count in summary.batches.items():
        size, _, reason = name.partition(" ")
        bar = "#" * max(1, round(24 * count / most))
        print(f"{'':<14}{size:>4}  {reason:<22}{count:>8}  {bar}", file=out)
