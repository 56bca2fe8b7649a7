"""Several threads take batches for one device: in order, none twice, and none is forgotten."""

from __future__ import annotations

import contextlib
import math
from unittest import mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edged.errors import LateError
from edged.latency import LatencyCurve
from edged.serve.request import Batch, Work
from edged.serve.timer import BatchTimer
from tests.doubles.stepped_room import StepwiseRoom, make_request

DEVICE = "d"
LANES = 2
CAP = 4
OTHERS = st.sampled_from([101, 102])
CURVE = LatencyCurve((1, CAP), (0.01, 0.02))


class Takers(RuleBasedStateMachine):
    """The link's thread and the runner's beside the device's own, one step at a time."""

    def __init__(self) -> None:
        super().__init__()
        timer = BatchTimer(CURVE, CAP, price=0.5)
        self.stepped = StepwiseRoom({"m": timer})
        self.room = self.stepped.room
        self.room.add_device(DEVICE, LANES)
        self.stepped.take(DEVICE)
        self.arrived: list[int] = []
        self.ended: list[int] = []  # submitted or expired
        self.running: list[Batch] = []
        self.taking: dict[int, Batch] = {}  # taken by a thread, not submitted yet
        self.own: Work | None = None
        self.asleep = True

    def _now(self, thread: int) -> Batch | None:
        with mock.patch("edged.serve.batch.get_ident", return_value=thread):
            return self.room.take_now(DEVICE)

    def _submit(self, batch: Batch) -> None:
        self.ended += [part.request.receipt.order for part in batch.parts]
        self.running.append(batch)

    def _wake(self) -> None:
        self.room.call()
        self.asleep = self.asleep and not self.stepped.awake([DEVICE])

    # ---------------------------------------------------------- what happens

    @rule(left_s=st.sampled_from([0.02, 1.0, math.inf]), thread=OTHERS)
    def arrives(self, left_s: float, thread: int) -> None:
        """A request comes in on the link's thread, which looks at once."""
        request = make_request(self.stepped.now, left_s=left_s)
        request.receipt.order = number = len(self.arrived)  # type: ignore[misc]  # frozen for mypy
        with contextlib.suppress(LateError):
            self.room.put(request, call=False)
            self.arrived.append(number)
        if self.room.due() and thread not in self.taking:
            self._look(thread)
        self._wake()

    @rule(seconds=st.sampled_from([0.001, 0.01, 0.1]))
    def passes(self, seconds: float) -> None:
        """Time passes."""
        self.stepped.now += seconds
        self._wake()

    @precondition(lambda self: self.running)
    @rule(thread=OTHERS)
    def completes(self, thread: int) -> None:
        """The oldest batch ends; the runner's thread looks for the next one."""
        batch = self.running.pop(0)
        self.room.completed(DEVICE, "m", batch.samples, 0.01, call=False)
        if thread not in self.taking:
            self._look(thread)
        self._wake()

    @precondition(lambda self: self.taking)
    @rule(hand=st.booleans())
    def starts(self, *, hand: bool) -> None:
        """Who has taken a batch submits it, or leaves it to the device's thread; looks again."""
        thread, batch = self.taking.popitem()
        if hand:
            self.room.hand(DEVICE, batch)
        else:
            self._submit(batch)
        self._look(thread)
        self._wake()

    @precondition(lambda self: not self.asleep)
    @rule()
    def own_thread_goes_on(self) -> None:
        """The device's own thread submits what it has, and asks again."""
        if self.own is not None:
            if self.own.batch is not None:
                self._submit(self.own.batch)
            self.ended += [part.request.receipt.order for part in self.own.expired]
        self.own = self.stepped.take(DEVICE)
        self.asleep = self.own is None

    def _look(self, thread: int) -> None:
        batch = self._now(thread)
        if batch is not None:
            self.taking[thread] = batch

    # ---------------------------------------------------------- what always holds

    @invariant()
    def one_at_a_time(self) -> None:
        """What is taken is submitted before anybody takes more."""
        own = self.own is not None and self.own.batch is not None
        assert len(self.taking) + own <= 1

    @invariant()
    def nothing_runs_late(self) -> None:
        """No more batches than lanes."""
        assert len(self.running) + len(self.taking) <= LANES

    def teardown(self) -> None:
        """With time passing and everybody going on, all that arrived ends exactly once."""
        for _ in range(40 + 4 * len(self.arrived)):
            while self.taking:
                self.starts(hand=False)
            while self.running:
                self.completes(101)
            if not self.asleep:
                self.own_thread_goes_on()
            self.passes(0.1)

        assert sorted(self.ended) == self.arrived


TestTakers = Takers.TestCase
TestTakers.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def test_batches_are_submitted_in_the_order_of_arrival() -> None:
    """A thread that comes while another one is taking gets nothing, so it cannot overtake."""
    machine = Takers()
    for _ in range(3 * CAP):
        machine.arrives(math.inf, 101)
        if not machine.asleep:
            machine.own_thread_goes_on()
    while machine.taking or machine.running or machine.room.samples:
        if machine.taking:
            assert machine._now(999) is None
            machine.starts(hand=len(machine.ended) % 2 == 0)
        elif machine.running:
            machine.completes(102)
        machine.passes(0.1)
        while not machine.asleep:
            machine.own_thread_goes_on()

    assert machine.ended == list(range(3 * CAP))
