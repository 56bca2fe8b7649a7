"""Devices: take a batch, put it into a lane, have it run, measure it.

Whoever brings what makes a batch due starts it (`Device.pull`): the link's thread with an arrival,
the runner's with a completion, for a change of threads costs more than a small batch does. What may
take longer is left to the device's own thread: large batches, armed times, and what expires. A
runner says through a callback, on a thread of its own or at once, that a lane is done. A failed
device is renewed on a short-lived thread beside it, so that what expires meanwhile is still
answered. What ended is handed on as `Done`; nothing is published or logged here.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import get_ident

import numpy as np

from edged.errors import DeviceFaultError, EdgedError, ExpiredError, SupersededError
from edged.postprocess import Postprocessor
from edged.recipe import InputSpec, OutputSpec
from edged.runners import Completion, Runner
from edged.serve.deriving import derive, nonfinite
from edged.serve.request import Array, Batch, Part, Timings, Work
from edged.staging import stage
from edged.value import value

MOST_ATTEMPTS = 2
"""A batch whose device failed runs once more; what fails twice may be what makes devices fail."""
LARGE_BYTES = 512 * 1024
"""A batch that fills more than this is left to the device's own thread: to write it takes longer
than a change of threads."""


@value
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
        nonfinite: indices of parts whose outputs hold NaN or infinity and shall not be answered.
        version: of the engine that ran them.
        length_axes: by output, the axis that was padded with the inputs, the batch axis being 0.
    """

    parts: tuple[Part, ...]
    outputs: Mapping[str, Array] = field(default_factory=dict)
    compute_s: float = 0.0
    started: float = 0.0
    samples: int = 0
    reason: str = ""
    error: EdgedError | None = None
    nonfinite: tuple[int, ...] = ()
    version: str = ""
    length_axes: Mapping[str, int] = field(default_factory=dict)

    def positions(self) -> dict[str, int]:
        """What inputs of variable length add to the metrics; nothing where lengths are fixed."""
        if not self.parts[0].request.length:  # a batch is of one queue
            return {}
        whole = sum(part.samples * part.request.length for part in self.parts)
        data = sum(part.samples * part.request.unpadded for part in self.parts)
        return {"positions_total": whole, "positions_padded_total": whole - data}

    def timings(self, part: Part) -> Timings:
        """Where the time of one part's request went."""
        if not self.samples:
            return Timings()
        queued = max(0.0, self.started - part.request.received)
        return Timings(queued, self.compute_s, self.samples, self.reason)


class Served:
    """A model as a device runs it, and which of its lanes are free.

    Args:
        runner: ready and warm.
        inputs: how a request's samples become the runner's.
        refuse_nonfinite: whether a sample whose outputs hold NaN or infinity is an error.
        version: of the engine, for the replies.
        outputs: of the model; those with a `length_axis` come with the inputs' padding.
        postprocessor: what is made of them, or None.
    """

    def __init__(
        self,
        runner: Runner,
        inputs: Sequence[InputSpec],
        *,
        refuse_nonfinite: bool = False,
        version: str = "",
        outputs: Sequence[OutputSpec] = (),
        postprocessor: Postprocessor | None = None,
    ) -> None:
        self.runner = runner
        self.inputs = tuple(inputs)
        self.refuse_nonfinite = refuse_nonfinite
        self.version = version
        self.postprocessor = postprocessor
        self.length_axes = {
            spec.name: spec.length_axis + 1 for spec in outputs if spec.length_axis is not None
        }
        self.row_bytes = sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in runner.inputs)
        # Waited for only where an engine with fewer lanes has just taken over.
        self.lanes: queue.SimpleQueue[int] = queue.SimpleQueue()
        for lane in range(runner.lanes):
            self.lanes.put(lane)


