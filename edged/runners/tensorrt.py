"""TensorRT engines on a CUDA device: contexts, streams, pinned or mapped buffers, CUDA graphs.

The same code runs `tensorrt` 8.6 to 11.x and `tensorrt_rtx`: only the name-based API is used, and
what one of them lacks is probed for. Each lane has a stream, a set of staging buffers and an
execution context for each optimization profile in use, so that the copies and the computation of
consecutive batches overlap.

An engine only ever runs at the batch sizes that were warmed: a batch in between is padded up, since
a new shape can cost a second of kernel compilation. For each lane and size the copies in, the
engine and the copies out are captured as one CUDA graph, which costs a few microseconds of host
time to launch; where capture fails, or replays another result than the plain calls, the size runs
by plain calls.
"""

from __future__ import annotations

import logging
import platform
import queue
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from edged.device import dla_core
from edged.engine_store import Engine
from edged.errors import DeviceFaultError, DeviceLostError, EdgedError, EngineError
from edged.runners import Array, Completion, TensorSpec, input_specs, output_specs
from edged.runners.cuda import CudaDevice
from edged.runners.tensorrt_engine import TensorRTEngine, check_dla, import_tensorrt
from edged.runners.tensorrt_lane import Lane

log = logging.getLogger(__name__)

MOST_LANES = 3
"""One batch copied in, one computed, one copied out."""
ENOUGH = 0.97
"""A choice that reaches this share of the best throughput is taken if it costs less."""
PROBE_BATCHES = 30
SPIN_BELOW_S = 0.5e-3
"""Being woken from a blocking wait took 20 to 40 us on an H200 machine (docs/benchmarks.md)."""

Memory = Literal["auto", "copy", "mapped", "measure"]


def fingerprint(device: str) -> dict[str, str]:
    """What a TensorRT engine is bound to on a device.

    Raises:
        EngineRefusedError: no TensorRT, no driver, or no such device.
    """
    trt, facts = import_tensorrt(), CudaDevice(device).facts
    check_dla(trt, device)
    accelerator = {"dla": "yes"} if dla_core(device) is not None else {}
    return accelerator | {
        "runner": "tensorrt",
        "runtime": f"{trt.__name__.removesuffix('_bindings')} {trt.__version__}",
        "gpu": facts.name,
        "compute_capability": facts.compute_capability,
        "arch": platform.machine(),
    }


