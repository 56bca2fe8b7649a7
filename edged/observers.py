"""Who is told of what the service does, besides the requesters: reports, traces, Home Assistant."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from edged.home_assistant import HomeAssistant
from edged.metrics import Metrics
from edged.postprocess.answer import only_derived
from edged.protocol import JSON, Topics
from edged.report.pipeline import ReportLine
from edged.report.policy import Answered
from edged.serve.request import Outcome, Reply
from edged.settings import Settings
from edged.tracing import Tracing


class Observers:
    """Passes on what happens to whoever is switched on; what is off costs nothing.

    Args:
        settings: the ones that the service starts with.
        topics: of this device.
        metrics: counters.

    Raises:
        ConfigError: tracing is switched on, and OpenTelemetry is not installed.
    """

    def __init__(self, settings: Settings, topics: Topics, metrics: Metrics) -> None:
        self._reports: ReportLine | None = None
        self._publish: Callable[[Reply], int | None] = lambda _reply: None
        name = settings.device.name
        tracing = settings.tracing
        self._tracing = Tracing(tracing, name, metrics) if tracing.enabled else None
        interval_s = settings.report.telemetry_interval_s
        self._home = HomeAssistant(settings.home_assistant, topics, interval_s, self._keep)

    def __repr__(self) -> str:
        return f"<Observers {self._tracing!r}, {self._home!r}>"

    def tells(self, reports: ReportLine, publish: Callable[[Reply], int | None]) -> None:
        """Goes by this report line and this broker link, which are made later than this."""
        self._reports, self._publish = reports, publish

    def start(self) -> None:
        """Starts what has a thread."""
        if self._tracing is not None:
            self._tracing.start()

    def stop(self, timeout_s: float) -> None:
        """Ends what has a thread, after it has passed on what waits."""
        if self._tracing is not None:
            self._tracing.stop(timeout_s)

    def answered(self, outcome: Outcome, status: int) -> None:
        """A request has ended; on the link's thread, never waits."""
        if self._tracing is not None:
            self._tracing.answered(outcome, status)
        reports = self._reports
        if reports is not None and reports.wants(outcome.model):
            took_ms = round((time.monotonic() - outcome.received) * 1e3, 3)
            what = (outcome.model, outcome.id, status, outcome.samples)
            outputs = only_derived(outcome.outputs)
            reports.answered(Answered(time.time(), *what, took_ms, outputs))

    def look(self, connection: int, models: Sequence[str], devices: Sequence[str]) -> None:
        """What serves at the moment, on a connection that stands; on the main thread."""
        self._home.look(connection, models, devices)

    def _keep(self, topic: str, payload: bytes) -> bool:
        return self._publish(Reply(topic, payload, 1, None, JSON, retain=True)) is not None