def _nothing(_batch: Batch) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True)
class DevicePorts:
    """What a device calls.

    Attributes:
        take: waits for work (`edged.serve.batch.WaitingRoom.take`).
        take_now: the batch that is due, never waits (`edged.serve.batch.WaitingRoom.take_now`).
        hand: leaves a batch of `take_now` to the device's own thread.
        call: wakes that thread, if there is anything for it.
        completed: frees the lane: (device, queue, samples, service seconds or 0); `take_now` is
            asked afterwards.
        done: takes over what ended; may wait, which holds the device back.
        put_back: parts that shall run again, elsewhere or later.
        failed: (device, error): takes the device out for a while.
        renew: tries to make the device's models anew after a fault; may take seconds, and is
            called on a thread of its own.
        began: a batch is going to run.
        ended: it came back.
    """

    take: Callable[[str], Work | None]
    take_now: Callable[[str], Batch | None]
    hand: Callable[[str, Batch], None]
    call: Callable[[], None]
    completed: Callable[[str, str, int, float], None]
    done: Callable[[Done], None]
    put_back: Callable[[Sequence[Part]], None]
    failed: Callable[[str, EdgedError], None]
    renew: Callable[[str], None]
    began: Callable[[Batch], None] = _nothing
    ended: Callable[[Batch], None] = _nothing


