"""When to close a batch, and how large. Pure: no clock, lock, thread or I/O; `now` is an argument.

The count limit decides, timers only guard. Under Poisson arrivals the best rule for
``J_c = mean latency + c x (GPU time per request)`` is a count: serve once M requests wait, with

    M = max(1, round(sqrt(2 c alpha lambda (1 - lambda beta))))

where alpha + beta b is the service time of a batch of b, lambda the arrival rate and c the price of
a second of GPU time in seconds of latency. It is within 0.1 % of the optimum that relative value
iteration finds (derivation: economic order quantity, corrected for arrivals during service). The
default price is 0, which gives M = 1: whatever waits is run as soon as the device is free.

With M > 1 a request could wait for company that does not come, so three guards close a batch at a
time: the deadline guard (always on), the gap guard (the rate has dropped) and the budget guard (the
voluntary wait has cost what it could save).
"""

from __future__ import annotations

import math
from enum import Enum

from edged.latency import LatencyCurve
from edged.value import value

RATE_WINDOW_S = 0.1
"""Time constant of the arrival-rate estimate."""
MIN_ARRIVALS = 20
"""Below so many samples seen, the rate is not trusted and M is 1."""
PHI_LIMITS = (0.3, 20.0)
"""Bounds of the online scale of the latency curve."""


class Reason(str, Enum):
    """Why a batch was closed."""

    COUNT = "count"
    CAP = "cap"
    URGENT = "urgent"
    DEADLINE = "deadline"
    GAP = "gap"
    BUDGET = "budget"
    DRAIN = "drain"


@value
class Waiting:
    """What waits for one model. Times are monotonic seconds.

    Attributes:
        samples: number of samples.
        weight: sum over samples of their class weight; a normal sample weighs 1.
        arrival_weight: sum over samples of weight x arrival time.
        newest: latest arrival.
        deadline: earliest deadline.
        urgent: whether a request of the urgent class waits.
    """

    samples: int
    weight: float
    arrival_weight: float
    newest: float
    deadline: float
    urgent: bool = False


@value
class Decision:
    """What to do with one model's waiting samples while a device is free.

    Attributes:
        samples: size of the batch to run now; 0: wait.
        at: when the batch closes by itself if nothing arrives: now, or later, or infinity.
        reason: why it closes then.
    """

    samples: int
    at: float
    reason: Reason


