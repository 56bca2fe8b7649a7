"""What goes to the control plane's link and comes from it: values without behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Incoming:
    """One PUBLISH from the control plane. Nothing in it is trusted.

    Attributes:
        topic: its topic.
        payload: its body.
        retained: the broker sent it because it was retained.
        response_topic: MQTT 5 Response Topic, "" if absent.
        correlation: MQTT 5 Correlation Data, None if absent.
    """

    topic: str
    payload: bytes
    retained: bool = False
    response_topic: str = ""
    correlation: bytes | None = None


@dataclass(frozen=True)
class Outgoing:
    """One PUBLISH of QoS 1 to the control plane.

    Attributes:
        topic: its topic.
        payload: its body.
        retain: whether the broker keeps it for later subscribers.
        user: MQTT 5 user properties.
        correlation: MQTT 5 Correlation Data, None for none.
        content_type: MQTT 5 Content Type.
    """

    topic: str
    payload: bytes
    retain: bool = False
    user: tuple[tuple[str, str], ...] = ()
    correlation: bytes | None = None
    content_type: str = "application/json"


@dataclass(frozen=True)
class Connected:
    """A connection stands, and its subscriptions were granted.

    Attributes:
        epoch: number of the connection, from 1.
        window: messages that the broker takes unacknowledged.
        max_packet_bytes: largest packet that it takes; 0: it named none.
        status: packet identifier of the status, which is on its way.
    """

    epoch: int
    window: int
    max_packet_bytes: int
    status: int


@dataclass(frozen=True)
class Lost:
    """The connection is gone."""

    epoch: int


@dataclass(frozen=True)
class Delivered:
    """The broker has answered a PUBLISH of ours with this reason code (MQTT 5, 3.4.2.1)."""

    epoch: int
    mid: int
    code: int


Change: TypeAlias = Connected | Lost | Delivered | Incoming
