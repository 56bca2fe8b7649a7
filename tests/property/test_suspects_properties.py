"""The door behind which suspects are tried: whoever is there, however it dies."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from edged.serve.request import Arrival, Receipt
from edged.serve.suspects import MOST_DEATHS, Suspects


def arrival(order: int, mark: int, qos: int = 1) -> Arrival:
    """Delivery number ``order`` of the request ``mark``."""
    return Arrival("t", b"", Receipt(1, order * qos, order * qos, qos, mark * qos), 0.0)


class Life:
    """One run of the service: a device that takes some requests at once, and dies of poison."""

    def __init__(self, deaths: dict[int, int], lanes: int) -> None:
        self.deaths = deaths
        self.suspects = Suspects(dict(deaths), self.cleared)
        self.lanes = lanes
        self.inside: list[Arrival] = []
        self.answered: list[int] = []
        self.refused: list[int] = []
        self.order: list[int] = []

    def cleared(self, mark: int) -> None:
        """It came back."""
        del self.deaths[mark]

    def let_in(self, arrival: Arrival) -> None:
        """It passes the door; suspects are alone behind it."""
        mark = arrival.receipt.fingerprint
        trial = self.deaths.get(mark, MOST_DEATHS) < MOST_DEATHS
        assert not (trial and self.inside)
        marks = [each.receipt.fingerprint for each in self.inside]
        assert not any(self.deaths.get(mark, MOST_DEATHS) < MOST_DEATHS for mark in marks)
        self.inside.append(arrival)
        self.order.append(arrival.receipt.order)

    def deliver(self, arrival: Arrival) -> None:
        """From the broker."""
        if self.suspects.arrived(arrival):
            self.let_in(arrival)
        self.look()

    def look(self) -> None:
        """After each event, what waits may go on."""
        while (arrival := self.suspects.next()) is not None:
            self.let_in(arrival)

    def run(self, poison: set[int]) -> list[int]:
        """A batch; the fingerprints that were on the device if the process dies of it."""
        batch = self.inside[: self.lanes]
        sound = [a for a in batch if not self.suspects.refused(a.receipt)]
        if any(a.receipt.fingerprint in poison for a in sound):
            return [a.receipt.fingerprint for a in sound if a.receipt.qos]
        for each in batch:
            self.inside.remove(each)
            ended = self.answered if each in sound else self.refused
            ended.append(each.receipt.fingerprint)
            self.suspects.ended(each.receipt)
        self.look()
        return []


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=30, unique=True),
    st.sets(st.integers(1, 30), max_size=3),
    st.integers(1, 8),
    st.data(),
)
@settings(max_examples=200, deadline=None)
def test_poison_is_refused_in_the_end_and_everybody_else_is_answered(
    requests: list[int], poison: set[int], batch: int, data: st.DataObject
) -> None:
    """Any number of poisoned requests among others, in batches of any size.

    The process dies at most three times for each; then all requests have ended, and in each life
    they passed the door in their order.
    """
    session, deaths = list(requests), dict[int, int]()
    blamed: Counter[int] = Counter()
    answered: set[int] = set()
    lives = 0
    while session:
        lives += 1
        assert lives <= (MOST_DEATHS + 1) * len(poison & set(requests)) + 1
        life = Life(deaths, batch)
        coming = [arrival(order, mark) for order, mark in enumerate(session, 1)]
        fresh = [arrival(0, 0, qos=0)] * data.draw(st.integers(0, 2))
        for each in [*coming, *fresh]:
            life.deliver(each)
        died: list[int] = []
        while life.inside and not died:
            died = life.run(poison)
        assert [a for a in life.order if a] == sorted(a for a in life.order if a)
        ended = {*life.answered, *life.refused}
        assert set(life.refused) <= poison
        answered |= set(life.answered)
        session = [mark for mark in session if mark not in ended]
        for mark in died:
            blamed[mark] += 1
            deaths[mark] = deaths.get(mark, 0) + (len(died) == 1)
        assert died or not session, "something waits for ever"
    assert answered - {0} == set(requests) - poison
    assert not [mark for mark, count in deaths.items() if mark not in poison]


def test_one_that_found_no_room_is_tried_later() -> None:
    """It goes to the front again, and is still a suspect."""
    suspects = Suspects({5: 0}, lambda _mark: None)
    first = arrival(1, 5)
    assert not suspects.arrived(first)
    assert suspects.next() is first
    assert suspects.next() is None
    suspects.back(first)
    assert suspects.next() is first
    suspects.ended(first.receipt)
    assert suspects.arrived(arrival(2, 5))
