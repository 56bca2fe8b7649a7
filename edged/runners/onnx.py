"""ONNX Runtime on the CPU: the FP32 reference, calibration, and serving without a GPU.

The only module that knows ONNX Runtime. The daemon imports it only if an engine needs it.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# Read at import: from 1.29 on, the Linux builds otherwise keep a device id and usage events under
# the home folder and upload them.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort  # the line above has to be first

from edged.engine_store import Engine
from edged.errors import EngineError, EngineRefusedError
from edged.runners import Array, Completion, TensorSpec, input_specs, output_specs


def _session(model: bytes, threads: int) -> ort.InferenceSession:
    """Loads a model.

    Raises:
        EngineRefusedError: ONNX Runtime refuses it.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A spinning worker would take the cores from decoding and from the broker between two batches.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as err:
        # ONNX Runtime raises six unrelated types for a bad model, a bare UnicodeDecodeError among
        # them (400 one-bit flips of a small model tried with 1.30).
        raise EngineRefusedError(f"ONNX Runtime cannot load the model: {_first_line(err)}") from err


def _first_line(err: BaseException) -> str:
    return (str(err).strip() or type(err).__name__).splitlines()[0][:300]


def optimized_model(model: bytes, folder: Path) -> bytes:
    """The graph as ONNX Runtime runs it on this processor, after its fusions; serialized ONNX.

    Args:
        model: serialized ONNX.
        folder: for a temporary file.

    Raises:
        EngineRefusedError: ONNX Runtime refuses it.
    """
    path = folder / "optimized.onnx"
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4  # it warns that the file fits this processor only: meant
    try:
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return path.read_bytes()
    except Exception as err:  # see `_session`
        raise EngineRefusedError(f"ONNX Runtime cannot load the model: {_first_line(err)}") from err
    finally:
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Form:
    """What a model says of one of its tensors.

    Attributes:
        type: ONNX Runtime's name of it, e.g. ``tensor(float)``.
        shape: sizes, batch axis first; a name or None where it says none.
    """

    type: str
    shape: tuple[int | str | None, ...]


