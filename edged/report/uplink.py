"""The sending thread of reports: events out of a bounded queue, telemetry at an interval.

`Reporter` is what the rest of the service sees. Here events are handed over in memory and published
best effort; a durable outbox can stand behind the same interface.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Protocol

from edged.events import Event, Telemetry, cloud_event, json_bytes
from edged.metrics import Metrics
from edged.protocol import Topics

log = logging.getLogger(__name__)

QUEUED_EVENTS = 1000


class Reporter(Protocol):
    """Takes events over; never waits."""

    def emit(self, event: Event) -> None:
        """Reports an event, or counts it as dropped."""


class Uplink:
    """Publishes events and telemetry. Implements `Reporter`.

    Args:
        topics: where to.
        send: (topic, payload) -> whether it was taken; never waits.
        telemetry: makes the telemetry of this moment.
        interval_s: seconds between two.
        metrics: counters.
    """

    def __init__(
        self,
        topics: Topics,
        send: Callable[[str, bytes], bool],
        telemetry: Callable[[], Telemetry],
        interval_s: float,
        metrics: Metrics,
    ) -> None:
        self._topics = topics
        self._send = send
        self._telemetry = telemetry
        self._interval_s = interval_s
        self._metrics = metrics
        self._events: queue.Queue[Event | None] = queue.Queue(QUEUED_EVENTS)
        self.thread = threading.Thread(target=self._work, name="uplink", daemon=True)

    def __repr__(self) -> str:
        return f"<Uplink {self._events.qsize()} events wait>"

    def emit(self, event: Event) -> None:
        """Queues an event; when the queue is full it is dropped and counted."""
        try:
            self._events.put_nowait(event)
        except queue.Full:
            self._metrics.count("events_dropped_total", event.kind)

    def start(self) -> None:
        """Starts the thread."""
        self.thread.start()

    def stop(self, timeout_s: float) -> None:
        """Publishes what is queued, then ends the thread."""
        try:
            self._events.put(None, timeout=timeout_s)
        except queue.Full:
            log.warning("events were not published in time: %r", self)
        self.thread.join(timeout_s)

    def _work(self) -> None:
        due = time.monotonic() + self._interval_s
        while True:
            now = time.monotonic()
            if now >= due:  # also while events keep coming
                due = now + self._interval_s
                self._publish(self._telemetry())
                continue
            try:
                event = self._events.get(timeout=due - now)
            except queue.Empty:
                continue
            if event is None:
                return
            self._publish(event)

    def _publish(self, event: Event) -> None:
        if isinstance(event, Telemetry):
            topic = self._topics.telemetry("metrics")
            payload = json_bytes(asdict(event))
        else:
            topic = self._topics.event(event.kind)
            payload = cloud_event(event, f"/{self._topics.base}")
        if not self._send(topic, payload):
            self._metrics.count("events_dropped_total", event.kind)
