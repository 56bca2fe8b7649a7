"""Each stream waits for itself alone."""

from __future__ import annotations

from edged.report.stream_gates import MOST_AWAITED, StreamGates

BOTH = frozenset({"event", "result"})


def test_all_are_open_at_first() -> None:
    """Nothing was turned down and nothing is awaited."""
    gates = StreamGates(("event", "result"))
    assert not gates.look(0.0, {})
    assert gates.open == BOTH
    assert not gates.any_shut


def test_a_stream_that_is_turned_down_waits_alone() -> None:
    """The other one stays open; the gate opens again when its pause is over, and says so once."""
    gates = StreamGates(("event", "result"))
    pause_s = gates.turned_down("event", 10.0)
    assert pause_s is not None
    assert not gates.look(10.0, {})
    assert gates.open == {"result"}
    assert gates.any_shut
    assert not gates.look(10.0 + 0.9 * pause_s, {})
    assert gates.look(10.0 + pause_s, {})
    assert gates.open == BOTH
    assert not gates.look(10.0 + pause_s, {})


def test_pauses_grow_until_something_is_taken() -> None:
    """Messages that were on their way count once; another stream's pauses are its own."""
    gates = StreamGates(("event", "result"))
    first = gates.turned_down("event", 0.0)
    assert first is not None
    assert gates.turned_down("event", 0.5 * first) is None
    second = gates.turned_down("event", 10.0)
    assert gates.turned_down("result", 10.0) == first
    assert second == 2 * first
    gates.taken("event")
    assert gates.turned_down("event", 100.0) == first


def test_a_stream_with_too_many_records_awaited_waits_alone() -> None:
    """It is opened again when one of them is acknowledged."""
    gates = StreamGates(("event", "result"))
    gates.look(0.0, {"event": MOST_AWAITED})
    assert gates.open == {"result"}
    assert gates.look(0.0, {"event": MOST_AWAITED - 1})
    assert gates.open == BOTH


def test_a_new_connection_opens_what_was_turned_down() -> None:
    """Another broker may take it, or somebody listens now."""
    gates = StreamGates(("event", "result"))
    gates.turned_down("event", 0.0)
    gates.look(0.0, {})
    gates.connected()
    assert gates.look(0.0, {})
    assert gates.open == BOTH
