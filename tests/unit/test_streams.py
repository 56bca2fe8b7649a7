"""Streams: what the settings make of them."""

from __future__ import annotations

from edged.report.streams import STREAMS, Durability, Overflow, streams_from
from edged.settings import OutboxSettings


def test_streams_follow_the_settings() -> None:
    """Limits and policies are those of the settings; urgency and durability are fixed."""
    streams = streams_from(
        OutboxSettings(
            result_max_bytes=70_000,
            result_max_age_s=5,
            result_overflow="keep_latest",
            application_ack=("result", "event"),
        )
    )
    result = streams["result"]

    assert tuple(streams) == STREAMS == ("rollout", "event", "result", "telemetry")
    assert [each.priority for each in streams.values()] == [0, 1, 2, 3]
    assert (result.max_bytes, result.max_age_s) == (70_000, 5)
    assert result.overflow is Overflow.KEEP_LATEST
    assert [name for name, each in streams.items() if each.application_ack] == ["event", "result"]
    assert [name for name, each in streams.items() if each.durability is Durability.CRASH] == [
        "telemetry"
    ]


def test_a_limited_stream_is_smaller_and_otherwise_the_same() -> None:
    """In memory a stream has its share at most, and never more than on disk."""
    rollout = streams_from(OutboxSettings())["rollout"]

    assert rollout.limited_to(1000).max_bytes == 1000
    assert rollout.limited_to(1 << 40) == rollout
