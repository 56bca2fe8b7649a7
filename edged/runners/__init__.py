"""The Runner protocol: something that can run an engine. Imports no GPU library.

A runner owns one engine on one device and some **lanes**. A lane is one execution slot: its own
staging buffers for inputs and, on a GPU, its own execution context and stream. A caller fills a
free lane's input buffers, submits it, and is told through a callback when it is done; meanwhile it
fills another one. That is how a copy in, a computation and a copy out of consecutive batches
overlap on a GPU, and a CPU runner has the same form with one lane.

Rules that every runner keeps (tests/integration/test_runner_conformance.py checks them):

* buffers of a lane may be written from the moment its previous batch was reported done until it
  is submitted, and not in between;
* ``submit`` returns without waiting for the result; ``done`` is called exactly once for each
  submit, from a thread of the runner's, also when the engine fails (`Completion.error` says how);
* output views are valid until that lane is submitted again or the runner is closed;
* ``close`` waits for what was submitted, then frees everything; it may be called twice.
"""

from __future__ import annotations

import contextlib
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from statistics import median
from types import ModuleType
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edged.engine_store import Engine
from edged.errors import EdgedError, EngineError, EngineRefusedError
from edged.latency import LatencyCurve
from edged.recipe import DTYPES, InputSpec, OutputSpec

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of an engine.

    Attributes:
        name: its name in the engine.
        dtype: numpy dtype of its entries.
        shape: one sample; the batch axis comes before it.
    """

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Completion:
    """One batch came back from the device.

    Attributes:
        lane: the lane that was submitted.
        samples: number of samples in the batch.
        outputs: views of shape ``[samples, *shape]`` by output name; empty on error.
        started: monotonic seconds when the device took the batch up.
        finished: monotonic seconds when its outputs were readable.
        error: set when the engine failed; the lane is free all the same.
    """

    lane: int
    samples: int
    outputs: Mapping[str, Array] = field(default_factory=dict)
    started: float = 0.0
    finished: float = 0.0
    error: EdgedError | None = None

    @property
    def service_s(self) -> float:
        """Seconds on the device."""
        return self.finished - self.started


class Runner(Protocol):
    """One engine on one device, ready to run."""

    @property
    def device(self) -> str:
        """Where it runs, e.g. ``cpu`` or ``cuda:0``."""

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        """The engine's inputs."""

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """The engine's outputs."""

    @property
    def max_batch(self) -> int:
        """Most samples in one batch."""

    @property
    def sizes(self) -> Sequence[int]:
        """Batch sizes it runs at; one in between is padded up by the runner. Empty: any size."""

    @property
    def lanes(self) -> int:
        """Number of lanes, at least 1; `prepare` may lower it to what was measured to be enough."""

    def prepare(self, progress: Callable[[int, int], None]) -> None:
        """Gets ready before anything is submitted: compiles, captures, measures.

        Args:
            progress: called with (steps done, steps in all).

        Raises:
            EngineError: the engine fails.
        """

    def staging(self, lane: int) -> Mapping[str, Array]:
        """Input buffers of one lane by name, each ``[max_batch, *shape]``, owned by the runner."""

    def submit(self, lane: int, samples: int, done: Callable[[Completion], None]) -> None:
        """Starts the first ``samples`` rows of the lane's buffers.

        Raises:
            ValueError: no such lane, or samples outside 1 and max_batch: a fault of the caller.
        """

    def close(self) -> None:
        """Waits for what was submitted, then gives everything back."""


def input_specs(specs: Sequence[InputSpec], length: int = 0) -> tuple[TensorSpec, ...]:
    """Inputs as the model takes them, masks included.

    Args:
        specs: from the manifest.
        length: of inputs of variable length, what they are padded to; 0: their largest one.
    """
    found = []
    for spec in specs:
        shape = list(spec.model_shape)
        if spec.length is not None:
            shape[spec.model_axis] = length or spec.max_length
        found.append(TensorSpec(spec.name, DTYPES[spec.model_datatype], tuple(shape)))
    masks = {
        spec.length.mask: DTYPES[spec.length.mask_datatype]
        for spec in specs
        if spec.length is not None and spec.length.mask
    }
    padded = length or max((spec.max_length for spec in specs), default=0)
    return (*found, *(TensorSpec(name, dtype, (padded,)) for name, dtype in masks.items()))


def output_specs(specs: Sequence[OutputSpec], length: int = 0) -> tuple[TensorSpec, ...]:
    """Outputs as the model gives them; ``length`` as in `input_specs`."""
    found = []
    for spec in specs:
        shape = list(spec.shape)
        if spec.length_axis is not None and length:
            shape[spec.length_axis] = length
        found.append(TensorSpec(spec.name, DTYPES[spec.datatype], tuple(shape)))
    return tuple(found)


