"""Whoever brings what makes a batch due starts it; what takes longer is left to the device."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from edged.latency import LatencyCurve
from edged.recipe import InputSpec
from edged.serve.admit import Admission
from edged.serve.batch import WaitingRoom
from edged.serve.gpu import LARGE_BYTES, Device, DevicePorts, Done, Served
from edged.serve.request import Part, Priority, Receipt, ReplyTo, Request
from edged.serve.timer import BatchTimer
from tests.bench.echo_runner import EchoRunner
from tests.doubles.around_device import PATIENCE_S

CAP = 4


class Standing:
    """A device with a real waiting room, around a runner that answers at once."""

    def __init__(self, entries: int = 1) -> None:
        self.room = WaitingRoom(
            {"m": BatchTimer(LatencyCurve((1, CAP), (0.1, 0.1)), CAP)}, Admission(100_000).refusal
        )
        self.entries = entries
        self.told: list[tuple[str, Done]] = []
        self.changed = threading.Condition()
        self.served = Served(
            EchoRunner(entries, CAP), (InputSpec(name="x", datatype="FP32", shape=(entries,)),)
        )
        self.ports = DevicePorts(
            take=self.room.take,
            take_now=self.room.take_now,
            hand=self.room.hand,
            call=self.room.call,
            completed=partial(self.room.completed, call=False),
            done=self._done,
            put_back=self.room.put_back,
            failed=lambda _device, _error: None,
            renew=lambda _device: None,
        )
        self.device = Device("d", {"m": self.served}, self.ports)
        self.room.add_device("d", self.device.lanes)

    def _done(self, done: Done) -> None:
        with self.changed:
            self.told.append((threading.current_thread().name, done))
            self.changed.notify_all()

    def put(self, count: int = 1) -> None:
        """Requests of one sample each, without a call."""
        for _ in range(count):
            rows = np.zeros((1, self.entries), np.float32)
            request = Request(
                "m", "", 1, {"x": rows}, 1e12, Priority.NORMAL, 0.0, ReplyTo("r", None, 0),
                Receipt(1, 0, 0, 0),
            )  # fmt: skip
            self.room.put(request, call=False)

    def ended(self, count: int) -> list[tuple[str, Part]]:
        """By which thread, once so many requests have ended."""
        with self.changed:
            found: list[tuple[str, Part]] = []

            def enough() -> bool:
                found[:] = [(who, part) for who, done in self.told for part in done.parts]
                return len(found) >= count

            assert self.changed.wait_for(enough, PATIENCE_S)
            return found

    def end(self) -> None:
        """Ends the device's thread."""
        self.room.close()
        self.device.thread.join(PATIENCE_S)


def test_who_brings_an_arrival_starts_its_batch() -> None:
    """On the same thread, without the device's own; a runner that answers at once ends there."""
    standing = Standing()
    standing.put()

    assert standing.room.due()
    standing.device.pull()

    assert [who for who, _ in standing.ended(1)] == [threading.current_thread().name]
    assert not standing.room.due()


def test_a_runner_that_answers_at_once_is_not_called_from_its_own_answer() -> None:
    """A queue of any length is worked off in a loop, no deeper in the stack with each batch."""
    standing = Standing()
    standing.put(3000 * CAP)

    standing.device.pull()

    assert len(standing.ended(3000 * CAP)) == 3000 * CAP


@pytest.mark.parametrize("why", ["large", "no lane"])
def test_what_takes_longer_is_left_to_the_device_s_own_thread(why: str) -> None:
    """A large batch, or an engine whose lanes are all still with its predecessor's batches."""
    standing = Standing(LARGE_BYTES // 4 + 1 if why == "large" else 1)
    lane = standing.served.lanes.get() if why == "no lane" else 0
    standing.device.thread.start()
    standing.put()

    standing.device.pull()
    standing.device.pull()  # no one overtakes what was left
    standing.room.call()
    if why == "no lane":
        standing.served.lanes.put(lane)

    assert [who for who, _ in standing.ended(1)] == ["gpu-d"]
    standing.end()


def test_a_fault_of_ours_while_a_batch_is_started_ends_the_service() -> None:
    """Whichever thread it happens on, `dead` names it."""
    standing = Standing()

    def take_now(device: str) -> Any:
        raise ValueError(device)

    device = Device("d", {"m": standing.served}, replace(standing.ports, take_now=take_now))
    with pytest.raises(ValueError, match="d"):
        device.pull()

    assert device.dead() == threading.current_thread().name
