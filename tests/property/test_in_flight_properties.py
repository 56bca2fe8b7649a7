"""QoS 1 on its way out, in any order of sending, acknowledging, losing and coming back."""

from __future__ import annotations

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

from edged.mqtt.in_flight import InFlight, Outgoing


class Broker(RuleBasedStateMachine):
    """A broker that takes, acknowledges, goes away, and keeps its session or does not."""

    @initialize()
    def begin(self) -> None:
        """Nothing was sent, and nobody is there."""
        self.in_flight = InFlight()
        self.accepted: list[int] = []  # numbers of messages in the order in which they were put
        self.names: dict[int, int] = {}  # by packet identifier, of those without acknowledgement
        self.on_wire: list[int] = []  # numbers, on this connection, not acknowledged
        self.ever_sent: set[int] = set()
        self.window = 0
        self.numbers = 0

    def look(self) -> None:
        """What is due goes out."""
        for message in self.in_flight.due():
            number = self.names[message.mid]
            assert bool(message.begin()[0] & 8) == (number in self.ever_sent)
            self.on_wire.append(number)
            self.ever_sent.add(number)

    @rule()
    def put(self) -> None:
        """A reply is to be sent."""
        mid = self.in_flight.identifier()
        assert mid not in self.names, "an identifier was taken twice"
        self.names[mid] = self.numbers
        self.accepted.append(self.numbers)
        self.numbers += 1
        self.in_flight.put(Outgoing(mid, b"\x32", b""))
        self.look()

    @precondition(lambda self: self.on_wire)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        """The broker acknowledges any of those on the wire."""
        number = data.draw(st.sampled_from(self.on_wire))
        mid = next(mid for mid, name in self.names.items() if name == number)
        assert self.in_flight.acknowledged(mid)
        assert not self.in_flight.acknowledged(mid)
        del self.names[mid]
        self.on_wire.remove(number)
        self.accepted.remove(number)
        self.look()

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        """One is not wanted any more: gone if the broker cannot have seen it, else it stays."""
        mid = data.draw(st.sampled_from(sorted(self.names)))
        number = self.names[mid]
        unseen = number not in self.on_wire and number not in self.ever_sent
        assert self.in_flight.forget(mid) == unseen
        if unseen:
            del self.names[mid]
            self.accepted.remove(number)

    @precondition(lambda self: not self.window)
    @rule(window=st.integers(1, 4), kept=st.booleans())
    def connect(self, window: int, kept: bool) -> None:  # noqa: FBT001  # a plain fact
        """It comes back, with a window of its own."""
        self.window = window
        if not kept:  # then it has forgotten them, and they are new to it
            self.ever_sent.clear()
        self.in_flight.connected(window, session_present=kept)
        self.look()

    @precondition(lambda self: self.window)
    @rule()
    def lose(self) -> None:
        """The connection is gone."""
        self.window = 0
        self.on_wire.clear()
        self.in_flight.disconnected()
        self.look()

    @invariant()
    def holds(self) -> None:
        """As many as the window allows, always the oldest in their order, and nothing is lost."""
        assert len(self.in_flight) == len(self.accepted)
        assert len(self.on_wire) == min(self.window, len(self.accepted))
        assert self.on_wire == self.accepted[: len(self.on_wire)]


def test_replies_in_flight_are_neither_lost_nor_too_many() -> None:
    """Any sequence of steps keeps window, order and number."""
    run_state_machine_as_test(
        Broker, settings=settings(max_examples=60, stateful_step_count=40, deadline=None)
    )
