"""Requesters that live through anything: a steady rate of QoS 1 requests, and what came of each.

They know MQTT only (paho) and keep their sessions. They send a request again only when they are
told to: until then what is lost stays lost, and what comes twice was repeated by device or broker.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from types import TracebackType
from typing import Any, final

import numpy as np
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edged import protocol
from tests.doubles import digits
from tests.doubles.wire import Address, Message

IMAGES = digits.images()
PATIENCE_MS = "600000"
"""Deadline of each request: the device may be away for long."""
SESSION_S = 3600


class Requester:
    """One connection: what it sent, and what was answered.

    Args:
        broker: where to.
        topics: the device's.
        name: part of its client id and its reply topic.
    """

    def __init__(self, broker: Address, topics: protocol.Topics, name: str) -> None:
        self._topics = topics
        self._reply = topics.reply(name)
        self.sent = 0
        self.taken = 0
        self.answers: Counter[int] = Counter()
        self.order: list[int] = []
        self.statuses: Counter[str] = Counter()
        self.wrong = 0
        self._digits: dict[int, int] = {}
        self._subscribed = threading.Event()
        client = mqtt.Client(CallbackAPIVersion.VERSION2, f"chaos-{name}", protocol=mqtt.MQTTv5)
        client.max_inflight_messages_set(100)
        client.reconnect_delay_set(1, 1)
        client.on_connect = self._on_connect
        client.on_subscribe = lambda *_: self._subscribed.set()
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        connect: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho's
        connect.SessionExpiryInterval = SESSION_S
        client.connect(broker.host, broker.port, clean_start=False, properties=connect)
        client.loop_start()
        self._client = client
        if not self._subscribed.wait(30):
            raise TimeoutError("no subscription")

    def send(self) -> None:
        """The next request; paho keeps it while the broker is away."""
        self.sent += 1
        self._publish(self.sent - 1)

    def send_again(self) -> int:
        """Sends all that have no answer once more, with the same correlation data; how many."""
        left = [number for number in range(self.sent) if number not in self.answers]
        for number in left:
            self._publish(number)
        return len(left)

    def _publish(self, number: int) -> None:
        ask = digits.binary_ask(
            self._topics, IMAGES[number % len(IMAGES)][None], b"%d" % number, reply=self._reply
        )
        properties: Any = ask.properties()
        properties.UserProperty = [(protocol.DEADLINE_MS, PATIENCE_MS)]  # paho adds
        self._client.publish(ask.topic, ask.payload, 1, properties=properties)

    def close(self) -> None:
        """Disconnects."""
        self._client.disconnect()
        self._client.loop_stop()

    def left(self) -> int:
        """Requests without an answer."""
        return self.sent - len(self.answers)

    def overtaken(self) -> int:
        """First answers that came behind one of a later request."""
        latest, count = -1, 0
        for number in list(self.order):
            count += number < latest
            latest = max(latest, number)
        return count

    def _on_connect(self, client: mqtt.Client, *_: object) -> None:
        client.subscribe(self._reply, 1)

    def _on_publish(self, *_: object) -> None:
        self.taken += 1

    def _on_message(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        answer = Message.of(message)
        number = int(answer.correlation or b"-1")
        self.answers[number] += 1
        if answer.status == "200":
            digit = int(np.argmax(digits.binary_logits(answer)))
            self.wrong += self._digits.setdefault(number % len(IMAGES), digit) != digit
        if self.answers[number] == 1:
            self.order.append(number)
            self.statuses[answer.status] += 1


@final
class Load:
    """Several requesters at an even rate; a context manager, which stops sending at its end.

    Args:
        broker: where to.
        topics: the device's.
        rate: requests/s of all of them.
        clients: how many.
    """

    def __init__(
        self, broker: Address, topics: protocol.Topics, rate: float, clients: int, name: str
    ) -> None:
        self._pause = 1 / rate
        self.requesters = [Requester(broker, topics, f"{name}-{n}") for n in range(clients)]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send, name="load", daemon=True)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        for requester in self.requesters:
            requester.close()

    def stop(self) -> None:
        """Sends no more. May be called twice."""
        self._stop.set()
        self._thread.join()

    def _send(self) -> None:
        begun, count = time.monotonic(), 0
        while not self._stop.wait(max(0.0, begun + count * self._pause - time.monotonic())):
            self.requesters[count % len(self.requesters)].send()
            count += 1

    def answered(self) -> int:
        """Requests that have an answer."""
        return sum(len(each.answers) for each in self.requesters)

    def wait_more(self, count: int, timeout_s: float) -> None:
        """Waits until so many more requests are answered.

        Raises:
            TimeoutError: they are not in time.
        """
        wanted, until = self.answered() + count, time.monotonic() + timeout_s
        while self.answered() < wanted:
            if time.monotonic() > until:
                raise TimeoutError(f"{wanted - self.answered()} of {count} answers are missing")
            time.sleep(0.005)

    def settle(self, quiet_s: float) -> None:
        """Waits until nothing has come for so long: what is unanswered then is lost.

        Once all are answered, a second is enough to see whether answers come again.
        """
        count, since = -1, time.monotonic()
        while (quiet := time.monotonic() - since) < quiet_s:
            if (now := sum(each.answers.total() for each in self.requesters)) != count:
                count, since = now, time.monotonic()
            elif quiet > 1 and not any(each.left() for each in self.requesters):
                return
            time.sleep(0.05)

    def send_again(self) -> int:
        """Has what is unanswered sent again; how many."""
        return sum(each.send_again() for each in self.requesters)

    def verdict(self) -> dict[str, object]:
        """What came of all requests."""
        each = self.requesters
        statuses = sum((requester.statuses for requester in each), Counter[str]())
        return {
            "sent": sum(requester.sent for requester in each),
            "taken_by_the_broker": sum(requester.taken for requester in each),
            "lost": sum(requester.left() for requester in each),
            "first_answers_by_status": dict(sorted(statuses.items())),
            "answered_twice_or_more": sum(n > 1 for r in each for n in r.answers.values()),
            "most_answers_to_one": max(max(r.answers.values(), default=0) for r in each),
            "different_answers": sum(requester.wrong for requester in each),
            "overtaken_in_a_client": sum(requester.overtaken() for requester in each),
        }
