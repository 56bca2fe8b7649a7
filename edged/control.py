"""What the control plane may ask of the running service: its state, its commands, what fits it.

The service hands its parts in; nothing here starts or stops a thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from edged import __version__
from edged.device import read_device
from edged.device_load import DeviceLoad, EnergyMeter, read_load
from edged.errors import DrainingError
from edged.events import Event, Telemetry, Throttled
from edged.gpu_load import all_sources
from edged.metrics import Metrics, timer_gauges
from edged.report.commands import Handlers
from edged.serve.batch import WaitingRoom
from edged.serve.devices import Devices
from edged.serve.models import ModelHost
from edged.serve.mqtt import BrokerLink
from edged.serve.pipeline import Pipeline
from edged.serve.pool import Membership
from edged.settings import Settings


@dataclass(frozen=True)
class Parts:
    """The parts of the service that are looked at or told something."""

    host: ModelHost
    room: WaitingRoom
    devices: Devices
    pipeline: Pipeline
    link: BrokerLink
    metrics: Metrics
    pool: Membership


@dataclass(frozen=True)
class ControlPorts:
    """Whom `Control` tells; none of them waits.

    Attributes:
        wake: the main thread has to look at once.
        reload: settings and engines have to be read again.
        emit: takes events over.
    """

    wake: Callable[[], None]
    reload: Callable[[], None]
    emit: Callable[[Event], None]


class Control:
    """State and commands of one service.

    Attributes:
        held: whether a command has it take no requests.
        stopping: whether it drains in order to end; then it is not resumed.
        uplink: numbers of the report line.

    Args:
        parts: of the service.
        ports: whom it tells.
    """

    def __init__(self, parts: Parts, ports: ControlPorts) -> None:
        self.held = False
        self.stopping = False
        self.uplink: Callable[[], Mapping[str, object]] = dict
        self._parts = parts
        self._ports = ports
        self._began = time.monotonic()
        self._energy = EnergyMeter()
        self._throttled: dict[str, tuple[str, ...]] = {}

    def __repr__(self) -> str:
        return f"<Control {'held' if self.held else 'serving'}>"

    # -------------------------------------------------------------- state

    def tell_state(self) -> Telemetry:
        """Telemetry of this moment, for the one who asks at an interval.

        Says as an event when a GPU begins or ceases to throttle.
        """
        now, load = time.monotonic(), _read_load()
        samples = self._parts.metrics.total("samples_total")
        used = self._energy.read(now, samples, load)
        self._tell_throttling(load)
        return self._telemetry(load, used)

    def _tell_throttling(self, load: DeviceLoad) -> None:
        for name, gpu in zip(all_sources(), load.gpus or (), strict=False):
            if gpu.reasons is not None and gpu.reasons != self._throttled.get(name, ()):
                self._throttled[name] = gpu.reasons
                self._ports.emit(Throttled(time.time(), name, gpu.reasons))

    def _telemetry(self, load: DeviceLoad, joules_per_sample: float | None = None) -> Telemetry:
        parts, now = self._parts, time.monotonic()
        timers = parts.room.timer_states(now)
        return Telemetry(
            time=time.time(),
            uptime_s=round(now - self._began, 3),
            outstanding=parts.pipeline.outstanding,
            waiting_samples=parts.room.samples,
            models=timers,
            devices=parts.devices.loads(),
            metrics=parts.metrics.snapshot() | timer_gauges(timers),
            device={**asdict(load), "joules_per_sample": joules_per_sample},
        )

    def versions(self) -> dict[str, str]:
        """Model -> version that is served."""
        return {name: model.version for name, model in list(self._parts.host.models.items())}

    # -------------------------------------------------------------- settings

    def check(self, wanted: Settings) -> dict[str, str]:
        """Models and versions that the engine store does not have: path -> why."""
        store = self._parts.host.store
        wrong: dict[str, str] = {}
        for name, version in wanted.serve.versions.items():
            known = list(store.versions(name))
            if version not in known:
                there = ", ".join(known) or "none"
                wrong[f"serve.versions.{name}"] = f"{version} is not in the store; there: {there}"
        if missing := sorted(set(wanted.serve.models) - set(store.models())):
            wrong["serve.models"] = f"no engine is installed of {', '.join(missing)}"
        return wrong

    # -------------------------------------------------------------- commands

    def commands(self) -> Handlers:
        """What carries each command out, on the uplink's thread."""
        return {
            "drain": self._drain,
            "resume": self._resume,
            "reload": self._reload_all,
            "get-metrics": lambda: asdict(self._telemetry(_read_load())),
            "diagnose": self._diagnose,
        }

    def _drain(self) -> dict[str, object]:
        self.held = True
        self._parts.pool.leave()
        self._parts.room.drain()
        self._ports.wake()
        return {"state": "draining", "outstanding": self._parts.pipeline.outstanding}

    def _resume(self) -> dict[str, object]:
        if self.stopping:
            raise DrainingError("the service is stopping; it takes requests after its next start")
        self.held = False
        self._parts.room.resume()
        self._parts.pool.join()
        self._ports.wake()
        return {"state": "online"}

    def _reload_all(self) -> dict[str, object]:
        self._ports.reload()
        return {"state": "reloading"}

    def _diagnose(self) -> dict[str, object]:
        parts = self._parts
        models = {
            name: {"version": model.version, "devices": sorted(model.runners)}
            for name, model in list(parts.host.models.items())
        }
        return {
            "version": __version__,
            "uptime_s": round(time.monotonic() - self._began, 3),
            "device": asdict(read_device()),
            "load": asdict(_read_load()),
            "models": models,
            "refused": dict(parts.host.refused),
            "faults": dict(parts.devices.faults),
            "held": self.held,
            "outstanding": parts.pipeline.outstanding,
            "broker": {
                "connected": parts.link.connected.is_set(),
                "connections": parts.link.epoch,
            },
            "uplink": dict(self.uplink()),
            "threads": sorted(thread.name for thread in threading.enumerate()),
        }


def _read_load() -> DeviceLoad:
    return read_load(gpus=[source.read() for source in all_sources().values()])
