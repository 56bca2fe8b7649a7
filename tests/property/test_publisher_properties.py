"""The publisher against a model: replies, deliveries and lost connections in any order."""

from __future__ import annotations

from collections import Counter
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

from edged.serve.duplicates import Duplicates
from edged.serve.publish import Publisher, PublisherPorts
from edged.serve.request import Outcome, Receipt, Reply


@dataclass
class Story:
    """What happened to one arrival."""

    outcome: Outcome
    reply: Reply | None = None
    answered: bool = False
    mid: int | None = None
    settled: bool = False
    """Its reply is with the broker, or will never be: it may be acknowledged."""
    sent: bool | None = None
    """What the publisher said at its end."""


class Replies(RuleBasedStateMachine):
    """A broker link that records, and may refuse a message."""

    @initialize()
    def begin(self) -> None:
        """A publisher before its first connection."""
        ports = PublisherPorts(self.send, self.acknowledge, self.ended, self.repeated)
        self.publisher = Publisher(ports, Duplicates())
        self.stories: dict[Receipt, Story] = {}
        self.replies: dict[int, Story] = {}
        self.epoch, self.order, self.mids, self.window = 0, 0, 0, 0
        self.connected = self.refuse = False
        self.acknowledged: list[Receipt] = []
        self.ends: Counter[Receipt] = Counter()
        self.in_flight: set[int] = set()

    # -------------------------------------------------------------- the link

    def send(self, reply: Reply) -> int | None:
        """Checks when a reply may be sent, and takes or refuses it."""
        assert self.connected
        story = self.replies[id(reply)]
        assert story.mid is None, "sent twice"
        if reply.qos:
            assert len(self.in_flight) < self.window
        if self.refuse:
            story.settled = True
            return None
        self.mids += 1
        story.mid = self.mids
        if reply.qos:
            self.in_flight.add(self.mids)
        else:
            story.settled = True
        return self.mids

    def acknowledge(self, receipt: Receipt) -> bool:
        """Checks that an arrival may be acknowledged now."""
        assert receipt.qos > 0
        assert receipt.epoch == self.epoch
        assert receipt not in self.acknowledged
        assert self.stories[receipt].settled
        earlier = [r.order for r in self.acknowledged if r.epoch == self.epoch]
        assert receipt.order == len(earlier) + 1
        self.acknowledged.append(receipt)
        return self.connected

    def ended(self, outcome: Outcome, sent: bool) -> None:  # noqa: FBT001  # the interface
        """Counts the ends."""
        self.ends[outcome.receipt] += 1
        self.stories[outcome.receipt].sent = sent

    def repeated(self, how: str) -> None:
        """These have no correlation data; test_duplicates_properties.py has such."""
        raise AssertionError(how)

    # -------------------------------------------------------------- what may happen

    @precondition(lambda self: not self.connected)
    @rule(window=st.integers(1, 3))
    def connect(self, window: int) -> None:
        """A connection comes, with its own window."""
        self.epoch, self.order = self.epoch + 1, 0
        self.connected, self.window = True, window
        self.publisher.connected(self.epoch, window)

    @precondition(lambda self: self.connected)
    @rule()
    def disconnect(self) -> None:
        """The connection goes."""
        self.connected = False
        self.publisher.disconnected()

    @precondition(lambda self: self.connected)
    @rule(qos=st.sampled_from([0, 1, 1, 1]))
    def arrive(self, qos: int) -> None:
        """The broker delivers a request."""
        if qos:
            self.order += 1
        receipt = Receipt(self.epoch, self.order if qos else -len(self.stories), self.order, qos)
        self.stories[receipt] = Story(Outcome(receipt, None, "m"))

    def open_stories(self) -> list[Story]:
        """Arrivals that have not been answered."""
        return [story for story in self.stories.values() if not story.answered]

    @precondition(lambda self: self.open_stories())
    @rule(data=st.data(), kind=st.sampled_from(["qos1", "qos1", "qos1", "qos0", "none", "drop"]))
    def answer(self, data: st.DataObject, kind: str) -> None:
        """A request ends: with a reply, without one, or dropped before it was one."""
        story = data.draw(st.sampled_from(self.open_stories()))
        story.answered = True
        receipt = story.outcome.receipt
        if kind == "drop":
            story.settled = True
            self.publisher.dropped(receipt)
        elif kind == "none":
            story.settled = True
            self.publisher.reply(story.outcome, None)
        else:
            story.reply = Reply("r", b"", int(kind == "qos1"))
            self.replies[id(story.reply)] = story
            if kind == "qos0" and not self.connected:
                story.settled = True
            self.publisher.reply(story.outcome, story.reply)
        if kind in {"none", "qos0"}:
            assert self.ends[receipt] == 1
            assert story.sent == (story.mid is not None)
        if kind == "drop":
            assert self.ends[receipt] == 0

    @precondition(lambda self: self.in_flight and self.connected)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        """The broker acknowledges a reply, in any order."""
        mid = data.draw(st.sampled_from(sorted(self.in_flight)))
        self.in_flight.remove(mid)
        story = next(s for s in self.stories.values() if s.mid == mid)
        story.settled = True
        assert story.sent is None
        self.publisher.delivered(mid)
        assert story.sent is True

    @rule(mid=st.integers(-5, 0))
    def deliver_something_else(self, mid: int) -> None:
        """The broker acknowledges a message that was no reply."""
        self.publisher.delivered(mid)

    @rule(refuse=st.booleans())
    def link_refuses(self, refuse: bool) -> None:  # noqa: FBT001  # drawn by the machine
        """From now on the link takes nothing, or takes again."""
        self.refuse = refuse

    # -------------------------------------------------------------- what must hold

    @invariant()
    def acknowledgements_do_not_lag(self) -> None:
        """All arrivals of this connection up to the first unsettled one are acknowledged."""
        mine = {r.order: s for r, s in self.stories.items() if r.qos and r.epoch == self.epoch}
        expected = 0
        while expected + 1 in mine and mine[expected + 1].settled:
            expected += 1
        assert sum(r.epoch == self.epoch for r in self.acknowledged) == expected

    @invariant()
    def nothing_waits_without_a_reason(self) -> None:
        """Replies wait only for a connection or for the window, and are all accounted for."""
        unsent = [
            s for s in self.stories.values()
            if s.reply is not None and s.reply.qos and s.mid is None and not s.settled
        ]  # fmt: skip
        assert self.publisher.backlog == len(unsent)
        if self.connected and unsent:
            assert len(self.in_flight) >= self.window

    @invariant()
    def every_end_is_told_once(self) -> None:
        """A reply ends when it is settled, not before, and not twice."""
        for receipt, story in self.stories.items():
            dropped = story.answered and story.reply is None and story.sent is None
            assert self.ends[receipt] == int(story.settled and not dropped)

    def teardown(self) -> None:
        """With a broker that takes everything, nothing is left."""
        if not hasattr(self, "publisher"):
            return
        self.refuse = False
        if not self.connected:
            self.connect(2)
        while self.in_flight:
            mid = min(self.in_flight)
            self.in_flight.remove(mid)
            next(s for s in self.stories.values() if s.mid == mid).settled = True
            self.publisher.delivered(mid)
        assert self.publisher.backlog == 0
        assert all(story.settled for story in self.stories.values() if story.answered)
        self.every_end_is_told_once()
        self.acknowledgements_do_not_lag()


def test_the_publisher_does_what_the_model_says() -> None:
    """Window, order of acknowledgement, epochs and ends hold in any order of events."""
    run_state_machine_as_test(Replies, settings=settings(max_examples=100, stateful_step_count=50))
