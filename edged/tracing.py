"""OpenTelemetry spans of requests: made and exported beside the request path, never in it.

A request that ended is noted in a bounded queue; the thread ``tracing`` makes its spans and exports
them. What does not fit, or is not taken, is dropped and counted. OpenTelemetry is imported only
where this is used.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeAlias

from edged import __version__
from edged.errors import ConfigError
from edged.integration_settings import TracingSettings
from edged.metrics import Metrics
from edged.protocol import TRACEPARENT
from edged.serve.request import Outcome, Timings
from edged.trace_context import parse_traceparent
from edged.value import value

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

log = logging.getLogger(__name__)

BATCH = 512
"""Requests whose spans are exported at once."""
GATHER_S = 1.0
"""Long enough that an export has many spans, short enough to look at what just happened."""
EXPORT_TIMEOUT_S = 10.0
Attributes: TypeAlias = dict[str, str | int]


@value
class Ended:
    """What spans need of a request; no outputs, so that what waits is small.

    Attributes:
        trace: valid trace context of the caller, or nothing.
        model: as asked for.
        id: the V2 ``id``.
        received: monotonic seconds.
        ended: monotonic seconds: the broker has the reply.
        timings: where the time went.
        samples: number of samples.
        version: of the engine.
        status: of the reply.
        code: of its error, "" for none.
    """

    trace: dict[str, str]
    model: str
    id: str
    received: float
    ended: float
    timings: Timings
    samples: int
    version: str
    status: int
    code: str


class Tracing:
    """Makes and exports spans.

    Args:
        settings: ``[tracing]``.
        device: the device's name.
        metrics: counters.
        exporter: where spans go; None: by OTLP over HTTP.
        gather_s: what ends within so long is exported together.

    Raises:
        ConfigError: OpenTelemetry is not installed.
    """

    def __init__(
        self,
        settings: TracingSettings,
        device: str,
        metrics: Metrics,
        exporter: SpanExporter | None = None,
        *,
        gather_s: float = GATHER_S,
    ) -> None:
        self._gather_s = gather_s
        self._ratio = settings.sample_ratio
        self._most = settings.max_waiting
        self._metrics = metrics
        self._queue: queue.SimpleQueue[Ended | None] = queue.SimpleQueue()
        self._works = True
        try:
            self._maker = _SpanMaker(device)
            self._exporter = exporter or _otlp(settings.endpoint)
        except ImportError as err:
            raise ConfigError(
                f"tracing.enabled needs OpenTelemetry, and {err.name} cannot be imported: "
                "install edged[otel], or set tracing.enabled = false"
            ) from err
        self._thread = threading.Thread(target=self._work, name="tracing", daemon=True)

    def __repr__(self) -> str:
        return f"<Tracing {self._queue.qsize()} requests wait>"

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Exports what waits, as far as it goes in time."""
        self._queue.put(None)
        self._thread.join(timeout_s)
        self._exporter.shutdown()

    def answered(self, outcome: Outcome, status: int) -> None:
        """Notes a request that has ended; never waits."""
        to = outcome.reply_to
        trace = dict(to.trace) if to is not None else {}
        if not self._sampled(trace):
            return
        if self._queue.qsize() >= self._most:
            self._metrics.count("traces_dropped_total", "full")
            return
        self._queue.put(
            Ended(
                trace, outcome.model, outcome.id, outcome.received, time.monotonic(),
                outcome.timings, outcome.samples, outcome.version, status,
                outcome.error.code if outcome.error is not None else "",
            )
        )  # fmt: skip

    def _sampled(self, trace: dict[str, str]) -> bool:
        """A caller's decision holds for the whole of its trace."""
        parent = parse_traceparent(trace[TRACEPARENT]) if trace else None
        if parent is not None:
            return parent.sampled
        return random.random() < self._ratio  # noqa: S311  # a sample, not a secret

    # -------------------------------------------------------------- the thread

    def _work(self) -> None:
        going = True
        while going:
            requests: list[Ended] = []
            until = time.monotonic() + self._gather_s
            while going and len(requests) < BATCH:
                try:
                    left = max(0.0, until - time.monotonic())
                    item = self._queue.get(timeout=left if requests else None)
                except queue.Empty:
                    break
                if item is None:
                    going = False
                else:
                    if not requests:
                        until = time.monotonic() + self._gather_s
                    requests.append(item)
            if requests:
                self._export(requests)

    def _export(self, requests: list[Ended]) -> None:
        try:
            spans = [span for each in requests for span in self._maker.spans(each)]
            why = _failure(self._exporter, spans)
        except Exception as err:  # the exporter is foreign: it must not end the service
            why = f"{type(err).__name__}: {err}"
        self._metrics.count("traces_dropped_total" if why else "traces_exported_total",
                            *(("failed",) if why else ()), by=len(requests))  # fmt: skip
        if why and self._works:
            log.warning("spans cannot be exported (%s); they are dropped until they can", why)
        elif not why and not self._works:
            log.info("spans are exported again")
        self._works = not why


