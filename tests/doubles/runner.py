"""A runner without an engine: its service time is a script, its outputs a known function.

`ScriptedRunner` keeps every rule of `edged.runners.Runner`, and is checked by the same conformance
suite as the real ones. It is strict where a real device is unforgiving: it reads the staging
buffers only when a batch ends, and spoils a lane's outputs when that lane is submitted again, so a
caller that touches buffers out of turn gets wrong numbers instead of luck.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edged.errors import EdgedError
from edged.runners import Array, Completion, TensorSpec

WAIT_S = 30.0

INPUTS = (TensorSpec("x", np.dtype(np.float32), (3,)),)
OUTPUTS = (TensorSpec("y", np.dtype(np.float32), (2,)), TensorSpec("z", np.dtype(np.int64), ()))

Fault = Callable[[int, Mapping[str, Array]], EdgedError | None]
"""(number of the batch from 0, its inputs) -> why it fails, None if it does not."""


def expected(x: Array) -> dict[str, Array]:
    """What the double computes: ``y`` is the sum and the first entry, ``z`` a whole number."""
    rows = np.asarray(x, np.float32)
    total = rows.sum(axis=1)
    return {
        "y": np.stack([total, rows[:, 0]], axis=1),
        "z": np.round(np.nan_to_num(total)).astype(np.int64),
    }


def never(_number: int, _inputs: Mapping[str, Array]) -> EdgedError | None:
    """No batch fails."""
    return None


@dataclass(frozen=True)
class _Submitted:
    number: int
    samples: int
    started: float
    done: Callable[[Completion], None]


class ScriptedRunner:
    """Implements `edged.runners.Runner`; one thread a lane.

    Args:
        max_batch: most samples in one batch.
        lanes: number of lanes.
        fault: which batches fail.
        held: whether batches stay on the device until `release`.
        device: what it calls itself.
    """

    def __init__(
        self,
        max_batch: int = 4,
        *,
        lanes: int = 1,
        fault: Fault = never,
        held: bool = False,
        device: str = "scripted",
    ) -> None:
        self.device = device
        self.inputs: Sequence[TensorSpec] = INPUTS
        self.outputs: Sequence[TensorSpec] = OUTPUTS
        self.max_batch = max_batch
        self.sizes: Sequence[int] = ()
        self.lanes = lanes
        self._fault = fault
        self._staging = [_buffers(INPUTS, max_batch) for _ in range(lanes)]
        self._results = [_buffers(OUTPUTS, max_batch) for _ in range(lanes)]
        self._queues: list[queue.SimpleQueue[_Submitted | None]] = [
            queue.SimpleQueue() for _ in range(lanes)
        ]
        self._changed = threading.Condition()
        self._held = held
        self._permits = [0] * lanes
        self._submitted = 0
        self._running: set[int] = set()
        self._closed = False
        self.batches: list[int] = []
        """Sizes of all batches that were submitted, in order."""
        self._threads = [
            threading.Thread(target=self._work, args=(lane,), name=f"lane-{lane}", daemon=True)
            for lane in range(lanes)
        ]
        for thread in self._threads:
            thread.start()

    def __repr__(self) -> str:
        return f"<ScriptedRunner {len(self._running)} of {self.lanes} lanes running>"

    # -------------------------------------------------------------- the protocol

    def staging(self, lane: int) -> Mapping[str, Array]:
        """Input buffers of one lane."""
        return self._staging[lane]

    def submit(self, lane: int, samples: int, done: Callable[[Completion], None]) -> None:
        """Puts a batch on the device; see `edged.runners.Runner`."""
        if not 0 <= lane < self.lanes:
            raise ValueError(f"lane {lane} does not exist, there are {self.lanes}")
        if not 1 <= samples <= self.max_batch:
            raise ValueError(f"{samples} samples are outside 1 and max_batch {self.max_batch}")
        with self._changed:
            if self._closed:
                raise ValueError("the runner is closed")
            work = _Submitted(self._submitted, samples, time.monotonic(), done)
            self._submitted += 1
            self._running.add(work.number)
            self.batches.append(samples)
            for rows in self._results[lane].values():
                rows.fill(-77)  # views of the batch before are void from here on
            self._queues[lane].put(work)
            self._changed.notify_all()

    def prepare(self, progress: Callable[[int, int], None]) -> None:
        """There is nothing to prepare."""

    def close(self) -> None:
        """Waits for what was submitted, then ends the threads."""
        with self._changed:
            if not self._closed:
                self._closed = True
                for waiting in self._queues:
                    waiting.put(None)
        for thread in self._threads:
            thread.join()

    # -------------------------------------------------------------- the script

    def hold(self) -> None:
        """From now on batches stay on the device until they are released."""
        with self._changed:
            self._held = True

    def release(self, lane: int | None = None) -> None:
        """Lets one batch of a lane end, or with None all batches from now on."""
        with self._changed:
            if lane is None:
                self._held = False
            else:
                self._permits[lane] += 1
            self._changed.notify_all()

    def wait_running(self, count: int) -> None:
        """Waits until so many batches are on the device at once.

        Raises:
            TimeoutError: they are not in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._running) >= count, WAIT_S):
                raise TimeoutError(f"{len(self._running)} batches are running, not {count}")

    # -------------------------------------------------------------- a lane's thread

    def _work(self, lane: int) -> None:
        while (work := self._queues[lane].get()) is not None:
            with self._changed:
                self._changed.wait_for(lambda: not self._held or self._permits[lane] > 0)
                if self._held:
                    self._permits[lane] -= 1
                self._running.discard(work.number)
            work.done(self._finish(lane, work))

    def _finish(self, lane: int, work: _Submitted) -> Completion:
        rows = {name: buffer[: work.samples] for name, buffer in self._staging[lane].items()}
        error = self._fault(work.number, rows)
        if error is not None:
            return Completion(lane, work.samples, {}, work.started, time.monotonic(), error)
        results = self._results[lane]
        for name, values in expected(rows["x"]).items():
            results[name][: work.samples] = values
        outputs = {name: buffer[: work.samples] for name, buffer in results.items()}
        return Completion(lane, work.samples, outputs, work.started, time.monotonic())


def _buffers(specs: Sequence[TensorSpec], max_batch: int) -> dict[str, Array]:
    return {spec.name: np.zeros((max_batch, *spec.shape), spec.dtype) for spec in specs}
