"""A control plane for tests: stores, acknowledges, refuses, delays and dies, on a real broker."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, final

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edged import protocol
from edged.control_plane import ack_document, desired_document, unpack
from tests.doubles.wire import WAIT_S, Address

Place = tuple[str, str]
"""Stream and epoch."""


@dataclass
class Record:
    """One record as it came.

    Attributes:
        seq: its number.
        mode: of its batch.
        time: Unix seconds when it happened.
        kind: what it is.
        body: its document.
        boot_id: of the run that sent it.
        late_s: seconds from then until it was here, by the wall clock.
    """

    seq: int
    mode: str
    time: float
    kind: str
    body: Any
    boot_id: str
    late_s: float


@dataclass
class Behaviour:
    """How the control plane treats what comes.

    Attributes:
        acknowledges: whether it says that it has stored something.
        refuses: whether it never wants a record: the reason, or "".
    """

    acknowledges: bool = True
    refuses: Callable[[Record], str] = field(default=lambda _record: "")


@final
class Cloud:
    """Hears one device, and can be gone for a while; a context manager.

    Attributes:
        behaviour: how it treats what comes; may be replaced at any time.

    Args:
        broker: where to.
        topics: of the device.
    """

    _names = itertools.count()

    def __init__(self, broker: Address, topics: protocol.Topics) -> None:
        self.behaviour = Behaviour()
        self._broker = broker
        self._topics = topics
        self._changed = threading.Condition()
        self._records: dict[Place, list[Record]] = {}
        self._reported: list[dict[str, Any]] = []
        self._answers: list[tuple[bytes, str, Any]] = []
        self._messages: list[tuple[str, int, dict[str, str]]] = []
        self._wrong: list[str] = []
        self._client: mqtt.Client | None = None
        self._subscribed = threading.Event()
        self._answer_topic = f"{topics.root}/cloud/reply/{next(self._names)}"

    def __enter__(self) -> Cloud:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.die()

    # -------------------------------------------------------------- being there, and not

    def start(self) -> None:
        """Connects; returns once it is subscribed."""
        self._subscribed.clear()
        name = f"cloud-{next(self._names)}"
        client = mqtt.Client(CallbackAPIVersion.VERSION2, name, protocol=MQTTProtocolVersion.MQTTv5)
        client.reconnect_delay_set(1, 1)
        client.on_connect = self._on_connect
        client.on_subscribe = lambda *_: self._subscribed.set()
        client.on_message = self._on_message
        client.connect(self._broker.host, self._broker.port)
        client.loop_start()
        self._client = client
        if not self._subscribed.wait(WAIT_S):
            raise TimeoutError("the control plane is not subscribed")

    def die(self) -> None:
        """Is gone without a trace; the broker keeps nothing for it. May be called twice."""
        client, self._client = self._client, None
        if client is not None:
            client.disconnect()
            client.loop_stop()

    # -------------------------------------------------------------- saying

    def desire(self, version: int, **sections: dict[str, Any]) -> None:
        """Retains a desired document."""
        self.desire_bytes(json.dumps(desired_document(version, sections)).encode())

    def desire_bytes(self, payload: bytes) -> None:
        """Retains anything as the desired document."""
        self._publish(self._topics.config_desired, payload, retain=True)

    def acknowledge_bytes(self, payload: bytes) -> None:
        """Publishes anything as an acknowledgement."""
        self._publish(self._topics.ack, payload)

    def command(
        self, name: str, payload: bytes = b"", *, answer_to: str = "", retain: bool = False
    ) -> bytes:
        """Sends a command; its correlation."""
        correlation = b"command %d" % next(self._names)
        properties: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ResponseTopic = answer_to or self._answer_topic
        properties.CorrelationData = correlation
        self._publish(self._topics.command(name), payload, properties, retain=retain)
        return correlation

    def ask(self, name: str, payload: bytes = b"") -> tuple[str, Any]:
        """Sends a command and waits for its answer: status and document."""
        correlation = self.command(name, payload)

        def found() -> list[tuple[str, Any]]:
            return [(status, each) for own, status, each in self._answers if own == correlation]

        self.wait(lambda: bool(found()), f"an answer to {name}")
        return found()[0]

    def _publish(
        self, topic: str, payload: bytes, properties: Any = None, *, retain: bool = False
    ) -> None:
        assert self._client is not None
        info = self._client.publish(topic, payload, 1, retain, properties)
        info.wait_for_publish(WAIT_S)

    # -------------------------------------------------------------- what came

    def records(self, stream: str, kind: str = "") -> list[Record]:
        """Records of a stream in the order in which they came, duplicates included."""
        with self._changed:
            places = [place for place in self._records if place[0] == stream]
            found = [record for place in places for record in self._records[place]]
        return [record for record in found if kind in {"", record.kind}]

    def count(self, stream: str) -> int:
        """Different records of a stream."""
        with self._changed:
            return sum(
                len({record.seq for record in records})
                for place, records in self._records.items()
                if place[0] == stream
            )

    def gaps(self, stream: str) -> list[tuple[str, int]]:
        """Numbers below the largest one of their epoch that never came."""
        with self._changed:
            return [
                (place[1], seq)
                for place, records in self._records.items()
                if place[0] == stream
                for seq in sorted(
                    set(range(1, max(r.seq for r in records))) - {r.seq for r in records}
                )
            ]

    def duplicates(self, stream: str) -> int:
        """Records of a stream that came more than once, each repetition counted."""
        with self._changed:
            counts = [
                Counter(record.seq for record in records)
                for place, records in self._records.items()
                if place[0] == stream
            ]
        return sum(number - 1 for each in counts for number in each.values())

    def lateness(self, stream: str, mode: str) -> list[float]:
        """How late each record of a mode came, in seconds."""
        return [record.late_s for record in self.records(stream) if record.mode == mode]

    def messages(self) -> list[tuple[str, int, dict[str, str]]]:
        """Stream, bytes and user properties of every batch."""
        with self._changed:
            return list(self._messages)

    def reported(self) -> list[dict[str, Any]]:
        """All reported documents."""
        with self._changed:
            return list(self._reported)

    def wrong(self) -> list[str]:
        """What came and could not be read."""
        with self._changed:
            return list(self._wrong)

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Waits until a condition holds.

        Raises:
            TimeoutError: it does not in time.
        """
        with self._changed:
            if not self._changed.wait_for(condition, WAIT_S):
                counts = {place: len(records) for place, records in self._records.items()}
                last = {k: v for k, v in (self._reported or [{}])[-1].items() if k != "config"}
                raise TimeoutError(f"no {what} within {WAIT_S} s; {counts}, reported {last}")

    def wait_reported(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The last reported document that fulfils a condition, once there is one."""
        self.wait(lambda: any(map(condition, self._reported)), "such a reported document")
        return [each for each in self.reported() if condition(each)][-1]

    def wait_records(self, stream: str, kind: str = "", count: int = 1) -> list[Record]:
        """The records of a kind, once there are so many."""
        self.wait(lambda: len(self.records(stream, kind)) >= count, f"{count} {stream} {kind}")
        return self.records(stream, kind)

    # -------------------------------------------------------------- paho's thread

    def _on_connect(self, client: mqtt.Client, *_: object) -> None:
        base = self._topics.base
        topics = (f"{base}/report/+", self._topics.config_reported, f"{self._answer_topic}/#")
        client.subscribe([(topic, 1) for topic in topics])

    def _on_message(self, client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        properties = message.properties
        user = dict(getattr(properties, "UserProperty", ()))
        with self._changed:
            try:
                if message.topic == self._topics.config_reported:
                    self._reported.append(json.loads(message.payload))
                elif message.topic.startswith(self._answer_topic):
                    correlation = getattr(properties, "CorrelationData", b"")
                    answer = json.loads(message.payload)
                    self._answers.append((correlation, user.get(protocol.STATUS, ""), answer))
                else:
                    self._batch(client, message, user)
            except Exception as err:  # a test looks at what went wrong
                self._wrong.append(f"{message.topic}: {err!r}")
            self._changed.notify_all()

    def _batch(self, client: mqtt.Client, message: mqtt.MQTTMessage, user: dict[str, str]) -> None:
        batch = unpack(bytes(message.payload), user.get(protocol.CONTENT_ENCODING, ""))
        stream, epoch = batch["stream"], batch["epoch"]
        self._messages.append((stream, len(message.payload), user))
        mode, boot_id, now = batch["mode"], batch["boot_id"], time.time()
        records = [
            Record(r["seq"], mode, r["time"], r["kind"], r["body"], boot_id, now - r["time"])
            for r in batch["records"]
        ]
        refused = {r.seq: why for r in records if (why := self.behaviour.refuses(r))}
        stored = [record for record in records if record.seq not in refused]
        self._records.setdefault((stream, epoch), []).extend(stored)
        if self.behaviour.acknowledges:
            answer = ack_document(batch["boot_id"], batch["batch"], refused)
            client.publish(self._topics.ack, json.dumps(answer).encode(), 1)
