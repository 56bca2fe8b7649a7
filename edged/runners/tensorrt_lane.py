"""One execution slot of a TensorRT runner: stream, staging buffers, contexts, graphs."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from edged.errors import EngineError
from edged.runners import Array, TensorSpec
from edged.runners.cuda import CudaDevice, Graph
from edged.runners.tensorrt_engine import TensorRTEngine

log = logging.getLogger(__name__)

COMPARED_RUNS = 9
SLOWER = 1.03
"""A graph stays unless it is slower than the plain calls by more than what such a look can tell."""


class Lane:
    """A slot that runs one batch at a time, at one of the sizes it knows.

    Attributes:
        inputs: staging buffers by name.
        outputs: likewise.
        done: recorded after each batch; `start` and its waiter use it.

    Args:
        device: where it runs.
        engine: what it runs.
        specs: inputs and outputs.
        profiles: batch size -> optimization profile.
        mapped: whether the device reads and writes the host's buffers instead of copying.

    Raises:
        EngineRefusedError: out of memory.
    """

    def __init__(
        self,
        device: CudaDevice,
        engine: TensorRTEngine,
        specs: tuple[Sequence[TensorSpec], Sequence[TensorSpec]],
        profiles: Mapping[int, int],
        *,
        mapped: bool,
    ) -> None:
        self._device = device
        self._engine = engine
        self._inputs = specs[0]
        self._profiles = profiles
        self._stream = device.stream()
        self.done = device.event()
        self._graphs: dict[int, Graph] = {}
        self._sizes: dict[int, int] = {}  # optimization profile -> size that its context is set to
        most = max(profiles)
        self.inputs, self.outputs = (
            {s.name: device.buffer((most, *s.shape), s.dtype, mapped=mapped) for s in group}
            for group in specs
        )
        self._contexts: dict[int, Any] = {}
        with device.current():
            for profile in sorted(set(profiles.values())):
                context = engine.context(profile, self._stream.handle)
                for name, buffer in {**self.inputs, **self.outputs}.items():
                    context.set_tensor_address(name, buffer.address)
                self._contexts[profile] = context

    def __repr__(self) -> str:
        return f"<Lane {len(self._graphs)} graphs, {len(self._contexts)} contexts>"

    @property
    def graphs(self) -> int:
        """Number of batch sizes that run as a graph."""
        return len(self._graphs)

    def spin(self) -> None:
        """Is waited for by spinning from now on; nothing may be running."""
        with self._device.current():
            self.done.close()
        self.done = self._device.event(spin=True)

    def start(self, size: int) -> None:
        """Puts a whole batch on the stream and the event after it; does not wait.

        Raises:
            EngineError: the engine or the device refuses it.
        """
        self._device.use()
        graph = self._graphs.get(size)
        if graph is not None:
            graph.launch(self.done.handle)
        else:
            self._enqueue(size)
            self.done.record(self._stream)

    def _enqueue(self, size: int) -> None:
        """Copies in, engine, copies out, by plain calls."""
        profile = self._profiles[size]
        context = self._contexts[profile]
        if self._sizes.get(profile) != size:
            for spec in self._inputs:
                if not context.set_input_shape(spec.name, (size, *spec.shape)):
                    raise EngineError(f"the engine refuses batch size {size} for {spec.name!r}")
            self._sizes[profile] = size
        for buffer in self.inputs.values():
            buffer.copy_in(self._stream, size)
        if not context.execute_async_v3(self._stream.handle):
            raise EngineError(f"the engine failed at batch size {size}: {self._engine.said()}")
        for buffer in self.outputs.values():
            buffer.copy_out(self._stream, size)

    def compile(self, size: int) -> None:
        """Runs a size by plain calls: at the first time some runtimes compile and allocate."""
        self._device.use()
        self._run(size, graph=False)

    def capture(self, size: int) -> None:
        """Captures a size; where that cannot be it stays with plain calls.

        Every size must have run on every lane before, since what is compiled and allocated later
        may take the place of what a graph uses.
        """
        self._device.use()
        self._run(size, graph=False)
        context = self._contexts[self._profiles[size]]
        # TensorRT-RTX says so of engines that may allocate while they run, which is what it builds
        # unless told otherwise: a graph would go on using memory that is somebody else's by then.
        if not getattr(context, "is_stream_capturable", lambda _: True)(self._stream.handle):
            log.info("batch size %d runs without a CUDA graph: it cannot be captured", size)
            return
        try:
            with self._device.current():
                self._graphs[size] = Graph(
                    self._device.driver, self._stream, lambda: self._enqueue(size)
                )
        except EngineError as err:
            log.info("batch size %d runs without a CUDA graph: %s", size, err)

    def check_graphs(self) -> None:
        """Drops every graph whose replay differs from the plain calls on random inputs.

        All plain calls come first, so that no graph is compared while its context still is as it
        was captured.
        """
        self._device.use()
        random = np.random.default_rng(0)
        for buffer in self.inputs.values():
            _fill(buffer.host, random)
        wanted = {size: self._outcome(size, graph=False) for size in self._graphs}
        for size, rows in wanted.items():
            found = self._outcome(size, graph=True)
            if not all(_alike(rows[name], found[name]) for name in rows):
                log.warning("batch size %d: the CUDA graph computes something else", size)
                self._graphs.pop(size).close()

    def _outcome(self, size: int, *, graph: bool) -> dict[str, Array]:
        for buffer in self.outputs.values():
            buffer.host[...] = 0
        self._run(size, graph=graph)
        return {name: np.array(buffer.host[:size]) for name, buffer in self.outputs.items()}

    def _run(self, size: int, *, graph: bool) -> float:
        """Runs a batch to its end; seconds."""
        begun = time.perf_counter()
        if graph:
            self._graphs[size].launch(self.done.handle)
        else:
            self._enqueue(size)
        self._stream.synchronize()
        return time.perf_counter() - begun

    def keep_faster_graphs(self) -> None:
        """Drops every graph that is slower than the plain calls, as measured in turn here."""
        self._device.use()
        for size in list(self._graphs):
            pairs = [
                (self._run(size, graph=True), self._run(size, graph=False))
                for _ in range(COMPARED_RUNS)
            ]
            graph_s, plain_s = (median(times) for times in zip(*pairs, strict=True))
            if graph_s > plain_s * SLOWER:
                log.info(
                    "batch size %d runs by plain calls, which are faster than its CUDA graph",
                    size,
                    extra={"graph_s": graph_s, "plain_s": plain_s},
                )
                self._graphs.pop(size).close()

    def close(self) -> None:
        """Frees graphs and contexts; nothing may be running, and the context must be current."""
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()
        self._contexts.clear()
        self.done.close()


def _fill(buffer: Array, random: np.random.Generator) -> None:
    if buffer.dtype.kind == "f":
        buffer[...] = random.standard_normal(buffer.shape)
    else:
        buffer[...] = random.integers(0, 2, buffer.shape)


def _alike(wanted: Array, found: Array) -> bool:
    """Whether two runs of one engine gave the same; sums may be reordered, so not to the bit."""
    if wanted.dtype.kind != "f":
        return bool(np.array_equal(wanted, found))
    finite = np.isfinite(wanted)  # random inputs may lead a network out of its range
    if not np.array_equal(finite, np.isfinite(found)):
        return False
    scale = float(np.max(np.abs(wanted[finite]), initial=0.0))
    return bool(np.allclose(wanted[finite], found[finite], rtol=1e-3, atol=1e-3 * scale))
