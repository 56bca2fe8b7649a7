"""Several devices in one waiting room: who takes what, by a clock that is told."""

from __future__ import annotations

import math

import pytest

from edged.errors import QueueFullError
from edged.latency import LatencyCurve
from edged.serve.request import Part
from edged.serve.timer import BatchTimer
from tests.doubles.simulated_device import linear, poisson
from tests.doubles.stepped_room import MODEL, Simulated, StepwiseRoom, make_request, simulate

CAP = 8
CURVE = LatencyCurve((1, 8), (0.010, 0.017))
SLOW = LatencyCurve((1, 8), (0.100, 0.170))

# As a small network on a GPU: 20 ms for a full batch of 32, 4.5 ms for one sample.
SIMULATED = linear(0.004, 0.0005)
SIMULATED_CAP = 32
FULL_RATE = SIMULATED_CAP / SIMULATED(SIMULATED_CAP)


def stepped(curves: dict[str, LatencyCurve], lanes: int = 1, lead_s: float = 0.0) -> StepwiseRoom:
    """A room with these devices."""
    made = StepwiseRoom({MODEL: BatchTimer(CURVE, CAP)})
    for name, curve in curves.items():
        made.room.add_device(name, lanes, {MODEL: BatchTimer(curve, CAP)}, lead_s)
    return made


def put(made: StepwiseRoom, *samples: int, left_s: float = math.inf) -> list[Part]:
    """Requests of so many samples arrive; what a batch of each alone would hold."""
    requests = [make_request(made.now, count, left_s=left_s) for count in samples]
    for request in requests:
        made.room.put(request)
    return [Part(request, 0, request.samples) for request in requests]


# ------------------------------------------------------------------ who takes what


def test_idle_devices_take_at_once() -> None:
    """Two equal idle devices each take what comes."""
    made = stepped({"a": CURVE, "b": CURVE})
    (first,) = put(made, 8)
    work = made.take("a")
    (second,) = put(made, 8)
    other = made.take("b")

    assert work is not None
    assert work.batch is not None
    assert work.batch.parts == (first,)
    assert other is not None
    assert other.batch is not None
    assert other.batch.parts == (second,)


def test_a_slow_device_leaves_what_others_would_sooner_have_done() -> None:
    """It looks again once it would have done the batch itself, and is called when work comes."""
    made = stepped({"fast": CURVE, "slow": SLOW})
    put(made, 3)

    assert made.take("slow") is None
    assert made.asleep["slow"] == pytest.approx(made.now + SLOW(3))
    assert made.take("fast") is not None


def test_a_slow_device_helps_when_much_waits() -> None:
    """Once the fast one would need longer for all of it, the slow one takes a batch."""
    made = stepped({"fast": CURVE, "slow": SLOW})
    put(made, 8)
    assert made.take("fast") is not None  # now busy for 17 ms
    put(made, *[8] * 8)  # 136 ms of the fast one's time: not worth a slow batch of 170 ms
    assert made.take("slow") is None
    put(made, *[8] * 2)

    work = made.take("slow")

    assert work is not None
    assert work.batch is not None
    assert work.batch.samples == CAP


def test_a_late_device_is_not_relied_on() -> None:
    """A device whose batch is overdue counts as busy for as long again as it is late."""
    made = stepped({"fast": CURVE, "slow": SLOW})
    put(made, 8)
    assert made.take("fast") is not None
    put(made, 1)
    made.now += CURVE(8) + 0.050
    assert made.take("slow") is None  # 50 ms late and 10 ms of work: less than 100 ms
    made.now += 0.050

    assert made.take("slow") is not None


def test_a_device_that_is_out_is_not_relied_on() -> None:
    """The slow one does it then, and is called for it."""
    made = stepped({"fast": CURVE, "slow": SLOW})
    put(made, 3)
    assert made.settle(["slow"]) == []

    made.room.suspend("fast", made.now + 1)

    ((device, work),) = made.settle(["slow"])
    assert device == "slow"
    assert work.batch is not None


@pytest.mark.parametrize("model", ["m", "n"])
def test_only_devices_that_serve_a_model_get_it(model: str) -> None:
    """An engine that is for other devices is not run here, and nothing is left to these."""
    made = StepwiseRoom({name: BatchTimer(CURVE, CAP) for name in ("m", "n")})
    for name in ("m", "n"):
        made.room.add_device(name, 1, {name: BatchTimer(CURVE, CAP)})
    made.room.put(make_request(made.now, model=model))
    other = {"m": "n", "n": "m"}[model]

    assert made.take(other) is None
    work = made.take(model)
    assert work is not None
    assert work.batch is not None
    assert work.batch.model == model


# ------------------------------------------------------------------ lanes


