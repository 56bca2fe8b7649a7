"""The child process of a build: ``python -m edged.build.plan_child FOLDER PARENT NICE``.

FOLDER holds ``job.json``, ``strong.onnx`` and ``weak.onnx``; ``engine.plan`` and ``answer.json``
are left there, progress goes to standard output as JSON lines. A builder needs much memory, runs
native code on files from elsewhere and cannot be interrupted: here it can be killed, by the
kernel or by its parent, and takes nothing else with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import signal
import sys
from pathlib import Path

from edged.build.engine import import_tensorrt, tensorrt_plan
from edged.build.plan import ChildFile, PlanAnswer, PlanJob, TypedGraphs
from edged.errors import BuildError

_PR_SET_PDEATHSIG = 1
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}  # system call numbers; the C library has no function
_IOPRIO_IDLE = 3 << 13  # class "idle": the disk only when nobody else wants it
_LEAST_STEP = 0.01


def main(arguments: list[str]) -> int:
    """Builds the plan of a folder.

    Args:
        arguments: the folder, the parent's process id, and what to add to the niceness.
    """
    folder, parent, nice = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    _step_back(parent, nice)
    try:
        answer = _build(folder)
    except BuildError as err:
        answer = PlanAnswer(error=err.message)
    (folder / ChildFile.ANSWER).write_text(answer.model_dump_json(), encoding="utf-8")
    return 0 if answer.error is None else 1


def _step_back(parent: int, nice: int) -> None:
    """Behind the service for processor, disk and memory, and gone when the parent is."""
    os.nice(nice)
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        with contextlib.suppress(OSError):
            ctypes.CDLL(None).syscall(number, 1, 0, _IOPRIO_IDLE)
    # Where memory runs out the kernel ends the process with the highest score.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
    with contextlib.suppress(OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit("the parent has ended")


def _build(folder: Path) -> PlanAnswer:
    trt = import_tensorrt()
    if trt is None:
        raise BuildError("no TensorRT can be imported; on a Jetson it comes with JetPack")
    plan = tensorrt_plan(
        trt,
        TypedGraphs(
            (folder / ChildFile.STRONG).read_bytes(), (folder / ChildFile.WEAK).read_bytes()
        ),
        PlanJob.model_validate_json((folder / ChildFile.JOB).read_bytes()),
        timing_cache=folder / ChildFile.TIMING_CACHE,
        progress=_Teller(),
    )
    (folder / ChildFile.PLAN).write_bytes(plan.data)
    return PlanAnswer(layers=plan.layers)


class _Teller:
    """Writes progress, but no more than a hundred lines or so."""

    def __init__(self) -> None:
        self._told = -1.0

    def __call__(self, what: str, share: float) -> None:
        if share - self._told >= _LEAST_STEP:
            self._told = share
            sys.stdout.write(json.dumps({"what": what, "share": round(share, 4)}) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
