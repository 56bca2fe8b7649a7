"""The only place that assembles the service: wires, starts, drains, stops; signals and exit codes.

Crash-only: a thread that dies ends the process, systemd starts it again in seconds, and requests
that were not acknowledged are delivered again.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import FrameType

from edged import __version__, logs, sd_notify
from edged.engine_store import EngineStore, Manifest
from edged.errors import ConfigError, EdgedError
from edged.events import (
    Disconnected,
    Event,
    ModelRefused,
    Result,
    Started,
    Stopping,
    Telemetry,
)
from edged.metrics import Metrics
from edged.protocol import Topics, status_document
from edged.report.uplink import Uplink
from edged.serve.admit import Admission
from edged.serve.batch import WaitingRoom
from edged.serve.decode import Decoder, Limits
from edged.serve.gpu import Device, Served
from edged.serve.models import ReadyModel, load_model
from edged.serve.mqtt import BrokerLink, LinkHandlers
from edged.serve.pipeline import Pipeline, Sender, Watchers
from edged.serve.request import LinkDown, LinkUp, Outcome, Reply, ReplyFormat
from edged.serve.timer import BatchTimer
from edged.settings import Settings, load_settings

log = logging.getLogger(__name__)

EX_CUT_OFF = os.EX_TEMPFAIL
"""Exit code when the drain limit ended requests in hand; the broker delivers them again."""
LOOK_S = 0.5
"""The main thread looks after the others so often, and at least twice in a watchdog interval."""
SWITCH_INTERVAL_S = 0.0005
"""Interpreter lock hand-over; the default of 5 ms let one busy thread move paho's p50 from 0.9 to
6.0 ms on two cores, this one to 3.0 ms (docs/benchmarks.md)."""
RESULT_VALUES = 256
"""A result event carries outputs of up to so many values."""


def serve(settings: Settings, file: Path | None, began: float) -> int:
    """Runs the service until a signal ends it.

    Args:
        settings: all settings.
        file: the settings file they came from, read again on SIGHUP.
        began: monotonic seconds when the process was started.

    Returns:
        The exit code: 0 stopped with everything answered, 69 no model can be served, 70 a fault
        inside, 75 the drain limit cut requests off.
    """
    logs.configure(settings.log.level, settings.log.format)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    sd_notify.notify(status="loading models")
    return Service(settings, file).run(began)


class Service:
    """One run of the daemon."""

    def __init__(self, settings: Settings, file: Path | None) -> None:
        self._settings = settings
        self._file = file
        self._boot_id = str(uuid.uuid4())
        self._topics = Topics(settings.device.root, settings.device.name)
        self._metrics = Metrics()
        self._refused: dict[str, str] = {}
        self._models: dict[str, ReadyModel] = {}
        self._early: list[Event] = []
        self._down_since: float | None = None
        self._woken = threading.Event()
        self._stops = 0
        self._reload = False

    # -------------------------------------------------------------- from start to end

    def run(self, began: float) -> int:
        """Starts, serves, and ends; returns the exit code."""
        self._catch_signals()
        self._load_models()
        if self._stops:
            return os.EX_OK
        if not self._models:
            log.critical(
                "no model can be served; build one with: edged build MODEL, then see: edged doctor",
                extra={"refused": self._refused},
            )
            return os.EX_UNAVAILABLE
        self._assemble()
        gc.collect()
        gc.freeze()  # what is loaded stays; no collection needs to look at it again
        self._pipeline.start(
            Sender(self._link.publish, self._link.acknowledge), self._make_devices()
        )
        self._uplink.start()
        self._link.start()
        self._wait_until_ready(began)
        fault = self._watch()
        return self._fail(fault) if fault else self._end()

    def _load_models(self) -> None:
        serve = self._settings.serve
        store = EngineStore(self._settings.paths.engines)
        wanted = serve.models or tuple(store.models())
        for position, name in enumerate(wanted):
            if self._stops:
                return
            where = f"model {position + 1} of {len(wanted)}, {name}"
            try:
                model = load_model(store, name, serve.onnx_threads, partial(_say_warming, where))
            except EdgedError as err:
                self._refused[name] = err.message
                self._early.append(ModelRefused(time.time(), name, err.message))
                log.error("model %s is not served: %s", name, err.message)  # noqa: TRY400  # no fault of ours
            else:
                self._models[name] = model
                self._early.append(model.event(time.time()))
                log.info("model %s is warm", name, extra={"ms": model.latency_ms})

    def _assemble(self) -> None:
        settings, topics = self._settings, self._topics
        manifests = {name: model.manifest for name, model in self._models.items()}
        decoder = Decoder(
            topics,
            manifests.get,
            limits=Limits(
                settings.serve.max_request_bytes,
                settings.serve.max_request_samples,
                settings.serve.max_deadline_s,
            ),
            reply_prefixes=settings.serve.reply_prefixes,
            unavailable=frozenset(self._refused),
        )
        timers = {
            name: BatchTimer(model.curve, model.manifest.max_batch)
            for name, model in self._models.items()
        }
        self._room = WaitingRoom(timers, Admission(settings.serve.queue_samples).refusal)
        self._pipeline = Pipeline(
            decoder,
            {name: _format(manifest) for name, manifest in manifests.items()},
            self._room,
            self._metrics,
            Watchers(self._answered, self._link_changed),
            dead_topic=topics.dead,
            receive_maximum=settings.broker.receive_maximum,
        )
        self._link = BrokerLink(
            settings.broker,
            f"edged-{settings.device.name}",
            topics.status,
            topics.subscriptions,
            LinkHandlers(
                self._pipeline.arrived,
                self._pipeline.delivered,
                self._pipeline.link_changed,
                self._status,
            ),
            self._metrics,
        )
        self._uplink = Uplink(
            topics,
            self._publish_report,
            self._telemetry,
            settings.report.telemetry_interval_s,
            self._metrics,
        )
        self._began = time.monotonic()

    def _make_devices(self) -> list[Device]:
        by_device: dict[str, dict[str, Served]] = {}
        for name, model in self._models.items():
            served = Served(model.runner, model.manifest.input)
            by_device.setdefault(model.runner.device, {})[name] = served
        return [
            Device(device, models, self._room.take, self._room.completed, self._pipeline.done)
            for device, models in by_device.items()
        ]

    def _wait_until_ready(self, began: float) -> None:
        until = time.monotonic() + self._settings.broker.offline_after_s
        while not self._link.connected.is_set() and not self._stops:
            left = until - time.monotonic()
            if left <= 0:
                break
            self._link.connected.wait(min(left, LOOK_S))
        offline = not self._link.connected.is_set()
        took = time.monotonic() - began
        names = tuple(self._models)
        state = "offline: no broker yet" if offline else "connected"
        sd_notify.notify(ready=True, status=f"serving {', '.join(names)}; {state}")
        log.info("ready", extra={"models": names, "offline": offline, "seconds": round(took, 3)})
        for event in (
            *self._early,
            Started(time.time(), __version__, names, offline, round(took, 3)),
        ):
            self._uplink.emit(event)

    def _watch(self) -> str | None:
        """Looks after the threads until a signal comes; the reason if one of them failed."""
        interval = sd_notify.watchdog_interval_s()
        pause = min(LOOK_S, interval / 2) if interval else LOOK_S
        said = ""
        while not self._stops:
            fault = self._fault()
            if fault and fault.endswith("has died"):
                return fault
            if fault != said and fault:
                log.error("not feeding the watchdog: %s", fault)
            said = fault or ""
            if not fault:
                sd_notify.notify(watchdog=True)
            self._woken.wait(pause)
            self._woken.clear()
            if self._reload:
                self._reload = False
                self._read_settings_again()
        return None

    def _fault(self) -> str | None:
        if not self._link.alive():
            return "thread mqtt-net has died"
        if not self._uplink.thread.is_alive():
            return "thread uplink has died"
        return self._pipeline.fault(time.monotonic(), self._settings.serve.stuck_s)

    def _end(self) -> int:
        outstanding = self._pipeline.outstanding
        sd_notify.notify(stopping=True, status=f"draining {outstanding} requests")
        log.info("draining", extra={"outstanding": outstanding})
        self._uplink.emit(Stopping(time.time(), outstanding))
        self._publish_status("draining")
        left = self._pipeline.drain(self._settings.serve.drain_s)
        if left:
            log.warning(
                "%d requests were cut off after serve.drain_s = %g s; the broker delivers those of "
                "QoS 1 again",
                left,
                self._settings.serve.drain_s,
            )
        self._uplink.stop(1.0)
        self._link.stop(self._status("offline", self._link.epoch))
        self._pipeline.stop()
        for model in self._models.values():
            model.runner.close()
        log.info("stopped", extra={"cut_off": left})
        return EX_CUT_OFF if left else os.EX_OK

    def _fail(self, fault: str) -> int:
        log.critical("%s; ending, to be started again", fault)
        sd_notify.notify(status=fault)
        logging.shutdown()
        # Other threads may be stuck in native code: no orderly end is possible.
        os._exit(os.EX_SOFTWARE)

    # -------------------------------------------------------------- signals

    def _catch_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._reload = True
        else:
            self._stops += 1
            if self._stops > 1:
                os._exit(EX_CUT_OFF)  # asked twice: now
        self._woken.set()

    def _read_settings_again(self) -> None:
        sd_notify.notify(reloading=True)
        try:
            new = load_settings(self._file)
        except ConfigError as err:
            log.error("settings not reloaded, the old ones stay: %s", err.message)  # noqa: TRY400  # no fault of ours
        else:
            logs.configure(new.log.level, new.log.format)
            changed = [
                name
                for name in type(new).model_fields
                if name != "log" and getattr(new, name) != getattr(self._settings, name)
            ]
            log.info("settings reloaded", extra={"need_a_restart": changed})
        sd_notify.notify(ready=True)

    # -------------------------------------------------------------- status and reports

    def _status(self, state: str, session: int) -> bytes:
        document = status_document(
            state,
            self._boot_id,
            session,
            version=__version__,
            ts=time.time(),
            models=tuple(self._models) if state == "online" else (),
        )
        return json.dumps(document, separators=(",", ":")).encode()

    def _publish_status(self, state: str) -> None:
        payload = self._status(state, self._link.epoch)
        self._link.publish(
            Reply(self._topics.status, payload, 1, content_type="application/json", retain=True)
        )

    def _publish_report(self, topic: str, payload: bytes) -> bool:
        reply = Reply(topic, payload, 0, content_type="application/json")
        return self._link.connected.is_set() and self._link.publish(reply) is not None

    def _telemetry(self) -> Telemetry:
        now = time.monotonic()
        timers = {}
        for name in self._models:
            timer = self._room.timer(name)
            timers[name] = {
                "price": timer.price,
                "phi": round(timer.phi, 4),
                "rate": round(timer.rate(now), 3),
                "limit": timer.limit(now),
            }
        return Telemetry(
            time=time.time(),
            uptime_s=round(now - self._began, 3),
            outstanding=self._pipeline.outstanding,
            waiting_samples=self._room.samples,
            models=timers,
            metrics=self._metrics.snapshot(),
        )

    def _answered(self, outcome: Outcome, status: int) -> None:
        """On the reply thread."""
        if self._settings.report.results == "all":
            self._uplink.emit(
                Result(
                    time=time.time(),
                    model=outcome.model,
                    id=outcome.id,
                    status=status,
                    samples=outcome.samples,
                    latency_ms=round((time.monotonic() - outcome.received) * 1e3, 3),
                    outputs=_values(outcome),
                )
            )

    def _link_changed(self, change: LinkUp | LinkDown) -> None:
        """On the reply thread."""
        if isinstance(change, LinkDown):
            self._down_since = time.monotonic()
        elif self._down_since is not None:
            away = round(time.monotonic() - self._down_since, 3)
            self._down_since = None
            self._uplink.emit(Disconnected(time.time(), away, change.session_present))
            sd_notify.notify(status=f"serving {', '.join(self._models)}; connected")


def _say_warming(where: str, done: int, total: int) -> None:
    sd_notify.notify(status=f"warming {where}: {done} of {total} batch sizes", extend_timeout_s=60)


def _format(manifest: Manifest) -> ReplyFormat:
    labels: Mapping[str, tuple[str, ...]] = {
        output.name: output.labels for output in manifest.output if output.labels
    }
    return ReplyFormat(manifest.key[:12], labels)


def _values(outcome: Outcome) -> dict[str, object]:
    return {
        name: rows.tolist() if rows.size <= RESULT_VALUES else None
        for name, rows in outcome.outputs.items()
    }