class BatchTimer:
    """The batch timer of one model on one device.

    Not thread-safe: the caller guards it together with the queue it decides about. Bad values (a
    clock that jumps back, a NaN) never raise; they lead back to ``M = 1``.

    Args:
        curve: service time by batch size, measured on the idle device.
        cap: most samples in a batch.
        price: c, seconds of latency that a second of GPU time is worth; 0: latency alone.
        slack_s: kept free before a deadline for timer lateness, encoding and publishing.
    """

    def __init__(
        self, curve: LatencyCurve, cap: int, *, price: float = 0.0, slack_s: float = 0.002
    ) -> None:
        self.curve = curve
        self.cap = cap
        self.price = price
        self.slack_s = slack_s
        self.phi = 1.0
        self._spread = 0.1  # running mean absolute log residual of the curve
        self._surprises = 0
        self._score = 0.0  # decayed count of arrivals
        self._arrivals = 0
        self._first: float | None = None
        self._last = -math.inf

    def __repr__(self) -> str:
        return (
            f"<BatchTimer price {self.price:g}, phi {self.phi:.2f}, "
            f"{self._arrivals} samples seen, cap {self.cap}>"
        )

    def state(self, now: float) -> dict[str, float]:
        """What it goes by at present: price, phi, rate in samples/s, and M."""
        return {
            "price": self.price,
            "phi": round(self.phi, 4),
            "rate": round(self.rate(now), 3),
            "limit": self.limit(now),
        }

    # -------------------------------------------------------------- what happened

    def arrived(self, now: float, samples: int) -> None:
        """Samples were admitted."""
        if not math.isfinite(now):
            return
        if self._first is None or now < self._last:
            # The first one, or a clock that jumped back: the estimate begins anew.
            self._first, self._last, self._score, self._arrivals = now, now, 0.0, 0
        self._score = self._score * self._decay(now) + samples
        self._arrivals += samples
        self._last = now

    def completed(self, samples: int, service_s: float) -> None:
        """A batch came back after ``service_s`` seconds on the device.

        The measured curve keeps its shape and one scale phi follows the device: load by others,
        clocks, heat. Small residuals are tracked slowly; two large ones in a row are a change.
        """
        if not (service_s > 0 and math.isfinite(service_s)):
            return
        # A difference of logarithms: the quotient of a tiny time could underflow to 0.
        residual = math.log(service_s) - math.log(self.phi * self.curve(samples))
        large = abs(residual) > max(0.15, 3 * self._spread)
        self._surprises = self._surprises + 1 if large else 0
        gain = 0.7 if self._surprises >= 2 else 0.05
        if not large:
            self._spread += 0.05 * (abs(residual) - self._spread)
        phi = self.phi * math.exp(gain * residual)
        self.phi = min(max(phi, PHI_LIMITS[0]), PHI_LIMITS[1])

    # -------------------------------------------------------------- what to expect

    def service_s(self, samples: int) -> float:
        """Expected seconds of a batch, as the device is now."""
        return self.phi * self.curve(samples)

    def cautious_s(self, samples: int) -> float:
        """Seconds that a batch rarely exceeds: two mean residuals above the expected time."""
        return self.service_s(samples) * math.exp(2 * 1.25 * self._spread)

    def rate(self, now: float) -> float:
        """Estimated arrivals in samples/s; 0 while too few were seen to tell."""
        if self._first is None or self._arrivals < MIN_ARRIVALS:
            return 0.0
        age = max(now, self._last) - self._first
        seen = 1 - math.exp(-age / RATE_WINDOW_S)
        return self._score * self._decay(now) / (RATE_WINDOW_S * seen) if seen > 0 else 0.0

    def limit(self, now: float) -> int:
        """M: the number of waiting samples at which serving them pays."""
        if not self.price:
            return 1
        alpha, beta = self.curve.line()
        alpha, beta, rate = self.phi * alpha, self.phi * beta, self.rate(now)
        square = 2 * self.price * alpha * rate * (1 - rate * beta)
        if not (square > 0 and math.isfinite(square)):
            return 1
        return min(self.cap, max(1, round(math.sqrt(square))))

    # -------------------------------------------------------------- what to do

    def decide(self, now: float, waiting: Waiting) -> Decision:
        """Says whether to close a batch now, and if not, when.

        To be asked when a device is free: after an arrival, after a completion, and when the time
        of the last answer has come.
        """
        size = min(waiting.samples, self.cap)
        if size < 1:
            return Decision(0, math.inf, Reason.COUNT)
        if waiting.samples >= self.cap:
            return Decision(self.cap, now, Reason.CAP)
        if waiting.urgent:
            return Decision(size, now, Reason.URGENT)
        # Never true with a NaN, nor with times that are still to come: then M is 1.
        sound = waiting.weight > 0 and waiting.newest <= now and self._last <= now
        if not sound or waiting.weight >= self.limit(now):
            return Decision(size, now, Reason.COUNT)
        at, reason = self._guard(now, waiting)
        return Decision(0, at, reason) if at > now else Decision(size, now, reason)

    def _guard(self, now: float, waiting: Waiting) -> tuple[float, Reason]:
        """The earliest of the three guards."""
        after_next = min(waiting.samples + 1, self.cap)
        deadline = waiting.deadline - self.cautious_s(after_next) - self.slack_s
        # The rate of the last arrival: one that decays while none comes would put the guard off.
        rate = self.rate(self._last)
        gap = waiting.newest + 3 / rate if rate > 0 else now
        waited = waiting.weight * now - waiting.arrival_weight
        alpha = self.phi * self.curve.line()[0]
        budget = now + (2 * self.price * alpha - waited) / waiting.weight
        return min(
            (deadline, Reason.DEADLINE), (gap, Reason.GAP), (budget, Reason.BUDGET),
            key=lambda guard: guard[0] if not math.isnan(guard[0]) else -math.inf,
        )  # fmt: skip

    def _decay(self, now: float) -> float:
        return math.exp(-max(0.0, now - self._last) / RATE_WINDOW_S)
