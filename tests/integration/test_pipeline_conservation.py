"""Nothing that arrives on the request path is lost or answered twice, whatever happens between."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.errors import EngineError
from tests.doubles.runner import WAIT_S, ScriptedRunner
from tests.doubles.serving import MODEL, REPLY, TOPICS, Load, ScriptedLink, Serving, body

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
        st.tuples(st.just("again"), st.integers(0, 30)),
    ),
    max_size=30,
)


@given(STEPS, st.integers(1, 3))
@settings(max_examples=60)
def test_every_arrival_ends_in_exactly_one_reply_or_one_counted_drop(
    steps: list[tuple[str, int]], lanes: int
) -> None:
    """Whatever comes, with engine faults and losses of the connection between.

    1. Requests of all kinds, QoS 0 and 1, some of them again; the link goes and comes, the device
       holds and goes on.
    2. In the end all have ended: arrivals = replies + drops + duplicates, and nothing is in hand.
    3. Each QoS 1 request that can be answered has a reply, and not more than it was sent; a QoS 0
       one at most one.
    4. Receipts of the last connection are acknowledged once each, in order; none of earlier ones.
    """
    runner = ScriptedRunner(
        4, lanes=lanes, fault=lambda _, x: EngineError("p") if np.less(x["x"], 0).any() else None
    )
    link = ScriptedLink()
    asked: dict[bytes, tuple[str, int]] = {}
    times: Counter[bytes] = Counter()
    last: list[bytes] = []
    with Serving(runner, link, Load(queue_samples=30)) as serving:
        for number, (step, qos) in enumerate(steps):
            if step == "again":
                names = [c for c, (_, of_qos_1) in asked.items() if of_qos_1]
                if names:
                    name = names[qos % len(names)]
                    times[name] += 1
                    last.append(name)
                    assert serving.arrive(correlation=name, **KINDS[asked[name][0]])  # type: ignore[arg-type]  # by kind
            elif step in KINDS:
                correlation = b"%d" % number
                asked[correlation] = (step, qos)
                times[correlation] += 1
                last += [correlation] * qos
                assert serving.arrive(qos=qos, correlation=correlation, **KINDS[step])  # type: ignore[arg-type]  # by kind
            else:
                last = last if step != "up" else []
                actions = {"down": link.down, "up": link.up, "hold": runner.hold}
                actions.get(step, runner.release)()
        runner.release()
        if not link.is_up:
            last = []
            link.up()
        assert serving.pipeline.drain(WAIT_S) == 0
        assert serving.room.samples == 0
        link.wait(lambda: len(link.acknowledged) >= len(last))
    replies = [sent.reply.correlation for sent in link.sent if sent.reply.topic == REPLY]
    metrics = serving.metrics
    ends = ("replies_total", "arrivals_dropped_total", "duplicates_total")
    assert metrics.value("arrivals_total") == times.total()
    assert sum(metrics.total(name) for name in ends) == times.total()
    assert metrics.total("replies_total") == len(serving.answered)
    resent = metrics.value("duplicates_total", "resent")
    assert metrics.total("replies_total") + resent == len(replies)
    for correlation, (kind, qos) in asked.items():
        limits = (0, 0) if kind in UNANSWERABLE else (qos, times[correlation])
        assert limits[0] <= replies.count(correlation) <= limits[1], kind
    in_order = [r.order for r in link.acknowledged if r.epoch == link.epoch]
    assert in_order == sorted(set(in_order))
    assert in_order == list(range(1, len(last) + 1))
