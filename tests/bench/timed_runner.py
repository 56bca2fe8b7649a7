"""A runner that takes the time of a device and computes nothing, and the bare loop around it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from edged.runners import Array, Completion, Runner, TensorSpec


class TimedRunner:
    """Batches end one after the other at their times. Implements `edged.runners.Runner`.

    The next batch begins when the one before has ended, whenever the thread notices: so the device
    is busy for as long as lanes are submitted in time.

    Args:
        inputs: one float32 input.
        service_s: seconds of a batch by its number of samples.
        max_batch: most samples in one batch.
        lanes: number of lanes.
    """

    device = "timed"
    sizes: Sequence[int] = ()

    def __init__(
        self,
        inputs: TensorSpec,
        service_s: Callable[[int], float],
        max_batch: int = 32,
        lanes: int = 3,
    ) -> None:
        self.inputs = (inputs,)
        self.outputs = (TensorSpec("y", np.dtype(np.float32), (10,)),)
        self.max_batch = max_batch
        self.lanes = lanes
        self._service_s = service_s
        shape = (max_batch, *inputs.shape)
        self._staging = [{inputs.name: np.zeros(shape, np.float32)} for _ in range(lanes)]
        self._answers = np.zeros((max_batch, 10), np.float32)
        self._queue: queue.SimpleQueue[tuple[int, int, Callable[[Completion], None]] | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def prepare(self, progress: Callable[[int, int], None]) -> None:
        """There is nothing to prepare."""

    def staging(self, lane: int) -> Mapping[str, Array]:
        """Input buffer of a lane."""
        return self._staging[lane]

    def submit(self, lane: int, samples: int, done: Callable[[Completion], None]) -> None:
        """Puts a batch on the device."""
        self._queue.put((lane, samples, done))

    def close(self) -> None:
        """Ends the thread."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        free_at = 0.0
        while (work := self._queue.get()) is not None:
            lane, samples, done = work
            started = max(free_at, time.monotonic() if self._queue.empty() else free_at)
            free_at = started + self._service_s(samples)
            if (left := free_at - time.monotonic()) > 0:
                time.sleep(left)
            done(Completion(lane, samples, {"y": self._answers[:samples]}, started, free_at))


def bare_loop(runner: Runner, rows: Array, seconds: float) -> float:
    """Samples/s of a loop that fills a free lane, submits it, and does nothing else."""
    free: queue.SimpleQueue[int] = queue.SimpleQueue()
    for lane in range(runner.lanes):
        free.put(lane)
    name, batches = runner.inputs[0].name, 0
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        lane = free.get()
        np.copyto(runner.staging(lane)[name], rows)
        runner.submit(lane, len(rows), lambda completion: free.put(completion.lane))
        batches += 1
    for _ in range(runner.lanes):
        free.get()
    return batches * len(rows) / (time.perf_counter() - begun)