def fingerprint(kind: str, device: str = "cuda:0") -> dict[str, str]:
    """What a device and its runtime are, for one kind of runner (`Manifest.runner`).

    Cheap for ONNX Runtime, which is not imported. Its patch version is left out, since it changes
    no results that verification would see.

    Args:
        kind: ``onnx`` or ``tensorrt``.
        device: ``cuda:N``; ONNX Runtime runs on the CPU whatever it is.

    Raises:
        EngineRefusedError: that kind cannot run here.
    """
    if kind == "tensorrt":
        facts: dict[str, str] = _tensorrt().fingerprint(device)
        return facts
    for distribution in ("onnxruntime", "onnxruntime-gpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            version = ".".join(metadata.version(distribution).split(".")[:2])
            return {"runner": "onnx", "onnxruntime": version, "arch": platform.machine()}
    raise EngineRefusedError(_NO_ONNX_RUNTIME)


_NO_ONNX_RUNTIME = (
    "this engine needs ONNX Runtime, which is not installed; "
    "install it with: pip install 'edged[onnx]'"
)


def load(engine: Engine, *, device: str = "", lanes: int | None = None, threads: int = 0) -> Runner:
    """Loads an installed engine with the runner it was built for.

    Args:
        engine: from `EngineStore.usable`.
        device: ``cuda:N`` for TensorRT, ``cpu`` or ``cpu:N`` for ONNX Runtime; "": the first.
        lanes: lanes of the runner; None: its default.
        threads: ONNX Runtime's threads inside one operator; 0: one for each core.

    Raises:
        EngineRefusedError: damaged, refused by the runtime, or the runtime is not installed.
    """
    if engine.manifest.runner == "tensorrt":
        runner: Runner = _tensorrt().load(engine, device=device or "cuda:0", lanes=lanes)
        return runner
    try:
        # Imported by need: the daemon loads no runtime that no engine asks for.
        from edged.runners import onnx
    except ModuleNotFoundError as err:
        raise EngineRefusedError(_NO_ONNX_RUNTIME) from err
    return onnx.load(engine, device=device or "cpu", lanes=lanes or 1, threads=threads)


def at_length(
    runner: Runner, inputs: Sequence[InputSpec], outputs: Sequence[OutputSpec], length: int
) -> Runner:
    """Another runner of an engine with inputs of variable length, for samples of one length.

    Args:
        runner: of the same engine, with the largest length; what can be shared with it is shared.
        inputs: from the manifest.
        outputs: likewise.
        length: what samples are padded to.

    Raises:
        EngineRefusedError: the engine was not built for that length, or its runner knows one only.
    """
    make = getattr(runner, "at_length", None)
    if make is None:
        raise EngineRefusedError(
            "the engine has inputs of variable length, and its runner serves one length only; give "
            "them one length in the recipe, and build it again"
        )
    made: Runner = make(input_specs(inputs, length), output_specs(outputs, length))
    return made


def abandon(runner: Runner) -> None:
    """Closes a runner whose device failed.

    Raises:
        DeviceLostError: the device cannot be used any more by this process.
    """
    leave = getattr(runner, "abandon", runner.close)
    leave()


def _tensorrt() -> ModuleType:
    try:
        from edged.runners import tensorrt
    except ImportError as err:  # pycuda is missing, or it does not find libcuda
        raise EngineRefusedError(
            f"this engine needs an NVIDIA driver and pycuda, which cannot be imported ({err}); "
            "install it with: pip install 'edged[cuda]'"
        ) from err
    return tensorrt


def run_batch(runner: Runner, batch: Mapping[str, Array], lane: int = 0) -> Completion:
    """Runs one batch and waits for it: for warm-up, verification and tests, not for serving.

    Args:
        runner: an idle runner; nobody else may use the lane meanwhile.
        batch: every input by name, ``[n, *shape]`` with the same n.
        lane: the lane to use.

    Raises:
        EdgedError: whatever the engine failed with.
    """
    buffers = runner.staging(lane)
    samples = len(next(iter(batch.values())))
    for name, rows in batch.items():
        np.copyto(buffers[name][:samples], rows, casting="no")
    finished = threading.Event()
    results: list[Completion] = []

    def done(completion: Completion) -> None:
        results.append(completion)
        finished.set()

    runner.submit(lane, samples, done)
    finished.wait()
    if results[0].error is not None:
        raise results[0].error
    return results[0]


def warm_up(
    runner: Runner,
    sizes: Sequence[int],
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    *,
    repeats: int = 10,
    budget_s: float = 0.3,
) -> LatencyCurve:
    """Runs every batch size, and measures it on the otherwise idle device.

    The first run of a size compiles kernels on some runtimes and is not counted. Each size then
    runs ``repeats`` times, fewer where ``budget_s`` a size is used up, but at least 3.

    Args:
        runner: an idle runner.
        sizes: batch sizes in samples, 1 to max_batch.
        progress: called with (steps done, steps in all), first for what the runner prepares, then
            for the sizes that are measured.
        repeats: timed runs for each size; their median counts.
        budget_s: seconds for each size, roughly.

    Returns:
        The latency curve over ``sizes``, in seconds of wall time from submit to done.

    Raises:
        EngineError: the engine fails on a batch of zeros.
    """
    points = []
    try:
        runner.prepare(progress)
    except EdgedError as err:
        raise EngineError(f"warm-up failed: {err.message}") from err
    for position, size in enumerate(sizes):
        zeros = {
            spec.name: np.zeros((size, *spec.shape), dtype=spec.dtype) for spec in runner.inputs
        }
        try:
            run_batch(runner, zeros)
            points.append((size, _median_time(runner, zeros, repeats, budget_s)))
        except EdgedError as err:
            raise EngineError(f"warm-up failed at batch size {size}: {err.message}") from err
        progress(position + 1, len(sizes))
    return LatencyCurve.measured(points, stepped=bool(runner.sizes))


def _median_time(
    runner: Runner, batch: Mapping[str, Array], repeats: int, budget_s: float
) -> float:
    times: list[float] = []
    while len(times) < repeats and (len(times) < 3 or sum(times) < budget_s):
        begun = time.perf_counter()
        run_batch(runner, batch)
        times.append(time.perf_counter() - begun)
    return max(median(times), 1e-9)
