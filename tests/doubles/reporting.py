"""The report line as the daemon wires it, without a request path: a context manager."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, final

from edged.events import Event, Stopping, Telemetry
from edged.metrics import Metrics
from edged.protocol import Topics
from edged.report.configuration import ConfigurationPorts, settings_at_start
from edged.report.pipeline import Beginning, ReportLine, ServicePorts
from edged.report.status import Status
from edged.settings import Settings
from tests.doubles.wire import WAIT_S, Address

TOPICS = Topics("edged/v1", "edge")


@final
class Line:
    """A report line on real parts: outbox, link, threads.

    Attributes:
        line: the report line.
        metrics: its counters.
        applied: the settings that were applied, in order.
        check: what `Configuration` asks whether settings fit.
        commands: names of the commands that were carried out.

    Args:
        folder: of outbox and desired document; kept by the caller for a second run.
        broker: the control plane's.
        sections: settings, section by section.
    """

    def __init__(self, folder: Path, broker: Address, /, **sections: dict[str, Any]) -> None:
        values: dict[str, dict[str, Any]] = {
            "device": {"name": TOPICS.device},
            "broker": {"host": broker.host, "port": broker.port},
            "report": {"telemetry_interval_s": 3600},
            "outbox": {"path": folder / "outbox"},
            "paths": {"desired": folder / "desired.json"},
            "uplink": {
                "enabled": True,
                "backoff_min_s": 0.05,
                "backoff_max_s": 0.2,
                "batch_delay_s": 0.02,
                "ack_timeout_s": 1.0,
            },
        }
        for section, fields in sections.items():
            values.setdefault(section, {}).update(fields)
        self.own = Settings.model_validate(values)
        self.metrics = Metrics()
        self.applied: list[Settings] = []
        self.check: Callable[[Settings], Mapping[str, str]] = lambda _settings: {}
        self.commands: list[str] = []
        self._changed = threading.Condition()
        started, desired = settings_at_start(self.own)
        ports = ServicePorts(
            lambda _topic, _payload: True,
            lambda: Telemetry(time.time(), 1.0, 0, 0, {}, {}, self.metrics.snapshot()),
            ConfigurationPorts(self._apply, self._check, lambda: {"digits": "0" * 12}),
            {name: self._command(name) for name in ("drain", "resume", "reload", "diagnose")},
        )
        self.line = ReportLine(
            Beginning(self.own, started, desired), TOPICS, Status(tuple), ports, self.metrics
        )

    def __enter__(self) -> Line:
        self.line.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.line.stop(WAIT_S)

    def _apply(self, settings: Settings) -> None:
        with self._changed:
            self.applied.append(settings)
            self._changed.notify_all()
        self.line.configure(settings)

    def _check(self, settings: Settings) -> Mapping[str, str]:
        return self.check(settings)

    def _command(self, name: str) -> Callable[[], dict[str, object]]:
        def run() -> dict[str, object]:
            self.commands.append(name)
            return {"name": name}

        return run

    def emit(self, *numbers: int) -> None:
        """Reports events that can be told apart."""
        for number in numbers:
            self.line.emit(event(number))

    def stats(self) -> dict[str, Any]:
        """Numbers of the outbox, by stream."""
        outbox = self.line.numbers()["outbox"]
        assert isinstance(outbox, dict)
        streams: dict[str, Any] = outbox["streams"]
        return streams

    def wait_stats(self, condition: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """The outbox's numbers, once they fulfil a condition; each look is an answer of its thread.

        Raises:
            TimeoutError: they do not in time.
        """
        until = time.monotonic() + WAIT_S
        while not condition(found := self.stats()):
            if time.monotonic() > until:
                raise TimeoutError(f"no {what} within {WAIT_S} s: {found}")
            with self._changed:
                self._changed.wait(0.02)
        return found


def event(number: int) -> Event:
    """An event with a number in it."""
    return Stopping(time.time(), number)


def numbers(records: list[Any]) -> list[int]:
    """The numbers of such events, as the control plane has them."""
    return [record.body["data"]["outstanding"] for record in records]
