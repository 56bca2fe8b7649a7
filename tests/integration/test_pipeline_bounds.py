"""What the request path holds at once is bounded: arrivals, replies, the share of the broker.

The link is a scripted one; the last test has a real broker in front.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edged.serve.intake import ARRIVALS
from edged.serve.link_handlers import LinkHandlers
from edged.serve.mqtt import BrokerLink
from edged.serve.pipeline import BACKLOG, SLOTS
from edged.serve.pipeline_ports import Sender
from edged.serve.request import Arrival
from edged.settings import BrokerSettings
from tests.doubles.broker import Mosquitto
from tests.doubles.runner import WAIT_S, ScriptedRunner
from tests.doubles.serving import MODEL, REPLY, TOPICS, Load, ScriptedLink, Serving, body
from tests.doubles.wire import Ask, WireClient

BAD = b"{"


def test_not_more_replies_are_out_than_the_broker_takes() -> None:
    """With a window of 2, the third reply goes out when the broker has acknowledged the first."""
    link = ScriptedLink(automatic=False)
    with Serving(ScriptedRunner(), link) as serving:
        link.up(window=2)
        for _ in range(5):
            serving.arrive(BAD)
        serving.arrive(BAD, qos=0)  # is outside the window, so it marks that all were handled
        link.wait(lambda: any(not sent.reply.qos for sent in link.sent))
        assert [sent.reply.qos for sent in link.sent] == [1, 1, 0]
        link.deliver(1)
        assert len(link.wait_sent(4)) == 4
        link.deliver(2)
        assert len(link.wait_sent(6)) == 6
        assert len(link.acknowledged) <= 3


def test_qos_1_finds_room_when_qos_0_has_filled_the_queue() -> None:
    """A flood of QoS 0 is dropped and counted, and cannot make a QoS 1 request be lost.

    The threads are not started yet, so what arrives stays in the queue.
    """
    with Serving(ScriptedRunner(), load=Load(started=False)) as serving:
        serving.link.up()
        assert all(serving.arrive(BAD, qos=0) for _ in range(ARRIVALS))
        assert not serving.arrive(BAD, qos=0)
        assert all(serving.arrive(BAD) for _ in range(5))
        serving.start()
        sent = serving.link.wait_sent(ARRIVALS + 5)
    assert len(sent) == ARRIVALS + 5
    assert serving.metrics.value("arrivals_total") == ARRIVALS + 6
    assert serving.metrics.value("arrivals_dropped_total", "arrivals_full") == 1
    assert serving.pipeline.outstanding == 0


def test_qos_1_is_left_to_the_broker_while_the_service_drains() -> None:
    """It is neither answered nor acknowledged, so the next start gets it; QoS 0 is told."""
    with Serving(ScriptedRunner()) as serving:
        assert serving.pipeline.drain(0) == 0

        assert not serving.arrive(BAD)
        assert serving.arrive(BAD, qos=0)
        assert len(serving.link.wait_sent(1)) == 1

        assert serving.link.acknowledged == []
        assert serving.metrics.value("arrivals_dropped_total", "draining") == 1


def test_a_broker_that_takes_no_replies_holds_intake_back() -> None:
    """Replies that wait are bounded; intake stops, and all are answered when the broker goes on."""
    link = ScriptedLink(automatic=False)
    total = BACKLOG + SLOTS + 500
    with Serving(ScriptedRunner(), link, Load()) as serving:
        link.up(window=1)
        for _ in range(total):
            assert serving.arrive(BAD)
        wait_until_held(serving)
        waiting = serving.pipeline._intake.waiting
        assert waiting >= total - BACKLOG - 2 * SLOTS - 2
        link.automatic = True
        link.up(window=50)
        assert len(link.wait_sent(total)) == total
        until = time.monotonic() + WAIT_S
        while serving.pipeline.outstanding and time.monotonic() < until:
            threading.Event().wait(0.001)
        assert serving.pipeline.outstanding == 0
    # No slot was lost, and none appeared from nowhere: `stop` gives SLOTS + BACKLOG on top.
    assert serving.pipeline._slots._value == 2 * SLOTS + BACKLOG


def wait_until_held(serving: Serving) -> None:
    """Waits until intake stands still: it holds one arrival and takes no further one."""
    until = time.monotonic() + WAIT_S
    slots = serving.pipeline._slots
    while slots._value or serving.pipeline._publisher.backlog < BACKLOG:
        assert time.monotonic() < until, repr(serving.pipeline)
        threading.Event().wait(0.001)


# ------------------------------------------------------------------ with a real broker in front


@pytest.mark.parametrize("receive_maximum", [1, 5])
def test_a_full_queue_slows_the_broker_not_the_process(
    tmp_path: Path, receive_maximum: int
) -> None:
    """The broker keeps what is above our receive maximum, and all are answered in the end.

    1. The device holds; 120 requests are published, then one QoS 0 request that marks their end.
    2. When the mark is here the broker has seen them all, yet only receive_maximum have come.
    3. The device goes on: all 120 are answered, each once.

    Not asserted: that the bound also holds while acknowledgements flow. mosquitto 2.0.11 breaks it
    then, and sends up to receive maximum new requests for each one that is acknowledged.
    """
    runner = ScriptedRunner(2, lanes=2, held=True)
    load = Load(started=False)
    with Mosquitto(tmp_path) as broker, Serving(runner, load=load) as serving:
        arrived: list[Arrival] = []
        marked = threading.Event()

        def arrive(arrival: Arrival) -> bool:
            arrived.append(arrival)
            if arrival.correlation == b"mark":
                marked.set()
            return serving.pipeline.arrived(arrival)

        with linked(serving, broker, receive_maximum, arrive), WireClient(broker) as client:
            client.wait_message(TOPICS.status)
            for n in range(120):
                client.publish(request(b"%d" % n))
            client.flush()
            client.publish(request(b"mark", qos=0))
            assert marked.wait(WAIT_S)
            assert [each.correlation for each in arrived] == [
                *(b"%d" % n for n in range(receive_maximum)),
                b"mark",
            ]
            assert serving.pipeline.outstanding == receive_maximum + 1
            runner.release()
            replies = client.wait_messages(REPLY, 121)
    assert {reply.status for reply in replies} == {"200"}
    assert sorted(reply.correlation or b"" for reply in replies) == sorted(
        [b"mark", *(b"%d" % n for n in range(120))]
    )


def request(correlation: bytes, *, qos: int = 1) -> Ask:
    """One sound request over the wire."""
    return Ask(
        TOPICS.infer(MODEL), body([[1, 2, 3]]), REPLY, correlation, "application/json", qos=qos
    )


@contextmanager
def linked(
    serving: Serving, broker: Mosquitto, receive_maximum: int, arrive: Callable[[Arrival], bool]
) -> Iterator[None]:
    """Starts the threads on a real link instead of the scripted one."""
    pipeline = serving.pipeline
    link = BrokerLink(
        BrokerSettings(port=broker.port, receive_maximum=receive_maximum),
        "edged-dev",
        TOPICS.status,
        TOPICS.subscriptions,
        LinkHandlers(
            arrive,
            pipeline.delivered,
            pipeline.link_changed,
            lambda state, _: state.encode(),
            pipeline.turn,
            pipeline.settled,
        ),
        serving.metrics,
    )
    serving.start(Sender(link.publish, link.acknowledge, link.wake))
    link.start()
    try:
        yield
    finally:
        link.stop(b"offline")
