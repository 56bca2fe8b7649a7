"""The request path as a whole: decode, admit, batch, device, gather, encode, publish, acknowledge.

The device is a `ScriptedRunner` and the link a scripted one, so that every order of events can be
brought about without waiting for it.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import numpy as np
import pytest

from edged.errors import EngineError
from edged.serve.intake import CHEAP_BYTES
from tests.doubles.runner import WAIT_S, ScriptedRunner, expected
from tests.doubles.serving import MODEL, REPLY, TOPICS, Load, ScriptedModel, Serving, body

# In the class that goes last; 100 batches of 2 ms each are before it.
DEADLINE_BEHIND_THEM = {"deadline-ms": "150", "priority": "background"}


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


def test_a_request_that_comes_again_is_not_run_again() -> None:
    """In hand: one answer for both, both acknowledged. Answered: the same answer again.

    1. A request is on the device when the connection is lost; the next one delivers it again.
    2. One batch runs, one reply goes out, and the second delivery is acknowledged.
    3. Its sender sends it once more: the reply is the same, byte for byte, and nothing runs.
    4. Another request with the same correlation data is run.
    """
    with Serving(ScriptedRunner(4, held=True)) as serving:
        serving.arrive(body([[1, 2, 3]]), correlation=b"c")
        serving.runner.wait_running(1)
        serving.link.down()
        serving.link.up()
        serving.arrive(body([[1, 2, 3]]), correlation=b"c")
        serving.runner.release()
        serving.link.wait(lambda: len(serving.link.acknowledged) == 1)
        assert serving.link.acknowledged[0].epoch == 2
        serving.arrive(body([[1, 2, 3]]), correlation=b"c")
        serving.link.wait(lambda: len(serving.link.acknowledged) == 2)
        serving.arrive(body([[4, 5, 6]]), correlation=b"c")
        first, again, other = serving.link.wait_sent(3)
        assert first.reply == again.reply
        assert other.output("z") == [15]
        assert serving.pipeline.drain(WAIT_S) == 0
    assert serving.runner.batches == [1, 1]
    assert serving.metrics.value("duplicates_total", "joined") == 1
    assert serving.metrics.value("duplicates_total", "resent") == 1
    assert serving.metrics.value("arrivals_total") == 4
    assert len(serving.answered) == 2


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


@pytest.mark.parametrize("note", ["", "x" * CHEAP_BYTES], ids=["small", "large"])
def test_a_newer_frame_supersedes_the_one_that_waits(note: str) -> None:
    """It is answered at once, while the device is busy; what runs is not touched.

    So it is where the link's thread decodes, and where an intake thread decodes what is large.
    """
    latest = Load(decoder_models={MODEL: ScriptedModel(freshness="latest")})
    frame: dict[str, Any] = {"user": {"source": "cam-1"}}
    more = {"parameters": {"note": note}}
    with Serving(ScriptedRunner(held=True), load=latest) as serving:
        serving.arrive(body([[1, 1, 1]], **more), correlation=b"runs", **frame)
        serving.runner.wait_running(1)
        serving.arrive(body([[2, 2, 2]], **more), correlation=b"old", **frame)
        serving.arrive(body([[3, 3, 3]], **more), correlation=b"other", user={"source": "cam-2"})
        serving.arrive(body([[4, 4, 4]], **more), correlation=b"nameless")
        serving.arrive(body([[5, 5, 5]], **more), correlation=b"new", **frame)
        (sent,) = serving.link.wait_sent(1)
        assert (sent.reply.correlation, sent.status, sent.code) == (b"old", "409", "superseded")
        assert sent.json()["retryable"] is False
        serving.runner.release()
        rest = serving.link.wait_sent(5)[1:]
    assert {each.reply.correlation for each in rest} == {b"runs", b"other", b"nameless", b"new"}
    assert all(each.status == "200" for each in rest)
    assert serving.metrics.value("errors_total", "superseded") == 1


def test_what_cannot_be_started_in_time_is_refused_at_once() -> None:
    """100 full batches are before it: it need not wait for its deadline to learn that."""
    with Serving(ScriptedRunner(held=True)) as serving:
        serving.arrive(body([[1, 1, 1]] * 4))
        serving.runner.wait_running(1)
        serving.arrive(body([[1, 1, 1]] * 400))
        serving.arrive(body([[2, 2, 2]]), correlation=b"late", user=DEADLINE_BEHIND_THEM)
        (sent,) = serving.link.wait_sent(1)
        assert (sent.reply.correlation, sent.status, sent.code) == (b"late", "429", "late")
        assert sent.json()["retry_after_ms"] > 0


def test_the_topic_may_name_the_class() -> None:
    """It counts where no property does, and one that does not exist is said."""
    with Serving(ScriptedRunner(1, held=True)) as serving:
        serving.arrive(body([[1, 1, 1]]))
        serving.runner.wait_running(1)
        for name, priority, user in (
            (b"b", "background", {}),
            (b"n", "background", {"priority": "normal"}),
            (b"u", "urgent", {}),
        ):
            topic = TOPICS.infer_class(MODEL, priority)
            serving.arrive(body([[1, 1, 1]]), topic=topic, correlation=name, user=user)
        serving.arrive(body([[1, 1, 1]]), topic=TOPICS.infer_class(MODEL, "soon"))
        (sent,) = serving.link.wait_sent(1)
        assert (sent.status, sent.code) == ("400", "bad_parameter")
        serving.runner.release()
        order = [each.reply.correlation for each in serving.link.wait_sent(5)[2:]]
    assert order == [b"u", b"n", b"b"]


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