def test_the_next_batch_is_closed_just_before_the_running_one_ends() -> None:
    """It goes on filling until then; a full one goes at once."""
    made = stepped({"a": CURVE}, lanes=3, lead_s=0.001)
    put(made, 8)
    assert made.take("a") is not None
    put(made, 3)

    assert made.take("a") is None
    assert made.asleep["a"] == pytest.approx(made.now + CURVE(8) - 0.001)
    put(made, 5)
    full = made.take("a")
    assert full is not None
    assert full.batch is not None
    assert full.batch.samples == CAP


def test_the_time_of_the_next_batch_follows_what_really_ran() -> None:
    """A device that was faster than expected for long is not thought busy for long."""
    made = stepped({"a": CURVE}, lanes=2, lead_s=0.0)
    put(made, *[8] * 100)
    assert made.take("a") is not None
    for _ in range(99):
        assert made.take("a") is not None
        made.now += 0.001
        made.room.completed("a", MODEL, 8, 0.0)  # tells nothing, so that phi stays
    put(made, 1)

    assert made.take("a") is None
    assert made.asleep["a"] <= made.now + CURVE(8)


def test_lanes_follow_the_engine_that_serves() -> None:
    """A new engine with fewer lanes gets fewer batches, once those before have left."""
    made = stepped({"a": CURVE}, lanes=3)
    put(made, *[8] * 6)
    for _ in range(3):
        assert made.take("a") is not None

    made.room.set_model(MODEL, {"a": BatchTimer(CURVE, CAP)}, {"a": 1})

    for _ in range(2):
        made.room.completed("a", MODEL, 8, 0.0)
        assert made.take("a") is None
    made.room.completed("a", MODEL, 8, 0.0)
    assert made.take("a") is not None
    assert made.take("a") is None
    assert repr(made.room) == "<WaitingRoom 16 samples, free lanes: a 0>"


# ------------------------------------------------------------------ out and back


def test_a_device_that_is_out_gets_nothing_but_its_retry() -> None:
    """Not before the time, then once for each time that it was taken out."""
    made = stepped({"a": CURVE})
    put(made, 8)
    made.room.suspend("a", made.now + 5)

    assert made.take("a") is None
    assert made.asleep["a"] == pytest.approx(made.now + 5)
    made.now += 5
    work = made.take("a")
    assert work is not None
    assert (work.retry, work.batch, work.expired) == (True, None, ())
    made.now += 3600
    assert made.take("a") is None  # asked for once; it is being renewed
    assert made.asleep["a"] == math.inf
    made.room.suspend("a", made.now)
    again = made.take("a")
    assert again is not None
    assert again.retry


def test_requests_expire_while_all_devices_are_out() -> None:
    """Whoever waits is told in time although nobody works."""
    made = stepped({"a": CURVE, "b": CURVE})
    for name in ("a", "b"):
        made.room.suspend(name, made.now + 60)
    (late,) = put(made, 3, left_s=2.0)
    assert made.settle(["a", "b"]) == []

    made.now += 2.0

    ((_, work),) = made.settle(["a", "b"])
    assert work.expired == (late,)


def test_what_comes_back_goes_first_and_counts_its_attempt() -> None:
    """Among equals in class and deadline; the later one to come back after the earlier one."""
    made = stepped({"a": CURVE, "b": CURVE})
    put(made, 8, left_s=9.0)
    work = made.take("a")
    assert work is not None
    assert work.batch is not None
    put(made, 2, left_s=9.0)
    made.room.suspend("a", made.now + 1)
    made.room.completed("a", MODEL, 8, 0.0)

    (part,) = work.batch.parts
    halves = (Part(part.request, 0, 4), Part(part.request, 4, 8))
    made.room.put_back(halves)

    again = made.take("b")
    assert again is not None
    assert again.batch is not None
    assert [(each.start, each.stop, each.attempt) for each in again.batch.parts] == [
        (0, 4, 1), (4, 8, 1),
    ]  # fmt: skip
    assert made.room.samples == 2


def test_what_comes_back_calls_a_sleeping_device() -> None:
    """The others need no arrival to notice."""
    made = stepped({"a": CURVE, "b": CURVE})
    (part,) = put(made, 4)
    assert made.take("a") is not None
    assert made.settle(["b"]) == []

    made.room.suspend("a", made.now + 1)
    made.room.completed("a", MODEL, 4, 0.0)
    assert made.settle(["b"]) == []
    made.room.put_back([part])

    assert [name for name, _ in made.settle(["b"])] == ["b"]


def test_a_device_that_is_back_begins_anew() -> None:
    """All its lanes are free, and its timers are those that were measured now."""
    made = stepped({"a": CURVE}, lanes=2)
    put(made, 8, 8, 8)
    assert made.take("a") is not None
    made.room.suspend("a", made.now)
    made.room.completed("a", MODEL, 8, 0.0)
    again = BatchTimer(SLOW, CAP)

    made.room.add_device("a", 1, {MODEL: again})

    again.price = 3.0
    assert made.room.timer_states(made.now)[MODEL]["a"]["price"] == 3.0
    assert made.take("a") is not None
    assert made.take("a") is None
    assert set(made.room.timer_states(made.now)) == {MODEL}
    assert set(made.room.timer_states(made.now)[MODEL]) == {"a"}


