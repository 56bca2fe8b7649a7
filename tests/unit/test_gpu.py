"""A device's thread around a scripted runner: what it hands on, and when it fails."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar

import numpy as np
import pytest

from edged.errors import DeviceFaultError, EdgedError, EngineError, ExpiredError
from edged.recipe import InputSpec
from edged.runners import Array
from edged.serve.gpu import Device, DevicePorts, Done, Served, expired, nonfinite
from edged.serve.request import Batch, Part, Priority, Receipt, ReplyTo, Request, Timings, Work
from tests.doubles.runner import ScriptedRunner, expected

MODEL = "m"
PATIENCE_S = 30.0
INPUT = (InputSpec(name="x", datatype="FP32", shape=(3,)),)


@dataclass(frozen=True)
class Completed:
    """The lane is free."""

    samples: int
    service_s: float


@dataclass(frozen=True)
class Failed:
    """The device is to be taken out."""

    error: EdgedError


@dataclass(frozen=True)
class Again:
    """Parts that shall run again."""

    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Renew:
    """The device is to be renewed."""


Told: TypeAlias = Completed | Failed | Again | Renew | Done
One = TypeVar("One", Completed, Failed, Again, Renew, Done)


class Around:
    """Everything around one device: gives it work by hand, and keeps what it tells in order."""

    def __init__(self, served: Served) -> None:
        self._works: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._told: queue.SimpleQueue[Told] = queue.SimpleQueue()
        ports = DevicePorts(
            take=lambda _device: self._works.get(),
            completed=lambda _device, _model, n, seconds: self._told.put(Completed(n, seconds)),
            done=self._told.put,
            put_back=lambda parts: self._told.put(Again(tuple(parts))),
            failed=lambda _device, error: self._told.put(Failed(error)),
            renew=lambda _device: self._told.put(Renew()),
        )
        self.device = Device("cpu", {MODEL: served}, ports)

    def give(self, *parts: Part, **more: Any) -> None:
        """A batch of these."""
        samples = sum(part.samples for part in parts)
        self._works.put(Work(Batch(MODEL, parts, samples, "count", 0.0), **more))

    def give_work(self, work: Work | None) -> None:
        """Any work; None ends the thread."""
        self._works.put(work)

    def told(self, kind: type[One]) -> One:
        """The next thing that it told, which must be of this kind."""
        thing = self._told.get(timeout=PATIENCE_S)
        assert isinstance(thing, kind), thing
        return thing

    def silent(self) -> bool:
        """Whether nothing else was told."""
        return self._told.empty()


def ports(
    works: queue.SimpleQueue[Work | None],
    told: queue.SimpleQueue[Done],
    renew: Callable[[str], None] = lambda _device: None,
) -> DevicePorts:
    """Of a device that gets these works and tells of what ended."""
    return DevicePorts(
        take=lambda _device: works.get(),
        completed=lambda _device, _model, _samples, _seconds: None,
        done=told.put,
        put_back=lambda _parts: None,
        failed=lambda _device, _error: None,
        renew=renew,
    )


@contextmanager
def running(served: Served) -> Iterator[Around]:
    """A device whose thread runs until the block ends."""
    around = Around(served)
    around.device.thread.start()
    try:
        yield around
    finally:
        around.give_work(None)
        around.device.thread.join(PATIENCE_S)
        served.runner.close()  # so that it has told everything
        assert not around.device.thread.is_alive()


def part(*rows: float, attempt: int = 0, received: float = 0.0) -> Part:
    """A request of one sample for each number."""
    x = np.array([[row, 0, 1] for row in rows], np.float32)
    request = Request(
        MODEL, "", len(rows), {"x": x}, 1e9, Priority.NORMAL, received,
        ReplyTo("r", None, 0), Receipt(1, 0, 0, 0),
    )  # fmt: skip
    return Part(request, 0, len(rows), attempt)


def answer(*rows: float) -> dict[str, Array]:
    """What the scripted runner makes of the samples of `part`."""
    return expected(np.array([[row, 0, 1] for row in rows], np.float32))


def assert_outputs(done: Done, *rows: float) -> None:
    """The outputs are those of these samples, in this order."""
    for name, values in answer(*rows).items():
        np.testing.assert_array_equal(done.outputs[name], values)


@pytest.fixture
def runner() -> Iterator[ScriptedRunner]:
    """One lane, batches of four."""
    with_four = ScriptedRunner(4)
    yield with_four
    with_four.release()
    with_four.close()


def failing(error: EdgedError) -> ScriptedRunner:
    """Fails on each batch."""
    return ScriptedRunner(4, fault=lambda _number, _inputs: error)


# ------------------------------------------------------------------ a batch


def test_a_batch_is_filled_in_order_and_handed_on(runner: ScriptedRunner) -> None:
    """The lane is free first; then rows in the order of the parts, with version, reason, times."""
    parts = (part(1, 2), part(3))
    with running(Served(runner, INPUT, version="v1")) as around:
        around.give(*parts)

        assert around.told(Completed).samples == 3
        done = around.told(Done)

    assert done.parts == parts
    assert (done.samples, done.reason, done.version, done.error) == (3, "count", "v1", None)
    assert_outputs(done, 1, 2, 3)
    assert done.timings(parts[0]) == Timings(done.started, done.compute_s, 3, "count")


def test_only_the_part_s_own_samples_are_run(runner: ScriptedRunner) -> None:
    """A request that was cut gives the samples that the part names."""
    whole = part(1, 2, 3, 4, 5)
    with running(Served(runner, INPUT)) as around:
        around.give(Part(whole.request, 3, 5))
        around.told(Completed)

        assert_outputs(around.told(Done), 4, 5)


def test_outputs_outlive_the_lane(runner: ScriptedRunner) -> None:
    """The next batch on a lane does not change what the one before has handed on."""
    with running(Served(runner, INPUT)) as around:
        around.give(part(1, 2))
        around.give(part(7, 8))
        around.told(Completed)
        first = around.told(Done)
        around.told(Completed)
        around.told(Done)

    assert_outputs(first, 1, 2)


def test_expired_parts_are_handed_on_without_being_run(runner: ScriptedRunner) -> None:
    """With their error, before the batch that came along with them."""
    late = part(1)
    with running(Served(runner, INPUT)) as around:
        around.give(part(2), expired=(late,))
        done = around.told(Done)
        around.told(Completed)
        around.told(Done)

    assert done.parts == (late,)
    assert isinstance(done.error, ExpiredError)
    assert done.timings(late) == Timings()
    assert runner.batches == [1]


@pytest.mark.parametrize("refuse", [False, True])
def test_nan_is_pointed_at_if_it_is_not_let_through(
    runner: ScriptedRunner, *, refuse: bool
) -> None:
    """The part with NaN in its own rows, no other one."""
    with running(Served(runner, INPUT, refuse_nonfinite=refuse)) as around:
        around.give(part(1), part(2, float("nan")), part(3))
        around.told(Completed)

        assert around.told(Done).nonfinite == ((1,) if refuse else ())


def test_a_batch_is_started_before_others_are_told_that_they_expired(
    runner: ScriptedRunner,
) -> None:
    """Telling may wait for as long as the broker is away, and the batch has a deadline."""
    served = Served(runner, INPUT)
    works: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
    told: queue.SimpleQueue[Done] = queue.SimpleQueue()
    answered = threading.Event()

    def done(ended: Done) -> None:
        told.put(ended)
        assert ended.error is None or answered.wait(PATIENCE_S)

    device = Device("cpu", {MODEL: served}, replace(ports(works, told), done=done))
    device.thread.start()
    late, soon = part(1), part(2)
    works.put(Work(Batch(MODEL, (soon,), 1, "count", 0.0), (late,)))

    ended = [told.get(timeout=PATIENCE_S) for _ in range(2)]
    answered.set()

    assert {each.parts for each in ended} == {(late,), (soon,)}
    works.put(None)
    device.thread.join(PATIENCE_S)


def test_what_runs_can_be_seen(runner: ScriptedRunner) -> None:
    """How long the oldest batch has been on the device, for the watchdog."""
    runner.hold()
    with running(Served(runner, INPUT)) as around:
        assert around.device.running_s(1e9) == 0
        around.give(part(1))
        runner.wait_running(1)

        assert around.device.running_s(1e9) > 0
        assert repr(around.device) == "<Device cpu: 1 batches running>"
        runner.release()
        around.told(Completed)
        assert around.device.running_s(1e9) == 0
        assert around.device.lanes == 1


# ------------------------------------------------------------------ faults


def test_an_engine_s_error_is_the_request_s_answer() -> None:
    """The device is sound: it is not taken out, and nothing runs again."""
    error = EngineError("it does not like this")
    with running(Served(failing(error), INPUT)) as around:
        around.give(part(1))

        assert around.told(Completed) == Completed(1, 0.0)
        done = around.told(Done)
        assert (done.error, dict(done.outputs)) == (error, {})
    assert around.silent()


def test_a_device_s_fault_takes_it_out_and_the_batch_runs_again() -> None:
    """In this order: out, lane free, back into the room; nobody is answered yet."""
    error = DeviceFaultError("an illegal memory access was encountered")
    parts = (part(1, 2), part(3))
    with running(Served(failing(error), INPUT)) as around:
        around.give(*parts)

        assert around.told(Failed).error is error
        assert around.told(Again).parts == parts
        assert around.told(Completed) == Completed(3, 0.0)
    assert around.silent()


def test_what_has_failed_twice_is_answered() -> None:
    """A part on its second attempt ends with the fault; its company runs once more."""
    error = DeviceFaultError("an illegal memory access was encountered")
    old, new = part(1, attempt=1), part(2)
    with running(Served(failing(error), INPUT)) as around:
        around.give(old, new)

        around.told(Failed)
        assert around.told(Again).parts == (new,)
        around.told(Completed)
        done = around.told(Done)

    assert (done.parts, done.error) == ((old,), error)


def test_a_retry_asks_to_be_renewed(runner: ScriptedRunner) -> None:
    """And the device goes on with the models that it is given."""
    with running(Served(runner, INPUT, version="old")) as around:
        around.give_work(Work(None, retry=True))
        around.told(Renew)
        around.device.renew({MODEL: Served(runner, INPUT, version="new")})
        around.give(part(1))
        around.told(Completed)

        assert around.told(Done).version == "new"


def test_while_it_is_renewed_the_device_goes_on() -> None:
    """What expires meanwhile is told of, and its thread ends only after the renewal."""
    renewing, go_on = threading.Event(), threading.Event()
    works: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
    told: queue.SimpleQueue[Done] = queue.SimpleQueue()

    def renew(_device: str) -> None:
        renewing.set()
        assert go_on.wait(PATIENCE_S)

    device = Device("cpu", {}, ports(works, told, renew))
    device.thread.start()
    works.put(Work(None, retry=True))
    assert renewing.wait(PATIENCE_S)
    works.put(Work(None, (part(1),)))

    assert isinstance(told.get(timeout=PATIENCE_S).error, ExpiredError)
    assert device.dead() is None
    works.put(None)
    go_on.set()
    device.thread.join(PATIENCE_S)
    assert device.dead() == "gpu-cpu"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_renewal_that_dies_is_noticed() -> None:
    """As a fault of ours in any other thread is; the device's own thread still lives."""
    works: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
    told: queue.SimpleQueue[Done] = queue.SimpleQueue()
    dying: list[threading.Thread] = []

    def renew(_device: str) -> None:
        dying.append(threading.current_thread())
        raise RuntimeError("a fault of ours")

    device = Device("cpu", {}, ports(works, told, renew))
    device.thread.start()
    works.put(Work(None, (part(1),), retry=True))
    told.get(timeout=PATIENCE_S)
    dying[0].join(PATIENCE_S)

    assert device.dead() == "renew-cpu"
    works.put(None)
    device.thread.join(PATIENCE_S)


