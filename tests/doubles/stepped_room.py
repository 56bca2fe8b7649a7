"""A waiting room that is taken one step at a time: a clock that is told, and nobody sleeps.

`StepwiseRoom.take` raises `WouldSleepError` where the real one would wait. Devices that sleep are
asked again only when the room has called them or their time has come, as their threads would be: so
a call that is forgotten shows.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edged.latency import LatencyCurve
from edged.serve.admit import Admission
from edged.serve.batch import WaitingRoom
from edged.serve.request import Batch, Priority, Receipt, ReplyTo, Request, Work
from edged.serve.sleepers import Sleepers
from edged.serve.timer import BatchTimer

MODEL = "m"


class WouldSleepError(Exception):
    """The device's thread would sleep.

    Attributes:
        timeout_s: for how long, infinity: until it is called.
    """

    def __init__(self, timeout_s: float | None) -> None:
        super().__init__(timeout_s)
        self.timeout_s = math.inf if timeout_s is None else timeout_s


class _Condition(Sleepers):
    """Raises instead of waiting, and keeps whether somebody was called."""

    called = False

    def wait(self, timeout: float | None = None) -> bool:
        raise WouldSleepError(timeout)

    def notify_all(self) -> None:
        self.called = True


class StepwiseRoom:
    """A `WaitingRoom` whose devices are asked by hand.

    Attributes:
        now: monotonic seconds; told by the test.
        room: the real one.
        asleep: devices that sleep, and until when.
        looked: when each of them looked last.
    """

    def __init__(self, timers: Mapping[str, BatchTimer], queue_samples: int = 10**9) -> None:
        self.now = 1000.0
        self.room = WaitingRoom(timers, Admission(queue_samples).refusal, lambda: self.now)
        self._condition = _Condition()
        self.room._changed = self._condition
        self.asleep: dict[str, float] = {}
        self.looked: dict[str, float] = {}

    def take(self, device: str) -> Work | None:
        """What the device gets now; None if it goes to sleep."""
        self.asleep.pop(device, None)
        self.looked[device] = self.now
        self.room._takers[device].armed = -math.inf  # as a thread does when it wakes up
        try:
            work = self.room.take(device)
        except WouldSleepError as sleep:
            self.asleep[device] = self.now + sleep.timeout_s
            return None
        assert work is not None
        return work

    def awake(self, devices: Sequence[str]) -> list[str]:
        """Devices whose threads would ask for work now."""
        called, self._condition.called = self._condition.called, False
        return [each for each in devices if called or self.asleep.get(each, self.now) <= self.now]

    def settle(self, devices: Sequence[str]) -> list[tuple[str, Work]]:
        """Has all devices ask until each of them sleeps; what they got."""
        got = []
        while awake := self.awake(devices):
            for device in awake:
                while (work := self.take(device)) is not None:
                    got.append((device, work))
        return got


def make_request(
    now: float,
    samples: int = 1,
    *,
    left_s: float = math.inf,
    model: str = MODEL,
    priority: Priority = Priority.NORMAL,
) -> Request:
    """A request without content that comes now."""
    return Request(
        model=model,
        id="",
        samples=samples,
        tensors={"x": np.zeros((samples, 1), np.float32)},
        deadline=now + left_s,
        priority=priority,
        received=now,
        reply_to=ReplyTo("r", None, 0),
        receipt=Receipt(1, 0, 0, 0),
    )


@dataclass(frozen=True)
class Simulated:
    """A device of a simulation.

    Attributes:
        curve: what was measured at warm-up.
        slow: how many times slower it is now.
        lanes: batches that may be on it at once; it runs them one after the other.
    """

    curve: LatencyCurve
    slow: float = 1.0
    lanes: int = 1


@dataclass
class Simulation:
    """What came out.

    Attributes:
        latencies: seconds from arrival to the end of the batch, one a sample.
        shares: samples by device.
        busy_s: seconds of work by device.
        seconds: from the first arrival to the last end.
    """

    latencies: list[float] = field(default_factory=list)
    shares: dict[str, int] = field(default_factory=dict)
    busy_s: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def p(self, quantile: float, skip: int = 0) -> float:
        """A quantile of the latency in seconds, without the first so many samples to end."""
        counted = sorted(self.latencies[skip:])
        return counted[math.ceil(quantile * len(counted)) - 1]


def simulate(
    devices: Mapping[str, Simulated], arrivals: Sequence[float], cap: int, lead_s: float = math.inf
) -> Simulation:
    """Discrete events: requests of one sample, several devices, the real waiting room and timers.

    Args:
        devices: by name.
        arrivals: seconds from the begin, ascending.
        cap: most samples in a batch.
        lead_s: see `WaitingRoom.add_device`.
    """
    first = next(iter(devices.values()))
    stepped = StepwiseRoom({MODEL: BatchTimer(first.curve, cap)})
    for name, device in devices.items():
        timers = {MODEL: BatchTimer(device.curve, cap)}
        stepped.room.add_device(name, device.lanes, timers, lead_s)
    begun, position = stepped.now, 0
    result = Simulation(shares=dict.fromkeys(devices, 0), busy_s=dict.fromkeys(devices, 0.0))
    ends: list[tuple[float, int, str, Batch, float]] = []
    free_at = dict.fromkeys(devices, 0.0)
    while position < len(arrivals) or ends or stepped.room.samples:
        came = begun + arrivals[position] if position < len(arrivals) else math.inf
        alarm = min(stepped.asleep.values(), default=math.inf)
        stepped.now = max(stepped.now, min(came, ends[0][0] if ends else math.inf, alarm))
        if stepped.now == came:
            stepped.room.put(make_request(came))
            position += 1
        elif ends and stepped.now == ends[0][0]:
            _, _, name, batch, service = heapq.heappop(ends)
            stepped.room.completed(name, MODEL, batch.samples, service)
            result.latencies += [stepped.now - p.request.received for p in batch.parts]
        for name, work in stepped.settle(list(devices)):
            assert work.batch is not None
            service = devices[name].slow * devices[name].curve(work.batch.samples)
            free_at[name] = max(stepped.now, free_at[name]) + service
            heapq.heappush(ends, (free_at[name], id(work), name, work.batch, service))
            result.shares[name] += work.batch.samples
            result.busy_s[name] += service
    result.seconds = stepped.now - begun
    return result
