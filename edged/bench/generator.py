"""The load generator: one thread that sends at fixed times, or when answers come, and books both.

Open loop: the times of all requests are fixed before the first is sent, and latency counts from
the time at which a request *should* have been sent. A service that stalls is then measured with
the requests that would have come meanwhile; a loop that waits for answers would leave them out
(coordinated omission).
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edged.bench.connection import KEEPALIVE_S, LoadConnection, Template
from edged.bench.tally import NEVER, Tally
from edged.errors import BrokerError
from edged.mqtt.codec import Publish

_CONNECT_S = 10.0
_TURN_REQUESTS = 64
"""Requests sent in one turn, so that answers are not stamped late in a burst."""
_MOST_WAITING = 60_000
"""On a connection; MQTT numbers what is on its way with 16 bits (MQTT 5, 2.2.1)."""
_RUN_BYTES = 4

Progress = Callable[[int, int, float], None]
"""Called with (requests sent, in all or 0, seconds since the start), ten times a second."""


@dataclass
class Requests:
    """What is sent: messages in turn, classes as they are drawn.

    Attributes:
        template: (connection, message, class), by number -> what is sent.
        messages: number of different messages.
        target: whom they are for, in words.
        qos: 0 or 1.
        made: templates so far.
    """

    template: Callable[[int, int, int], Template]
    messages: int
    target: str
    qos: int = 1
    made: dict[tuple[int, int, int], Template] = field(default_factory=dict)

    def get(self, connection: int, message: int, class_: int) -> Template:
        """A template, made when it is first needed."""
        key = (connection, message, class_)
        found = self.made.get(key)
        if found is None:
            found = self.made[key] = self.template(*key)
        return found


class Generator:
    """Sends load over connections that stand.

    Args:
        connections: they take the requests in turn.
        requests: what is sent.
        run: four bytes that tell this run's correlation data from others'.
        heard: called with messages that are no answers, such as telemetry.
        progress: told how far it is.
    """

    def __init__(
        self,
        connections: Sequence[LoadConnection],
        requests: Requests,
        run: bytes,
        heard: Callable[[str, bytes], None],
        progress: Progress,
    ) -> None:
        self.tally = Tally()
        self._connections = connections
        self._requests = requests
        self._run = run
        self._heard = heard
        self._progress = progress
        self._began = self._told = self._pinged = 0.0
        self._poll = select.epoll()
        self._by_fd = {each.fileno(): number for number, each in enumerate(connections)}
        self._touched: set[int] = set()
        for each in connections:
            self._poll.register(each.fileno(), select.EPOLLIN)

    def connect(self) -> None:
        """Waits until every subscription is granted.

        Raises:
            BrokerError: the broker refuses, or does not answer in time.
        """
        until = time.monotonic() + _CONNECT_S
        self._touched.update(range(len(self._connections)))
        while not all(each.is_up for each in self._connections):
            if time.monotonic() > until:
                raise BrokerError(
                    f"the broker did not answer within {_CONNECT_S:g} s; does it speak MQTT 5?"
                )
            self._turn(0.05)
            self._touched.update(range(len(self._connections)))

    def open_loop(
        self, times: Sequence[float], classes: Sequence[int], grace_s: float
    ) -> tuple[float, float]:
        """Sends every request at its time, whether or not earlier ones were answered.

        Args:
            times: intended send times, seconds from the start, ascending.
            classes: number of the class of each.
            grace_s: seconds to wait for answers after the last request.

        Returns:
            When it began and when it ended, monotonic seconds.
        """
        count, tally = len(times), self.tally
        began = self._begin()
        sent = 0
        until = began + times[-1] + grace_s
        while (now := time.monotonic()) < until and (sent < count or tally.ended < count):
            turn = 0
            while sent < count and began + times[sent] <= now and turn < _TURN_REQUESTS:
                self._send(began + times[sent], int(classes[sent]))
                sent, turn = sent + 1, turn + 1
            due = began + times[sent] if sent < count else until
            self._tell(now, sent, count)
            self._turn(due - time.monotonic())
        self._tell(now, sent, count, last=True)
        return began, time.monotonic()

    def closed_loop(
        self, outstanding: int, classes: Sequence[int], seconds: float, grace_s: float
    ) -> tuple[float, float]:
        """Keeps so many requests without an answer; each answer sends the next one.

        One that is not answered within ``grace_s`` is lost, and makes room for another.

        Returns:
            When it began and when it ended, monotonic seconds.
        """
        tally, began = self.tally, self._begin()
        oldest = given_up = 0
        while (now := time.monotonic()) < began + seconds:
            while oldest < len(tally) and tally.sent[oldest] < now - grace_s:
                given_up += not tally.outcome[oldest]
                oldest += 1
            # One may still be answered after it was given up: then there is one more for a while.
            free = outstanding - (len(tally) - tally.ended - given_up)
            for _ in range(min(free, _TURN_REQUESTS)):
                self._send(time.monotonic(), int(classes[len(tally) % len(classes)]))
            self._tell(now, len(tally), 0)
            self._turn(0.0 if free > _TURN_REQUESTS else min(0.1, began + seconds - now))
        until = time.monotonic() + grace_s
        while tally.ended < len(tally) and time.monotonic() < until:
            self._turn(until - time.monotonic())
        self._tell(now, len(tally), len(tally), last=True)
        return began, time.monotonic()

    def listen(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Hears messages without sending requests, until the time is up or ``until`` says so."""
        end = time.monotonic() + seconds
        while not until() and (left := end - time.monotonic()) > 0:
            self._turn(left)

    # ------------------------------------------------------------------ one turn

    def _begin(self) -> float:
        self._began = self._told = self._pinged = time.monotonic()
        return self._began

    def _send(self, intended: float, class_: int) -> None:
        tally, requests = self.tally, self._requests
        index = len(tally)
        number = index % len(self._connections)
        connection = self._connections[number]
        if connection.waiting >= _MOST_WAITING:
            tally.send(intended, NEVER, class_)
            return
        template = requests.get(number, index % requests.messages, class_)
        tally.send(intended, time.monotonic(), class_)
        connection.send(template, self._run + index.to_bytes(4, "big"), requests.qos)
        self._touched.add(number)

    def _turn(self, seconds: float) -> None:
        """Sends what is due to go, waits for at most so long, and books what has come."""
        touched, self._touched = self._touched, set()
        for number in touched:
            self._connections[number].flush()
            if self._connections[number].unsent:
                self._touched.add(number)
        if seconds > 0:
            # epoll counts in milliseconds, which is too coarse to send at a time.
            wait = min(seconds, 0.001) if self._touched else min(seconds, 1.0)
            select.select([self._poll.fileno()], [], [], wait)
        for fd, _events in self._poll.poll(0):
            self._receive(self._by_fd[fd])
        self._keep_alive()

    def _receive(self, number: int) -> None:
        connection = self._connections[number]
        try:
            for message in connection.receive():
                self._book(number, message)
        except OSError as err:
            raise BrokerError(f"the broker ended a connection: {err}") from err
        self._touched.add(number)  # acknowledgements are to be sent

    def _book(self, number: int, message: Publish) -> None:
        correlation = message.correlation or b""
        if message.topic != self._connections[number].reply_topic:
            self._heard(message.topic, bytes(message.payload))
        elif len(correlation) != 2 * _RUN_BYTES or correlation[:_RUN_BYTES] != self._run:
            self.tally.foreign += 1
        else:
            index = int.from_bytes(correlation[_RUN_BYTES:], "big")
            class_ = self.tally.classes[index] if index < len(self.tally) else 0
            self.tally.answer(
                index, time.monotonic(), message.user or {}, message.payload, (number, class_)
            )

    def _keep_alive(self) -> None:
        now = time.monotonic()
        if now - self._pinged > KEEPALIVE_S / 3:
            self._pinged = now
            for number, connection in enumerate(self._connections):
                connection.ping()
                self._touched.add(number)

    def _tell(self, now: float, sent: int, count: int, *, last: bool = False) -> None:
        if last or now - self._told > 0.1:
            self._told = now
            if any(each.nobody for each in self._connections) and not self.tally.ended:
                raise BrokerError(
                    f"nobody takes requests of {self._requests.target}: check its name, the topic "
                    "root, and that `edged serve` runs"
                )
            self._progress(sent, count, now - self._began)