# ------------------------------------------------------------------ swap


def test_a_model_is_swapped_between_two_batches(runner: ScriptedRunner) -> None:
    """What runs ends on the old engine, under its version; the next batch is the new one's."""
    new = ScriptedRunner(4)
    runner.hold()
    with running(Served(runner, INPUT, version="old")) as around:
        around.give(part(1))
        runner.wait_running(1)
        around.device.swap(MODEL, Served(new, INPUT, version="new"))
        around.give(part(2))
        around.told(Completed)
        second = around.told(Done)
        runner.release()
        around.told(Completed)
        first = around.told(Done)
        runner.close()
        new.close()

    assert (first.version, second.version) == ("old", "new")
    assert_outputs(first, 1)
    assert_outputs(second, 2)
    assert (runner.batches, new.batches) == ([1], [1])


def test_a_batch_waits_for_a_lane_that_a_new_engine_has_fewer_of(runner: ScriptedRunner) -> None:
    """Two batches were let in for the two lanes before; the second one waits for the first."""
    runner.hold()
    with running(Served(runner, INPUT)) as around:
        around.give(part(1))
        around.give(part(2))
        runner.wait_running(1)
        runner.release()
        dones = []
        for _ in range(2):
            around.told(Completed)
            dones.append(around.told(Done))

    assert_outputs(dones[0], 1)
    assert_outputs(dones[1], 2)


