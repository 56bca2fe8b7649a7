"""Requests that come again, against a broker's session: never run twice at once, none left over."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from edged.errors import EngineError, QueueFullError
from edged.serve.duplicates import OVERHEAD_BYTES, Duplicates
from edged.serve.publish import Publisher, PublisherPorts
from edged.serve.request import Arrival, Outcome, Receipt, Reply

MOST_BYTES = 4 * OVERHEAD_BYTES
MOST_S = 50.0
ERRORS = {"ok": None, "failed": EngineError("e"), "retry": QueueFullError("q")}


@dataclass
class Message:
    """What the broker keeps for the device until it is acknowledged."""

    name: str
    variant: int
    receipt: Receipt | None = None
    """Of the delivery on this connection."""


class Session(RuleBasedStateMachine):
    """A broker that delivers, loses connections, and delivers again; clients that send again."""

    @initialize()
    def begin(self) -> None:
        """Nothing was sent."""
        ports = PublisherPorts(self.send, self.acknowledge, self.ended, self.repeated)
        self.duplicates = Duplicates(MOST_BYTES, MOST_S)
        self.publisher = Publisher(ports, self.duplicates)
        self.now = 0.0
        self.epoch = self.order = self.mids = 0
        self.kept: list[Message] = []
        self.running: dict[Receipt, Arrival] = {}
        self.in_flight: dict[int, Reply] = {}
        self.delivered: set[tuple[str, int]] = set()
        """Requests of which an answer is with the broker."""

        self.arrived = self.told = 0
        self.connect()

    # -------------------------------------------------------------- the link

    def send(self, reply: Reply) -> int:
        """A reply goes out."""
        self.mids += 1
        self.in_flight[self.mids] = reply
        return self.mids

    def acknowledge(self, receipt: Receipt) -> bool:
        """The broker may forget the message only if it was answered."""
        (message,) = [each for each in self.kept if each.receipt == receipt]
        assert (message.name, message.variant) in self.delivered
        assert message is self.kept[0], "out of order"
        self.kept.remove(message)
        return True

    def ended(self, _outcome: Outcome, sent: bool) -> None:  # noqa: FBT001  # the interface
        """One that ran has ended."""
        assert sent
        self.told += 1

    def repeated(self, how: str) -> None:
        """One that did not run has ended."""
        assert how in {"joined", "resent"}
        self.told += 1

    # -------------------------------------------------------------- what may happen

    @rule(name=st.sampled_from("abc"), variant=st.integers(0, 1))
    def publish(self, name: str, variant: int) -> None:
        """A client sends a request: anew, again, or another one with the same correlation data."""
        self.kept.append(Message(name, variant))
        self.deliver(self.kept[-1])

    @rule()
    def connect(self) -> None:
        """A new connection: all that the broker keeps comes again."""
        self.publisher.disconnected()
        self.epoch, self.order = self.epoch + 1, 0
        self.publisher.connected(self.epoch, 3)
        for message in list(self.kept):
            self.deliver(message)

    def deliver(self, message: Message) -> None:
        """It arrives; it must not run while the same request does."""
        self.order += 1
        self.arrived += 1
        receipt = Receipt(self.epoch, self.order, self.order, 1, message.variant)
        message.receipt = receipt
        arrival = Arrival(
            "t", b"", receipt, self.now, response_topic="r", correlation=message.name.encode()
        )
        if self.publisher.arrived(arrival):
            return
        assert not [
            a for a in self.running.values()
            if (a.correlation, a.receipt.fingerprint) == (arrival.correlation, message.variant)
        ]  # fmt: skip
        self.running[receipt] = arrival

    @precondition(lambda self: self.running)
    @rule(data=st.data(), kind=st.sampled_from(sorted(ERRORS)))
    def answer(self, data: st.DataObject, kind: str) -> None:
        """One that runs has its reply."""
        receipt = data.draw(st.sampled_from(list(self.running)))
        arrival = self.running.pop(receipt)
        name = (arrival.correlation or b"").decode()
        outcome = Outcome(receipt, None, "m", error=ERRORS[kind])
        payload = f"{name}{receipt.fingerprint}".encode()
        self.publisher.reply(outcome, Reply("r", payload, 1, arrival.correlation))

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        """The broker takes a reply over: it is the one of that request and of no other."""
        mid = data.draw(st.sampled_from(sorted(self.in_flight)))
        payload = self.in_flight.pop(mid).payload.decode()
        self.delivered.add((payload[0], int(payload[1])))
        self.publisher.delivered(mid)

    @rule(seconds=st.sampled_from([1.0, 30.0, 100.0]))
    def wait(self, seconds: float) -> None:
        """Time passes; replies grow old."""
        self.now += seconds

    @invariant()
    def bounded(self) -> None:
        """What is kept stays within its limit."""
        assert self.duplicates.kept_bytes <= MOST_BYTES

    def teardown(self) -> None:
        """Once all have run and been taken, the broker keeps nothing, and all arrivals ended."""
        if not hasattr(self, "publisher"):
            return
        while self.running:
            receipt, arrival = next(iter(self.running.items()))
            del self.running[receipt]
            payload = f"{(arrival.correlation or b'').decode()}{receipt.fingerprint}".encode()
            self.publisher.reply(Outcome(receipt, None, "m"), Reply("r", payload, 1))
        while self.in_flight:
            mid = min(self.in_flight)
            payload_text = self.in_flight.pop(mid).payload.decode()
            self.delivered.add((payload_text[0], int(payload_text[1])))
            self.publisher.delivered(mid)
        assert not self.kept
        assert self.told == self.arrived
        assert repr(self.duplicates).startswith("<Duplicates 0 in hand")


def test_what_comes_again_is_answered_and_not_run_twice_at_once() -> None:
    """Any order of deliveries, answers, losses of the connection and time."""
    run_state_machine_as_test(Session, settings=settings(max_examples=150, stateful_step_count=40))