class TensorRTRunner:
    """A TensorRT engine on one device. Implements `edged.runners.Runner`.

    Args:
        plan: the serialized engine, or one that is shared with another runner.
        inputs: as the manifest has them; of variable length, at one padded length.
        outputs: as the manifest has them.
        max_batch: most samples in one batch.
        device: ``cuda:N`` or ``dla:N``.
        sizes: batch sizes to run at, ascending up to max_batch; empty: powers of two.
        lanes: number of lanes; None: `prepare` measures how many are enough.
        cache: file for what TensorRT-RTX compiles at the first run; None: it is compiled anew.
        memory: ``copy`` between host and device; ``mapped``: the device reads and writes the host's
            buffers; ``measure`` both; ``auto``: measure where memory is shared, as on Jetson, else
            copy.

    Raises:
        EngineRefusedError: no TensorRT or device, out of memory, or the plan is not for this
            device, this TensorRT or these specs.
    """

    def __init__(
        self,
        plan: bytes | TensorRTEngine,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        max_batch: int,
        *,
        device: str = "cuda:0",
        sizes: Sequence[int] = (),
        lanes: int | None = None,
        cache: Path | None = None,
        memory: Memory = "auto",
    ) -> None:
        self.device = device
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.max_batch = max_batch
        powers = {2**n for n in range(max_batch.bit_length())} | {max_batch}
        self.sizes = tuple(sorted(sizes or (n for n in powers if n <= max_batch)))
        self.lanes = lanes or MOST_LANES
        self._measure_lanes = lanes is None
        self._cache_file = cache
        self._closed = False
        self._cuda = CudaDevice(device)
        self._cuda.use()
        self._trt = import_tensorrt()
        specs = (self.inputs, self.outputs)
        self._engine = (
            TensorRTEngine(self._trt, plan, specs, cache, dla_core(device))
            if isinstance(plan, bytes)
            else plan
        )
        self._profiles = {size: self._engine.profile_for(size, self.inputs) for size in self.sizes}
        if memory == "auto":
            memory = "measure" if self._cuda.facts.integrated else "copy"
        self.memory = memory
        self._lanes = self._make_lanes(self.lanes, mapped=memory != "copy")
        self._submitted: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._last = 0.0
        self._thread = threading.Thread(target=self._wait_all, name=f"{device}-done", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return (
            f"<TensorRTRunner {self.device}, {self.lanes} lanes, {self.graphs} graphs, "
            f"sizes {list(self.sizes)}>"
        )

    @property
    def graphs(self) -> int:
        """CUDA graphs over all lanes."""
        return sum(lane.graphs for lane in self._lanes)

    # -------------------------------------------------------------- the Runner protocol

    def staging(self, lane: int) -> Mapping[str, Array]:
        """Input buffers of one lane by name, each ``[max_batch, *shape]``, page-locked."""
        return {name: buffer.host for name, buffer in self._lanes[lane].inputs.items()}

    def submit(self, lane: int, samples: int, done: Callable[[Completion], None]) -> None:
        """Starts the first ``samples`` rows of a lane; see `edged.runners.Runner`."""
        if not 0 <= lane < self.lanes:
            raise ValueError(f"lane {lane} does not exist, there are {self.lanes}")
        if not 1 <= samples <= self.max_batch:
            raise ValueError(f"{samples} samples are outside 1 and max_batch {self.max_batch}")
        if self._closed:
            raise ValueError("the runner is closed")
        begun = time.monotonic()
        error: EngineError | None = None
        try:
            self._lanes[lane].start(self.padded(samples))
        except EngineError as err:
            error = err
        except Exception as err:  # pycuda has no base class that covers all of its errors
            error = DeviceFaultError(f"{self.device} failed to start a batch: {err}")
        self._submitted.put((lane, samples, begun, error, done))

    def padded(self, samples: int) -> int:
        """The batch size at which so many samples run."""
        return self.sizes[bisect_left(self.sizes, samples)]

    def at_length(
        self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> TensorRTRunner:
        """A runner of the same engine for samples of another length; it has lanes of its own.

        Raises:
            EngineRefusedError: no optimization profile covers that length, or out of memory.
        """
        self._engine.check(inputs, outputs)
        for size in self.sizes:
            self._engine.profile_for(size, inputs)
        lanes = None if self._measure_lanes else self.lanes
        shared, memory = self._engine.shared(), self.memory
        return TensorRTRunner(
            shared, inputs, outputs, self.max_batch,
            device=self.device, sizes=self.sizes, lanes=lanes, memory=memory,
        )  # fmt: skip

    def close(self) -> None:
        """Waits for what was submitted, then gives everything back."""
        if self._closed:
            return
        self._closed = True
        self._submitted.put(None)
        self._thread.join()
        self._cuda.use()
        self._free(self._lanes)
        with self._cuda.current():
            self._engine.close()

    def abandon(self) -> None:
        """Closes after a device fault, if the context survived it.

        Raises:
            DeviceLostError: it did not, as after an illegal access; nothing is freed, because
                freeing in a dead context corrupts the process.
        """
        if not self._cuda.healthy():
            raise DeviceLostError(
                f"the context of {self.device} is destroyed; only a new process can use it again"
            )
        self.close()

    # -------------------------------------------------------------- warm-up

    def prepare(self, progress: Callable[[int, int], None] = lambda _done, _total: None) -> None:
        """Runs every size on every lane, captures graphs, and measures memory and lanes.

        Raises:
            EngineError: the engine fails.
        """
        self._cuda.use()
        self._prepare_lanes(progress)
        if self.memory == "measure":
            self._choose_memory(progress)
        self._choose_waiting()
        if self._measure_lanes:
            self._choose_lanes()
        self._engine.save_cache()

    def _prepare_lanes(self, progress: Callable[[int, int], None]) -> None:
        work = [(lane, size) for lane in self._lanes for size in reversed(self.sizes)]
        for number, (lane, size) in enumerate(work):  # the largest first: it allocates the most
            lane.compile(size)
            progress(number + 1, len(work))
        for lane, size in work:
            lane.capture(size)
        for lane in self._lanes:
            lane.keep_faster_graphs()
        for lane in self._lanes:  # last, when nothing is compiled or captured any more
            lane.check_graphs()

    def _choose_memory(self, progress: Callable[[int, int], None]) -> None:
        """Mapped memory saves the copies, but a kernel may read it slowly: the faster one stays."""
        mapped_s = self._probe(1, self.max_batch)
        mapped, self._lanes = self._lanes, self._make_lanes(self.lanes, mapped=False)
        self._prepare_lanes(progress)
        copied_s = self._probe(1, self.max_batch)
        self.memory = "mapped" if mapped_s <= copied_s else "copy"
        log.info("%s memory is used", self.memory, extra={"mapped_s": mapped_s, "copy_s": copied_s})
        if self.memory == "mapped":
            mapped, self._lanes = self._lanes, mapped
        self._free(mapped)

    def _choose_waiting(self) -> None:
        """Short batches are waited for by spinning: to be woken would cost a good part of them."""
        if self._probe(1, self.max_batch) < SPIN_BELOW_S:
            for lane in self._lanes:
                lane.spin()

    def _choose_lanes(self) -> None:
        """As few lanes as reach nearly the best throughput at the largest batch."""
        times = [self._probe(count, self.max_batch) for count in range(1, len(self._lanes) + 1)]
        best = min(times)
        self.lanes = next(n for n, t in enumerate(times, start=1) if t * ENOUGH <= best)
        spare = self._lanes[self.lanes :]
        del self._lanes[self.lanes :]
        self._free(spare)

    def _probe(self, lanes: int, size: int) -> float:
        """Seconds a batch with so many lanes kept busy."""
        free = threading.Semaphore(lanes)
        errors: list[EdgedError] = []

        def done(completion: Completion) -> None:
            if completion.error is not None:
                errors.append(completion.error)
            free.release()

        begun = time.monotonic()
        for batch in range(PROBE_BATCHES):
            free.acquire()
            self.submit(batch % lanes, size, done)
        for _ in range(lanes):
            free.acquire()
        if errors:
            raise errors[0]
        return (time.monotonic() - begun) / PROBE_BATCHES

    def _make_lanes(self, count: int, *, mapped: bool) -> list[Lane]:
        specs = (self.inputs, self.outputs)
        return [
            Lane(self._cuda, self._engine, specs, self._profiles, mapped=mapped)
            for _ in range(count)
        ]

    def _free(self, lanes: list[Lane]) -> None:
        """Empties the list; its lanes must go while their context is current."""
        with self._cuda.current():
            while lanes:
                lanes.pop().close()

    def _wait_all(self) -> None:
        # pycuda's context stays current here: a lane that was replaced may be freed by this thread.
        with self._cuda.current():
            while (work := self._submitted.get()) is not None:
                self._wait(*work)
                del work

    def _wait(
        self,
        index: int,
        samples: int,
        begun: float,
        error: EngineError | None,
        done: Callable[[Completion], None],
    ) -> None:
        """Waits for one batch and reports it."""
        lane = self._lanes[index]
        if error is None:
            try:
                lane.done.synchronize()
            except Exception as err:  # pycuda has no base class that covers all of its errors
                error = DeviceFaultError(f"{self.device} failed on a batch: {err}")
        now = time.monotonic()
        started = max(begun, self._last)  # the device was busy with the batch before
        self._last = now
        rows = {} if error else {n: buffer.host[:samples] for n, buffer in lane.outputs.items()}
        done(Completion(index, samples, rows, started, now, error))


def load(engine: Engine, *, device: str, lanes: int | None) -> TensorRTRunner:
    """Loads an installed engine; its digest is checked on the bytes that are loaded.

    What TensorRT-RTX compiles is kept beside the engine, where the store can be written.

    Raises:
        EngineRefusedError: damaged, or not for this device.
    """
    manifest = engine.manifest
    return TensorRTRunner(
        engine.read(),
        input_specs(manifest.input),
        output_specs(manifest.output),
        manifest.max_batch,
        device=device,
        # A DLA runs no other size than the one that it was built for.
        sizes=manifest.warm_sizes if dla_core(device) is None else (manifest.max_batch,),
        lanes=lanes,
        cache=engine.path.with_suffix(".cache"),
    )
