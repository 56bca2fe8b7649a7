"""The tuner's thread: what it tunes, what it prices, and how much it takes."""

from __future__ import annotations

import math
import threading
from itertools import pairwise
from pathlib import Path

import pytest

from edged.gpu_load import JetsonSource, ProvenSource
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

    def tuning(self, settings: TimerSettings, source: JetsonSource | None = None) -> Tuning:
        """The thread's object, which is called by hand."""
        sources = {"cuda:0": ProvenSource([source] if source else [])}
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
    tuning = room.tuning(TimerSettings(mode="balanced", tune=False), JetsonSource(tmp_path))
    tuning.look()
    assert room.timer.price == 2.0
    tree.set_temperature(103.0)
    seen = []
    for _ in range(40):
        room.now += 0.25
        tuning.look()
        seen.append(room.timer.price)

    assert seen[0] < 2.5
    assert all(late <= 2**0.26 * max(early, 0.25) for early, late in pairwise(seen))
    assert seen[-1] == pytest.approx(12.0)
    tuning.settings = TimerSettings(mode="balanced", tune=False, adapt=False)
    room.now += 30
    tuning.look()
    assert room.timer.price == 2.0


def test_latency_stays_latency_on_a_hot_device(tmp_path: Path) -> None:
    """The default mode does not become another one because the board runs hot."""
    tree = JetsonTree(tmp_path, "orin")
    tree.set_temperature(103.0)
    room = Room()
    tuning = room.tuning(TimerSettings(tune=False), JetsonSource(tmp_path))
    for _ in range(40):
        room.now += 0.25
        tuning.look()

    assert room.timer.price == 0.0


def _share_tuned(busy: int, silent: int) -> float:
    """Share of the looks at which the busy timers have a choice, while the tuner is slow.

    The clock moves on by a second a look, as it does where a round takes 20 ms of a core and the
    thread rests in proportion.
    """
    now = 0.0
    timers = [BatchTimer(CURVE, 32, price=2.0) for _ in range(busy + silent)]
    for timer in timers[busy:]:
        for number in range(600):
            timer.arrived(number / 600, 1)
    ports = TuningPorts(
        lambda: [(timer, task) for timer in timers if (task := timer.tuning(now))],
        lambda timer, choice: timer.tuned(now, choice),
        lambda _device, _price, _queue: None, dict, lambda _device, _now: (0.0, 0.0),
    )  # fmt: skip
    tuning = Tuning(ports, TimerSettings(mode="balanced"), {}, lambda: now)
    had = looks = 0
    for second in range(3 * len(timers) + 10):
        for timer in timers[:busy]:
            for number in range(120):
                timer.arrived(second + 1 + number / 120, 1)
        now = second + 2.0
        tuning._rest_until = 0.0  # rests depend on this machine; a look is a round
        tuning.look()
        if second > 2 * busy + silent:
            had += sum(timer.setting(now) is not None for timer in timers[:busy])
            looks += busy
    return had / looks


def test_many_timers_keep_their_choices() -> None:
    """Twelve, one of them tuned a second: each choice lives until it is its turn again."""
    assert _share_tuned(busy=12, silent=0) == 1.0


def test_silent_timers_take_no_time() -> None:
    """What nobody has asked since the last round tells nothing new."""
    assert _share_tuned(busy=1, silent=11) == 1.0


def test_the_thread_tunes_and_ends() -> None:
    """Started, it tunes by itself; asked to stop, it ends."""
    room = Room()
    tuning = Tuning(room.ports(), TimerSettings(), {"cuda:0": ProvenSource(())})
    tuning.thread.start()
    try:
        assert room.tuned_once.wait(20)
    finally:
        tuning.stop(20)
    assert not tuning.thread.is_alive()
    assert repr(tuning) == "<Tuning mode latency, 1 devices>"
