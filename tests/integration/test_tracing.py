"""Spans of requests, made by OpenTelemetry's SDK beside the real request path."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from edged.errors import ConfigError, EngineError
from edged.integration_settings import TracingSettings
from edged.metrics import Metrics
from edged.tracing import Tracing
from tests.doubles.runner import ScriptedRunner
from tests.doubles.serving import Load, Serving, body

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


def spans_of(
    arrivals: Sequence[dict[str, str]],
    *,
    runner: ScriptedRunner | None = None,
    payload: bytes | None = None,
    settings: TracingSettings = TracingSettings(enabled=True),  # noqa: B008  # frozen
) -> dict[str, list[ReadableSpan]]:
    """Spans by name, after a request for each of these user properties was answered."""
    exporter, metrics = InMemorySpanExporter(), Metrics()
    tracing = Tracing(settings, "dev", metrics, exporter, gather_s=0.01)
    tracing.start()
    with Serving(runner or ScriptedRunner(), load=Load(watcher=tracing.answered)) as serving:
        for number, user in enumerate(arrivals):
            serving.arrive(payload or body([[1, 2, 3]], id="r7"), user=user)
            serving.link.wait_sent(number + 1)
    tracing.stop(10)
    found: dict[str, list[ReadableSpan]] = {}
    for span in exporter.get_finished_spans():
        found.setdefault(span.name, []).append(span)
    return found


def times(span: ReadableSpan) -> tuple[int, int]:
    """Begin and end, nanoseconds."""
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time, span.end_time


def test_a_request_has_a_span_and_one_for_each_part() -> None:
    """Queue and compute lie within the request, which is a child of the caller's span."""
    spans = spans_of([{"traceparent": PARENT, "tracestate": "a=1"}])
    (whole,), (queued,), (ran,) = spans["infer m"], spans["queue"], spans["compute"]

    assert whole.parent is not None
    assert (whole.parent.trace_id, whole.parent.span_id) == (int(TRACE, 16), int(SPAN, 16))
    assert whole.parent.is_remote
    assert whole.context.trace_state.to_header() == "a=1"
    assert whole.kind is SpanKind.SERVER
    for part in (queued, ran):
        assert part.parent is not None
        assert part.parent.span_id == whole.context.span_id
        assert part.context.trace_id == int(TRACE, 16)
    assert times(whole)[0] == times(queued)[0] <= times(queued)[1]
    assert times(queued)[1] == times(ran)[0] <= times(ran)[1] <= times(whole)[1]
    assert dict(whole.attributes or {}) == {
        "messaging.system": "mqtt",
        "edged.model": "m",
        "edged.request.id": "r7",
        "edged.samples": 1,
        "edged.status": 200,
        "edged.batch.samples": 1,
        "edged.batch.reason": (ran.attributes or {})["edged.batch.reason"],
    }
    assert whole.status.status_code is StatusCode.UNSET
    assert whole.resource.attributes["service.name"] == "edged"
    assert whole.resource.attributes["service.instance.id"] == "dev"


def test_a_refused_request_has_its_code_and_no_parts() -> None:
    """The requester's mistake is no error of the service, and nothing of it ran."""
    spans = spans_of([{}], payload=b"{}")
    assert set(spans) == {"infer"}  # which model was not found out
    (whole,) = spans["infer"]
    assert whole.parent is None
    assert (whole.attributes or {})["error.type"] == "bad_header"
    assert (whole.attributes or {})["edged.status"] == 400
    assert whole.status.status_code is StatusCode.UNSET


def test_a_failed_request_is_an_error() -> None:
    """The engine failed: the span says so, with the code."""
    runner = ScriptedRunner(fault=lambda _number, _inputs: EngineError("it broke"))
    (whole,) = spans_of([{}], runner=runner)["infer m"]
    assert whole.status.status_code is StatusCode.ERROR
    assert (whole.attributes or {})["error.type"] == "engine_failed"


def test_the_caller_decides_whether_its_trace_is_recorded() -> None:
    """Its sampled flag holds, whatever the share is; without a caller the share does."""
    unsampled = {"traceparent": PARENT[:-1] + "0"}
    invalid = {"traceparent": PARENT.upper()}
    callers = [unsampled, {}, invalid, {"traceparent": PARENT}]
    none = spans_of(callers, settings=TracingSettings(enabled=True, sample_ratio=0.0))
    every = spans_of(callers)
    assert [span.parent is not None for span in none["infer m"]] == [True]
    assert [span.parent is not None for span in every["infer m"]] == [False, False, True]


class HeldExporter(SpanExporter):
    """Takes nothing until it is let go, and then fails as often as it is told to."""

    def __init__(self, failures: int = 0) -> None:
        self.entered = threading.Event()
        self.go = threading.Event()
        self.left = failures

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Waits, and fails or not."""
        self.entered.set()
        self.go.wait(10)
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("out of order")
        return SpanExportResult.FAILURE if self.left > 0 else SpanExportResult.SUCCESS


@pytest.fixture
def quiet() -> Iterator[None]:
    """A test that makes it warn does not need to show it."""
    logging.getLogger("edged.tracing").disabled = True
    yield
    logging.getLogger("edged.tracing").disabled = False


def test_a_collector_that_hangs_holds_nobody_up() -> None:
    """Requests are answered meanwhile; what does not fit is dropped and counted."""
    exporter, metrics = HeldExporter(), Metrics()
    tracing = Tracing(
        TracingSettings(enabled=True, max_waiting=5), "dev", metrics, exporter, gather_s=0.01
    )
    tracing.start()
    with Serving(ScriptedRunner(), load=Load(watcher=tracing.answered)) as serving:
        serving.arrive(body([[1, 2, 3]]))
        assert exporter.entered.wait(10)
        for _ in range(9):
            serving.arrive(body([[1, 2, 3]]))
        assert len(serving.link.wait_sent(10)) == 10
    assert metrics.value("traces_dropped_total", "full") == 4
    exporter.go.set()
    tracing.stop(10)
    assert metrics.value("traces_exported_total") == 6


@pytest.mark.usefixtures("quiet")
def test_what_is_not_taken_is_counted_and_later_ones_go_on() -> None:
    """A failure and an exception of the exporter drop their spans, and no more than those."""
    exporter, metrics = HeldExporter(failures=2), Metrics()
    tracing = Tracing(TracingSettings(enabled=True), "dev", metrics, exporter, gather_s=0.01)
    tracing.start()
    exporter.go.set()
    with Serving(ScriptedRunner(), load=Load(watcher=tracing.answered)) as serving:
        for number in range(3):
            exporter.entered.clear()
            serving.arrive(body([[1, 2, 3]]))
            serving.link.wait_sent(number + 1)
            assert exporter.entered.wait(10)
    tracing.stop(10)
    assert metrics.value("traces_dropped_total", "failed") == 2
    assert metrics.value("traces_exported_total") == 1


def test_switched_off_it_is_not_imported() -> None:
    """A daemon with default settings loads nothing of OpenTelemetry, and notes nothing."""
    program = """
import sys
import edged.daemon
from edged.metrics import Metrics
from edged.observers import Observers
from edged.protocol import Topics
from edged.settings import Settings
observers = Observers(Settings(), Topics("edged/v1", "d"), Metrics())
observers.start()
print(any(name.startswith("opentelemetry") for name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.strip() == b"False"


def test_without_the_package_the_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switched on without the extra: an error of the settings that names it."""
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(ConfigError, match=r"edged\[otel\]"):
        Tracing(TracingSettings(enabled=True), "dev", Metrics())
