"""Whom the broker link tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edged.serve.request import Arrival, LinkDown, LinkUp


@dataclass(frozen=True)
class LinkHandlers:
    """Whom the link tells. All are called on the ``mqtt-net`` thread and must not wait.

    Attributes:
        arrived: a PUBLISH came; False: it could not be taken over and will not be acknowledged.
        delivered: (packet identifier of a QoS 1 PUBLISH of ours, whether the broker took it).
        changed: the connection came or went.
        status: retained status document: (state, session number) -> payload.
        turn: once in each turn and after each `BrokerLink.wake`; what it publishes and
            acknowledges is sent together.
        settled: after that: other threads that are woken now do not compete with the sending.
    """

    arrived: Callable[[Arrival], bool]
    delivered: Callable[[int, bool], None]
    changed: Callable[[LinkUp | LinkDown], None]
    status: Callable[[str, int], bytes]
    turn: Callable[[], object] = bool  # nothing
    settled: Callable[[], object] = bool
