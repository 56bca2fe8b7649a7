"""A device's side of the protocol in a few lines of paho, to script answers that edged never gives.

For tests of the client only: what a real device answers is tested with the real daemon.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, final

import numpy as np
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edged import protocol, v2
from edged.protocol import Topics


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    topic: str
    payload: bytes
    content_type: str
    response_topic: str
    correlation: bytes
    expiry_s: int | None
    user: dict[str, str]


@dataclass(frozen=True)
class Said:
    """One reply to send; ``to`` is the request it answers."""

    to: Asked
    payload: bytes
    user: dict[str, str] = field(default_factory=dict)
    content_type: str = ""


def doubled(asked: Asked) -> list[Said]:
    """Answers every input ``x`` with an output ``x`` of twice its values."""
    request = v2.parse_request(asked.payload, int(asked.user[protocol.HEADER_LENGTH]))
    payload, length = v2.write_response(
        v2.InferResponse(
            "double",
            "1",
            tuple(v2.Tensor(item.name, np.asarray(item.data * 2)) for item in request.inputs),
            parameters={"queue_us": 10, "compute_us": 20, "batch_size": 1, "batch_reason": "alone"},
        )
    )
    user = {protocol.STATUS: "200", protocol.HEADER_LENGTH: str(length)}
    return [Said(asked, payload, user, protocol.OCTET_STREAM)]


@final
class Responder:
    """Connects, answers every request as ``answer`` says, and records what was asked.

    Args:
        host: the broker's.
        port: the broker's.
        answer: the replies to send after each request, on the network thread.
        topics: the device it plays.
        session_s: the broker keeps its session for so long.
    """

    def __init__(
        self,
        host: str,
        port: int,
        answer: Callable[[Asked], Sequence[Said]] = doubled,
        topics: Topics = Topics(protocol.DEFAULT_ROOT, "double"),  # noqa: B008  # frozen
        session_s: int = 0,
    ) -> None:
        self.asked: list[Asked] = []
        self.first: Future[Asked] = Future()
        self.topics = topics
        self._answer = answer
        self._subscribed = threading.Semaphore(0)
        self._mqtt = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            f"responder-{secrets.token_hex(4)}",
            protocol=MQTTProtocolVersion.MQTTv5,
        )
        self._mqtt.reconnect_delay_set(1, 1)
        self._mqtt.on_connect = self._on_connect
        self._mqtt.on_subscribe = self._on_subscribe
        self._mqtt.on_message = self._on_message
        self._address = (host, port)
        self._keeps = session_s > 0
        self._session = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho's
        self._session.SessionExpiryInterval = session_s

    def __enter__(self) -> Responder:
        # mosquitto 2.0.11 keeps no session over its restart that began clean.
        self._mqtt.connect(*self._address, clean_start=not self._keeps, properties=self._session)
        self._mqtt.loop_start()
        self.wait_subscribed()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._mqtt.disconnect()
        self._mqtt.loop_stop()

    def wait_subscribed(self) -> None:
        """Waits for the next connection to stand."""
        if not self._subscribed.acquire(timeout=30):
            raise TimeoutError("the responder did not get its subscription within 30 s")

    def say(self, said: Said) -> None:
        """Sends one reply."""
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho's
        properties.CorrelationData = said.to.correlation
        if said.user:
            properties.UserProperty = list(said.user.items())
        if said.content_type:
            properties.ContentType = said.content_type
        self._mqtt.publish(said.to.response_topic, said.payload, qos=1, properties=properties)

    def say_status(self, payload: bytes) -> None:
        """Publishes the retained status and waits for the broker to have it."""
        self._mqtt.publish(self.topics.status, payload, qos=1, retain=True).wait_for_publish(10)

    def _on_connect(self, client: mqtt.Client, *_rest: Any) -> None:
        client.subscribe([(topic, 1) for topic in self.topics.subscriptions])

    def _on_subscribe(self, *_rest: Any) -> None:
        self._subscribed.release()

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        properties = message.properties
        asked = Asked(
            message.topic,
            bytes(message.payload),
            getattr(properties, "ContentType", ""),
            getattr(properties, "ResponseTopic", ""),
            getattr(properties, "CorrelationData", b""),
            getattr(properties, "MessageExpiryInterval", None),
            dict(getattr(properties, "UserProperty", ())),
        )
        self.asked.append(asked)
        for said in self._answer(asked):
            self.say(said)
        if not self.first.done():
            self.first.set_result(asked)
