"""The parts of the child process's supervision that decide: its end, its environment, its share."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.build.plan import PlanJob, TypedGraphs, profiles_of
from edged.build.plan_process import (
    PlanRequest,
    build_plan,
    child_environment,
    peak_bytes,
    why_it_ended,
)
from edged.build.plan_progress import PhaseTree
from edged.errors import BuildError, BuildStoppedError
from edged.recipe import InputSpec


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (-signal.SIGKILL, BuildStoppedError, r"SIGKILL.*ran out of memory.*lower max_batch"),
        (137, BuildStoppedError, r"SIGKILL.*exit code 137"),
        (-signal.SIGTERM, BuildStoppedError, r"told to end \(SIGTERM\)"),
        (-signal.SIGSEGV, BuildError, r"builder crashed \(SIGSEGV\)"),
        (-signal.SIGABRT, BuildError, r"builder crashed \(SIGABRT\)"),
        (3, BuildError, r"ended with exit code 3"),
    ],
)
def test_each_end_has_its_error(code: int, kind: type[BuildError], message: str) -> None:
    """A kill ends the build, a crash leads to the next precision; both repeat the last words."""
    error = why_it_ended(code, "first\nERROR: the last words\n")
    assert type(error) is kind
    with pytest.raises(kind, match=message):
        raise error
    assert error.message.endswith("; it said: first\nERROR: the last words")
    assert "it said" not in why_it_ended(code, "  \n").message


def test_no_room_for_its_files_is_told_and_nothing_else_is_tried(tmp_path: Path) -> None:
    """A missing folder stands for a disk that is full: another precision needs as much."""
    request = PlanRequest(TypedGraphs(b"", b""), PlanJob(precision="fp32", profiles=()))
    with pytest.raises(BuildStoppedError, match=r"files of the build process cannot be written"):
        build_plan(request, tmp_path / "gone")


def test_long_last_words_are_cut_at_the_front() -> None:
    """The end says why."""
    message = why_it_ended(3, "noise " * 500 + "the reason").message
    assert message.endswith("the reason")
    assert len(message) < 800


@pytest.mark.parametrize(
    ("seen", "device", "expected"),
    [
        (None, "cuda:1", "1"),
        ("", "cuda:0", "0"),
        ("2,3", "cuda:1", "3"),
        ("GPU-aa, GPU-bb", "cuda:0", "GPU-aa"),
        ("2", "cuda:5", "5"),
        (None, "dla:1", "0"),
    ],
)
def test_child_sees_the_chosen_device_only(seen: str | None, device: str, expected: str) -> None:
    """A device is counted among those that we see ourselves."""
    environ = {"HOME": "here"} | ({} if seen is None else {"CUDA_VISIBLE_DEVICES": seen})
    found = child_environment(environ, device)
    assert found["CUDA_VISIBLE_DEVICES"] == expected
    assert found["HOME"] == "here"


def test_child_imports_what_we_import() -> None:
    """Its path is ours, absolute, since it starts in another folder."""
    paths = child_environment({}, "cuda:0")["PYTHONPATH"].split(os.pathsep)
    assert all(os.path.isabs(path) for path in paths)  # noqa: PTH117 - these are strings
    assert len(paths) == len(sys.path)


def test_peak_memory_of_a_process() -> None:
    """Known of one that runs, unknown of one that does not."""
    assert (peak_bytes(os.getpid()) or 0) > 1 << 20
    assert peak_bytes(2**22 + 1) is None


def test_profile_spans_all_batches() -> None:
    """From one sample to max_batch, as the model takes them, tuned for the middle."""
    spec = InputSpec(name="x", datatype="UINT8", shape=(8, 6, 3), scale=(1.0,), transpose=(2, 0, 1))
    shape = profiles_of([spec], 32)[0]["x"]
    assert (shape.minimum, shape.optimum, shape.maximum) == (
        (1, 3, 8, 6), (16, 3, 8, 6), (32, 3, 8, 6),
    )  # fmt: skip
    assert profiles_of([spec], 1)[0]["x"].optimum == (1, 3, 8, 6)


def test_each_padded_length_has_a_profile_of_its_own() -> None:
    """The mask among its inputs; an axis that is not the length stays as it is."""
    spec = InputSpec.model_validate(
        {
            "name": "x",
            "datatype": "FP32",
            "shape": (12, 8),
            "length": {"buckets": [4, 8], "mask": "mask"},
        }
    )

    profiles = profiles_of([spec], 4)

    assert [shapes["x"].maximum for shapes in profiles] == [(4, 4, 8), (4, 8, 8), (4, 12, 8)]
    assert [shapes["x"].minimum for shapes in profiles] == [(1, 4, 8), (1, 8, 8), (1, 12, 8)]
    assert [shapes["mask"].optimum for shapes in profiles] == [(2, 4), (2, 8), (2, 12)]


def test_share_follows_the_phases() -> None:
    """A step of the outer phase is filled by the phases inside it."""
    tree = PhaseTree()
    assert tree.start("outer", None, 2) == 0.0
    assert tree.start("inner", "outer", 4) == 0.0
    assert tree.step("inner", 0) == pytest.approx(1 / 8)
    assert tree.finish("inner") == pytest.approx(1 / 2)
    assert tree.step("outer", 0) == pytest.approx(1 / 2)
    assert tree.finish("outer") == 1.0
    assert repr(tree) == "<PhaseTree 0 phases open, 100%>"


NAMES = st.sampled_from(["a", "b", "c", "d"])
EVENTS = st.one_of(
    st.tuples(st.just("start"), NAMES, st.one_of(st.none(), NAMES), st.integers(-1, 5)),
    st.tuples(st.just("step"), NAMES, st.just(None), st.integers(-2, 9)),
    st.tuples(st.just("finish"), NAMES, st.just(None), st.just(0)),
)


@given(st.lists(EVENTS, max_size=40))
def test_share_never_falls_whatever_the_builder_reports(
    events: list[tuple[str, str, str | None, int]],
) -> None:
    """Phases out of order, unknown, their own parents: the share stays within 0 and 1."""
    tree, shares = PhaseTree(), [0.0]
    for kind, name, parent, number in events:
        if kind == "start":
            shares.append(tree.start(name, parent, number))
        elif kind == "step":
            shares.append(tree.step(name, number))
        else:
            shares.append(tree.finish(name))
    assert shares == sorted(shares)
    assert shares[-1] <= 1.0
