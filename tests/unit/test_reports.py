"""The thread that makes reports: order, limits, the interval, policies, the end."""

from __future__ import annotations

import json
import math
import queue
from collections.abc import Iterator

import numpy as np
import pytest

from edged.events import Event, Stopping, Telemetry
from edged.metrics import Metrics
from edged.protocol import Topics
from edged.report.policy import Answered
from edged.report.reports import QUEUED_BYTES, QUEUED_EVENTS, ReportPorts, Reports
from edged.report_settings import ReportSettings

TOPICS = Topics("edged/v1", "cam-7")
NEVER_S = 86_400.0
PATIENCE_S = 30.0


class Channel:
    """Takes what is sent, and makes telemetry on demand."""

    def __init__(self, interval_s: float = NEVER_S) -> None:
        self.metrics = Metrics()
        self.sent: queue.Queue[tuple[str, dict[str, object]]] = queue.Queue()
        self.takes = True
        self.endless = False
        settings = ReportSettings.model_construct(
            telemetry_interval_s=interval_s, results="all", models={}
        )
        ports = ReportPorts(self._send, self._telemetry)
        self.reports = Reports(TOPICS, settings, ports, self.metrics)

    def _send(self, topic: str, payload: bytes) -> bool:
        self.sent.put((topic, json.loads(payload)))
        if self.endless:
            self.reports.emit(Stopping(0.0, 0))
        return self.takes

    def _telemetry(self) -> Telemetry:
        models = {"digits": {"rate": math.nan}}
        return Telemetry(5.0, 60.0, 2, 3, models, {}, self.metrics.snapshot())

    def next(self) -> tuple[str, dict[str, object]]:
        """What was sent next."""
        return self.sent.get(timeout=PATIENCE_S)

    def next_data(self) -> object:
        """The data of the event that was sent next."""
        return self.next()[1]["data"]


@pytest.fixture
def channel() -> Iterator[Channel]:
    """Reports without telemetry, not started."""
    made = Channel()
    yield made
    if made.reports.thread.is_alive():
        made.reports.stop(PATIENCE_S)


def stopping(number: int) -> Event:
    """An event that can be told apart."""
    return Stopping(1.0, number)


def test_events_go_out_in_order(channel: Channel) -> None:
    """What was emitted first is published first, each on the topic of its kind."""
    channel.reports.start()
    for number in range(50):
        channel.reports.emit(stopping(number))

    for number in range(50):
        topic, document = channel.next()
        assert topic == "edged/v1/cam-7/event/stopping"
        assert document["source"] == "/edged/v1/cam-7"
        assert document["data"] == {"outstanding": number}


def test_a_full_queue_drops_and_counts(channel: Channel) -> None:
    """The newest are dropped, emitting never waits, and the rest goes out."""
    for number in range(QUEUED_EVENTS + 7):
        channel.reports.emit(stopping(number))

    assert repr(channel.reports) == f"<Reports {QUEUED_EVENTS} events wait, 0 answers>"
    assert channel.metrics.value("events_dropped_total", "stopping") == 7
    channel.reports.start()
    numbers = [channel.next_data() for _ in range(QUEUED_EVENTS)]
    assert numbers == [{"outstanding": number} for number in range(QUEUED_EVENTS)]


def test_what_the_link_does_not_take_is_counted(channel: Channel) -> None:
    """Without a broker events are dropped, not kept, and each one is counted."""
    channel.takes = False
    channel.reports.start()
    channel.reports.emit(stopping(1))
    channel.reports.emit(stopping(2))

    channel.reports.stop(PATIENCE_S)

    assert channel.sent.qsize() == 2
    assert channel.metrics.value("events_dropped_total", "stopping") == 2


def test_stop_publishes_what_is_queued(channel: Channel) -> None:
    """The last words are said before the thread ends."""
    for number in range(20):
        channel.reports.emit(stopping(number))
    channel.reports.start()

    channel.reports.stop(PATIENCE_S)

    assert not channel.reports.thread.is_alive()
    assert channel.sent.qsize() == 20


def test_telemetry_goes_out_at_the_interval() -> None:
    """It is published again and again as plain JSON, on its own topic."""
    channel = Channel(interval_s=0.01)
    channel.metrics.count("arrivals_total")
    channel.reports.start()

    for _ in range(3):
        topic, document = channel.next()
        assert topic == "edged/v1/cam-7/tele/metrics"
        assert document == {
            "time": 5.0,
            "uptime_s": 60.0,
            "outstanding": 2,
            "waiting_samples": 3,
            "models": {"digits": {"rate": None}},
            "devices": {},
            "metrics": {"arrivals_total": [{"value": 1}]},
            "device": {},
        }
    channel.reports.stop(PATIENCE_S)


def test_events_do_not_crowd_out_telemetry() -> None:
    """Telemetry keeps its interval while there is always another event to send."""
    channel = Channel(interval_s=0.01)
    channel.endless = True
    channel.reports.emit(stopping(1))
    channel.reports.start()

    topics = iter(lambda: channel.next()[0], "edged/v1/cam-7/tele/metrics")
    seen = sum(1 for _ in topics)

    assert seen >= 1
    channel.endless = False
    channel.reports.stop(PATIENCE_S)
    assert not channel.reports.thread.is_alive()


def test_answers_go_through_the_policy_and_become_results(channel: Channel) -> None:
    """With ``all`` each answer is a result event with its values; with ``none`` none is wanted."""
    assert channel.reports.wants("digits")
    channel.reports.start()
    channel.reports.answered(Answered(3.0, "digits", "a", 200, 1, 2.5, {}))
    topic, document = channel.next()

    assert topic == "edged/v1/cam-7/event/result"
    assert document["data"] == {
        "model": "digits", "id": "a", "status": 200, "samples": 1, "latency_ms": 2.5,
        "outputs": {},
    }  # fmt: skip
    channel.reports.configure(ReportSettings())
    assert not channel.reports.wants("digits")


def test_answers_that_wait_are_bounded_by_their_bytes(channel: Channel) -> None:
    """Large outputs fill the queue long before their number does; the rest is dropped, counted."""
    eighth = np.zeros((1, QUEUED_BYTES // 8), np.int8)
    large = Answered(3.0, "digits", "a", 200, 1, 2.5, {"y": eighth})
    for _ in range(11):
        channel.reports.answered(large)
    channel.reports.emit(stopping(1))

    assert channel.metrics.value("events_dropped_total", "result") == 3
    channel.reports.start()
    assert [channel.next()[0].rpartition("/")[2] for _ in range(9)] == [*["result"] * 8, "stopping"]
    channel.reports.answered(large)
    assert channel.next()[0] == "edged/v1/cam-7/event/result"


def test_an_answer_that_chance_passes_over_is_not_queued(channel: Channel) -> None:
    """With ``sampled`` only the share that is reported waits, and holds its outputs."""
    channel.reports.configure(ReportSettings(results="sampled", sample_rate=0.0))
    for _ in range(100):
        channel.reports.answered(Answered(3.0, "digits", "a", 200, 1, 2.5, {}))

    assert repr(channel.reports).endswith(" 0 answers>")


def test_a_new_interval_holds_at_once() -> None:
    """Telemetry that would have come in a day comes at the new interval."""
    channel = Channel()
    channel.reports.start()
    channel.reports.configure(ReportSettings(telemetry_interval_s=0.1))

    assert channel.next()[0] == "edged/v1/cam-7/tele/metrics"
    channel.reports.stop(PATIENCE_S)
