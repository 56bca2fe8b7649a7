"""When to close a batch, and how large. Pure: no clock, lock, thread or I/O; `now` is an argument.

The count limit decides, timers only guard. Under Poisson arrivals the best rule for
``J_c = mean latency + c x (GPU time per request)`` is a count: serve once M requests wait, with

    M = max(1, round(sqrt(2 c alpha lambda (1 - lambda beta))))

where alpha + beta b is the service time of a batch of b, lambda the arrival rate and c the price of
a second of GPU time in seconds of latency. It is within 0.1 % of the optimum that relative value
iteration finds (derivation: economic order quantity, corrected for arrivals during service). The
default price is 0, which gives M = 1: whatever waits is run as soon as the device is free.

Where the last arrivals say more than their rate, the tuner's pair of a count and a timer replaces M
for some seconds (`edged.serve.tuner`). Without it a request could wait for company that does not
come, so three guards close a batch at a time: the deadline guard (always on), the gap guard (the
rate has dropped) and the budget guard (the voluntary wait has cost what it could save). At an
infinite price the deadline guard is alone.

Whatever looks wrong (a clock that jumps, a NaN, no history, a tuner that does harm) leads back to
M = 1, which is never far from the best latency.
"""

from __future__ import annotations

import math
from enum import Enum

from edged.latency import LatencyCurve
from edged.serve.arrivals import Arrivals
from edged.serve.batch_size import BUSY_FILL, FILL, control_limit, sizes_to_take
from edged.serve.ledger import Ledger, Started
from edged.serve.service_time import ServiceTime
from edged.serve.tuner import CHANGE, Choice, Setting, Task, due, moved, tune
from edged.value import value

CHOICE_S = 5.0
"""A choice of the tuner is good for so long, and while the rate stays within a factor of 2 ..."""
INTERVALS = 2.0
"""... or for so many times as long as the tuner needed to come back, if it has much to do ..."""
LONGEST_CHOICE_S = 120.0
"""... but never for longer than this."""
GAPS = 3.0
"""Mean gaps without an arrival after which no more company is waited for."""
COLLECT = 4.0
"""A count without a timer is waited for at most so many times as long as it takes on average."""
FALLBACK_S = 60.0
"""For so long it serves at once after waiting has done harm."""
PAID = 0.5
"""Waiting does harm if it saves less than this share of the device time that it promised ..."""
TAIL = 0.9
"""... while serving at once would have kept the 99th percentile below so much of ours ..."""
ROUNDS = 3
"""... in so many rounds of tuning, one after the other."""
HELD_LATE = 0.3
"""Or if this share of the batches that were held back ended after their deadline."""
LATE_SHARE = 0.25
"""Or if the 99th percentile of the alarm's lateness is this share of the SLO."""


HALF = 0.5
"""Share of the device's capacity above which buckets have to be fuller."""


class Reason(str, Enum):
    """Why a batch was closed."""

    COUNT = "count"
    CAP = "cap"
    URGENT = "urgent"
    DEADLINE = "deadline"
    GAP = "gap"
    BUDGET = "budget"
    TUNER = "tuner"
    FALLBACK = "fallback"
    DRAIN = "drain"


