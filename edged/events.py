"""What may be reported: frozen event classes, and their form as CloudEvents 1.0 JSON.

Each class has a ``kind``, the last level of its topic. docs/events.md lists them, and a test
compares.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import uuid
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True)
class Event:
    """Base of all events.

    Attributes:
        time: Unix seconds when it happened.
    """

    kind: ClassVar[str] = ""
    time: float


@dataclass(frozen=True)
class Started(Event):
    """The service is up: models are warm, and requests are taken or a broker is waited for."""

    kind = "started"
    version: str
    models: tuple[str, ...]
    offline: bool
    """Whether it was declared offline because no broker was there."""
    seconds: float
    """From exec to ready."""


@dataclass(frozen=True)
class ModelLoaded(Event):
    """An engine was loaded and warmed."""

    kind = "model_loaded"
    model: str
    engine: str
    """First 12 digits of the engine's key."""
    precision: str
    device: str
    latency_ms: dict[str, float]
    """Batch size -> milliseconds, measured at warm-up."""


@dataclass(frozen=True)
class ModelRefused(Event):
    """An engine was not loaded; the other models are served."""

    kind = "model_refused"
    model: str
    reason: str


@dataclass(frozen=True)
class DeviceFailed(Event):
    """A device was taken out; it is tried again with growing pauses."""

    kind = "device_failed"
    device: str
    reason: str


@dataclass(frozen=True)
class DeviceRecovered(Event):
    """A device that had failed serves again."""

    kind = "device_recovered"
    device: str
    attempts: int
    """Faults since it was taken out, its own included."""


@dataclass(frozen=True)
class Disconnected(Event):
    """The request broker went away; sent once it is back."""

    kind = "disconnected"
    seconds: float
    session_kept: bool
    """False: requests that were sent meanwhile are lost."""


@dataclass(frozen=True)
class Stopping(Event):
    """The service drains and ends."""

    kind = "stopping"
    outstanding: int
    """Requests in hand when it began."""


@dataclass(frozen=True)
class Result(Event):
    """One request was answered (``report.results = "all"``)."""

    kind = "result"
    model: str
    id: str
    status: int
    samples: int
    latency_ms: float
    outputs: dict[str, Any] = field(default_factory=dict)
    """Values by output name where there are at most 256 of them, else null."""


@dataclass(frozen=True)
class Telemetry(Event):
    """Metrics and state at an interval; published on the telemetry topic as plain JSON."""

    kind = "telemetry"
    uptime_s: float
    outstanding: int
    waiting_samples: int
    models: dict[str, Any]
    """Model -> device -> state of the timer there: price, phi, rate, limit."""
    devices: dict[str, Any]
    """Device -> load, temperature_c, throttled and low_power, null where it is not known."""
    metrics: dict[str, Any]


EVENTS: tuple[type[Event], ...] = (
    Started, ModelLoaded, ModelRefused, DeviceFailed, DeviceRecovered, Disconnected, Stopping,
    Result, Telemetry,
)  # fmt: skip


def cloud_event(event: Event, source: str) -> bytes:
    """An event in CloudEvents' JSON format (structured mode).

    Args:
        event: what happened.
        source: who says so, e.g. ``/edged/v1/cam-7``.
    """
    data = asdict(event)
    moment = dt.datetime.fromtimestamp(data.pop("time"), dt.timezone.utc)
    document = {
        "specversion": "1.0",
        "id": str(uuid.uuid4()),
        "source": source,
        "type": f"edged.{event.kind}",
        "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "data": data,
    }
    return json_bytes(document)


def json_bytes(document: object) -> bytes:
    """Compact JSON; numbers that JSON does not have (NaN, infinity) become null."""
    try:
        return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    except ValueError:
        return json.dumps(_without_nan(document), separators=(",", ":"), allow_nan=False).encode()


def _without_nan(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return value
