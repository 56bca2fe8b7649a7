"""The only place that assembles the service: wires, starts, drains, stops; signals and exit codes.

Crash-only: a thread that dies ends the process, systemd starts it again in seconds, and requests
that were not acknowledged are delivered again.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
import time
from functools import partial
from pathlib import Path

from edged import __version__, logs, sd_notify
from edged.control import Control, ControlPorts, Parts
from edged.engine_store import EngineStore
from edged.errors import EdgedError
from edged.events import Degraded, Disconnected, Event, Started, Stopping
from edged.metrics import Metrics
from edged.observers import Observers
from edged.protocol import JSON, PoolTopics, Topics
from edged.rebuild import Rebuilds, build_command
from edged.report.configuration import ConfigurationPorts, settings_at_start
from edged.report.pipeline import Beginning, ReportLine, ServicePorts
from edged.report.status import Status
from edged.serve.admit import Admission
from edged.serve.batch import WaitingRoom
from edged.serve.crash_journal import open_journal
from edged.serve.decode import Decoder, Limits
from edged.serve.devices import Devices, Notice
from edged.serve.duplicates import Duplicates
from edged.serve.models import ModelHost
from edged.serve.mqtt import BrokerLink
from edged.serve.pipeline import Pipeline
from edged.serve.pipeline_ports import Sender, Watchers
from edged.serve.pool import Membership
from edged.serve.request import LinkDown, LinkUp, Reply
from edged.settings import Settings, load_settings
from edged.signals import EX_CUT_OFF, Signals

log = logging.getLogger(__name__)

LOOK_S = 0.5
"""The main thread looks after the others so often, and at least twice in a watchdog interval."""
HEAR_S = 5.0
"""A run that can serve nothing gives the control plane so long to say what it wants instead."""
SWITCH_INTERVAL_S = 0.0005
"""Interpreter lock hand-over; the default of 5 ms let one busy thread move paho's p50 from 0.9 to
6.0 ms on two cores, this one to 3.0 ms (docs/benchmarks.md)."""


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
    started, desired = settings_at_start(settings)
    logs.configure(started.log.level, started.log.format)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    threading.excepthook = logs.end_process
    sd_notify.notify(status="loading models")
    return Service(Beginning(settings, started, desired), file).run(began)


class Service:
    """One run of the daemon."""

    def __init__(self, beginning: Beginning, file: Path | None) -> None:
        settings = beginning.started
        self._file = file
        self._topics = topics = Topics(settings.device.root, settings.device.name)
        self._metrics = metrics = Metrics()
        self._host = host = ModelHost(EngineStore(settings.paths.engines), settings.serve)
        self._status = Status(lambda: tuple(host.models), host.engines)
        command = build_command(settings.paths.engines, settings.paths.calib, file)
        self._rebuilds = Rebuilds(command, enabled=settings.serve.rebuild)
        self._room = WaitingRoom({}, Admission(settings.serve.queue_samples).refusal)
        self._down_since: float | None = None
        self._signals = signals = Signals()
        self._out: tuple[str, ...] = ()  # devices that were out when it was told last
        self._engines_due = False
        self._loader: threading.Thread | None = None
        journal = open_journal(settings.paths.journal, time.time())
        self._devices = devices = Devices(
            host,
            self._room,
            metrics,
            Notice(self._emit, signals.wake, self._warming),
            journal=journal,
        )
        serve = settings.serve
        limits = Limits(serve.max_request_bytes, serve.max_request_samples, serve.max_deadline_s)
        pool = PoolTopics(topics.root, serve.pool) if serve.pool else None
        self._observers = observers = Observers(settings, topics, metrics)
        self._pipeline = Pipeline(
            Decoder(
                topics,
                host.manifest,
                limits=limits,
                reply_prefixes=serve.reply_prefixes,
                pool=pool,
                unavailable=host.refused,
            ),
            devices.formats,
            self._room,
            metrics,
            Watchers(observers.answered, self._link_changed),
            dead_topic=topics.dead,
            duplicates=Duplicates(serve.dedup_bytes, serve.dedup_s),
            journal=journal,
        )
        pipeline = self._pipeline
        self._link = BrokerLink(
            settings.broker,
            f"edged-{settings.device.name}",
            topics.status,
            topics.subscriptions + (pool.subscriptions if pool else ()),
            pipeline.handlers(self._status.document),
            metrics,
        )
        self._pool = Membership(pool, self._link.subscriptions, settings.broker.receive_maximum)
        parts = Parts(host, self._room, devices, pipeline, self._link, metrics, self._pool)
        self._control = control = Control(
            parts, ControlPorts(signals.wake, signals.ask_reload, self._emit)
        )
        self._reports = ReportLine(
            beginning,
            topics,
            self._status,
            ServicePorts(
                self._publish_report,
                control.tell_state,
                ConfigurationPorts(self._apply, control.check, control.versions),
                control.commands(),
            ),
            metrics,
        )
        control.uplink = self._reports.numbers
        observers.tells(self._reports, self._link.publish)

    @property
    def _settings(self) -> Settings:
        return self._reports.configuration.effective

    # -------------------------------------------------------------- from start to end

    def run(self, began: float) -> int:
        """Starts, serves, and ends; returns the exit code."""
        self._signals.catch()
        self._reports.start()
        self._observers.start()
        if not self._host.wanted():
            return self._nothing_to_serve([])
        self._link.start(subscribe=False)  # it connects while models are warmed
        early = self._devices.load(lambda: self._signals.stops > 0)
        asked = self._host.outdated
        if not self._host.models and self._rebuilds.wait(asked, lambda: self._signals.stops > 0):
            early += self._devices.load(lambda: self._signals.stops > 0)
        if self._signals.stops or not self._host.models:
            self._link.stop(self._status.document("offline", self._link.epoch))
            return self._nothing_to_serve(early)
        running = self._devices.start(self._pipeline.done)
        sender = Sender(self._link.publish, self._link.acknowledge, self._link.wake)
        self._pipeline.start(sender, running)
        self._devices.start_tuning(self._settings.timer)
        gc.collect()
        gc.freeze()  # what is loaded stays; no collection needs to look at it again
        self._wait_until_ready(began, early)
        fault = self._watch()
        return self._fail(fault) if fault else self._end()

    def _nothing_to_serve(self, events: list[Event]) -> int:
        """Reports why, and hears what is desired by now: it may mend the next start."""
        if not self._signals.stops:
            log.critical(
                "no model can be served; build one with: edged build MODEL, then see: edged doctor",
                extra={"refused": dict(self._host.refused)},
            )
        for event in events:
            self._reports.emit(event)
        until = time.monotonic() + HEAR_S
        while not (self._signals.stops or self._reports.heard()) and time.monotonic() < until:
            self._signals.sleep(LOOK_S)
        self._reports.stop(1.0)
        return os.EX_OK if self._signals.stops else os.EX_UNAVAILABLE

    def _wait_until_ready(self, began: float, early: list[Event]) -> None:
        until = time.monotonic() + self._settings.broker.offline_after_s
        while not self._link.connected.is_set() and not self._signals.stops:
            left = until - time.monotonic()
            if left <= 0:
                break
            sd_notify.notify(extend_timeout_s=60)
            self._link.connected.wait(min(left, LOOK_S))
        self._status.change("online")
        self._link.subscriptions.ask()
        self._publish_status()
        offline = not self._link.connected.is_set()
        took = round(time.monotonic() - began, 3)
        names = tuple(self._host.models)
        sd_notify.notify(ready=True, status=self._sentence())
        log.info("ready", extra={"models": names, "offline": offline, "seconds": took})
        for event in (*early, Started(time.time(), __version__, names, offline, took)):
            self._reports.emit(event)

    def _watch(self) -> str | None:
        """Looks after the threads until a signal comes; the reason if one of them failed."""
        interval = sd_notify.watchdog_interval_s()
        pause = min(LOOK_S, interval / 2) if interval else LOOK_S
        said = ""
        while not self._signals.stops:
            if fatal := self._fatal():
                return fatal
            now, limit = time.monotonic(), self._settings.serve.stuck_s
            stuck = self._link.stuck(now, limit) or self._pipeline.stuck(now, limit) or ""
            if stuck and stuck != said:
                log.error("not feeding the watchdog: %s", stuck)
            said = stuck
            if not stuck:
                sd_notify.notify(watchdog=True)
            self._tell_state()
            self._signals.sleep(pause)
            if self._signals.reload:
                self._signals.reload = False
                self._read_settings_again()
                self._engines_due = True  # also where no setting changed
            if self._rebuilds.look(self._host.outdated):
                self._engines_due = True
            self._load_due_engines()
        return None

    def _tell_state(self) -> None:
        out = tuple(sorted(self._devices.faults))
        if out != self._out:
            self._out = out
            self._reports.emit(Degraded(time.time(), out))
        progress = ", ".join(f"{name} failed" for name in out)
        state = "degraded" if out else "online"
        if self._control.held:
            state, progress = "draining", "by command, until it is resumed"
        if self._status.change(state, progress):
            self._publish_status()
            sd_notify.notify(status=self._sentence())
        if self._link.connected.is_set():
            self._observers.look(self._link.epoch, list(self._host.models), self._host.devices())

    def _fatal(self) -> str | None:
        """Why this process cannot go on."""
        if self._devices.lost:
            return self._devices.lost
        dead = self._pipeline.dead()
        if not self._link.alive():
            dead = "mqtt-net"
        dead = dead or self._reports.dead()
        return f"thread {dead} has died" if dead else None

    def _end(self) -> int:
        outstanding = self._pipeline.outstanding
        sd_notify.notify(stopping=True, status=f"draining {outstanding} requests")
        log.info("draining", extra={"outstanding": outstanding})
        self._reports.emit(Stopping(time.time(), outstanding))
        self._control.stopping = True
        self._status.change("draining")
        self._publish_status()
        limit = self._settings.serve.drain_s
        arrived = partial(self._metrics.total, "arrivals_total")
        took = self._pool.leave_empty(lambda: self._pipeline.outstanding, arrived, limit / 2)
        left = self._pipeline.drain(limit - took)
        if left:
            log.warning(
                "%d requests were cut off after serve.drain_s = %g s; the broker delivers those of "
                "QoS 1 again",
                left,
                limit,
            )
        self._rebuilds.stop()
        self._reports.stop(1.0)
        self._observers.stop(1.0)
        self._devices.stop_tuning()
        self._link.stop(self._status.document("offline", self._link.epoch))
        self._pipeline.stop()
        for model in list(self._host.models.values()):
            model.close()
        log.info("stopped", extra={"cut_off": left})
        return EX_CUT_OFF if left else os.EX_OK

    def _fail(self, fault: str) -> int:
        log.critical("%s; ending, to be started again", fault)
        sd_notify.notify(status=fault)
        logging.shutdown()
        # Other threads may be stuck in native code: no orderly end is possible.
        os._exit(os.EX_SOFTWARE)

    # -------------------------------------------------------------- settings and engines

    def _read_settings_again(self) -> None:
        """Takes over what may change live, and new engines from the store, in the background."""
        sd_notify.notify(reloading=True)
        try:
            waiting = self._reports.configuration.reload(load_settings(self._file))
        except EdgedError as err:
            log.error("settings not reloaded, the old ones stay: %s", err.message)  # noqa: TRY400  # no fault of ours
        else:
            log.info("settings reloaded", extra={"need_a_restart": waiting})
            self._reports.announce()
        sd_notify.notify(ready=True)

    def _apply(self, settings: Settings) -> None:
        """Takes over what may change while the service runs; by one thread at a time."""
        logs.configure(settings.log.level, settings.log.format)
        self._host.settings = settings.serve
        self._devices.retune(settings.timer)
        self._room.set_rule(Admission(settings.serve.queue_samples).refusal)
        self._reports.configure(settings)
        self._engines_due = True
        self._signals.wake()

    def _load_due_engines(self) -> None:
        """Has new engines loaded, one after the other: a reload during a load is not forgotten."""
        if self._engines_due and (self._loader is None or not self._loader.is_alive()):
            self._engines_due = False
            self._loader = threading.Thread(target=self._refresh, name="loader", daemon=True)
            self._loader.start()

    def _refresh(self) -> None:
        """On the loader thread: engines that are new in the store take over."""
        for event in self._devices.load(lambda: self._signals.stops > 0):
            self._reports.emit(event)
        self._reports.announce()
        self._signals.wake()

    # -------------------------------------------------------------- status and reports

    def _sentence(self) -> str:
        where = "connected" if self._link.connected.is_set() else "offline: no broker yet"
        faults = sorted(self._devices.faults)
        out = f"; out: {', '.join(faults)}" if faults else ""
        return f"serving {', '.join(self._host.models)}; {where}{out}"

    def _warming(self, where: str, done: int, total: int) -> None:
        if self._status.state != "warming":
            return  # on the loader thread: the service goes on meanwhile
        progress = f"{where}: {done} of {total} steps"
        sd_notify.notify(status=f"warming {progress}", extend_timeout_s=60)
        if self._status.change("warming", progress):
            self._publish_status()

    def _publish_status(self) -> None:
        if self._link.connected.is_set():
            payload = self._status.document("online", self._link.epoch)
            self._link.publish(Reply(self._topics.status, payload, 1, None, JSON, retain=True))

    def _emit(self, event: Event) -> None:
        self._reports.emit(event)

    def _publish_report(self, topic: str, payload: bytes) -> bool:
        reply = Reply(topic, payload, 0, content_type=JSON)
        return self._link.connected.is_set() and self._link.publish(reply) is not None

    def _link_changed(self, change: LinkUp | LinkDown) -> None:
        """On the link's thread."""
        if isinstance(change, LinkDown):
            self._down_since = time.monotonic()
        elif self._down_since is not None:
            away = round(time.monotonic() - self._down_since, 3)
            self._down_since = None
            self._reports.emit(Disconnected(time.time(), away, change.session_present))
        sd_notify.notify(status=self._sentence())
