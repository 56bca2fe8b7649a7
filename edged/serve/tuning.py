"""The tuner's thread: replays arrivals and looks at devices, off the path of requests.

It copies what it needs under the waiting room's lock, works on the copy, and hands the result back.
It rests so long after each round that it never takes more than `SHARE` of a core.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edged.gpu_load import GpuLoad, ProvenSource
from edged.serve.idle_gaps import IdleGaps
from edged.serve.price import price_of, priced, slewed
from edged.serve.request import model_of
from edged.serve.timer import BatchTimer
from edged.serve.tuner import Choice, Task, due, tune
from edged.settings import TimerSettings

EVERY_S = 1.0
"""A timer is tuned so often ..."""
LOOK_S = 0.25
"""... and looked at so often, whether its rate or its device has changed."""
SHARE = 0.02
"""Of a core, taken at most."""
FOREVER_S = 1e9
"""One that was never tuned has waited for so long."""


@dataclass(frozen=True)
class TuningPorts:
    """What the thread calls.

    Attributes:
        tunings: copies of what to tune (`edged.serve.batch.WaitingRoom.tunings`).
        tuned: takes a choice over.
        set_price: (device, c, queue).
        scales: device -> queue -> scale of the service times.
        occupied: (device, now) -> seconds idle until now, seconds busy in all.
    """

    tunings: Callable[[], Sequence[tuple[BatchTimer, Task]]]
    tuned: Callable[[BatchTimer, Choice | None], None]
    set_price: Callable[[str, float, str], None]
    scales: Callable[[], Mapping[str, Mapping[str, float]]]
    occupied: Callable[[str, float], tuple[float, float]]


class Tuning:
    """Tunes all timers and prices all devices, on a thread of its own.

    Attributes:
        settings: what it goes by.
        loads: by device, what was seen last; empty without ``timer.adapt``.

    Args:
        ports: what it calls.
        settings: ``[timer]``; a reload sets another.
        sources: by device, how to look at it.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        ports: TuningPorts,
        settings: TimerSettings,
        sources: Mapping[str, ProvenSource],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.loads: dict[str, GpuLoad] = {}
        self._ports = ports
        self._sources = dict(sources)
        self._clock = clock
        self._gaps = {device: IdleGaps() for device in sources}
        self._prices: dict[tuple[str, str], tuple[float, float]] = {}
        self._tuned_at: dict[int, float] = {}
        self._rest_until = 0.0
        self._stop = threading.Event()
        self.thread = threading.Thread(target=self._work, name="tuner", daemon=True)

    def __repr__(self) -> str:
        return f"<Tuning mode {self.settings.mode}, {len(self._sources)} devices>"

    def stop(self, timeout_s: float) -> None:
        """Ends the thread."""
        self._stop.set()
        self.thread.join(timeout_s)

    def _work(self) -> None:
        while not self._stop.wait(LOOK_S):
            self.look()

    def look(self) -> None:
        """One round: prices, then the one timer that is due to be tuned for the longest time."""
        now = self._clock()
        self.set_prices(now)
        if not self.settings.tune or now < self._rest_until:
            return
        began = time.thread_time()
        tasks = self._ports.tunings()
        live = {id(timer) for timer, _ in tasks}
        self._tuned_at = {key: at for key, at in self._tuned_at.items() if key in live}
        chosen = self._longest_waiting(now, tasks)
        if chosen is not None:
            timer, task = chosen
            self._ports.tuned(timer, tune(task, pause=_yield))
            self._tuned_at[id(timer)] = now
        self._rest_until = now + (time.thread_time() - began) / SHARE

    def _longest_waiting(
        self, now: float, tasks: Sequence[tuple[BatchTimer, Task]]
    ) -> tuple[BatchTimer, Task] | None:
        """Of what is due: one a look, or the last of many would wait until choices have lapsed."""
        found, longest = None, -math.inf
        for timer, task in tasks:
            waited = now - self._tuned_at.get(id(timer), -FOREVER_S)
            if waited > longest and due(task.last, task, waited, EVERY_S):
                found, longest = (timer, task), waited
        return found

    def set_prices(self, now: float) -> None:
        """Has the timers go by the operator's mode and the devices' state."""
        for device, scales in self._ports.scales().items():
            load = self._look_at(device, now)
            for queue, phi in scales.items():
                wanted = price_of(self.settings.mode_of(model_of(queue)))
                if load is not None:
                    wanted = priced(wanted, load, self._gaps[device].share(now, phi))
                before, at = self._prices.get((device, queue), (wanted, now))
                price = slewed(before, wanted, now - at)
                self._prices[device, queue] = price, now
                self._ports.set_price(device, price, queue)

    def _look_at(self, device: str, now: float) -> GpuLoad | None:
        """What raises the price there; None if nothing shall."""
        source = self._sources.get(device)
        if source is None or not self.settings.adapt:
            return None
        gaps = self._gaps[device]
        busy = gaps.period(now, *self._ports.occupied(device, now))
        load = self.loads[device] = source.read(busy=busy)
        gaps.look(now, load.utilisation, busy=busy)
        return load


def _yield() -> None:
    """Lets other threads have the interpreter between two candidates."""
    time.sleep(0)
