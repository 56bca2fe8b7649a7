"""Events, answers and telemetry on their way out: by policy, as JSON, to the local broker and up.

What happens is handed over in memory, so that who reports never waits; the thread ``reports`` makes
documents of it: of events at once, of answers some at a time, since each time that a thread wakes
it takes the interpreter from a request. Events and telemetry are published to the local broker best
effort. With an uplink they go into the outbox as well, results into the outbox alone.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

from edged.events import Event, Result, Summary, Telemetry, cloud_event, json_bytes, plain
from edged.metrics import Metrics
from edged.protocol import Topics
from edged.report.policy import Answered, ResultPolicies, result
from edged.report_settings import ReportSettings

log = logging.getLogger(__name__)
About = TypeVar("About")

QUEUED_EVENTS = 1000
"""Events that wait to be looked at."""
QUEUED_ANSWERS = 5000
"""Answers that do."""
QUEUED_BYTES = 64 * 1024 * 1024
"""Of outputs of answers that wait; a model with large ones reaches it long before the number."""
LOOK_S = 0.25
"""Answers are looked at so often, all that came together: 37 at a time at 150 a second cost half as
much each as 4, and live data may be 1 s late."""
RUN = 8
"""After so many, which take some tenths of a millisecond, a request may have the interpreter."""
BREATH_S = 50e-6
"""Not 0: whoever releases the interpreter for an instant is the first to have it again."""


class Reporter(Protocol):
    """Takes events over; never waits."""

    def emit(self, event: Event) -> None:
        """Reports an event, or counts it as dropped."""


class Shelf(Protocol):
    """Where reports for the control plane are stored: the outbox."""

    def emit(
        self, stream: str, body: bytes | Callable[[], bytes], *,
        kind: str = "", key: str = "", time: float | None = None,
    ) -> None:  # fmt: skip
        """Takes a report over; never waits."""


@dataclass(frozen=True)
class ReportPorts:
    """What reports are made of and where they go.

    Attributes:
        send: (topic, payload) -> whether the local broker's link took it; never waits.
        telemetry: makes the telemetry of this moment.
        shelf: takes what goes up; None without an uplink.
    """

    send: Callable[[str, bytes], bool]
    telemetry: Callable[[], Telemetry]
    shelf: Shelf | None = None


class _Nudge:
    """Has the thread look at its settings again."""


class _Judged(NamedTuple):
    """An answer that waits for the policy of its model.

    Attributes:
        answered: the answer.
        chance: uniform in [0, 1), drawn when it came.
        bytes: of its outputs.
    """

    answered: Answered
    chance: float
    bytes: int


_Item: TypeAlias = Event | _Nudge | None


class Reports:
    """Makes and passes on reports. Implements `Reporter`.

    Args:
        topics: of this device.
        settings: ``[report]``.
        ports: what it works with.
        metrics: counters.
    """

    def __init__(
        self, topics: Topics, settings: ReportSettings, ports: ReportPorts, metrics: Metrics
    ) -> None:
        self._topics = topics
        self._ports = ports
        self._metrics = metrics
        self._policies = ResultPolicies(settings)
        self._queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._answers: deque[_Judged] = deque()
        # Bytes of answers that came and that were looked at: one writer each, so without a lock.
        self._bytes_in = self._bytes_out = 0
        self._summed_at = time.monotonic()
        self.thread = threading.Thread(target=self._work, name="reports", daemon=True)

    def __repr__(self) -> str:
        return f"<Reports {self._queue.qsize()} events wait, {len(self._answers)} answers>"

    # -------------------------------------------------------------- for other threads

    @property
    def settings(self) -> ReportSettings:
        """``[report]`` as it is now."""
        return self._policies.settings

    def configure(self, settings: ReportSettings) -> None:
        """Goes by other settings from now on."""
        self._policies.settings = settings
        self._queue.put(_Nudge())

    def emit(self, event: Event) -> None:
        """Queues an event; when the queue is full it is dropped and counted."""
        if self._queue.qsize() >= QUEUED_EVENTS:
            self._metrics.count("events_dropped_total", event.kind)
        else:
            self._queue.put(event)

    def wants(self, model: str) -> bool:
        """Whether answers of a model are looked at at all."""
        return self._policies.policy(model) != "none"

    def answered(self, answered: Answered) -> None:
        """Queues an answer for the policy of its model, unless chance has decided already.

        One thread only; it wakes nobody.
        """
        chance = random.random()  # noqa: S311  # a sample, not a secret
        if not self._policies.may_report(answered.model, chance):
            return
        used = sum([rows.nbytes for rows in answered.outputs.values()])
        waiting = self._bytes_in - self._bytes_out
        if len(self._answers) >= QUEUED_ANSWERS or waiting + used > QUEUED_BYTES:
            self._metrics.count("events_dropped_total", Result.kind)
        else:
            self._bytes_in += used
            self._answers.append(_Judged(answered, chance, used))

    def start(self) -> None:
        """Starts the thread."""
        self.thread.start()

    def stop(self, timeout_s: float) -> None:
        """Passes on what is queued, then ends the thread."""
        self._queue.put(None)
        self.thread.join(timeout_s)

    # -------------------------------------------------------------- the thread

    def _work(self) -> None:
        last = time.monotonic()
        while True:
            now = time.monotonic()
            due = last + self.settings.telemetry_interval_s
            if now >= due:  # also while events keep coming
                last = now
                self._tell_state(now)
                continue
            longest = LOOK_S if self._policies.any_wanted else due - now
            try:
                item = self._queue.get(timeout=min(due - now, longest))
            except queue.Empty:
                item = _Nudge()
            self._look_at_answers()
            if item is None:
                self._sum_up(time.monotonic())
                return
            if isinstance(item, Event):
                self._guarded(item.kind, self._pass_on, item)

    def _look_at_answers(self) -> None:
        for number in range(len(self._answers)):  # not those that come meanwhile: events wait
            if number and number % RUN == 0:
                time.sleep(BREATH_S)
            judged = self._answers.popleft()
            self._bytes_out += judged.bytes
            self._guarded(Result.kind, self._judge, judged)

    def _judge(self, judged: _Judged) -> None:
        if self._policies.reports(judged.answered, judged.chance):
            self._pass_on(result(judged.answered))

    def _guarded(self, kind: str, report: Callable[[About], None], about: About) -> None:
        """A report that cannot be made is counted; it must not end the service."""
        try:
            report(about)
        except Exception:
            log.exception("a report cannot be made and is dropped")
            self._metrics.count("events_dropped_total", kind)

    def _tell_state(self, now: float) -> None:
        self._pass_on(self._ports.telemetry())
        self._sum_up(now)

    def _sum_up(self, now: float) -> None:
        for summary in self._policies.summaries(time.time(), now - self._summed_at):
            self._pass_on(summary)
        self._summed_at = now

    def _pass_on(self, event: Event) -> None:
        shelf = self._ports.shelf
        telemetry = isinstance(event, Telemetry)
        body = json_bytes(plain(event)) if telemetry else self._cloud_event(event)
        if shelf is not None:
            shelf.emit(_stream(event), body, kind=event.kind, time=event.time)
            if isinstance(event, (Result, Summary)):
                return
        kind = event.kind
        topic = self._topics.telemetry("metrics") if telemetry else self._topics.event(kind)
        if not self._ports.send(topic, body):
            self._metrics.count("events_dropped_total", kind)

    def _cloud_event(self, event: Event) -> bytes:
        return cloud_event(event, f"/{self._topics.base}")


def _stream(event: Event) -> str:
    """The stream that an event goes up in."""
    if isinstance(event, (Result, Summary)):
        return "result"
    return "telemetry" if isinstance(event, Telemetry) else "event"