class Device:
    """A device's thread.

    Args:
        name: e.g. ``cpu`` or ``cuda:0``.
        models: what it runs, by queue.
        ports: what it calls.
    """

    def __init__(self, name: str, models: Mapping[str, Served], ports: DevicePorts) -> None:
        self.name = name
        self._models = dict(models)
        self._ports = ports
        self._running: dict[int, float] = {}
        self._turned = time.monotonic()  # when it last became busy or idle
        self._busy_s = 0.0  # until then
        self._turning = threading.Lock()  # of these three
        # A model is swapped between two batches: never between picking its lane and submitting.
        self._swapping = threading.Lock()
        self._renewal: threading.Thread | None = None
        self._died = ""  # name of a thread
        self._pulling: set[int] = set()  # threads that go on to the next batch by themselves
        self.thread = threading.Thread(target=self._work, name=f"gpu-{name}", daemon=True)

    def __repr__(self) -> str:
        return f"<Device {self.name}: {len(self._running)} batches running>"

    @property
    def lanes(self) -> int:
        """Batches that may be on the device at once."""
        return min((served.runner.lanes for served in self._models.values()), default=0)

    def dead(self) -> str | None:
        """Name of a thread of it that has died."""
        return self._died or (None if self.thread.is_alive() else self.thread.name)

    def running_s(self, now: float) -> float:
        """For how long the oldest batch has been on the device; 0 if none is."""
        return max((now - since for since in list(self._running.values())), default=0.0)

    def occupied(self, now: float) -> tuple[float, float]:
        """Seconds for which it has been idle now, 0 if it is not, and busy in all."""
        with self._turning:
            since_s = max(0.0, now - self._turned)
            if self._running:
                return 0.0, self._busy_s + since_s
            return since_s, self._busy_s

    def _began(self, batch: Batch) -> None:
        self._ports.began(batch)
        with self._turning:
            now = time.monotonic()
            if not self._running:
                self._turned = now
            self._running[id(batch)] = now

    def _ended(self, batch: Batch) -> None:
        self._ports.ended(batch)
        with self._turning:
            now = time.monotonic()
            self._running.pop(id(batch), None)
            if not self._running:
                self._busy_s += now - self._turned
                self._turned = now

    def swap(self, model: str, served: Served) -> None:
        """Serves a model by this runner from the next batch on.

        Batches of the runner before may still be running; its ``close`` waits for them.
        """
        with self._swapping:
            self._models[model] = served

    def drop(self, queues: Iterable[str]) -> None:
        """Serves these no more; nothing of them waits or runs."""
        with self._swapping:
            for queue in queues:
                self._models.pop(queue, None)

    def renew(self, models: Mapping[str, Served]) -> None:
        """Serves these from the next batch on; nothing runs on the device."""
        with self._swapping:
            self._models = dict(models)

    # -------------------------------------------------------------- batches in

    def pull(self) -> None:
        """Starts the batches that are due; from any thread, never waits.

        Who calls it sees to it that `DevicePorts.call` is called afterwards.
        """
        me = get_ident()
        if me in self._pulling:  # a runner that answers at once: whoever started it goes on
            return
        self._pulling.add(me)
        try:
            while (batch := self._ports.take_now(self.name)) is not None:
                if not self._start_now(batch):
                    self._ports.hand(self.name, batch)
        except BaseException:
            self._died = threading.current_thread().name
            raise
        finally:
            self._pulling.discard(me)

    def _start_now(self, batch: Batch) -> bool:
        """Starts a small batch, unless its engine has no lane free at this moment."""
        with self._swapping:
            served = self._models[batch.queue]
            if batch.samples * served.row_bytes > LARGE_BYTES:
                return False
            try:
                lane = served.lanes.get_nowait()
            except queue.Empty:
                return False
            self._submit(served, lane, batch)
            return True

    def _work(self) -> None:
        self._pulling.add(get_ident())
        while (work := self._ports.take(self.name)) is not None:
            # First what has a deadline to keep: `done` may wait for as long as the broker is away.
            if work.batch is not None:
                self._start(work.batch)
            if work.retry:
                self._renewal = threading.Thread(
                    target=self._renew, name=f"renew-{self.name}", daemon=True
                )
                self._renewal.start()
            if work.expired:
                self._ports.done(expired(work.expired))
        if self._renewal is not None:
            self._renewal.join()

    def _renew(self) -> None:
        """On the renewal's thread."""
        try:
            self._ports.renew(self.name)
        except BaseException:
            self._died = f"renew-{self.name}"
            raise

    def _start(self, batch: Batch) -> None:
        """On the device's own thread."""
        with self._swapping:
            served = self._models[batch.queue]
            self._submit(served, served.lanes.get(), batch)

    def _submit(self, served: Served, lane: int, batch: Batch) -> None:
        fill(served, lane, batch.parts)
        self._began(batch)
        served.runner.submit(
            lane, batch.samples, lambda result: self._finished(served, batch, result)
        )

    # -------------------------------------------------------------- batches out

    def _finished(self, served: Served, batch: Batch, result: Completion) -> None:
        """On the runner's thread: the device goes on first, then others hear of the outputs."""
        # The lane's buffers belong to its next batch once it is free.
        outputs = {name: np.array(rows) for name, rows in result.outputs.items()}
        error = result.error
        self._ended(batch)
        served.lanes.put(result.lane)
        again: tuple[Part, ...] = ()
        if isinstance(error, DeviceFaultError):
            self._ports.failed(self.name, error)
            again = tuple(part for part in batch.parts if part.attempt < MOST_ATTEMPTS - 1)
            # Before the lane is free: the room must not take its queue for empty in between.
            self._ports.put_back(again)
        service_s = 0.0 if error else result.service_s
        self._ports.completed(self.name, batch.queue, batch.samples, service_s)
        self.pull()
        self._ports.call()
        if len(again) < len(batch.parts):
            self._hand_over(served, batch, result, outputs, again)

    def _hand_over(
        self,
        served: Served,
        batch: Batch,
        result: Completion,
        outputs: Mapping[str, Array],
        again: tuple[Part, ...],
    ) -> None:
        bad = nonfinite(outputs, batch.parts) if served.refuse_nonfinite else ()
        made = derive(served.postprocessor, batch.parts, outputs)
        ended = Done(
            parts=tuple(part for part in batch.parts if part not in again),
            outputs=made.outputs,
            compute_s=result.service_s,
            started=result.started,
            samples=batch.samples,
            reason=batch.reason,
            error=result.error or made.error,
            nonfinite=(*bad, *made.nonfinite),
            version=served.version,
            length_axes=served.length_axes,
        )
        self._ports.done(ended)


def fill(served: Served, lane: int, parts: tuple[Part, ...]) -> None:
    """Writes the samples of the parts, preprocessed, into a lane's staging buffers in order.

    Inputs of variable length are padded behind, and their masks written.
    """
    buffers = served.runner.staging(lane)
    for spec in served.inputs:
        row = 0
        for part in parts:
            rows = part.request.tensors[spec.name][part.start : part.stop]
            stage(spec, rows, buffers, row, part.request.unpadded)
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


def superseded(parts: tuple[Part, ...]) -> Done:
    """Parts whose place a newer request of the same source took."""
    return Done(
        parts,
        error=SupersededError(
            "a newer request of the same source came before this one was started; the model serves "
            "the latest one of each source (freshness)"
        ),
    )