_HELD = frozenset({Reason.DEADLINE, Reason.GAP, Reason.BUDGET, Reason.TUNER})


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
        oldest: earliest arrival; NaN: not known, then the tuner's timer is not used.
    """

    samples: int
    weight: float
    arrival_weight: float
    newest: float
    deadline: float
    urgent: bool = False
    oldest: float = math.nan


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
        price: c, seconds of latency that a second of GPU time is worth; 0: latency alone;
            infinity: as late as deadlines allow.
        slack_s: kept free before a deadline for timer lateness, encoding and publishing.
        slo_s: latency that requests should keep, for the tuner; infinity: none.
    """

    def __init__(
        self,
        curve: LatencyCurve,
        cap: int,
        *,
        price: float = 0.0,
        slack_s: float = 0.002,
        slo_s: float = math.inf,
    ) -> None:
        self.curve = curve
        self.cap = cap
        self.price = price
        self.slack_s = slack_s
        self.slo_s = slo_s
        self.choice: Choice | None = None
        self.ledger = Ledger()
        self._chosen_at = self._asked_at = -math.inf
        self._good_s = CHOICE_S
        self._distrust_until = -math.inf
        self._harms = 0
        self._arrivals = Arrivals()
        self._service = ServiceTime(curve, cap)
        self._take = sizes_to_take(self._service.idle_s, FILL)
        busy = sizes_to_take(self._service.idle_s, BUSY_FILL)
        self._take_busy = self._take if busy == self._take else busy

    def __repr__(self) -> str:
        return (
            f"<BatchTimer price {self.price:g}, phi {self.phi:.2f}, "
            f"{self._arrivals.seen} samples seen, cap {self.cap}>"
        )

    def state(self, now: float) -> dict[str, float]:
        """Why it does what it does, for telemetry; NaN: not known, or none. docs/batching.md."""
        choice, setting = self.choice, self.setting(now)
        known = choice is not None and not self._repriced(choice)
        return {
            "price": self.price,
            "phi": round(self.phi, 4),
            "rate": round(self.rate(now), 3),
            "limit": self.limit(now),
            "hold_ms": _ms(setting.hold_s if setting else math.nan),
            "tuned": int(setting is not None),
            "fallback": int(self.distrusted(now)),
            "predicted_ms": _ms(choice.predicted.cost_s if choice and known else math.nan),
            "achieved_ms": _ms(self.ledger.cost_s(self.price)),
            "greedy_ms": _ms(choice.greedy.cost_s if choice and known else math.nan),
            "residual_p50": round(self._service.quantile(0.5), 4),
            "residual_p95": round(self._service.quantile(0.95), 4),
            "late_p99_ms": _ms(self.ledger.late_p99_s),
            **{f"closed_{reason.value}": self.ledger.closed.get(reason, 0) for reason in Reason},
        }

    # -------------------------------------------------------------- what happened

    def arrived(self, now: float, samples: int) -> None:
        """Samples were admitted."""
        self._arrivals.add(now, samples)

    def started(self, now: float, waiting: Waiting, decision: Decision) -> None:
        """A batch was closed as it was decided about what waited."""
        mean_wait = now - waiting.arrival_weight / waiting.weight if waiting.weight else 0.0
        # A deadline that could not be met any more, whatever was done, is no harm of holding back.
        in_time = now + self.cautious_s(decision.samples) <= waiting.deadline
        held = decision.reason in _HELD and in_time
        late = self.ledger.late_p99_s > LATE_SHARE * self.slo_s
        if late or self.ledger.held_late > HELD_LATE:
            self._distrust(now)
        batch = Started(
            now, decision.samples, decision.samples * mean_wait, waiting.deadline, held
        )  # fmt: skip
        self.ledger.started(batch, decision.reason.value)

    def completed(self, samples: int, service_s: float) -> None:
        """A batch came back after ``service_s`` seconds on the device; 0: it failed."""
        self._service.completed(samples, service_s)
        self.ledger.completed(samples, service_s, self._service.idle(samples))

    def woke(self, late_s: float) -> None:
        """The alarm of a decision went off so many seconds after its time."""
        self.ledger.woke(late_s)

    # -------------------------------------------------------------- what to expect

    @property
    def phi(self) -> float:
        """Scale of the curve: how many times slower the device is now than when it was measured."""
        return self._service.phi

    def service_s(self, samples: int) -> float:
        """Expected seconds of a batch, as the device is now."""
        return self._service.expected(samples)

    def cautious_s(self, samples: int) -> float:
        """Seconds that a batch rarely exceeds."""
        return self._service.caution * self._service.expected(samples)

    def rate(self, now: float) -> float:
        """Estimated arrivals in samples/s; 0 while too few were seen to tell."""
        return self._arrivals.rate(now)

    def limit(self, now: float) -> int:
        """M: the number of waiting samples at which serving them pays."""
        if self.price == math.inf:
            return self.cap
        setting = self.setting(now)
        if setting is not None:
            return setting.limit
        return control_limit(self.price, self._service.line(), self.rate(now), self.cap)

    @property
    def kept_free_s(self) -> float:
        """Seconds kept free before a deadline: for late alarms, encoding and publishing."""
        return max(self.slack_s, self.slack_s / 2 + self.ledger.late_p99_s)

    # -------------------------------------------------------------- tuning

    def setting(self, now: float) -> Setting | None:
        """The tuner's pair, while it is fresh."""
        choice = self.choice
        if choice is None or not 0 <= now - self._chosen_at <= self._good_s:
            return None
        fresh = not moved(self._arrivals.long_rate(now), choice.rate, 1.0)
        return choice.setting if fresh and not self._repriced(choice) else None

    def _repriced(self, choice: Choice) -> bool:
        """Whether the price is another one by now; one on its way changes in small steps."""
        return moved(self.price, choice.price, CHANGE)

    def tuning(self, now: float) -> Task | None:
        """A copy of what the tuner goes by; None if there is nothing to tune."""
        if not 0 <= self.price < math.inf:
            return None
        if not math.isfinite(self._asked_at):  # how long the first choice takes is an interval too
            self._asked_at = now
        return Task(
            trace=self._arrivals.trace(),
            idle_s=self._service.idle_s,
            phi=self.phi,
            line=self._service.line(),
            sizes=self._sizes(now),
            price=self.price,
            slo_s=self.slo_s,
            guard_s=self.kept_free_s,
            caution=self._service.caution,
            last=self.choice,
        )

    def tuned(self, now: float, choice: Choice | None) -> None:
        """Goes by a choice from now on, or serves at once for a while if that would do better."""
        if choice is None:
            return
        same = self.choice is not None and self.choice.setting == choice.setting
        interval = now - self._asked_at if math.isfinite(self._asked_at) else 0.0
        self._good_s = min(max(CHOICE_S, INTERVALS * interval), LONGEST_CHOICE_S)
        self.choice, self._chosen_at, self._asked_at = choice, now, now
        self._harms = self._harms + 1 if same and self._harmful(choice) else 0
        if self._harms >= ROUNDS:
            self._distrust(now)

    def retune(self, now: float) -> None:
        """A whole round of tuning at once, as a simulation does, if there is anything new."""
        task = self.tuning(now)
        if task is not None and due(self.choice, task, math.inf, 0.0):
            self.tuned(now, tune(task))

    def _distrust(self, now: float) -> None:
        self._distrust_until = now + FALLBACK_S
        self._harms = 0
        self.ledger.forgive()

    def _harmful(self, choice: Choice) -> bool:
        """Whether waiting makes the tail longer, and not the batches larger that it promised."""
        promised = choice.greedy.device_s - choice.predicted.device_s
        paid = choice.greedy.device_s - choice.phi * self.ledger.idle_s
        longer = choice.greedy.p99_s < TAIL * choice.predicted.p99_s
        return longer and promised > 0 and paid < PAID * promised

    # -------------------------------------------------------------- what to do

    def decide(self, now: float, waiting: Waiting) -> Decision:
        """Says whether to close a batch now, and if not, when.

        To be asked when a device is free: after an arrival, after a completion, and when the time
        of the last answer has come.
        """
        if waiting.samples < 1:
            return Decision(0, math.inf, Reason.COUNT)
        if waiting.samples >= self.cap:
            return Decision(self.cap, now, Reason.CAP)
        if waiting.urgent:
            return Decision(waiting.samples, now, Reason.URGENT)
        size = self._sizes(now)[waiting.samples]
        if not self._trusted(now, waiting):
            return Decision(size, now, Reason.FALLBACK)
        at, reason = self._closing(now, waiting)
        return Decision(0, at, reason) if at > now else Decision(size, now, reason)

    def _trusted(self, now: float, waiting: Waiting) -> bool:
        """Whether waiting can be thought about: False with a NaN, or with times still to come."""
        sound = waiting.weight > 0 and waiting.newest <= now and self._arrivals.last <= now
        return sound and self.price >= 0 and not self.distrusted(now)

    def distrusted(self, now: float) -> bool:
        """Whether waiting has done harm, so that it serves at once for a while."""
        return now < self._distrust_until

    def _closing(self, now: float, waiting: Waiting) -> tuple[float, Reason]:
        """When the batch closes if nothing arrives, and why."""
        after_next = min(waiting.samples + 1, self.cap)
        deadline = waiting.deadline - self.cautious_s(after_next) - self.kept_free_s
        if self.price == math.inf:
            at = deadline if math.isfinite(deadline) else now
            return at, Reason.DEADLINE
        setting = self.setting(now) if waiting.oldest <= now else None
        if setting is None:
            return self._guarded(now, waiting, deadline)
        if waiting.weight >= setting.limit:
            return now, Reason.COUNT
        return _earliest((deadline, Reason.DEADLINE), self._held_until(waiting, setting))

    def _held_until(self, waiting: Waiting, setting: Setting) -> tuple[float, Reason]:
        if setting.hold_s < math.inf:
            return waiting.oldest + setting.hold_s, Reason.TUNER
        rate = self.choice.rate if self.choice else 0.0
        hold = COLLECT * setting.limit / rate if rate > 0 else 0.0
        return waiting.oldest + hold, Reason.GAP

    def _guarded(self, now: float, waiting: Waiting, deadline: float) -> tuple[float, Reason]:
        """By the closed form: the count, or the earliest of the three guards."""
        rate, line = self.rate(now), self._service.line()
        if not waiting.weight < control_limit(self.price, line, rate, self.cap):
            return now, Reason.COUNT
        # The rate of the last arrival: one that decays while none comes would put the guard off.
        rate = self.rate(self._arrivals.last)
        gap = waiting.newest + GAPS / rate if rate > 0 else now
        waited = waiting.weight * now - waiting.arrival_weight
        budget = now + (2 * self.price * line[0] - waited) / waiting.weight
        return _earliest((deadline, Reason.DEADLINE), (gap, Reason.GAP), (budget, Reason.BUDGET))

    def _sizes(self, now: float) -> tuple[int, ...]:
        """How many of so many waiting samples to take, by the bucket rule."""
        if self._take is self._take_busy:
            return self._take
        load = self.rate(now) * self.service_s(self.cap) / self.cap
        return self._take_busy if load > HALF else self._take


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 4)


def _earliest(*guards: tuple[float, Reason]) -> tuple[float, Reason]:
    """The guard that comes first; one that is no number comes at once."""
    return min(guards, key=lambda guard: guard[0] if not math.isnan(guard[0]) else -math.inf)