def test_swaps_and_batches_may_meet_in_any_way() -> None:
    """While batches run, engines take over one after the other; each answer is right."""
    runners = [ScriptedRunner(4) for _ in range(20)]
    served = [Served(each, INPUT, version=str(n)) for n, each in enumerate(runners)]
    with running(served[0]) as around:

        def swap_all() -> None:
            for each, before in zip(served[1:], runners, strict=False):
                around.device.swap(MODEL, each)
                before.close()

        swapper = threading.Thread(target=swap_all)
        swapper.start()
        versions = []
        for number in range(200):
            around.give(part(number))
            around.told(Completed)
            done = around.told(Done)
            assert_outputs(done, number)
            versions.append(int(done.version))
        swapper.join(PATIENCE_S)
        runners[-1].close()

    assert versions == sorted(versions)


# ------------------------------------------------------------------ pure


@pytest.mark.parametrize(
    ("outputs", "found"),
    [
        ({"y": [1.0, 2.0, 3.0]}, ()),
        ({"y": [np.nan, 2.0, 3.0]}, (0,)),
        ({"y": [1.0, 2.0, -np.inf], "z": [np.inf, 1.0, 1.0]}, (0, 1)),
        ({}, ()),
    ],
)
def test_nonfinite_names_parts(outputs: Mapping[str, list[float]], found: tuple[int, ...]) -> None:
    """By the rows that are theirs, in any output; here parts of one and of two samples."""
    arrays = {name: np.array(values, np.float32) for name, values in outputs.items()}

    assert nonfinite(arrays, (part(1), part(2, 3))) == found


def test_whole_numbers_are_always_finite() -> None:
    """Outputs that are no floating-point numbers are not looked at."""
    assert nonfinite({"z": np.array([1, 2], np.int64)}, (part(1, 2),)) == ()


def test_expired_tells_what_to_do() -> None:
    """One end for all that expired together."""
    parts = (part(1), part(2))

    assert expired(parts).parts == parts
    assert "allow more time" in str(expired(parts).error)
