"""One thread a device: take a batch, put it into a lane, have it run, measure it.

The thread only takes and fills; a runner says through a callback, on a thread of its own, that a
lane is done. What ended is handed on as `Done`; nothing is published or logged here.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from edged import preprocess
from edged.errors import EdgedError, ExpiredError
from edged.recipe import InputSpec
from edged.runners import Completion, Runner
from edged.serve.request import Array, Batch, Part, Timings, Work


@dataclass(frozen=True, slots=True)
class Done:
    """Parts that ended together.

    Attributes:
        parts: in the order of their rows in ``outputs``.
        outputs: ``[sum of samples, *shape]`` by name; empty with an error.
        compute_s: seconds on the device.
        started: monotonic seconds when the device took the batch up.
        samples: samples in the batch; 0 where there was none.
        reason: why the batch was closed.
        error: why there are no outputs.
    """

    parts: tuple[Part, ...]
    outputs: Mapping[str, Array] = field(default_factory=dict)
    compute_s: float = 0.0
    started: float = 0.0
    samples: int = 0
    reason: str = ""
    error: EdgedError | None = None

    def timings(self, part: Part) -> Timings:
        """Where the time of one part's request went."""
        if not self.samples:
            return Timings()
        queued = max(0.0, self.started - part.request.received)
        return Timings(queued, self.compute_s, self.samples, self.reason)


@dataclass(frozen=True)
class Served:
    """A model as a device runs it.

    Attributes:
        runner: ready and warm.
        inputs: how a request's samples become the runner's.
    """

    runner: Runner
    inputs: tuple[InputSpec, ...]


class Device:
    """A device's thread.

    Args:
        name: e.g. ``cpu`` or ``cuda:0``.
        models: what it runs.
        take: waits for work (`edged.serve.batch.WaitingRoom.take`).
        completed: frees the lane: (device, model, samples, service seconds or 0).
        done: takes over what ended; may wait, which holds the device back.
    """

    def __init__(
        self,
        name: str,
        models: Mapping[str, Served],
        take: Callable[[str], Work | None],
        completed: Callable[[str, str, int, float], None],
        done: Callable[[Done], None],
    ) -> None:
        self.name = name
        self._models = dict(models)
        self._take = take
        self._completed = completed
        self._done = done
        self._lanes = {model: deque(range(s.runner.lanes)) for model, s in models.items()}
        self._running: dict[int, float] = {}
        self.thread = threading.Thread(target=self._work, name=f"gpu-{name}", daemon=True)

    def __repr__(self) -> str:
        return f"<Device {self.name}: {len(self._running)} batches running>"

    @property
    def lanes(self) -> int:
        """Batches that may be on the device at once."""
        return min((served.runner.lanes for served in self._models.values()), default=0)

    def running_s(self, now: float) -> float:
        """For how long the oldest batch has been on the device; 0 if none is."""
        return max((now - since for since in list(self._running.values())), default=0.0)

    def _work(self) -> None:
        while (work := self._take(self.name)) is not None:
            if work.expired:
                self._done(expired(work.expired))
            if work.batch is not None:
                self._start(work.batch)

    def _start(self, batch: Batch) -> None:
        served = self._models[batch.model]
        lane = self._lanes[batch.model].popleft()
        fill(served, lane, batch.parts)
        self._running[id(batch)] = time.monotonic()
        served.runner.submit(lane, batch.samples, lambda result: self._finished(batch, result))

    def _finished(self, batch: Batch, result: Completion) -> None:
        """On the runner's thread: free the lane first, so that the device goes on."""
        # The lane's buffers belong to its next batch once it is free.
        outputs = {name: np.array(rows) for name, rows in result.outputs.items()}
        self._running.pop(id(batch), None)
        self._lanes[batch.model].append(result.lane)
        service_s = 0.0 if result.error else result.service_s
        self._completed(self.name, batch.model, batch.samples, service_s)
        self._done(
            Done(
                parts=batch.parts,
                outputs=outputs,
                compute_s=result.service_s,
                started=result.started,
                samples=batch.samples,
                reason=batch.reason,
                error=result.error,
            )
        )


def fill(served: Served, lane: int, parts: tuple[Part, ...]) -> None:
    """Writes the samples of the parts, preprocessed, into a lane's staging buffers in order."""
    buffers = served.runner.staging(lane)
    for spec in served.inputs:
        buffer, row = buffers[spec.name], 0
        for part in parts:
            rows = part.request.tensors[spec.name][part.start : part.stop]
            preprocess.into(
                rows,
                buffer[row : row + part.samples],
                scale=spec.scale,
                offset=spec.offset,
                transpose=spec.transpose,
            )
            row += part.samples


def expired(parts: tuple[Part, ...]) -> Done:
    """Parts whose deadline passed before they were started."""
    return Done(
        parts,
        error=ExpiredError(
            "the deadline passed before the request could be started; "
            "allow more time, or send fewer requests"
        ),
    )
