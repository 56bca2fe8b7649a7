"""The tuner's thread: what it tunes, what it prices, and how much it takes."""

from __future__ import annotations

import math
import threading
from itertools import pairwise
from pathlib import Path

import pytest

from edged.gpu_load import JetsonSource, LoadSource, NoSource
from edged.serve.timer import BatchTimer
from edged.serve.tuner import Choice, Task
from edged.serve.tuning import Tuning, TuningPorts
from edged.settings import TimerSettings
from tests.doubles.jetson_tree import JetsonTree
from tests.doubles.simulated_device import linear, poisson

CURVE = linear(0.002, 0.00025)


class Room:
    """One timer on one device, as the waiting room hands it out; the clock is set by hand."""

    def __init__(self, price: float = 0.0) -> None:
        self.now = 1.0
        self.timer = BatchTimer(CURVE, 32, price=price)
        for came in poisson(960, 900, 3):
            self.timer.arrived(came, 1)
        self.rounds = 0
        self.tuned_once = threading.Event()
        self.idle_s = 9.0

    def ports(self) -> TuningPorts:
        """What the thread calls."""
        return TuningPorts(
            self.tunings, self.tuned, self.set_price, self.scales, lambda _d, _n: (self.idle_s, 0.0)
        )

    def tunings(self) -> list[tuple[BatchTimer, Task]]:
        """The one task, if there is one."""
        task = self.timer.tuning(self.now)
        return [(self.timer, task)] if task else []

    def tuned(self, timer: BatchTimer, choice: Choice | None) -> None:
        """As the room does."""
        timer.tuned(self.now, choice)
        self.rounds += 1
        self.tuned_once.set()

    def set_price(self, device: str, price: float, queue: str) -> None:
        """There is one of each."""
        assert (device, queue) == ("cuda:0", "m")
        self.timer.price = price

    def scales(self) -> dict[str, dict[str, float]]:
        """There is one of each."""
        return {"cuda:0": {"m": self.timer.phi}}

    def tuning(self, settings: TimerSettings, source: LoadSource | None = None) -> Tuning:
        """The thread's object, which is called by hand."""
        sources = {"cuda:0": source or NoSource()}
        return Tuning(self.ports(), settings, sources, lambda: self.now)


def test_a_mode_becomes_the_timer_s_price_and_a_choice() -> None:
    """Eco: after the price has come up, a count above 1 is chosen."""
    room = Room()
    tuning = room.tuning(TimerSettings(mode="eco"))
    tuning.look()
    assert room.timer.price == 10.0
    assert room.timer.setting(room.now) is not None
    assert 4 <= room.timer.limit(room.now) <= 6

    tuning.settings = TimerSettings(mode="eco", models=("m=use-the-slo",))
    room.now += 0.25
    tuning.look()
    assert room.timer.price == math.inf


def test_it_rests_in_proportion_to_what_it_took() -> None:
    """Right after a round nothing is tuned, whatever is due; after a long rest again."""
    room = Room()
    tuning = room.tuning(TimerSettings())
    tuning.look()
    room.timer.choice = None  # so that it is due at once
    tuning.look()
    assert room.rounds == 1
    room.now += 60.0
    tuning.look()
    assert room.rounds == 2


def test_switched_off_it_only_prices() -> None:
    """The closed form decides alone."""
    room = Room()
    room.tuning(TimerSettings(mode="balanced", tune=False)).look()

    assert (room.rounds, room.timer.price) == (0, 2.0)


def test_heat_and_others_raise_the_price_slowly_and_only_if_allowed(tmp_path: Path) -> None:
    """A hot device doubles the price each second up to its own; without `adapt` nothing does."""
    tree = JetsonTree(tmp_path, "orin")
    room = Room()
    tuning = room.tuning(TimerSettings(tune=False), JetsonSource(tmp_path))
    tuning.look()
    assert room.timer.price == 0.0
    tree.set_temperature(103.0)
    seen = []
    for _ in range(40):
        room.now += 0.25
        tuning.look()
        seen.append(room.timer.price)

    assert seen[0] < 0.5
    assert all(late <= 2**0.26 * max(early, 0.25) for early, late in pairwise(seen))
    assert seen[-1] == pytest.approx(10.0)
    tuning.settings = TimerSettings(tune=False, adapt=False)
    room.now += 30
    tuning.look()
    assert room.timer.price == 0.0


def test_the_thread_tunes_and_ends() -> None:
    """Started, it tunes by itself; asked to stop, it ends."""
    room = Room()
    tuning = Tuning(room.ports(), TimerSettings(), {"cuda:0": NoSource()})
    tuning.thread.start()
    try:
        assert room.tuned_once.wait(20)
    finally:
        tuning.stop(20)
    assert not tuning.thread.is_alive()
    assert repr(tuning) == "<Tuning mode latency, 1 devices>"
