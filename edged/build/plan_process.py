"""Runs TensorRT's builder in a child process: watched, limited, and ended if need be.

Whatever happens to the child becomes one `BuildError` that says what to do: a builder that is
killed for memory, crashes or hangs takes neither the build nor a service with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edged.build.plan import ChildFile, Plan, PlanAnswer, PlanJob, TypedGraphs
from edged.device import cuda_number
from edged.errors import BuildError, BuildStoppedError

Progress = Callable[[str, float], None]
"""Called with what the builder does and the share of its work that is done, 0 to 1."""

_TICK_S = 0.25  # memory, time and cancellation are looked at so often
_EXIT_S = 30  # from the end of the child's output to its exit
_TAIL = 600  # bytes of the child's last words in a message
_OUT_OF_MEMORY = {-signal.SIGKILL, 128 + signal.SIGKILL}  # a container's init gives the latter


@dataclass(frozen=True)
class BuildLimits:
    """What a child may use.

    Attributes:
        memory_bytes: most resident memory, device memory shared with the CPU not included; None:
            no limit.
        seconds: most time; None: no limit.
        nice: added to the child's niceness.
        stop: asked several times a second; True ends the child.
    """

    memory_bytes: int | None = None
    seconds: float | None = None
    nice: int = 10
    stop: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class PlanRequest:
    """One plan to build.

    Attributes:
        graphs: the model.
        job: how.
        device: ``cuda:N``, the only one that the child sees.
        timing_cache: file that outlives the build; None: none is kept.
    """

    graphs: TypedGraphs
    job: PlanJob
    device: str = "cuda:0"
    timing_cache: Path | None = None


@dataclass(frozen=True)
class BuiltPlan:
    """A plan and what the builder said on standard error."""

    plan: Plan
    log: str


def build_plan(
    request: PlanRequest,
    workplace: Path,
    limits: BuildLimits | None = None,
    progress: Progress = lambda _what, _share: None,
) -> BuiltPlan:
    """Builds a plan in a child process.

    Args:
        request: what to build.
        workplace: a folder for temporary files; nothing is left in it.
        limits: what the child may use; None: whatever it wants.
        progress: told what goes on; an exception from it ends the child.

    Raises:
        BuildError: TensorRT refuses the model or crashes on it.
        BuildStoppedError: the child was killed, ran into a limit or was cancelled.
    """
    try:
        return _build_plan(request, workplace, limits or BuildLimits(), progress)
    except OSError as err:
        raise BuildStoppedError(
            f"the files of the build process cannot be written: {err.strerror or err}; free space "
            "where the engines lie, or build as the user that owns them"
        ) from err


def _build_plan(
    request: PlanRequest, workplace: Path, limits: BuildLimits, progress: Progress
) -> BuiltPlan:
    with tempfile.TemporaryDirectory(prefix=".plan.", dir=workplace) as name:
        folder = Path(name)
        _write_job(folder, request)
        with (folder / ChildFile.STDERR).open("wb") as stderr:
            code = _run(folder, request.device, stderr.fileno(), limits, progress)
        said = (folder / ChildFile.STDERR).read_text(encoding="utf-8", errors="replace")
        answer = _answer(folder, code, said)
        _keep_timing_cache(folder, request.timing_cache)
        return BuiltPlan(Plan((folder / ChildFile.PLAN).read_bytes(), answer.layers), said)


def _write_job(folder: Path, request: PlanRequest) -> None:
    (folder / ChildFile.JOB).write_text(request.job.model_dump_json(), encoding="utf-8")
    (folder / ChildFile.STRONG).write_bytes(request.graphs.strong)
    (folder / ChildFile.WEAK).write_bytes(request.graphs.weak)
    if request.timing_cache is not None and request.timing_cache.is_file():
        (folder / ChildFile.TIMING_CACHE).write_bytes(request.timing_cache.read_bytes())


def _keep_timing_cache(folder: Path, target: Path | None) -> None:
    measured = folder / ChildFile.TIMING_CACHE
    if target is not None and measured.is_file():
        measured.replace(target)


# ------------------------------------------------------------------ the process


def _run(folder: Path, device: str, stderr: int, limits: BuildLimits, progress: Progress) -> int:
    """Runs the child to its end, whatever that is; returns its exit code."""
    command = [sys.executable, "-m", "edged.build.plan_child", str(folder), str(os.getpid()),
               str(limits.nice)]  # fmt: skip
    with subprocess.Popen(
        command,
        # Its own folder, so that nothing else can be imported from the current one.
        cwd=folder,
        env=child_environment(os.environ, device),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        # Ctrl-C is for the parent, which then ends the child.
        start_new_session=True,
    ) as child:
        try:
            _watch(child, limits, progress)
            return child.wait(timeout=_EXIT_S)
        except subprocess.TimeoutExpired as err:
            raise BuildStoppedError(f"the build process did not end within {_EXIT_S} s") from err
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)


def _watch(child: subprocess.Popen[bytes], limits: BuildLimits, progress: Progress) -> None:
    """Passes progress on and enforces the limits until the child closes its output.

    Raises:
        BuildStoppedError: a limit was reached, or the build was cancelled.
    """
    if child.stdout is None:
        raise ValueError("the child's output must be a pipe")
    begun, pending = time.monotonic(), b""
    while True:
        if limits.stop():
            raise BuildStoppedError("the build was cancelled")
        if limits.seconds is not None and time.monotonic() - begun > limits.seconds:
            raise BuildStoppedError(_too_long(limits))
        _check_memory(child.pid, limits)
        if not select.select([child.stdout], [], [], _TICK_S)[0]:
            continue
        chunk = os.read(child.stdout.fileno(), 65536)
        if not chunk:
            return
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            _pass_on(line, progress)


def _pass_on(line: bytes, progress: Progress) -> None:
    try:
        document = json.loads(line)
        what, share = str(document["what"]), float(document["share"])
    except (ValueError, KeyError, TypeError):
        return  # native code may write there too
    progress(what, min(1.0, max(0.0, share)))


def _check_memory(pid: int, limits: BuildLimits) -> None:
    peak = peak_bytes(pid) if limits.memory_bytes is not None else None
    if peak is not None and limits.memory_bytes is not None and peak > limits.memory_bytes:
        raise BuildStoppedError(
            f"the build used {peak >> 20} MiB of memory and was ended, its limit is "
            f"{limits.memory_bytes >> 20} MiB; raise the limit, or lower max_batch"
        )


def peak_bytes(pid: int) -> int | None:
    """Most resident memory that a process had so far; None if it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def child_environment(environ: Mapping[str, str], device: str) -> dict[str, str]:
    """The child's environment: our import path, one device, kernels loaded by need.

    Args:
        environ: our own.
        device: ``cuda:N``, the N-th of the devices that we see, or ``dla:N`` of the first one.
    """
    number = str(cuda_number(device))
    seen = [name.strip() for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    if any(seen) and int(number) < len(seen):
        number = seen[int(number)]
    return {
        "CUDA_MODULE_LOADING": "LAZY",
        **environ,
        # Absolute, since the child starts in another folder; "" is the current one.
        "PYTHONPATH": os.pathsep.join(str(Path(path).absolute()) for path in sys.path),
        "CUDA_VISIBLE_DEVICES": number,
    }


# ------------------------------------------------------------------ its end


def _answer(folder: Path, code: int, said: str) -> PlanAnswer:
    """What the child answered.

    Raises:
        BuildError: it did not, or answered with an error.
    """
    file = folder / ChildFile.ANSWER
    if code in {0, 1} and file.is_file():
        answer = PlanAnswer.model_validate_json(file.read_bytes())
        if answer.error is not None:
            raise BuildError(answer.error)
        return answer
    raise why_it_ended(code, said)


def why_it_ended(code: int, said: str) -> BuildError:
    """The error for a child that did not end by itself.

    Args:
        code: its exit code, negative for a signal.
        said: what it wrote on standard error.
    """
    tail = said.strip()[-_TAIL:]
    words = f"; it said: {tail}" if tail else ""
    if code in _OUT_OF_MEMORY:
        return BuildStoppedError(
            "the build process was killed (SIGKILL), most likely because the device ran out of "
            "memory (exit code 137): stop the service or other programs meanwhile, lower max_batch "
            f"in the recipe, or add swap{words}"
        )
    if code == -signal.SIGTERM:
        return BuildStoppedError(f"the build process was told to end (SIGTERM){words}")
    if code < 0:
        return BuildError(
            f"TensorRT's builder crashed ({signal.Signals(-code).name}) on this model{words}"
        )
    return BuildError(f"the build process ended with exit code {code}{words}")


def _too_long(limits: BuildLimits) -> str:
    return f"the build took longer than {limits.seconds:g} s and was ended; raise the limit"
