"""Which model's batch a device runs next, and how large it may be. Pure: values in, values out.

The timer of a model says when its batch closes; here is what only shows with several of them, or
with urgent requests beside others:

* urgent first, then the earliest closing time, then the earliest deadline;
* an urgent request's batch takes along what else fits before its deadline;
* a batch without urgent requests is no longer than an urgent one that comes meanwhile can bear,
  but never so small that the device could not keep up;
* a request that cannot be started in time, whatever comes, is refused at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edged.serve.timer import Decision, Reason, Waiting
from edged.value import value

Seconds = Callable[[int], float]
"""Seconds of a batch by its number of samples; never falls with it."""

URGENT_MEMORY_S = 60.0
"""After so long without urgent requests no batch is kept small for them."""
RELAX = 0.1
"""Of a milder need of urgent requests, such a share is believed at once; a harder one wholly."""
HEADROOM = 1.1
"""A device must be able to do so many times what arrives."""
RARE = 0.1
"""Samples/s below which a model with nothing waiting is not expected to keep the others waiting."""
LEAST_REST = 0.05
"""Of a device's time, taken to be left to a model although others fill it."""


@dataclass(slots=True)
class UrgentTraffic:
    """What the urgent requests of one model need, as far as they have been seen.

    Attributes:
        seen: monotonic seconds of the latest one.
        allowance_s: seconds from arrival to deadline.
        samples: in a request.
    """

    seen: float = -math.inf
    allowance_s: float = math.inf
    samples: float = 1.0

    def arrived(self, now: float, samples: int, allowance_s: float) -> None:
        """An urgent request came."""
        if now - self.seen > URGENT_MEMORY_S:
            self.allowance_s, self.samples = allowance_s, float(samples)
        mild = self.allowance_s + RELAX * (allowance_s - self.allowance_s)
        self.allowance_s = min(allowance_s, mild)
        self.samples = max(samples, self.samples + RELAX * (samples - self.samples))
        self.seen = now

    def bears_s(self, now: float, service_s: Seconds, slack_s: float) -> float:
        """For how long another batch may keep the device from it; infinity if none is expected."""
        if now - self.seen > URGENT_MEMORY_S or not math.isfinite(self.allowance_s):
            return math.inf
        return self.allowance_s - service_s(math.ceil(self.samples)) - slack_s


def largest_within(service_s: Seconds, cap: int, budget_s: float) -> int:
    """The largest batch of at most ``cap`` that takes no longer than ``budget_s``; 0 if none."""
    low, high = 0, cap
    while low < high:
        middle = (low + high + 1) // 2
        if service_s(middle) <= budget_s:
            low = middle
        else:
            high = middle - 1
    return low


def stable_size(service_s: Seconds, cap: int, rate: float) -> int:
    """A batch size at which a device keeps up with ``rate`` samples/s; ``cap`` if there is none.

    ``b / L(b) >= 1.1 rate``: below it waiting requests would pile up without end.
    """
    low, high = 1, cap
    while low < high:
        middle = (low + high) // 2
        if middle >= HEADROOM * rate * service_s(middle):
            high = middle
        else:
            low = middle + 1
    return low


def blocking_cap(service_s: Seconds, cap: int, bears_s: float, rate: float) -> int:
    """Most samples in a batch without urgent ones.

    Args:
        service_s: seconds by batch size, cautiously.
        cap: the engine's.
        bears_s: see `UrgentTraffic.bears_s`; infinity: no urgent request is expected. Where not
            even a batch of one leaves it time, smaller batches would cost much and help nobody.
        rate: samples/s of the model.
    """
    within = cap if math.isinf(bears_s) else largest_within(service_s, cap, bears_s)
    if within in {0, cap}:
        return cap
    return max(within, stable_size(service_s, cap, rate))


def limited(decision: Decision, waiting: Waiting, cap: int, now: float) -> Decision:
    """A decision about samples that are not urgent, under a cap below the engine's."""
    if decision.samples > cap:
        return Decision(cap, now, Reason.CAP)
    if not decision.samples and waiting.samples >= cap:
        return Decision(cap, now, Reason.CAP)
    return decision


def beside_urgent(decision: Decision, urgent: int, service_s: Seconds, left_s: float) -> Decision:
    """A decision about a batch that begins with urgent samples: the others ride along.

    Args:
        decision: what the timer said.
        urgent: urgent samples among those that wait.
        service_s: seconds by batch size, cautiously.
        left_s: until the first urgent deadline.
    """
    fits = largest_within(service_s, decision.samples, left_s)
    size = min(decision.samples, max(urgent, fits))
    return Decision(size, decision.at, decision.reason)


@value
class Prospect:
    """What a device has before it, for `starts_in_s`.

    Attributes:
        slots: batches that it takes before one more has ended, at least 1.
        opens_s: seconds until it takes the next one, at the least.
        busy_s: seconds until what runs has ended.
        batch_s: seconds of a full batch.
    """

    slots: int
    opens_s: float
    busy_s: float
    batch_s: float


def starts_in_s(batches: int, devices: Sequence[Prospect]) -> float:
    """The least time after which a batch can be started that has so many full ones before it.

    It takes for granted that nothing else comes in between, and all devices help: who cannot be
    started by then will not be.

    Args:
        batches: before it.
        devices: all that serve the model; none: nothing is known, 0.
    """
    opens_s = min((device.opens_s for device in devices), default=0.0)
    ended = batches + 1 - sum(device.slots for device in devices)
    if ended <= 0 or not devices:
        return opens_s
    # All devices together end so many batches when each has worked from the end of what runs now.
    work, rate, at = float(ended), 0.0, math.inf
    for device in sorted(devices, key=lambda each: each.busy_s):
        if device.busy_s >= at:
            break
        rate += 1 / device.batch_s
        work += device.busy_s / device.batch_s
        at = work / rate
    lead_s = max(device.busy_s - device.opens_s for device in devices)
    return max(opens_s, at - lead_s)