def _failure(exporter: SpanExporter, spans: list[ReadableSpan]) -> str:
    from opentelemetry.sdk.trace.export import SpanExportResult

    taken = exporter.export(spans) is SpanExportResult.SUCCESS
    return "" if taken else "the collector does not take them, or nobody listens there"


def _otlp(endpoint: str | None) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    # It says each failure of each attempt; `_export` says it once.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    return OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_TIMEOUT_S)


class _SpanMaker:
    """Ended requests -> spans of OpenTelemetry's SDK. For one thread.

    Raises:
        ImportError: it is not installed.
    """

    def __init__(self, device: str) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create(
            {
                "service.name": "edged",
                "service.version": __version__,
                "service.instance.id": device,
            }
        )
        # What is not to be recorded does not come here.
        provider = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False)
        self._tracer = provider.get_tracer("edged", __version__)
        self._extract = TraceContextTextMapPropagator().extract

    def spans(self, request: Ended) -> Iterator[ReadableSpan]:
        """The span of a request, and those of its parts where it ran."""
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context

        zero = time.time() - time.monotonic()

        def ns(monotonic: float) -> int:
            return int((zero + monotonic) * 1e9)

        whole = self._tracer.start_span(
            f"infer {request.model}".rstrip(),
            self._extract(request.trace),
            SpanKind.SERVER,
            _of_request(request),
            start_time=ns(request.received),
        )
        if request.status >= 500:
            whole.set_status(StatusCode.ERROR, request.code)
        timings = request.timings
        if timings.batch_samples:
            inside = set_span_in_context(whole)
            started = min(request.received + timings.queue_s, request.ended)
            ran = min(started + timings.compute_s, request.ended)
            for name, begin, end in (
                ("queue", request.received, started),
                ("compute", started, ran),
            ):
                part = self._tracer.start_span(
                    name, inside, attributes=_of_batch(timings), start_time=ns(begin)
                )
                part.end(ns(end))
                if isinstance(part, ReadableSpan):
                    yield part
        whole.end(ns(request.ended))
        if isinstance(whole, ReadableSpan):
            yield whole


def _of_request(request: Ended) -> Attributes:
    """Attributes of a request's span; OpenTelemetry's own names where it has any."""
    found: Attributes = {
        "messaging.system": "mqtt",
        "edged.model": request.model,
        "edged.model.version": request.version,
        "edged.request.id": request.id,
        "edged.samples": request.samples,
        "edged.status": request.status,
        "error.type": request.code,
    }
    if request.timings.batch_samples:
        found |= _of_batch(request.timings)
    return {name: told for name, told in found.items() if told != ""}


def _of_batch(timings: Timings) -> Attributes:
    return {"edged.batch.samples": timings.batch_samples, "edged.batch.reason": timings.reason}