class FloatGraph:
    """A model as it is, run at once: the reference in calibration and in verification.

    Raises:
        EngineRefusedError: ONNX Runtime refuses the model.
    """

    def __init__(self, model: bytes, *, threads: int = 0) -> None:
        self._session = _session(model, threads)
        self.input_names = tuple(item.name for item in self._session.get_inputs())
        self.output_names = tuple(item.name for item in self._session.get_outputs())
        self.forms = {
            item.name: _Form(item.type, tuple(item.shape))
            for item in (*self._session.get_inputs(), *self._session.get_outputs())
        }

    def run(
        self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Runs one batch.

        Args:
            inputs: every input, ``[n, *shape]``.
            outputs: names of the wanted outputs; None: all.

        Raises:
            EngineError: ONNX Runtime fails on it.
        """
        names = list(self.output_names if outputs is None else outputs)
        try:
            return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))
        except Exception as err:
            raise EngineError(f"ONNX Runtime failed: {_first_line(err)}") from err


class OnnxRunner:
    """An engine for ONNX Runtime. Implements `edged.runners.Runner`.

    One thread runs the submitted lanes in their order; ONNX Runtime releases the interpreter lock
    meanwhile, so another lane can be filled.

    Args:
        model: the Q/DQ (or float) ONNX file's content, or that as another runner has loaded it.
        inputs: as the model takes them.
        outputs: as the model gives them.
        max_batch: most samples in one batch.
        device: what it is called; several runners of one name share nothing but the cores.
        lanes: number of lanes.
        threads: threads inside one operator; 0: one for each core.

    Raises:
        EngineRefusedError: ONNX Runtime refuses the model, or its names, shapes or dtypes are not
            those of the specs.
    """

    sizes: tuple[int, ...] = ()

    def __init__(
        self,
        model: bytes | FloatGraph,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        max_batch: int,
        *,
        device: str = "cpu",
        lanes: int = 1,
        threads: int = 0,
    ) -> None:
        self.device = device
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.max_batch = max_batch
        self.lanes = lanes
        self._graph = model if isinstance(model, FloatGraph) else FloatGraph(model, threads=threads)
        self._check_names()
        self._check_forms()
        self._names = [spec.name for spec in self.outputs]
        self._staging = [
            {
                spec.name: np.zeros((max_batch, *spec.shape), dtype=spec.dtype)
                for spec in self.inputs
            }
            for _ in range(lanes)
        ]
        self._submitted: queue.SimpleQueue[tuple[int, int, Callable[[Completion], None]] | None] = (
            queue.SimpleQueue()
        )
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="onnx-lanes", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<OnnxRunner {self.lanes} lanes, max batch {self.max_batch}>"

    def at_length(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> OnnxRunner:
        """A runner of the same session for samples of another length.

        Raises:
            EngineRefusedError: the model's axis is not dynamic.
        """
        return OnnxRunner(
            self._graph, inputs, outputs, self.max_batch, device=self.device, lanes=self.lanes
        )

    def _check_names(self) -> None:
        for kind, wanted, found in (
            ("inputs", self.inputs, self._graph.input_names),
            ("outputs", self.outputs, self._graph.output_names),
        ):
            missing = {spec.name for spec in wanted} - set(found)
            extra = set(found) - {spec.name for spec in wanted} if kind == "inputs" else set()
            if missing or extra:
                raise EngineRefusedError(
                    f"the model's {kind} are {sorted(found)}, but the manifest names "
                    f"{sorted(spec.name for spec in wanted)}; build the engine again"
                )

    def _check_forms(self) -> None:
        kinds = [("input", spec) for spec in self.inputs]
        for kind, spec in kinds + [("output", spec) for spec in self.outputs]:
            form = self._graph.forms[spec.name]
            if form.type != _TYPES.get(spec.dtype) or not _fits(form.shape, spec.shape):
                raise EngineRefusedError(
                    f"{kind} {spec.name!r} has shape {list(form.shape)} and type {form.type} in "
                    f"the model, the manifest says {['batch', *spec.shape]} and {spec.dtype}; "
                    "correct the recipe and build again"
                )
            if form.shape and isinstance(form.shape[0], int):
                raise EngineRefusedError(
                    f"{kind} {spec.name!r} has its batch axis fixed at {form.shape[0]} in the "
                    "model; export it with a dynamic first axis and build again"
                )

    def staging(self, lane: int) -> Mapping[str, Array]:
        """Input buffers of one lane by name, each ``[max_batch, *shape]``."""
        return self._staging[lane]

    def submit(self, lane: int, samples: int, done: Callable[[Completion], None]) -> None:
        """Queues the first ``samples`` rows of a lane; see `edged.runners.Runner`."""
        if not 0 <= lane < self.lanes:
            raise ValueError(f"lane {lane} does not exist, there are {self.lanes}")
        if not 1 <= samples <= self.max_batch:
            raise ValueError(f"{samples} samples are outside 1 and max_batch {self.max_batch}")
        if self._closed:
            raise ValueError("the runner is closed")
        self._submitted.put((lane, samples, done))

    def prepare(self, progress: Callable[[int, int], None]) -> None:
        """Nothing is compiled or captured: the first run of a size is all there is to warm."""
        del progress

    def close(self) -> None:
        """Waits for what was submitted, then ends the thread."""
        if not self._closed:
            self._closed = True
            self._submitted.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (work := self._submitted.get()) is not None:
            lane, samples, done = work
            done(self._run(lane, samples))

    def _run(self, lane: int, samples: int) -> Completion:
        feeds = {name: rows[:samples] for name, rows in self._staging[lane].items()}
        started = time.monotonic()
        try:
            outputs = self._graph.run(feeds, self._names)
            self._check_shapes(outputs, samples)
        except EngineError as err:
            return Completion(lane, samples, {}, started, time.monotonic(), err)
        return Completion(lane, samples, outputs, started, time.monotonic())

    def _check_shapes(self, outputs: Mapping[str, Array], samples: int) -> None:
        for spec in self.outputs:
            if outputs[spec.name].shape != (samples, *spec.shape):
                raise EngineError(
                    f"output {spec.name!r} has shape {list(outputs[spec.name].shape)}, the "
                    f"manifest says {[samples, *spec.shape]}; correct the recipe and build again"
                )


_TYPES: dict[np.dtype[np.generic], str] = {
    np.dtype(np.bool_): "tensor(bool)",
    np.dtype(np.int8): "tensor(int8)",
    np.dtype(np.uint8): "tensor(uint8)",
    np.dtype(np.int16): "tensor(int16)",
    np.dtype(np.uint16): "tensor(uint16)",
    np.dtype(np.int32): "tensor(int32)",
    np.dtype(np.uint32): "tensor(uint32)",
    np.dtype(np.int64): "tensor(int64)",
    np.dtype(np.uint64): "tensor(uint64)",
    np.dtype(np.float16): "tensor(float16)",
    np.dtype(np.float32): "tensor(float)",
    np.dtype(np.float64): "tensor(double)",
}


def _fits(form: Sequence[int | str | None], sample: Sequence[int]) -> bool:
    """Whether a model's shape can be a batch of samples; an empty one says nothing."""
    if not form:
        return True
    return len(form) == len(sample) + 1 and all(
        size == wanted
        for size, wanted in zip(form[1:], sample, strict=True)
        if isinstance(size, int)
    )


def load(engine: Engine, *, device: str = "cpu", lanes: int = 1, threads: int = 0) -> OnnxRunner:
    """Loads an installed engine; its digest is checked on the bytes that are loaded.

    Raises:
        EngineRefusedError: damaged, or refused by ONNX Runtime.
    """
    manifest = engine.manifest
    return OnnxRunner(
        engine.read(),
        input_specs(manifest.input),
        output_specs(manifest.output),
        manifest.max_batch,
        device=device,
        lanes=lanes,
        threads=threads,
    )
