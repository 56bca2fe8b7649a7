"""The report line: its stages, their threads, and what comes back from the control plane.

reports     thread reports     events, answers -> by policy, as JSON -> local broker
  | emit: never waits
outbox      thread outbox      -> disk
  | take
uplink      thread uplink      batches -> link; PUBACK, acknowledgement -> out of the outbox
                               desired settings, commands -> their handlers -> answers
link        thread uplink-net  the connection to the control plane's broker

Without ``uplink.enabled`` there is the first stage alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from edged.control_plane import HEAD_OVERHEAD, reported_document
from edged.events import Event, SettingsChanged, Telemetry, UplinkRestored, json_bytes
from edged.metrics import Metrics
from edged.protocol import Topics
from edged.report.commands import Commands, Handlers
from edged.report.configuration import Configuration, ConfigurationPorts
from edged.report.control_link import ControlLink, LinkOptions
from edged.report.link_messages import Incoming, Outgoing
from edged.report.outbox import Outbox
from edged.report.policy import Answered
from edged.report.reports import ReportPorts, Reports
from edged.report.status import Status
from edged.report.twin import Desired, fitting
from edged.report.uplink import Uplink, UplinkPorts
from edged.report.writer import Hooks
from edged.report_settings import UplinkSettings
from edged.settings import BrokerSettings, Settings

log = logging.getLogger(__name__)

LAST_WORDS_S = 1.0
"""At the end, so long is given to what is live; the rest goes up at the next start."""


@dataclass(frozen=True)
class Beginning:
    """The settings that the service starts with.

    Attributes:
        own: the device's own: environment, credentials, file.
        started: with the desired ones over them.
        desired: the document that is in them, if any.
    """

    own: Settings
    started: Settings
    desired: Desired | None = None


@dataclass(frozen=True)
class ServicePorts:
    """What the report line asks of the service. Any thread may call.

    Attributes:
        send: (topic, payload) -> whether the local broker's link took it; never waits.
        telemetry: makes the telemetry of this moment.
        configuration: what settings are applied to.
        commands: what carries commands out; ``get-config`` is answered here.
    """

    send: Callable[[str, bytes], bool]
    telemetry: Callable[[], Telemetry]
    configuration: ConfigurationPorts
    commands: Handlers


class ReportLine:
    """All stages and threads between what happens and the control plane.

    Attributes:
        configuration: the settings in effect.

    Args:
        beginning: the settings to start with.
        topics: of this device.
        status: of the service.
        ports: what it asks of the service.
        metrics: counters.
    """

    def __init__(
        self,
        beginning: Beginning,
        topics: Topics,
        status: Status,
        ports: ServicePorts,
        metrics: Metrics,
    ) -> None:
        settings = beginning.started
        self._topics = topics
        self._status = status
        self._metrics = metrics
        self.configuration = Configuration(
            beginning.own, settings, beginning.desired, ports.configuration
        )
        self._heard_desired = False
        self._outbox: Outbox | None = None
        self._uplink: Uplink | None = None
        self._link: ControlLink | None = None
        if settings.uplink.enabled:
            self._outbox = Outbox(settings.outbox, metrics, Hooks(self._stored, self.emit))
            self._uplink = self._make_uplink(settings.uplink, self._outbox)
            self._link = self._make_link(settings, self._uplink)
        report_ports = ReportPorts(ports.send, ports.telemetry, self._outbox)
        self._reports = Reports(topics, settings.report, report_ports, metrics)
        handlers = {**ports.commands, "get-config": self._reported}
        self._commands = Commands(topics, handlers, metrics)

    def __repr__(self) -> str:
        return f"<ReportLine {self._reports!r}, {self._link!r}>"

    def _make_uplink(self, settings: UplinkSettings, outbox: Outbox) -> Uplink:
        ports = UplinkPorts(
            self._publish, self._heard, lambda: [self._reported_message()], self._restored
        )
        boot_id = self._status.boot_id
        return Uplink(settings, self._topics, boot_id, outbox, ports, self._metrics)

    def _make_link(self, settings: Settings, uplink: Uplink) -> ControlLink:
        options = LinkOptions(
            connection(settings.uplink, settings.broker),
            f"edged-{settings.device.name}-uplink",
            self._topics.uplink_subscriptions,
            self._topics.uplink,
            self._status.document,
        )
        return ControlLink(options, uplink.changed, self._metrics)

    # -------------------------------------------------------------- life

    def start(self) -> None:
        """Starts all threads.

        Raises:
            OutboxLockedError: another process uses the outbox.
        """
        if self._outbox is not None:
            self._outbox.start()
        self._reports.start()
        if self._uplink is not None and self._link is not None:
            self._uplink.start()
            self._link.start()

    def stop(self, timeout_s: float) -> None:
        """Passes on what is queued, sends what is live, ends all threads."""
        self._reports.stop(timeout_s)
        if self._outbox is None or self._uplink is None or self._link is None:
            return
        self._outbox.flush(timeout_s)
        self._uplink.finish(LAST_WORDS_S)
        self._link.stop(timeout_s)
        self._uplink.stop(timeout_s)
        if not self._outbox.stop(timeout_s):
            log.warning("the outbox could not be closed within %g s", timeout_s)

    def dead(self) -> str | None:
        """Name of a thread that has died, which ends the service."""
        return next((each.name for each in self._threads() if not each.is_alive()), None)

    def _threads(self) -> list[threading.Thread]:
        parts = (self._reports, self._outbox, self._uplink, self._link)
        return [part.thread for part in parts if part is not None]

    # -------------------------------------------------------------- for the service

    def emit(self, event: Event) -> None:
        """Reports an event; never waits."""
        self._reports.emit(event)

    def wants(self, model: str) -> bool:
        """Whether answers of a model are looked at at all."""
        return self._reports.wants(model)

    def answered(self, answered: Answered) -> None:
        """Reports an answer, if the policy of its model wants it; never waits."""
        self._reports.answered(answered)

    def configure(self, settings: Settings) -> None:
        """Goes by other settings from now on, as far as they may change live."""
        self._reports.configure(settings.report)

    def announce(self) -> None:
        """Tells the control plane what is in effect now: settings, or models, have changed."""
        if self._uplink is not None:
            self._uplink.say(self._reported_message())

    def heard(self) -> bool:
        """Whether nothing desired is to be expected any more: it has come, or nobody is asked."""
        return self._link is None or (self._link.connected and self._heard_desired)

    def numbers(self) -> Mapping[str, object]:
        """State of uplink and outbox, for ``diagnose``. May wait for the outbox's thread."""
        if self._outbox is None or self._link is None:
            return {"enabled": False}
        stats = self._outbox.stats()
        return {
            "enabled": True,
            "connected": self._link.connected,
            "connections": self._link.epoch,
            "outbox": asdict(stats) if stats is not None else None,
        }

    # -------------------------------------------------------------- between the stages

    def _stored(self) -> None:
        if self._uplink is not None:
            self._uplink.stored()

    def _publish(self, message: Outgoing, epoch: int) -> int | None:
        return self._link.publish(message, epoch) if self._link is not None else None

    def _restored(self, seconds: float) -> None:
        stats = self._outbox.stats() if self._outbox is not None else None
        waiting = sum(each.rows for each in stats.streams.values()) if stats else 0
        self.emit(UplinkRestored(time.time(), round(seconds, 3), waiting))

    def _heard(self, message: Incoming) -> list[Outgoing]:
        """A message of the control plane, on the uplink's thread; what is answered."""
        if message.topic == self._topics.config_desired:
            return self._desired(message.payload)
        answer = self._commands.answer(message)
        return [answer] if answer is not None else []

    def _desired(self, payload: bytes) -> list[Outgoing]:
        self._heard_desired = True
        if not payload:
            return []  # the retained message was cleared: what it said stays in effect
        changed = self.configuration.desire(payload)
        twin = self.configuration.twin()
        if changed:
            reason = "; ".join(f"{key.path}: {key.reason}".lstrip(": ")
                               for key in twin.keys if key.reason)[:1000]  # fmt: skip
            self._metrics.count("desired_total", twin.status)
            self.emit(SettingsChanged(time.time(), twin.desired_version, twin.status, reason))
        return [self._reported_message()]

    def _reported(self) -> dict[str, object]:
        document = reported_document(self.configuration.twin(), self._status.boot_id, time.time())
        if self._uplink is None:
            return document
        return fitting(document, self._uplink.window.most_bytes - HEAD_OVERHEAD)

    def _reported_message(self) -> Outgoing:
        return Outgoing(self._topics.config_reported, json_bytes(self._reported()), retain=True)


def connection(uplink: UplinkSettings, broker: BrokerSettings) -> BrokerSettings:
    """How to connect: as ``[broker]`` says, or to a broker of its own where ``uplink.host`` is."""
    names = ["keepalive_s", "connect_timeout_s", "backoff_min_s", "backoff_max_s"]
    update: dict[str, object] = {}
    if uplink.host is not None:
        names += ["host", "port", "username", "password", "tls", "ca_file", "cert_file", "key_file"]
        update["transport"] = "tcp"
    return broker.model_copy(update=update | {name: getattr(uplink, name) for name in names})
