"""Streams of the outbox: what each may use of the disk, and what goes when that is used up. Pure.

A stream is a line of events in their order. Streams do not wait for each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from edged.settings import OutboxSettings

RESULT = "result"
TELEMETRY = "telemetry"
EVENT = "event"
ROLLOUT = "rollout"
STREAMS = (ROLLOUT, EVENT, RESULT, TELEMETRY)
"""Names of all streams, the most urgent first."""


class Overflow(str, Enum):
    """What happens when a stream has used up its bytes."""

    REJECT_NEW = "reject_new"
    """What comes is dropped."""
    DROP_OLDEST = "drop_oldest"
    """What has waited longest is dropped."""
    KEEP_LATEST = "keep_latest"
    """Only the latest event of each key is kept, full or not; then as `DROP_OLDEST`."""


class Durability(str, Enum):
    """What an event that was stored survives."""

    POWER_CUT = "power_cut"
    """The loss of power: it is on the disk, as far as the disk tells the truth."""
    CRASH = "crash"
    """The end of the process; the last moments before a loss of power may be gone."""


@dataclass(frozen=True)
class Stream:
    """A stream's limits and promises.

    Attributes:
        name: one of `STREAMS`.
        max_bytes: bytes on disk that its events may use, as `edged.report.draft.size` counts them.
        max_age_s: events that are older are dropped. Seconds in which the outbox ran, not wall
            time, so that a clock that is set cannot make everything old at once.
        overflow: what is dropped when ``max_bytes`` are used.
        priority: what is taken first; 0 before 1.
        durability: what its events survive.
        application_ack: whether an event is deleted only after the application at the other end has
            acknowledged it, and not after the broker's PUBACK already.
    """

    name: str
    max_bytes: int
    max_age_s: float
    overflow: Overflow
    priority: int
    durability: Durability
    application_ack: bool

    def limited_to(self, max_bytes: int) -> Stream:
        """The same stream with at most so many bytes."""
        return Stream(
            self.name,
            min(max_bytes, self.max_bytes),
            self.max_age_s,
            self.overflow,
            self.priority,
            self.durability,
            self.application_ack,
        )


def streams_from(settings: OutboxSettings) -> dict[str, Stream]:
    """All streams by name, the most urgent first."""
    limits = {
        ROLLOUT: (settings.rollout_max_bytes, settings.rollout_max_age_s),
        EVENT: (settings.event_max_bytes, settings.event_max_age_s),
        RESULT: (settings.result_max_bytes, settings.result_max_age_s),
        TELEMETRY: (settings.telemetry_max_bytes, settings.telemetry_max_age_s),
    }
    overflow = {
        ROLLOUT: settings.rollout_overflow,
        EVENT: settings.event_overflow,
        RESULT: settings.result_overflow,
        TELEMETRY: settings.telemetry_overflow,
    }
    return {
        name: Stream(
            name,
            *limits[name],
            overflow=Overflow(overflow[name]),
            priority=priority,
            durability=Durability.CRASH if name == TELEMETRY else Durability.POWER_CUT,
            application_ack=name in settings.application_ack,
        )
        for priority, name in enumerate(STREAMS)
    }
