"""The request path as a whole: decode, admit, batch, device, gather, encode, publish, acknowledge.

The device is a `ScriptedRunner` and the link a scripted one, so that every order of events can be
brought about without waiting for it; one test at the end has a real broker in front.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.errors import EngineError
from edged.serve.mqtt import BrokerLink, LinkHandlers
from edged.serve.pipeline import ARRIVALS, BACKLOG, SLOTS, Sender
from edged.serve.request import Arrival
from edged.settings import BrokerSettings
from tests.doubles.broker import Mosquitto
from tests.doubles.runner import WAIT_S, ScriptedRunner, expected
from tests.doubles.serving import MODEL, REPLY, TOPICS, Load, ScriptedLink, Serving, body
from tests.doubles.wire import Ask, WireClient

BAD = b"{"


def test_a_request_is_answered_with_its_own_numbers() -> None:
    """Outputs, status 200, correlation data and id come back, and one acknowledgement follows."""
    rows = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    with Serving(ScriptedRunner()) as serving:
        serving.arrive(body(rows, id="7"), correlation=b"c")
        (sent,) = serving.link.wait_sent(1)
        serving.link.wait(lambda: len(serving.link.acknowledged) == 1)
    assert sent.status == "200"
    assert sent.reply.topic == REPLY
    assert sent.reply.correlation == b"c"
    assert sent.json()["id"] == "7"
    assert sent.json()["model_version"] == "0123456789ab"
    assert sent.output("y") == expected(np.array(rows))["y"].flatten().tolist()
    assert sent.output("z") == [6, 15]


def test_a_request_above_the_batch_limit_is_split_and_joined_in_order() -> None:
    """10 samples on an engine of 4: batches of 4, 4 and 2, one reply with the rows as sent."""
    rows = np.arange(30, dtype=np.float32).reshape(10, 3)
    with Serving(ScriptedRunner(4, lanes=3)) as serving:
        serving.arrive(body(rows))
        (sent,) = serving.link.wait_sent(1)
    assert serving.runner.batches == [4, 4, 2]
    assert sent.output("z") == expected(rows)["z"].tolist()
    assert sent.json()["parameters"]["batch_size"] == 4


def test_parts_that_end_out_of_order_are_joined_in_order() -> None:
    """The last batch of a split request comes back first; its rows are still the last."""
    rows = np.arange(30, dtype=np.float32).reshape(10, 3)
    with Serving(ScriptedRunner(4, lanes=3, held=True)) as serving:
        serving.arrive(body(rows))
        serving.runner.wait_running(3)
        for lane in (2, 1, 0):
            serving.runner.release(lane)
        (sent,) = serving.link.wait_sent(1)
    assert sent.output("z") == expected(rows)["z"].tolist()


def test_requests_share_a_batch_and_keep_their_rows() -> None:
    """What waits together while the device is busy runs together; each gets its own rows."""
    with Serving(ScriptedRunner(4, held=True)) as serving:
        serving.arrive(body([[9, 9, 9]]))
        serving.runner.wait_running(1)
        for n in range(4):
            serving.arrive(body([[n, n, n]]), correlation=b"%d" % n)
        wait_for_samples(serving, 4)
        serving.runner.release()
        sent = serving.link.wait_sent(5)[1:]
    assert serving.runner.batches == [1, 4]
    for each in sent:
        assert each.reply.correlation is not None
        assert each.output("z") == [3 * int(each.reply.correlation)]
        assert each.json()["parameters"]["batch_reason"] == "cap"


def wait_for_samples(serving: Serving, count: int) -> None:
    """Waits until so many samples are in the waiting room (intake needs a moment)."""
    until = time.monotonic() + WAIT_S
    pause = threading.Event()
    while serving.room.samples != count:
        assert time.monotonic() < until, f"{serving.room.samples} samples wait, not {count}"
        pause.wait(0.001)


def test_urgent_goes_before_normal_before_background() -> None:
    """While the device is busy, the three classes line up in their order of rank."""
    with Serving(ScriptedRunner(1, held=True)) as serving:
        serving.arrive(body([[0, 0, 0]]), correlation=b"first")
        serving.runner.wait_running(1)
        for name in ("background", "normal", "urgent"):
            serving.arrive(body([[1, 1, 1]], parameters={"priority": name}),
                           correlation=name.encode())  # fmt: skip
        wait_for_samples(serving, 3)
        serving.runner.release()
        sent = serving.link.wait_sent(4)
    assert [each.reply.correlation for each in sent] == [
        b"first", b"urgent", b"normal", b"background",
    ]  # fmt: skip


def test_replies_overtake_but_acknowledgements_do_not() -> None:
    """Lanes that end in reverse: replies in that order, acknowledgements in that of arrival."""
    with Serving(ScriptedRunner(1, lanes=3, held=True)) as serving:
        for name in (b"a", b"b", b"c"):
            serving.arrive(body([[1, 2, 3]]), correlation=name)
        serving.runner.wait_running(3)
        for count, lane in enumerate((2, 1), start=1):
            serving.runner.release(lane)
            serving.link.wait_sent(count)
        assert serving.link.acknowledged == []
        serving.runner.release(0)
        serving.link.wait(lambda: len(serving.link.acknowledged) == 3)
    assert [each.reply.correlation for each in serving.link.sent] == [b"c", b"b", b"a"]
    assert [receipt.order for receipt in serving.link.acknowledged] == [1, 2, 3]


def test_a_lost_connection_leaves_no_acknowledgement_behind() -> None:
    """What had ended out of order on the old connection does not upset the order on the new one.

    1. Of two requests the second ends; its acknowledgement waits for the first one's.
    2. The connection is lost and comes back, and both are delivered again.
    3. Both are acknowledged on the new connection, in order, and nothing of the old one.
    """
    with Serving(ScriptedRunner(1, lanes=3, held=True)) as serving:
        serving.arrive(body([[1, 2, 3]]))
        serving.arrive(body([[4, 5, 6]]))
        serving.runner.wait_running(2)
        serving.runner.release(1)
        serving.link.wait_sent(1)
        serving.link.down()
        serving.link.up()
        serving.arrive(body([[1, 2, 3]]))
        serving.arrive(body([[4, 5, 6]]))
        serving.runner.release()
        serving.link.wait(lambda: len(serving.link.acknowledged) == 2)
    assert [(receipt.epoch, receipt.order) for receipt in serving.link.acknowledged] == [
        (2, 1),
        (2, 2),
    ]


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


def test_a_failing_engine_is_answered_and_the_next_batch_is_right() -> None:
    """All parts of the batch get `engine_failed`; the service goes on."""
    runner = ScriptedRunner(
        fault=lambda number, _: EngineError("scripted fault") if number == 0 else None
    )
    with Serving(runner) as serving:
        serving.arrive(body([[1, 1, 1], [2, 2, 2]]))
        (failed,) = serving.link.wait_sent(1)
        serving.arrive(body([[1, 1, 1]]))
        right = serving.link.wait_sent(2)[1]
    assert (failed.status, failed.code) == ("500", "engine_failed")
    assert right.status == "200"
    assert serving.metrics.value("batch_failures_total", MODEL) == 1


def test_one_failed_part_fails_the_whole_request_once() -> None:
    """Of a split request one batch fails: one error, no half answer, nothing left behind."""
    runner = ScriptedRunner(
        4, fault=lambda number, _: EngineError("scripted fault") if number == 1 else None
    )
    with Serving(runner) as serving:
        serving.arrive(body(np.zeros((10, 3))))
        serving.link.wait_sent(1)
        serving.arrive(body([[1, 1, 1]]))
        sent = serving.link.wait_sent(2)
        serving.link.wait(lambda: len(serving.link.acknowledged) == 2)
        assert [each.status for each in sent] == ["500", "200"]
        assert serving.pipeline.outstanding == 0


def test_a_deadline_that_passes_while_the_device_is_busy_is_answered_at_once() -> None:
    """The waiting request is refused with `expired` before the device is free, and never runs."""
    with Serving(ScriptedRunner(held=True)) as serving:
        serving.arrive(body([[0, 0, 0]]))
        serving.runner.wait_running(1)
        serving.arrive(body([[1, 1, 1]]), user={"deadline-ms": "30"})
        (sent,) = serving.link.wait_sent(1)
        assert (sent.status, sent.code) == ("408", "expired")
        serving.runner.release()
        assert serving.link.wait_sent(2)[1].status == "200"
    assert serving.runner.batches == [1]


def test_a_full_waiting_room_refuses_and_says_when_to_come_back() -> None:
    """Above queue_samples: `queue_full`, retryable, with a time; what was let in is answered."""
    with Serving(ScriptedRunner(1, held=True), load=Load(queue_samples=2)) as serving:
        serving.arrive(body([[0, 0, 0]]))
        serving.runner.wait_running(1)
        for _ in range(3):
            serving.arrive(body([[1, 1, 1]]))
        (refused,) = serving.link.wait_sent(1)
        assert (refused.status, refused.code) == ("429", "queue_full")
        assert refused.json()["retryable"] is True
        assert refused.json()["retry_after_ms"] >= 1
        serving.runner.release()
        assert [each.status for each in serving.link.wait_sent(4)[1:]] == ["200"] * 3


NAN_HEADER = {
    "inputs": [
        {"name": "x", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}}
    ],
    "parameters": {"binary_data_output": False},
}


def test_nan_in_one_sample_leaves_its_neighbours_alone() -> None:
    """A batch of a NaN and a sound sample: the sound one has its exact numbers, both are 200."""
    with Serving(ScriptedRunner(4, held=True)) as serving:
        serving.arrive(body([[0, 0, 0]]))
        serving.runner.wait_running(1)
        header = json.dumps(NAN_HEADER).encode()
        nan = np.full((1, 3), np.nan, np.float32).tobytes()
        binary = {"inference-header-content-length": str(len(header))}
        serving.arrive(
            header + nan, user=binary, content_type="application/octet-stream", correlation=b"nan"
        )
        serving.arrive(body([[1, 2, 3]]), correlation=b"sound")
        wait_for_samples(serving, 2)
        serving.runner.release()
        sent = {each.reply.correlation: each for each in serving.link.wait_sent(3)}
    assert sent[b"sound"].output("y") == [6.0, 1.0]
    assert sent[b"nan"].status == "200"
    assert sent[b"nan"].output("y") == [None, None]


# ------------------------------------------------------------------ stopping


def test_draining_finishes_what_was_accepted_and_refuses_the_rest() -> None:
    """Held and waiting requests are answered, a new one gets `draining`, nothing is left."""
    with Serving(ScriptedRunner(1, held=True)) as serving:
        for _ in range(3):
            serving.arrive(body([[1, 1, 1]]))
        serving.runner.wait_running(1)
        wait_for_samples(serving, 2)
        left: list[int] = []
        drain = threading.Thread(target=lambda: left.append(serving.pipeline.drain(WAIT_S)))
        serving.room.drain()
        serving.arrive(body([[1, 1, 1]]))
        (refused,) = serving.link.wait_sent(1)
        assert (refused.status, refused.code) == ("503", "draining")
        drain.start()
        serving.runner.release()
        drain.join(WAIT_S)
        assert left == [0]
        assert [each.status for each in serving.link.sent] == ["503", "200", "200", "200"]


def test_draining_ends_at_its_limit_and_says_how_many_are_left() -> None:
    """A batch that does not come back is not waited for beyond the limit."""
    with Serving(ScriptedRunner(1, held=True)) as serving:
        for _ in range(3):
            serving.arrive(body([[1, 1, 1]]))
        serving.runner.wait_running(1)
        wait_for_samples(serving, 2)
        assert serving.pipeline.drain(0.05) == 3


def test_a_batch_that_does_not_come_back_is_a_fault() -> None:
    """The watchdog is told which device hangs; before that limit, and idle, there is no fault."""
    with Serving(ScriptedRunner(held=True)) as serving:
        assert serving.pipeline.stuck(time.monotonic() + 1e6, 30) is None
        serving.arrive(body([[1, 1, 1]]))
        serving.runner.wait_running(1)
        now = time.monotonic()
        assert serving.pipeline.stuck(now, 30) is None
        fault = serving.pipeline.stuck(now + 31, 30)
        assert fault is not None
        assert "scripted" in fault


# ------------------------------------------------------------------ bounds


def test_qos_1_finds_room_when_qos_0_has_filled_the_queue() -> None:
    """A flood of QoS 0 is dropped and counted, and cannot make a QoS 1 request be lost.

    The threads are not started yet, so what arrives stays in the queue.
    """
    load = Load(receive_maximum=5, started=False)
    with Serving(ScriptedRunner(), load=load) as serving:
        serving.link.up()
        assert all(serving.arrive(BAD, qos=0) for _ in range(ARRIVALS))
        assert not serving.arrive(BAD, qos=0)
        assert all(serving.arrive(BAD) for _ in range(5))
        assert not serving.arrive(BAD)  # a broker that ignores our receive maximum
        serving.start()
        sent = serving.link.wait_sent(ARRIVALS + 5)
    assert len(sent) == ARRIVALS + 5
    assert serving.metrics.value("arrivals_total") == ARRIVALS + 7
    assert serving.metrics.value("arrivals_dropped_total", "arrivals_full") == 2
    assert serving.pipeline.outstanding == 0


def test_a_broker_that_takes_no_replies_holds_intake_back() -> None:
    """Replies that wait are bounded; intake stops, and all are answered when the broker goes on."""
    link = ScriptedLink(automatic=False)
    total = BACKLOG + SLOTS + 500
    with Serving(ScriptedRunner(), link, Load(receive_maximum=total)) as serving:
        link.up(window=1)
        for _ in range(total):
            assert serving.arrive(BAD)
        wait_until_held(serving)
        waiting = serving.pipeline._arrivals.qsize()
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


# ------------------------------------------------------------------ conservation

KINDS = {
    "good": {"payload": body([[1, 2, 3]])},
    "split": {"payload": body(np.ones((9, 3)))},
    "poison": {"payload": body([[-1, 0, 0]])},
    "garbage": {"payload": b"\x00\xff"},
    "expired": {"payload": body([[1, 2, 3]], parameters={"deadline_unix_ms": 1})},
    "unknown": {"payload": body([[1, 2, 3]]), "topic": TOPICS.infer("other")},
    "too many": {"payload": body(np.ones((40, 3)))},
    "no reply topic": {"payload": body([[1, 2, 3]]), "response_topic": ""},
    "wildcard": {"payload": body([[1, 2, 3]]), "response_topic": "edged/v1/dev/reply/#"},
    "own topic": {"payload": body([[1, 2, 3]]), "response_topic": TOPICS.infer(MODEL)},
    "retained": {"payload": body([[1, 2, 3]]), "retained": True},
}
UNANSWERABLE = {"no reply topic", "wildcard", "own topic"}
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(sorted(KINDS)), st.sampled_from([0, 1])),
        st.tuples(st.sampled_from(["down", "up", "hold", "release"]), st.just(0)),
    ),
    max_size=30,
)


@given(STEPS, st.integers(1, 3))
@settings(max_examples=60)
def test_every_arrival_ends_in_exactly_one_reply_or_one_counted_drop(
    steps: list[tuple[str, int]], lanes: int
) -> None:
    """Whatever comes, with engine faults and losses of the connection between.

    1. Requests of all kinds, QoS 0 and 1; the link goes and comes, the device holds and goes on.
    2. In the end all have ended: arrivals = replies + drops, and nothing is in hand.
    3. Each QoS 1 request that can be answered has exactly one reply; a QoS 0 one at most one.
    4. Receipts of the last connection are acknowledged once each, in order; none of earlier ones.
    """
    runner = ScriptedRunner(
        4, lanes=lanes, fault=lambda _, x: EngineError("p") if np.less(x["x"], 0).any() else None
    )
    link = ScriptedLink()
    asked: dict[bytes, tuple[str, int, int]] = {}
    with Serving(runner, link, Load(queue_samples=30)) as serving:
        for number, (step, qos) in enumerate(steps):
            if step in KINDS:
                correlation = b"%d" % number
                asked[correlation] = (step, qos, link.epoch)
                assert serving.arrive(qos=qos, correlation=correlation, **KINDS[step])  # type: ignore[arg-type]  # by kind
            else:
                actions = {"down": link.down, "up": link.up, "hold": runner.hold}
                actions.get(step, runner.release)()
        runner.release()
        if not link.is_up:
            link.up()
        assert serving.pipeline.drain(WAIT_S) == 0
        assert serving.room.samples == 0
        last = [c for c, (_, qos, epoch) in asked.items() if qos and epoch == link.epoch]
        link.wait(lambda: len(link.acknowledged) >= len(last))
    replies = [sent.reply.correlation for sent in link.sent if sent.reply.topic == REPLY]
    metrics = serving.metrics
    assert metrics.value("arrivals_total") == len(asked)
    assert metrics.total("replies_total") + metrics.total("arrivals_dropped_total") == len(asked)
    assert metrics.total("replies_total") == len(replies) == len(serving.answered)
    for correlation, (kind, qos, _) in asked.items():
        limits = (0, 0) if kind in UNANSWERABLE else (qos, 1)
        assert limits[0] <= replies.count(correlation) <= limits[1], kind
    in_order = [r.order for r in link.acknowledged if r.epoch == link.epoch]
    assert in_order == sorted(set(in_order))
    assert in_order == list(range(1, len(last) + 1))


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
    load = Load(receive_maximum=receive_maximum, started=False)
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
            arrive, pipeline.delivered, pipeline.link_changed, lambda state, _: state.encode()
        ),
        serving.metrics,
    )
    serving.start(Sender(link.publish, link.acknowledge))
    link.start()
    try:
        yield
    finally:
        link.stop(b"offline")
