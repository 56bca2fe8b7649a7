"""What ended, in the metrics."""

from __future__ import annotations

import time
from collections.abc import Callable

from edged.metrics import Metrics
from edged.serve.gpu import Done
from edged.serve.request import Outcome


class Tally:
    """Counts batches, and the one end of each arrival.

    Args:
        metrics: counters.
        answered: a request has ended with a reply on its way, with its status; must not wait.
    """

    def __init__(self, metrics: Metrics, answered: Callable[[Outcome, int], None]) -> None:
        self._metrics = metrics
        self._answered = answered

    def batch(self, done: Done) -> None:
        """A batch came back; parts that ended without one count nothing."""
        if not done.samples:
            return
        model = done.parts[0].request.model
        self._metrics.count("batches_total", model, done.reason)
        self._metrics.observe("batch_samples", done.samples, model)
        self._metrics.observe("compute_seconds", done.compute_s, model)
        for name, count in done.positions().items():
            self._metrics.count(name, model, by=count)
        if done.error is not None:
            self._metrics.count("batch_failures_total", model)

    def ended(self, outcome: Outcome, *, sent: bool) -> None:
        """A request ended, and its reply went out, or did not."""
        error = outcome.error
        if error is not None:
            self._metrics.count("errors_total", error.code)
        if not sent:
            self.dropped("unsent")
            return
        model, status = outcome.model or "none", error.status if error else 200
        self._metrics.count("replies_total", model, str(status))
        if error is None:
            self._metrics.count("samples_total", model, by=outcome.samples)
            self._metrics.observe("queue_seconds", outcome.timings.queue_s, model)
            self._metrics.observe("latency_seconds", time.monotonic() - outcome.received, model)
        self._answered(outcome, status)

    def repeated(self, how: str) -> None:
        """An arrival ended that had come before."""
        if how == "unsent":
            self.dropped("unsent")
        else:
            self._metrics.count("duplicates_total", how)

    def dropped(self, reason: str) -> None:
        """An arrival ended without a reply."""
        self._metrics.count("arrivals_dropped_total", reason)
