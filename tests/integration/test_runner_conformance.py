"""The rules of `edged.runners.Runner`, checked on every runner that there is."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edged import runners
from edged.errors import EngineError
from edged.runners import Completion, Runner
from tests.doubles.runner import WAIT_S, ScriptedRunner
from tests.doubles.runner_cases import ONNX, SCRIPTED, TENSORRT, Array, Case


@pytest.fixture(params=["scripted", "onnx", pytest.param("tensorrt", marks=pytest.mark.gpu)])
def case(request: pytest.FixtureRequest) -> Case:
    """Each kind of runner in turn; TensorRT's where there is a GPU."""
    return {"scripted": SCRIPTED, "onnx": ONNX, "tensorrt": TENSORRT}[request.param]


@pytest.fixture(params=[1, 3], ids=["1-lane", "3-lanes"])
def runner(case: Case, request: pytest.FixtureRequest) -> Iterator[Runner]:
    """Each kind with one lane and with three."""
    made = case.make(request.param)
    yield made
    made.close()


class Done:
    """Collects completions; the callback of a submit."""

    def __init__(self) -> None:
        self.completions: list[Completion] = []
        self.outputs: list[dict[str, Array]] = []
        self.threads: set[int] = set()
        self._changed = threading.Condition()

    def __call__(self, completion: Completion) -> None:
        """On the runner's thread; copies the outputs, as the device stage does."""
        copies = {name: np.array(rows) for name, rows in completion.outputs.items()}
        with self._changed:
            self.completions.append(completion)
            self.outputs.append(copies)
            self.threads.add(threading.get_ident())
            self._changed.notify_all()

    def wait(self, count: int) -> list[Completion]:
        """The completions, once there are so many."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.completions) >= count, WAIT_S)
            return list(self.completions)


def fill(runner: Runner, lane: int, batch: Mapping[str, Array]) -> int:
    """Writes a batch into a lane's buffers; the number of samples."""
    for name, rows in batch.items():
        runner.staging(lane)[name][: len(rows)] = rows
    return len(next(iter(batch.values())))


def check(case: Case, outputs: Mapping[str, Array], wanted: Mapping[str, Array]) -> None:
    """Equal names and numbers, batch axis included."""
    assert outputs.keys() == wanted.keys()
    for name, rows in wanted.items():
        np.testing.assert_allclose(outputs[name], rows, rtol=case.near, atol=case.near)


def need_failure(case: Case) -> None:
    """Skips where no input makes the engine fail."""
    if not case.fails:
        pytest.skip("no input makes this engine fail; tests/integration/gpu has its faults")


# ------------------------------------------------------------------ what it says of itself


def test_it_describes_its_buffers(runner: Runner) -> None:
    """Staging buffers have the names, dtypes and shapes of the inputs, a full batch long."""
    assert runner.lanes >= 1
    assert runner.device
    for lane in range(runner.lanes):
        buffers = runner.staging(lane)
        assert set(buffers) == {spec.name for spec in runner.inputs}
        for spec in runner.inputs:
            assert buffers[spec.name].dtype == spec.dtype
            assert buffers[spec.name].shape == (runner.max_batch, *spec.shape)


def test_lanes_do_not_share_memory(runner: Runner) -> None:
    """Filling one lane cannot change another one's samples, and a lane keeps its buffers."""
    name = runner.inputs[0].name
    buffers = [runner.staging(lane)[name] for lane in range(runner.lanes)]
    for one in range(runner.lanes):
        assert np.shares_memory(buffers[one], runner.staging(one)[name])
        for other in range(one):
            assert not np.shares_memory(buffers[one], buffers[other])


# ------------------------------------------------------------------ results


@pytest.mark.parametrize("samples", [1, 2, 3, 4])
def test_results_are_right_at_every_batch_size(case: Case, runner: Runner, samples: int) -> None:
    """Outputs equal the reference and have one row a sample, in every lane."""
    rng = np.random.default_rng(samples)
    for lane in range(runner.lanes):
        batch = case.draw(rng, samples)
        completion = runners.run_batch(runner, batch, lane)
        check(case, completion.outputs, case.expected(batch))
        assert (completion.lane, completion.samples) == (lane, samples)
        assert completion.finished >= completion.started > 0
        assert completion.service_s >= 0
        for spec in runner.outputs:
            assert completion.outputs[spec.name].dtype == spec.dtype


def test_rows_of_an_earlier_batch_do_not_leak(case: Case, runner: Runner) -> None:
    """A small batch after a full one gives its own rows only: what lies behind is padding."""
    rng = np.random.default_rng(0)
    runners.run_batch(runner, case.draw(rng, runner.max_batch))
    small = case.draw(rng, 2)
    completion = runners.run_batch(runner, small)
    check(case, completion.outputs, case.expected(small))


