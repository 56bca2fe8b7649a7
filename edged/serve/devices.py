"""Which models run on which devices: they are brought in, swapped, taken out, and tried again."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from edged.backoff import Backoff
from edged.errors import DeviceLostError, EdgedError, EngineRefusedError
from edged.events import DeviceFailed, DeviceRecovered, Event, ModelRefused, ModelUnloaded
from edged.gpu_load import ProvenSource, all_sources
from edged.manifest import Manifest
from edged.metrics import Metrics
from edged.serve.batch import WaitingRoom
from edged.serve.crash_journal import CrashJournal
from edged.serve.gpu import Device, DevicePorts, Done
from edged.serve.models import ModelHost, Progress, ReadyModel, check_successor
from edged.serve.request import ReplyFormat, Work
from edged.serve.tuning import Tuning, TuningPorts
from edged.settings import TimerSettings

log = logging.getLogger(__name__)

LEAD_S = 0.0005
"""With several lanes, the next batch is closed so long before the running one ends: enough to fill
its lane and to copy it in."""
RETRY_S = (1.0, 60.0)
"""Shortest and longest pause before a failed device is tried again; the pauses begin anew once it
has worked for twice the longest."""


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

    `load` may be called by any thread; a device's own threads call back when it fails.

    Attributes:
        formats: what replies carry, by model; grows and changes as models do.
        faults: devices that are out, and how often they failed in a row.
        lost: why only a new process can go on with all devices; "" while that is not so.

    Args:
        host: loads models.
        room: where the devices get their work.
        metrics: counters.
        notice: whom to tell.
        retry_s: see `RETRY_S`.
        sources: how to look at each device.
        journal: notes what is on the devices.
    """

    def __init__(
        self,
        host: ModelHost,
        room: WaitingRoom,
        metrics: Metrics,
        notice: Notice,
        retry_s: tuple[float, float] = RETRY_S,
        sources: Callable[[], Mapping[str, ProvenSource]] = all_sources,
        *,
        journal: CrashJournal | None = None,
    ) -> None:
        self.formats: dict[str, ReplyFormat] = {}
        self.faults: dict[str, int] = {}
        self.lost = ""
        self._host = host
        self._room = room
        self._metrics = metrics
        self._notice = notice
        self._retry_s = retry_s
        self._sources = sources
        self._journal = journal or CrashJournal(None, 0.0)
        self._devices: dict[str, Device] = {}
        self._backoffs: dict[str, Backoff] = {}
        self._tuning: Tuning | None = None
        # Held while a model is loaded and takes over, or a device is renewed: never both at once.
        self._changing = threading.Lock()
        # Held for a moment by whoever learns of a fault: several lanes fail at once.
        self._counting = threading.Lock()

    def __repr__(self) -> str:
        out = f", out: {sorted(self.faults)}" if self.faults else ""
        return f"<Devices {sorted(self._devices)}, models {sorted(self._host.models)}{out}>"

    def load(self, stopped: Callable[[], bool] = lambda: False) -> list[Event]:
        """Loads every wanted model whose current engine is not served yet.

        What serves goes on until its successor takes over, and for good if that is refused. Then
        models are taken out that are not wanted any more; what waits for them is answered first.

        Args:
            stopped: asked between two models.

        Returns:
            What happened, to be reported.
        """
        events: list[Event] = []
        if not self._devices:  # nothing of ours runs yet: what the warm-up's load is compared with
            for source in self._sources().values():
                source.read(busy=False)
        for name in self._host.wanted():
            if stopped():
                break
            events += self._load(name)
        self._host.forget_refusals()
        for name in self._host.unwanted() if self._devices else ():
            if not stopped():
                events += self._retire(name)
        return events

    def start(self, done: Callable[[Done], None]) -> list[Device]:
        """Registers the devices of all models that are ready; their threads are not started.

        Args:
            done: takes over what ended.
        """
        ports = DevicePorts(
            take=self._take,
            take_now=self._room.take_now,
            hand=self._room.hand,
            call=self._room.call,
            completed=partial(self._room.completed, call=False),
            done=done,
            put_back=self._room.put_back,
            failed=self._failed,
            renew=self._renew,
            began=self._journal.began,
            ended=self._journal.ended,
        )
        for name in self._host.devices():
            device = self._devices[name] = Device(name, self._host.served(name), ports)
            self._backoffs[name] = Backoff(*self._retry_s)
            self._room.add_device(name, device.lanes, self._host.timers(name), LEAD_S)
        for name, model in self._host.models.items():
            for queue, timers in model.timers(self._host.settings.slo_ms.get(name)).items():
                self._room.set_model(queue, timers)
        return list(self._devices.values())

    def start_tuning(self, settings: TimerSettings) -> None:
        """Has the timers tuned and priced from now on, on a thread of its own."""
        room = self._room
        ports = TuningPorts(
            tunings=room.tunings,
            tuned=room.tuned,
            set_price=room.set_price,
            scales=room.scales,
            occupied=lambda device, now: self._devices[device].occupied(now),
        )
        known = self._sources()
        sources = {device: known.get(device) or ProvenSource(()) for device in self._devices}
        self._tuning = Tuning(ports, settings, sources)
        for device, source in sources.items():
            if doubt := source.doubt():
                log.warning(
                    "the utilisation of %s counts as unknown until it moves with a load: %s",
                    device,
                    doubt,
                )
        self._tuning.thread.start()

    def _progress(self, where: str, done: int, total: int) -> None:
        """While engines are warmed: the load of ours under which a utilisation has to move."""
        self._notice.progress(where, done, total)
        for source in self._sources().values():
            source.read(busy=True)

    def retune(self, settings: TimerSettings) -> None:
        """The tuner goes by other settings from now on, and timers by other SLOs."""
        self._room.set_slos(self._host.slos_s())
        if self._tuning is not None:
            self._tuning.settings = settings

    def loads(self) -> dict[str, dict[str, float | bool | None]]:
        """By device, what was seen of it last, for telemetry; None: not known."""
        seen = self._tuning.loads if self._tuning is not None else {}
        return {
            device: {
                "load": load.utilisation,
                "temperature_c": load.temperature_c,
                "throttled": load.throttled,
                "low_power": load.low_power,
            }
            for device, load in list(seen.items())
        }

    def stop_tuning(self) -> None:
        """Ends the tuner's thread."""
        if self._tuning is not None:
            self._tuning.stop(1.0)

    def _take(self, device: str) -> Work | None:
        """On a device's thread: waits for work, and counts how late an armed time woke it."""
        work = self._room.take(device)
        if work is not None and work.lateness_s is not None:
            self._metrics.observe("timer_lateness_seconds", work.lateness_s, device)
        return work

    def _load(self, name: str) -> list[Event]:
        """Loads a model, or says why not; what serves already is left alone."""
        try:
            with self._changing:
                model = self._host.load(name, self._progress)
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

    def _retire(self, name: str) -> list[Event]:
        """Takes a model out: nothing new, what waits is answered, then its runners are closed."""
        model = self._host.models[name]
        queues = {queue for device in model.runners for queue in model.queues(device)}
        # Not under the lock: a device that fails meanwhile is renewed, and answers what waits.
        if not self._room.leave(queues):
            return []
        with self._changing:
            model = self._host.models.pop(name)
            for device in model.runners:
                self._devices[device].drop(queues)
            lanes = {device: self._devices[device].lanes for device in model.runners}
            self._room.remove(queues, lanes)
        model.close()
        log.info("model %s is served no more", name, extra={"engine": model.version})
        return [ModelUnloaded(time.time(), name, model.version)]

    def _take_over(self, name: str, model: ReadyModel) -> None:
        """Serves a model by its new engine, between two batches."""
        old = self._host.models.get(name)
        try:
            if old is not None:
                check_successor(old, model)
            self._check_devices(model)
        except EdgedError:
            model.close()
            raise
        self.formats[name] = _format(model.manifest)
        if self._devices:
            for device in model.runners:
                for queue, served in model.served(device).items():
                    self._devices[device].swap(queue, served)
            lanes = {device: self._devices[device].lanes for device in model.runners}
            slo_ms = self._host.settings.slo_ms.get(name)
            for queue, timers in model.timers(slo_ms).items():
                self._room.set_model(queue, timers, lanes)
        # Last: from here on requests for it are decoded.
        self._host.models[name] = model
        self._host.refused.pop(name, None)
        if old is not None:
            old.close()

    def _check_devices(self, model: ReadyModel) -> None:
        """Whether all devices of a model have their thread, once there are threads."""
        unknown = sorted(set(model.runners) - set(self._devices)) if self._devices else []
        if unknown:
            raise EngineRefusedError(
                f"the engine of {model.manifest.model!r} runs on {', '.join(unknown)}, which "
                "served no model when the service started; restart the service to use it"
            )

    def _failed(self, device: str, error: EdgedError) -> None:
        """On a runner's thread: takes a device out, once for all that runs on it."""
        self._metrics.count("device_faults_total", device)
        with self._counting:
            if device in self.faults:
                return
            self._pause(device, error)
        log.error("device %s is out: %s", device, error.message)
        self._notice.emit(DeviceFailed(time.time(), device, error.message))
        self._notice.changed()

    def _pause(self, device: str, error: EdgedError) -> None:
        self.faults[device] = self.faults.get(device, 0) + 1
        now, chance = time.monotonic(), random.random()  # noqa: S311  # jitter, not a secret
        self._room.suspend(device, now + self._backoffs[device].pause_s(now, chance))
        if isinstance(error, DeviceLostError):
            self.lost = error.message

    def _renew(self, device: str) -> None:
        """On a renewal's thread: loads a device's models anew after a fault, or waits longer."""
        with self._changing:
            try:
                served = self._host.renew(device, lambda _where, _done, _total: None)
            except EdgedError as err:
                self._metrics.count("device_faults_total", device)
                log.info("device %s still fails: %s", device, err.message)
                self._pause(device, err)
                self._notice.changed()
                return
            self._devices[device].renew(served)
            attempts = self.faults.pop(device, 0)
            self._backoffs[device].connected(time.monotonic())
            log.info("device %s is back", device, extra={"attempts": attempts})
            self._notice.emit(DeviceRecovered(time.time(), device, attempts))
            self._notice.changed()
            # Last: from here on its thread has work, and may have it fail again.
            lanes = self._devices[device].lanes
            self._room.add_device(device, lanes, self._host.timers(device), LEAD_S)


def _format(manifest: Manifest) -> ReplyFormat:
    labels = {output.name: output.labels for output in manifest.output if output.labels}
    return ReplyFormat(manifest.key[:12], labels)
