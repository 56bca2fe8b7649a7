"""A device's thread around a scripted runner: what it hands on, and when it fails."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import pytest

from edged.errors import ExpiredError
from edged.runners import Array
from edged.serve.deriving import nonfinite
from edged.serve.gpu import Device, Done, Served, expired
from edged.serve.request import Batch, Part, Timings, Work
from tests.doubles.around_device import (
    INPUT,
    MODEL,
    PATIENCE_S,
    Completed,
    part,
    ports,
    running,
)
from tests.doubles.runner import ScriptedRunner, expected


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
        idle_s, busy_s = around.device.occupied(1e9)
        assert idle_s > 1e6 > busy_s == 0
        around.give(part(1))
        runner.wait_running(1)

        assert around.device.running_s(1e9) > 0
        idle_s, busy_s = around.device.occupied(1e9)
        assert busy_s > 1e6 > idle_s == 0
        assert repr(around.device) == "<Device cpu: 1 batches running>"
        runner.release()
        around.told(Completed)
        assert around.device.running_s(1e9) == 0
        idle_s, busy_s = around.device.occupied(1e9)
        assert idle_s > 1e6 > busy_s > 0  # what was busy stays counted
        assert around.device.lanes == 1


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