def test_rows_behind_the_batch_change_nothing(case: Case, runner: Runner) -> None:
    """Whatever stands in the unused rows of the buffers, even poison, the used ones are right."""
    rng = np.random.default_rng(1)
    name, poison = next(iter(case.poison.items()))
    runner.staging(0)[name][...] = poison
    batch = case.draw(rng, 2)
    check(case, runners.run_batch(runner, batch).outputs, case.expected(batch))


def test_a_batch_equals_its_samples_alone(case: Case, runner: Runner) -> None:
    """Samples do not influence each other: a batch of 4 equals four batches of 1."""
    batch = case.draw(np.random.default_rng(2), 4)
    alone = []
    for row in range(4):
        single = {name: rows[row : row + 1] for name, rows in batch.items()}
        outputs = runners.run_batch(runner, single).outputs
        alone.append({name: np.array(rows) for name, rows in outputs.items()})
    joined = {name: np.concatenate([one[name] for one in alone]) for name in alone[0]}
    check(case, runners.run_batch(runner, batch).outputs, joined)


# ------------------------------------------------------------------ submitting


def test_done_comes_once_for_each_submit_from_the_runners_thread(
    case: Case, runner: Runner
) -> None:
    """All lanes in flight at once: each is reported exactly once, with its own rows."""
    rng, done = np.random.default_rng(3), Done()
    batches = {lane: case.draw(rng, 1 + lane) for lane in range(runner.lanes)}
    for lane, batch in batches.items():
        runner.submit(lane, fill(runner, lane, batch), done)
    completions = done.wait(runner.lanes)
    runner.close()  # nothing may come late
    assert sorted(completion.lane for completion in done.completions) == sorted(batches)
    assert threading.get_ident() not in done.threads
    for completion, outputs in zip(completions, done.outputs, strict=True):
        check(case, outputs, case.expected(batches[completion.lane]))


def test_submit_does_not_wait_for_the_result(case: Case, runner: Runner) -> None:
    """Submit returns although the batch cannot be reported yet; else this would never end."""
    may_report, reported = threading.Event(), threading.Event()

    def done(_completion: Completion) -> None:
        assert may_report.wait(WAIT_S)
        reported.set()

    runner.submit(0, fill(runner, 0, case.draw(np.random.default_rng(4), 1)), done)
    assert not reported.is_set()
    may_report.set()
    assert reported.wait(WAIT_S)


def test_outputs_stay_while_other_lanes_run(case: Case, runner: Runner) -> None:
    """Views of one lane are untouched by the batches of the others."""
    rng = np.random.default_rng(5)
    batch = case.draw(rng, 3)
    kept = runners.run_batch(runner, batch, 0)
    for lane in range(1, runner.lanes):
        runners.run_batch(runner, case.draw(rng, 4), lane)
    check(case, kept.outputs, case.expected(batch))


def test_a_lane_may_be_refilled_as_soon_as_it_is_done(case: Case, runner: Runner) -> None:
    """Submitting the same lane again out of its own callback works, ten times in a row."""
    rng, done = np.random.default_rng(6), Done()
    batches = [case.draw(rng, 1 + n % 4) for n in range(10)]

    def again(completion: Completion) -> None:
        done(completion)
        if (number := len(done.completions)) < len(batches):
            runner.submit(0, fill(runner, 0, batches[number]), again)

    runner.submit(0, fill(runner, 0, batches[0]), again)
    done.wait(len(batches))
    for outputs, batch in zip(done.outputs, batches, strict=True):
        check(case, outputs, case.expected(batch))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), min_size=1, max_size=12))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_order_of_lanes_and_sizes(case: Case, work: list[tuple[int, int]]) -> None:
    """Whichever free lane is filled next and however far: nothing is lost, doubled or mixed up."""
    runner, rng = case.make(3), np.random.default_rng(7)
    free = [threading.Semaphore(1) for _ in range(3)]
    done = Done()
    wanted: dict[int, list[dict[str, Array]]] = {lane: [] for lane in range(3)}

    def finished(completion: Completion) -> None:
        done(completion)
        free[completion.lane].release()

    for lane, samples in work:
        assert free[lane].acquire(timeout=WAIT_S)
        batch = case.draw(rng, samples)
        wanted[lane].append(batch)
        runner.submit(lane, fill(runner, lane, batch), finished)
    done.wait(len(work))
    runner.close()
    assert len(done.completions) == len(work)
    for completion, outputs in zip(done.completions, done.outputs, strict=True):
        check(case, outputs, case.expected(wanted[completion.lane].pop(0)))