def test_a_device_that_is_back_is_called() -> None:
    """It need not wait for an arrival."""
    made = stepped({"a": CURVE})
    made.room.suspend("a", made.now + 60)
    put(made, 1)
    assert made.settle(["a"]) == []

    made.room.add_device("a", 1, {MODEL: BatchTimer(CURVE, CAP)})

    assert [name for name, _ in made.settle(["a"])] == ["a"]


def test_a_device_is_called_when_its_model_has_another_engine() -> None:
    """It looks anew at what waits: the new engine may take smaller batches to be full."""
    made = stepped({"a": CURVE}, lanes=2, lead_s=0.0)
    put(made, 8)
    assert len(made.settle(["a"])) == 1
    put(made, 4)
    assert made.settle(["a"]) == []

    made.room.set_model(MODEL, {"a": BatchTimer(CURVE, 4)})

    assert [name for name, _ in made.settle(["a"])] == ["a"]


def test_another_rule_admits_from_now_on() -> None:
    """`set_rule` replaces the admission rule."""
    made = stepped({"a": CURVE})
    made.room.set_rule(lambda *_args, **_more: QueueFullError("full"))

    with pytest.raises(QueueFullError):
        put(made, 1)


# ------------------------------------------------------------------ what comes of it


@pytest.mark.parametrize(("lanes", "lead_s"), [(1, math.inf), (2, 0.0005)])
def test_two_equal_devices_do_nearly_twice_as_much(lanes: int, lead_s: float) -> None:
    """At saturation they share the work evenly, and are never idle."""
    arrivals = [0.0] * 4000
    device = Simulated(SIMULATED, lanes=lanes)

    one = simulate({"a": device}, arrivals, SIMULATED_CAP, lead_s)
    two = simulate({"a": device, "b": device}, arrivals, SIMULATED_CAP, lead_s)

    assert one.seconds / two.seconds > 1.95
    assert abs(two.shares["a"] - two.shares["b"]) <= 2 * SIMULATED_CAP
    assert min(two.busy_s.values()) > 0.95 * two.seconds


@pytest.mark.parametrize("slow", [1.3, 2.0, 5.0])
@pytest.mark.parametrize(("lanes", "lead_s"), [(1, math.inf), (2, 0.0005)])
def test_a_slowed_device_takes_its_share_of_the_best_static_split(
    lanes: int, lead_s: float, slow: float
) -> None:
    """At saturation the total is within 10 % of what fixed shares in proportion to speed give."""
    devices = {"a": Simulated(SIMULATED, 1.0, lanes), "b": Simulated(SIMULATED, slow, lanes)}

    ran = simulate(devices, [0.0] * 4000, SIMULATED_CAP, lead_s)

    best = 4000 / (FULL_RATE + FULL_RATE / slow)
    assert ran.seconds <= best / 0.9
    assert ran.shares["a"] / ran.shares["b"] == pytest.approx(slow, rel=0.15)


@pytest.mark.parametrize("load", [0.3, 0.9])
@pytest.mark.parametrize("slow", [2.0, 8.0])
@pytest.mark.parametrize(("lanes", "lead_s"), [(1, math.inf), (2, 0.0005)])
def test_a_loaded_second_device_does_no_harm(
    lanes: int, lead_s: float, slow: float, load: float
) -> None:
    """With Poisson arrivals p99 is that of the idle device alone, or better (2 % for chance).

    The first samples do not count: the second device is believed to be as fast as it was at
    warm-up until it has shown twice that it is not.
    """
    arrivals = poisson(load * FULL_RATE, 20_000, seed=7)
    idle = Simulated(SIMULATED, 1.0, lanes)
    alone = simulate({"a": idle}, arrivals, SIMULATED_CAP, lead_s)

    devices = {"a": idle, "b": Simulated(SIMULATED, slow, lanes)}
    both = simulate(devices, arrivals, SIMULATED_CAP, lead_s)

    assert both.p(0.99, skip=500) <= 1.02 * alone.p(0.99, skip=500)


def test_a_second_device_helps_where_one_is_not_enough() -> None:
    """Above what one device can do, a second one, four times slower, cuts p99."""
    arrivals = poisson(1.1 * FULL_RATE, 4000, seed=7)
    alone = simulate({"a": Simulated(SIMULATED)}, arrivals, SIMULATED_CAP)

    devices = {"a": Simulated(SIMULATED), "b": Simulated(SIMULATED, 4.0)}
    both = simulate(devices, arrivals, SIMULATED_CAP)

    assert both.p(0.99) < 0.75 * alone.p(0.99)
