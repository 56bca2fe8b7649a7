"""Which models run on which devices: they are brought in, swapped, taken out, and tried again."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from edged.backoff import backoff_s
from edged.engine_store import Manifest
from edged.errors import DeviceLostError, EdgedError
from edged.events import DeviceFailed, DeviceRecovered, Event, ModelRefused
from edged.metrics import Metrics
from edged.serve.batch import WaitingRoom
from edged.serve.gpu import Device, DevicePorts, Done, Served
from edged.serve.models import ModelHost, Progress, ReadyModel, check_interface
from edged.serve.request import ReplyFormat

log = logging.getLogger(__name__)

LEAD_S = 0.0005
"""With several lanes, the next batch is closed so long before the running one ends: enough to fill
its lane and to copy it in."""
RETRY_S = (1.0, 60.0)
"""Shortest and longest pause before a failed device is tried again."""


@dataclass(frozen=True)
class Notice:
    """Whom the devices tell.

    Attributes:
        emit: takes events over; must not wait.
        changed: a device failed or is back; must not wait.
        progress: of loading and warming.
    """

    emit: Callable[[Event], None]
    changed: Callable[[], None]
    progress: Progress


class Devices:
    """All devices of the service and what they run.

    `load` is called by one thread at a time; a device's own thread calls back when it fails.

    Attributes:
        formats: what replies carry, by model; grows and changes as models do.
        faults: devices that are out, and how often they failed in a row.
        lost: why only a new process can go on with all devices; "" while that is not so.

    Args:
        host: loads models.
        room: where the devices get their work.
        metrics: counters.
        notice: whom to tell.
    """

    def __init__(
        self, host: ModelHost, room: WaitingRoom, metrics: Metrics, notice: Notice
    ) -> None:
        self.formats: dict[str, ReplyFormat] = {}
        self.faults: dict[str, int] = {}
        self.lost = ""
        self._host = host
        self._room = room
        self._metrics = metrics
        self._notice = notice
        self._devices: dict[str, Device] = {}

    def __repr__(self) -> str:
        out = f", out: {sorted(self.faults)}" if self.faults else ""
        return f"<Devices {sorted(self._devices)}, models {sorted(self._host.models)}{out}>"

    def load(self, stopped: Callable[[], bool] = lambda: False) -> list[Event]:
        """Loads every wanted model whose current engine is not served yet.

        What serves goes on until its successor takes over, and for good if that is refused.

        Args:
            stopped: asked between two models.

        Returns:
            What happened, to be reported.
        """
        events: list[Event] = []
        for name in self._host.wanted():
            if stopped():
                break
            events += self._load(name)
        return events

    def start(self, done: Callable[[Done], None]) -> list[Device]:
        """Registers the devices of all models that are ready; their threads are not started.

        Args:
            done: takes over what ended.
        """
        ports = DevicePorts(
            take=self._room.take,
            completed=self._room.completed,
            done=done,
            put_back=self._room.put_back,
            failed=self._failed,
            renew=self._renew,
        )
        for name in self._host.devices():
            device = self._devices[name] = Device(name, self._host.served(name), ports)
            self._room.add_device(name, device.lanes, self._host.timers(name), LEAD_S)
        for name, model in self._host.models.items():
            self._room.set_model(name, model.timers())
        return list(self._devices.values())

    def _load(self, name: str) -> list[Event]:
        """Loads a model, or says why not; what serves already is left alone."""
        try:
            model = self._host.load(name, self._notice.progress)
            if model is None:
                return []
            self._take_over(name, model)
        except EdgedError as err:
            if name not in self._host.models:
                self._host.refused[name] = err.message
            log.error("model %s: %s", name, err.message)  # noqa: TRY400  # no fault of ours
            return [ModelRefused(time.time(), name, err.message)]
        log.info("model %s is warm", name, extra={"engine": model.version})
        return list(model.events(time.time()))

    def _take_over(self, name: str, model: ReadyModel) -> None:
        """Serves a model by its new engine, between two batches."""
        old = self._host.models.get(name)
        if old is not None:
            try:
                check_interface(old.manifest, model.manifest)
            except EdgedError:
                model.close()
                raise
        self._host.models[name] = model
        self._host.refused.pop(name, None)
        self.formats[name] = _format(model.manifest)
        if self._devices:
            for device, served in self._devices.items():
                if device in model.runners:
                    served.swap(name, model.served(device))
            self._room.set_model(name, model.timers())
        if old is not None:
            old.close()

    def _failed(self, device: str, error: EdgedError) -> None:
        """On a runner's or a device's thread: takes it out, and has it tried again later."""
        attempt = self.faults.get(device, 0)
        self.faults[device] = attempt + 1
        pause = backoff_s(attempt, *RETRY_S, random.random())  # noqa: S311  # jitter, not a secret
        self._room.suspend(device, time.monotonic() + pause)
        self._metrics.count("device_faults_total", device)
        if isinstance(error, DeviceLostError):
            self.lost = error.message
        if attempt == 0:
            log.error("device %s is out: %s", device, error.message)
            self._notice.emit(DeviceFailed(time.time(), device, error.message))
        self._notice.changed()

    def _renew(self, device: str) -> dict[str, Served]:
        """On a device's thread: loads its models anew after a fault."""
        served = self._host.renew(device, lambda _where, _done, _total: None)
        lanes = min(each.runner.lanes for each in served.values())
        self._room.add_device(device, lanes, self._host.timers(device), LEAD_S)
        attempts = self.faults.pop(device, 0)
        log.info("device %s is back", device, extra={"attempts": attempts})
        self._notice.emit(DeviceRecovered(time.time(), device, attempts))
        self._notice.changed()
        return served


def _format(manifest: Manifest) -> ReplyFormat:
    labels = {output.name: output.labels for output in manifest.output if output.labels}
    return ReplyFormat(manifest.key[:12], labels)