@pytest.mark.parametrize(("lane", "samples"), [(-1, 1), (3, 1), (0, 0), (0, -1), (0, 5)])
def test_a_wrong_lane_or_size_is_the_callers_fault(runner: Runner, lane: int, samples: int) -> None:
    """A lane that does not exist or a size outside 1..max_batch raises, and nothing is reported."""
    done = Done()
    with pytest.raises(ValueError, match=r"lane|samples"):
        runner.submit(lane, samples, done)
    runner.close()
    assert done.completions == []


# ------------------------------------------------------------------ failing


def test_a_failing_batch_is_reported_and_the_lane_goes_on(case: Case, runner: Runner) -> None:
    """Engine failure: done with an error and no outputs; the next batch of that lane is right."""
    need_failure(case)
    rng, done = np.random.default_rng(8), Done()
    runner.submit(0, fill(runner, 0, case.poison), done)
    (failed,) = done.wait(1)
    assert isinstance(failed.error, EngineError)
    assert failed.outputs == {}
    assert (failed.lane, failed.samples) == (0, 1)
    batch = case.draw(rng, 4)
    check(case, runners.run_batch(runner, batch).outputs, case.expected(batch))


def test_run_batch_raises_what_the_engine_failed_with(case: Case, runner: Runner) -> None:
    """The convenience for tests and verification does not hide an error."""
    need_failure(case)
    with pytest.raises(EngineError):
        runners.run_batch(runner, case.poison)


def test_run_batch_does_not_convert(case: Case, runner: Runner) -> None:
    """A batch of another dtype is refused instead of being rounded in silence."""
    wrong = {
        name: rows.astype(np.complex128)
        for name, rows in case.draw(np.random.default_rng(9), 1).items()
    }
    with pytest.raises(TypeError):
        runners.run_batch(runner, wrong)


# ------------------------------------------------------------------ closing


def test_close_waits_for_what_was_submitted(case: Case, runner: Runner) -> None:
    """Every submitted batch is reported before close returns."""
    may_report, order = threading.Event(), []

    def done(_completion: Completion) -> None:
        assert may_report.wait(WAIT_S)
        order.append("done")

    def close() -> None:
        runner.close()
        order.append("closed")

    for lane in range(runner.lanes):
        batch = case.draw(np.random.default_rng(10), 1)
        runner.submit(lane, fill(runner, lane, batch), done)
    closer = threading.Thread(target=close)
    closer.start()
    closer.join(0.1)
    assert closer.is_alive()
    may_report.set()
    closer.join(WAIT_S)
    assert order == ["done"] * runner.lanes + ["closed"]


def test_close_may_come_twice_and_ends_submitting(case: Case, runner: Runner) -> None:
    """A second close does nothing; a submit afterwards is the caller's fault."""
    runners.run_batch(runner, case.draw(np.random.default_rng(11), 1))
    runner.close()
    runner.close()
    with pytest.raises(ValueError, match="closed"):
        runner.submit(0, 1, Done())


def test_close_leaves_no_thread(case: Case) -> None:
    """A runner that was closed has ended all its threads."""
    before = set(threading.enumerate())
    runner = case.make(3)
    assert set(threading.enumerate()) > before
    runner.close()
    assert set(threading.enumerate()) <= before


# ------------------------------------------------------------------ warming up


def test_warm_up_measures_every_size(runner: Runner) -> None:
    """The curve has the sizes asked for, positive and never falling; progress is told."""
    told: list[tuple[int, int]] = []
    curve = runners.warm_up(
        runner, (1, 2, 4), lambda done, total: told.append((done, total)), repeats=3
    )
    assert curve.sizes == (1, 2, 4)
    assert 0 < curve.seconds[0] <= curve.seconds[1] <= curve.seconds[2]
    assert told[-3:] == [(1, 3), (2, 3), (3, 3)]  # behind what the runner itself prepares


def test_warm_up_says_at_which_size_the_engine_failed() -> None:
    """A failure on zeros is an EngineError that names the batch size."""
    runner = ScriptedRunner(4, fault=lambda n, _: EngineError("no memory") if n >= 4 else None)
    with pytest.raises(EngineError, match="batch size 2: no memory"):
        runners.warm_up(runner, (1, 2, 4), repeats=3)
    runner.close()


# ------------------------------------------------------------------ the scripted runner alone


def test_scripted_lanes_end_in_any_order() -> None:
    """The double can report a later batch first, as overlapping streams do."""
    runner, done = ScriptedRunner(4, lanes=3, held=True), Done()
    for lane in range(3):
        runner.submit(lane, fill(runner, lane, {"x": np.full((1, 3), lane, np.float32)}), done)
    runner.wait_running(3)
    for position, lane in enumerate((2, 0, 1), start=1):
        runner.release(lane)
        assert done.wait(position)[-1].lane == lane
    runner.close()
