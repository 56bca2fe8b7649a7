"""TensorRT's builder in its child process, for real: results, refusals, limits, deaths.

TensorRT-RTX builds without a GPU.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import psutil
import pytest

from edged.build.engine import import_tensorrt, tensorrt_plan
from edged.build.plan import Plan, PlanJob, ProfileShape, TypedGraphs
from edged.build.plan_process import BuildLimits, BuiltPlan, PlanRequest, build_plan
from edged.errors import BuildError, BuildStoppedError
from tests.doubles import onnx_models

RESIDUAL = onnx_models.residual_net().SerializeToString()
PROFILE = {"x": ProfileShape((1, 4, 8, 8), (4, 4, 8, 8), (8, 4, 8, 8))}
JOB = PlanJob(precision="fp32", profiles=(PROFILE,))

_PARENT = """
import os, signal, sys
from pathlib import Path
import psutil
from tests.integration.test_plan_child import request_of
from edged.build.plan_process import build_plan

def stop_child_and_die(_what, _share):
    (child,) = psutil.Process().children()
    os.kill(child.pid, signal.SIGSTOP)
    print(child.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

build_plan(request_of(), Path(sys.argv[1]), progress=stop_child_and_die)
"""

pytestmark = pytest.mark.skipif(
    import_tensorrt() is None,
    reason=f"TensorRT is not installed (TensorRT-RTX has no wheel for {platform.machine()})",
)


def request_of(model: bytes = RESIDUAL, job: PlanJob = JOB) -> PlanRequest:
    """One model in both forms."""
    return PlanRequest(TypedGraphs(model, model), job)


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path: Path) -> object:
    """Whatever happens: no temporary folder stays, and no child."""
    yield
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".plan.")] == []
    assert psutil.Process().children() == []


def child() -> psutil.Process:
    """The builder."""
    (found,) = psutil.Process().children()
    return found


def build_and_interfere(tmp_path: Path, interfere: Callable[[], object]) -> BuiltPlan:
    """Does something to the child as soon as it builds."""
    begun: list[str] = []

    def progress(what: str, _share: float) -> None:
        if not begun:
            begun.append(what)
            interfere()

    return build_plan(request_of(), tmp_path, progress=progress)


def forms(plan: Plan) -> list[tuple[object, ...]]:
    """What a plan's layers are, without their names."""
    return [(layer.kind, layer.inputs, layer.outputs, layer.nodes) for layer in plan.layers]


def test_child_gives_the_plan_that_this_process_would(tmp_path: Path) -> None:
    """The same layers; progress rises to the end."""
    told: list[float] = []
    built = build_plan(request_of(), tmp_path, progress=lambda _what, share: told.append(share))
    trt = import_tensorrt()
    assert trt is not None
    here = tensorrt_plan(trt, TypedGraphs(RESIDUAL, RESIDUAL), JOB)
    # Not the same bytes: names inside hold numbers that differ from run to run.
    assert forms(built.plan) == forms(here)
    assert len(built.plan.data) > 1000
    assert told == sorted(told)
    assert len(told) > 5
    assert told[-1] > 0.9


def test_child_stands_behind_the_service(tmp_path: Path) -> None:
    """Lower priority, and the first one to go when memory runs out."""
    seen: list[tuple[int, int]] = []

    def look() -> None:
        score = Path(f"/proc/{child().pid}/oom_score_adj").read_text()
        seen.append((child().nice() - os.nice(0), int(score)))

    build_and_interfere(tmp_path, look)
    assert seen == [(10, 500)] or os.nice(0) > 9


def test_timing_cache_outlives_the_build(tmp_path: Path) -> None:
    """It is kept where it was asked for; one of another version is ignored and replaced."""
    file = tmp_path / "timing.cache"
    file.write_bytes(b"of another version")
    request = replace(request_of(), timing_cache=file)
    assert build_plan(request, tmp_path).plan.data
    measured = file.read_bytes()
    assert measured != b"of another version"
    assert build_plan(request, tmp_path).plan.data


def test_unknown_operator_is_named(tmp_path: Path) -> None:
    """What the parser says comes back, with the node."""
    model = onnx_models.mlp()
    model.graph.node[1].op_type = "NoSuchOperator"
    model.graph.node[1].domain = "nowhere"
    model.opset_import.append(onnx.helper.make_opsetid("nowhere", 1))
    with pytest.raises(BuildError, match=r"TensorRT cannot read the model: .*NoSuchOperator"):
        build_plan(request_of(model.SerializeToString()), tmp_path)


@pytest.mark.parametrize("model", [b"", b"\xff\xfegarbage" * 9, RESIDUAL[: len(RESIDUAL) // 2]])
def test_corrupt_model_is_refused(tmp_path: Path, model: bytes) -> None:
    """Empty, garbage, cut off: an error that says so."""
    with pytest.raises(BuildError, match=r"Failed to parse the ONNX model|the model has \[\]"):
        build_plan(request_of(model), tmp_path)


def test_wrong_profile_is_refused(tmp_path: Path) -> None:
    """Our own checks, too, come back from the child."""
    job = PlanJob(precision="fp32", profiles=({"x": PROFILE["x"], "y": PROFILE["x"]},))
    with pytest.raises(BuildError, match=r"names inputs \['x', 'y'\], the model has \['x'\]"):
        build_plan(request_of(job=job), tmp_path)


def test_too_small_a_workspace_is_told_in_the_builders_words(tmp_path: Path) -> None:
    """A byte of scratch memory is not enough for any kernel."""
    job = PlanJob(precision="fp32", profiles=(PROFILE,), workspace_bytes=1)
    with pytest.raises(BuildError, match=r"could not build the engine: .*workspace limit"):
        build_plan(request_of(job=job), tmp_path)


def test_killed_child_is_taken_for_out_of_memory(tmp_path: Path) -> None:
    """The kernel's OOM killer sends SIGKILL; the message says what to do."""
    with pytest.raises(BuildStoppedError, match=r"killed \(SIGKILL\).*out of memory.*max_batch"):
        build_and_interfere(tmp_path, lambda: child().kill())


def test_crashing_child_is_an_error_and_no_crash_here(tmp_path: Path) -> None:
    """A fault in native code ends the child only."""
    with pytest.raises(BuildError, match=r"builder crashed \(SIGSEGV\)") as caught:
        build_and_interfere(tmp_path, lambda: child().send_signal(signal.SIGSEGV))
    assert not isinstance(caught.value, BuildStoppedError)


def test_child_over_its_memory_limit_is_ended(tmp_path: Path) -> None:
    """TensorRT's libraries alone need more than 48 MiB."""
    limits = BuildLimits(memory_bytes=48 << 20)
    with pytest.raises(BuildStoppedError, match=r"used \d+ MiB .* its limit is 48 MiB; raise"):
        build_plan(request_of(), tmp_path, limits)


def test_child_over_its_time_is_ended(tmp_path: Path) -> None:
    """Starting Python alone takes longer than a millisecond."""
    with pytest.raises(BuildStoppedError, match=r"took longer than 0.001 s and was ended"):
        build_plan(request_of(), tmp_path, BuildLimits(seconds=0.001))


def test_build_can_be_cancelled(tmp_path: Path) -> None:
    """Asked while nothing is reported, too."""
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 1

    with pytest.raises(BuildStoppedError, match="the build was cancelled"):
        build_plan(request_of(), tmp_path, BuildLimits(stop=stop))


def test_exception_from_progress_ends_the_child(tmp_path: Path) -> None:
    """Ctrl-C arrives as one: nothing goes on in the background."""
    # A shell has what it starts in the background ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            build_and_interfere(tmp_path, lambda: signal.raise_signal(signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)


def test_child_ends_with_its_parent(tmp_path: Path) -> None:
    """A build that is killed leaves no builder behind, even one that was stopped."""
    root = Path(__file__).resolve().parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", _PARENT, str(tmp_path)],
        cwd=root, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert ended.returncode == -signal.SIGKILL
    for folder in tmp_path.glob(".plan.*"):  # that of a killed parent stays; an install clears it
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    try:
        psutil.Process(int(ended.stdout)).wait(timeout=30)
    except psutil.NoSuchProcess:
        return
