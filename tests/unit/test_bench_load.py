"""The load generator: schedules, both loops, and the figures made of them."""

from __future__ import annotations

import io
import threading
from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.client import Result
from edged.errors import BadParameterError, ReplyError
from edged.load_generator import (
    LOST,
    OK,
    Answer,
    Load,
    one_at_a_time,
    open_loop,
    print_table,
    summarize,
)


def result(batch_size: int = 1, reason: str = "count") -> Result:
    """An answer from a batch of that size."""
    parameters = {
        "queue_us": 500, "compute_us": 250, "batch_size": batch_size, "batch_reason": reason,
    }  # fmt: skip
    return Result({}, parameters, 200, "1", 0.001)


def answered(value: Result | Exception) -> Future[Result]:
    """A future that has ended."""
    future: Future[Result] = Future()
    if isinstance(value, Exception):
        future.set_exception(value)
    else:
        future.set_result(value)
    return future


def test_uniform_schedule_is_even() -> None:
    """Uniform arrivals are one over the rate apart and start at 0."""
    assert Load(50, 4, "uniform").schedule() == [0.0, 0.02, 0.04, 0.06]


def test_poisson_schedule_is_seeded_and_has_the_rate() -> None:
    """The same seed gives the same times, another seed others; the mean gap is 1 / rate."""
    times = Load(200, 20_000, seed=3).schedule()
    assert times == Load(200, 20_000, seed=3).schedule()
    assert times != Load(200, 20_000, seed=4).schedule()
    gaps = np.diff(times)
    assert times[0] == 0
    assert gaps.min() >= 0
    assert gaps.mean() == pytest.approx(1 / 200, rel=0.05)
    assert gaps.std() == pytest.approx(1 / 200, rel=0.05)  # exponential: deviation equals mean


@pytest.mark.parametrize(("rate", "count"), [(0.0, 1), (-1.0, 1), (float("nan"), 1), (10.0, 0)])
def test_impossible_loads_are_refused(rate: float, count: int) -> None:
    """No rate, no number and no requests are refused with the values given."""
    with pytest.raises(BadParameterError, match="rate"):
        Load(rate, count)


def test_open_loop_counts_from_the_intended_time() -> None:
    """Requests held up behind a stalled one are charged with the wait: no coordinated omission."""
    stall_s = 0.05

    def submit(index: int) -> Future[Result]:
        if index == 0:
            threading.Event().wait(stall_s)  # the sender itself is held up
        return answered(result())

    answers, wall_s = open_loop(submit, [0.0] * 5)
    assert [answer.code for answer in answers] == [OK] * 5
    assert all((answer.latency_s or 0) >= stall_s for answer in answers)
    assert all(answer.lag_s >= stall_s for answer in answers[1:])
    assert wall_s >= stall_s


def test_open_loop_does_not_wait_for_answers() -> None:
    """All requests are sent though none is answered; what never is, is lost."""
    sent: list[Future[Result]] = []

    def submit(_index: int) -> Future[Result]:
        sent.append(Future())
        if len(sent) == 4:  # only now the first three are answered
            for future in sent[:3]:
                future.set_result(result())
        return sent[-1]

    answers, _ = open_loop(submit, [0.0, 0.001, 0.002, 0.003], grace_s=0.01)
    assert [answer.code for answer in answers] == [OK, OK, OK, LOST]
    assert answers[3].latency_s is None


def test_open_loop_tells_progress() -> None:
    """Progress ends with all requests sent, also when the run is shorter than its interval."""
    told: list[tuple[int, int]] = []
    open_loop(lambda _i: answered(result()), [0.0] * 3, progress=lambda *at: told.append(at))
    assert told[-1] == (3, 3)


def test_one_at_a_time_never_overlaps() -> None:
    """The next request is sent when the one before has been answered, however long that takes."""
    open_now = 0

    def submit(_index: int) -> Future[Result]:
        nonlocal open_now
        assert open_now == 0
        open_now += 1
        future: Future[Result] = Future()

        def finish(_done: Future[Result]) -> None:
            nonlocal open_now
            open_now -= 1

        future.add_done_callback(finish)
        threading.Timer(0.001, future.set_result, (result(),)).start()
        return future

    answers = one_at_a_time(submit, 4, timeout_s=60.0)
    assert [answer.code for answer in answers] == [OK] * 4
    assert [answer.index for answer in answers] == [0, 1, 2, 3]


def test_one_at_a_time_goes_on_after_a_request_that_is_not_answered() -> None:
    """It is given up after the timeout, cancelled, and counted as lost."""
    sent: list[Future[Result]] = []

    def submit(index: int) -> Future[Result]:
        sent.append(Future() if index == 1 else answered(result()))
        return sent[-1]

    answers = one_at_a_time(submit, 3, timeout_s=0.01)
    assert [answer.code for answer in answers] == [OK, LOST, OK]
    assert sent[1].cancelled()


def test_refusals_are_counted_by_code() -> None:
    """Error replies count by their code and are not lost; they carry no latency percentiles."""
    ends: list[Result | Exception] = [
        result(),
        ReplyError("full", code="queue_full", status=429),
        ReplyError("full", code="queue_full", status=429),
        ReplyError("late", code="expired", status=408),
    ]
    answers, wall_s = open_loop(lambda index: answered(ends[index]), [0.0] * 4)
    summary = summarize(answers, wall_s=wall_s)
    assert summary.refused == {"expired": 1, "queue_full": 2}
    assert (summary.answered, summary.lost) == (1, 0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([OK, LOST, "queue_full", "expired"]),
            st.floats(0, 10),
            st.integers(1, 32),
            st.sampled_from(["count", "deadline"]),
        )
    ),
    st.floats(0, 100),
)
@settings(max_examples=60)
def test_every_request_is_counted_once(
    ends: list[tuple[str, float, int, str]], wall_s: float
) -> None:
    """Answered, refused and lost add up to sent; batches to answered; percentiles ascend."""
    answers = [
        Answer(number, None if code == LOST else seconds, 0.0, code,
               result(size, reason) if code == OK else None)
        for number, (code, seconds, size, reason) in enumerate(ends)
    ]  # fmt: skip
    summary = summarize(answers, wall_s=wall_s)
    assert summary.answered + sum(summary.refused.values()) + summary.lost == summary.sent
    assert sum(summary.batches.values()) == summary.answered
    levels = list(summary.latency_ms.values())
    assert levels == sorted(levels)
    out = io.StringIO()
    print_table(summary, out)
    assert f"{summary.sent} sent: {summary.answered} answered" in out.getvalue()


def test_table_shows_why_batches_were_closed() -> None:
    """The table lists each batch size with its reason, and where the time went."""
    answers = [Answer(0, 0.002, 0.0, OK, result(1, "count"))]
    answers += [Answer(n, 0.004, 0.0005, OK, result(8, "full")) for n in range(1, 9)]
    out = io.StringIO()
    print_table(summarize(answers, wall_s=0.1, offered_hz=100), out)
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert ["1", "count", "1", "###"] in lines
    assert ["8", "full", "8", "#" * 24] in lines
    assert "90.0/s answered, offered 100/s" in out.getvalue()
    assert "p50 0.50 queue, 0.25 compute" in out.getvalue()
