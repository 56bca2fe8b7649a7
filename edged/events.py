"""What may be reported: frozen event classes, and their form as CloudEvents 1.0 JSON.

Each class has a ``kind``, the last level of its topic. docs/events.md lists them, and a test
compares.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import uuid
from dataclasses import dataclass, field
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
    notes: tuple[str, ...] = ()
    """What the build said of it: why it is this precision."""


@dataclass(frozen=True)
class ModelRefused(Event):
    """An engine was not loaded; the other models are served."""

    kind = "model_refused"
    model: str
    reason: str


@dataclass(frozen=True)
class ModelUnloaded(Event):
    """A model was taken off ``serve.models``; all that waited for it has been answered."""

    kind = "model_unloaded"
    model: str
    engine: str
    """First 12 digits of the engine's key."""


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
    """Values by output name where there are at most 256 of them, else null; post-processed ones as
    ``classes``, ``detections`` or ``texts``."""


@dataclass(frozen=True)
class Summary(Event):
    """What one model answered in an interval (``report.results = "summary"``)."""

    kind = "summary"
    model: str
    seconds: float
    """Length of the interval."""
    requests: int
    errors: int
    samples: int
    classes: dict[str, int]
    """Index or label of the best class -> samples; of a detector, label -> detections."""
    mean_confidence: float | None
    """Mean probability of the best class; None without a classification."""
    least_confidence: float | None


@dataclass(frozen=True)
class Degraded(Event):
    """The service answers with less than all of its devices, or does so again with all."""

    kind = "degraded"
    out: tuple[str, ...]
    """Devices that are out; empty: all are back."""


@dataclass(frozen=True)
class Throttled(Event):
    """A device slows itself down against heat or for power, or has stopped doing so."""

    kind = "throttled"
    device: str
    reasons: tuple[str, ...]
    """Why; empty: it does no more."""


@dataclass(frozen=True)
class UplinkRestored(Event):
    """The control plane's broker is reached again, or late for the first time."""

    kind = "uplink_restored"
    seconds: float
    """For how long it was not."""
    waiting: int
    """Reports that waited meanwhile and are sent now."""


@dataclass(frozen=True)
class SettingsChanged(Event):
    """The control plane changed settings, or was refused."""

    kind = "settings_changed"
    version: int | None
    status: str
    """As in the reported document: applied, pending_restart or rejected."""
    reason: str


@dataclass(frozen=True)
class OutboxDamaged(Event):
    """The outbox's file was damaged, or came back with less than was in it."""

    kind = "outbox_damaged"
    reason: str
    set_aside: str
    """New name of the damaged file; empty: it is still in use."""


@dataclass(frozen=True)
class OutboxDegraded(Event):
    """The outbox cannot write to its disk; reports wait in memory."""

    kind = "outbox_degraded"
    reason: str


@dataclass(frozen=True)
class OutboxRecovered(Event):
    """The outbox writes to its disk again."""

    kind = "outbox_recovered"
    seconds: float
    """For how long it could not."""
    moved: int
    """Reports that waited in memory and are on the disk now."""


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
    device: dict[str, Any] = field(default_factory=dict)
    """Load, memory, temperature and power of this device; None where that cannot be read."""


EVENTS: tuple[type[Event], ...] = (
    Started, ModelLoaded, ModelRefused, ModelUnloaded, DeviceFailed, DeviceRecovered, Disconnected,
    Stopping, Degraded, Throttled, UplinkRestored, SettingsChanged, OutboxDamaged, OutboxDegraded,
    OutboxRecovered, Result, Summary, Telemetry,
)  # fmt: skip


def cloud_event(event: Event, source: str) -> bytes:
    """An event in CloudEvents' JSON format (structured mode).

    Args:
        event: what happened.
        source: who says so, e.g. ``/edged/v1/cam-7``.
    """
    data = plain(event)
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


def plain(event: Event) -> dict[str, Any]:
    """Field -> value. Not `dataclasses.asdict`, which copies every number of a result."""
    return dict(vars(event))


_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def json_bytes(document: object) -> bytes:
    """Compact JSON; numbers that JSON does not have (NaN, infinity) become null."""
    try:
        return _encode(document).encode()
    except ValueError:
        return _encode(_without_nan(document)).encode()


def _without_nan(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return value
