"""A requester that knows MQTT only: paho alone, none of edged's own client code.

It sends what it is told to, right or wrong, and keeps every message that comes.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, final

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

WAIT_S = 30.0


class Address(Protocol):
    """A broker that runs."""

    host: str
    port: int


@dataclass(frozen=True)
class Ask:
    """One PUBLISH to send, with whatever properties."""

    topic: str
    payload: bytes
    reply: str = ""
    correlation: bytes | None = None
    content_type: str = ""
    user: Sequence[tuple[str, str]] = ()
    expiry_s: int | None = None
    qos: int = 1
    retain: bool = False

    def properties(self) -> Properties | None:
        """As paho wants them; None if there are none."""
        made: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho's
        if self.reply:
            made.ResponseTopic = self.reply
        if self.correlation is not None:
            made.CorrelationData = self.correlation
        if self.content_type:
            made.ContentType = self.content_type
        if self.user:
            made.UserProperty = list(self.user)
        if self.expiry_s is not None:
            made.MessageExpiryInterval = self.expiry_s
        return made if not made.isEmpty() else None


@dataclass(frozen=True)
class Message:
    """One PUBLISH that came."""

    topic: str
    payload: bytes
    qos: int
    retained: bool
    correlation: bytes | None = None
    content_type: str = ""
    expiry_s: int | None = None
    user: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def of(cls, message: mqtt.MQTTMessage) -> Message:
        """Reads what paho has."""
        properties = message.properties
        return cls(
            message.topic,
            bytes(message.payload),
            message.qos,
            message.retain,
            getattr(properties, "CorrelationData", None),
            getattr(properties, "ContentType", ""),
            getattr(properties, "MessageExpiryInterval", None),
            list(getattr(properties, "UserProperty", [])),
        )

    @property
    def status(self) -> str:
        """The user property ``status``; "" if there is none."""
        return dict(self.user).get("status", "")

    def json(self) -> Any:
        """The payload as JSON."""
        return json.loads(self.payload)


@final
class WireClient:
    """A connection of its own that hears everything below ``edged/``; a context manager.

    Args:
        broker: where to.
        protocol: MQTT version.
        filters: what is subscribed, QoS 1.
        session_s: the broker keeps what could not be delivered for so long (MQTT 5).
    """

    _names = itertools.count()

    def __init__(
        self,
        broker: Address,
        *,
        protocol: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv5,
        filters: Sequence[str] = ("edged/v1/#",),
        session_s: int = 0,
    ) -> None:
        self._session_s = session_s
        self._changed = threading.Condition()
        self._heard: list[Message] = []
        self._acknowledged: set[int] = set()
        self._subscriptions = 0
        self._filters = [(topic, 1) for topic in filters]
        self._address = (broker.host, broker.port)
        name = f"wire-{next(self._names)}"
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, name, protocol=protocol)
        self._client.max_inflight_messages_set(20)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        self._client.on_publish = self._on_publish

    def __enter__(self) -> WireClient:
        if self._session_s:
            properties: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = self._session_s
            self._client.connect(*self._address, clean_start=False, properties=properties)
        else:
            self._client.connect(*self._address)
        self._client.loop_start()
        self.wait_connections(1)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    # -------------------------------------------------------------- sending

    def publish(self, ask: Ask) -> int:
        """Sends it; paho keeps QoS 1 while the broker is away. Returns the packet identifier."""
        return self._client.publish(
            ask.topic, ask.payload, ask.qos, ask.retain, ask.properties()
        ).mid

    def flush(self) -> None:
        """Waits until the broker has passed on all that was published before."""
        mark = f"edged/v1/flush/{next(self._names)}"
        self.publish(Ask(mark, b"mark"))
        self.wait_message(mark)

    def wait_acknowledged(self, mids: Sequence[int]) -> None:
        """Waits until the broker has taken these over."""
        self._wait(lambda: self._acknowledged.issuperset(mids), f"{len(mids)} acknowledgements")

    # -------------------------------------------------------------- what came

    def messages(self, topic: str = "") -> list[Message]:
        """What came so far, on one topic or on all."""
        with self._changed:
            return [message for message in self._heard if topic in {"", message.topic}]

    def wait_messages(self, topic: str, count: int) -> list[Message]:
        """The messages of a topic, once there are so many."""
        self._wait(lambda: len(self.messages(topic)) >= count, f"{count} messages on {topic}")
        return self.messages(topic)

    def wait_message(self, topic: str) -> Message:
        """The first message of a topic."""
        return self.wait_messages(topic, 1)[0]

    def wait_for(self, condition: Callable[[Message], bool], what: str) -> Message:
        """The first message that fulfils a condition."""
        self._wait(lambda: any(map(condition, self.messages())), what)
        return next(filter(condition, self.messages()))

    def wait_reply(self, correlation: bytes) -> Message:
        """The first answer with these correlation data."""
        return self.wait_for(
            lambda message: "/reply/" in message.topic and message.correlation == correlation,
            f"a reply to {correlation!r}",
        )

    def wait_connections(self, count: int) -> None:
        """Waits until the subscriptions were granted so many times."""
        self._wait(lambda: self._subscriptions >= count, f"{count} connections")

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        with self._changed:
            if not self._changed.wait_for(condition, WAIT_S):
                seen = [(each.topic, each.payload[:120]) for each in self._heard[-8:]]
                raise TimeoutError(f"no {what} within {WAIT_S} s; the last that came: {seen}")

    # -------------------------------------------------------------- paho's thread

    def _on_connect(self, client: mqtt.Client, *_: object) -> None:
        client.subscribe(self._filters)

    def _on_subscribe(self, *_: object) -> None:
        with self._changed:
            self._subscriptions += 1
            self._changed.notify_all()

    def _on_message(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        with self._changed:
            self._heard.append(Message.of(message))
            self._changed.notify_all()

    def _on_publish(self, _client: mqtt.Client, _data: object, mid: int, *_: object) -> None:
        with self._changed:
            self._acknowledged.add(mid)
            self._changed.notify_all()
