"""What stands around one device's thread: works by hand, and all that it tells."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np

from edged.errors import EdgedError
from edged.recipe import InputSpec
from edged.serve.gpu import Device, DevicePorts, Done, Served
from edged.serve.request import Batch, Part, Priority, Receipt, ReplyTo, Request, Work

MODEL = "m"
PATIENCE_S = 30.0
INPUT = (InputSpec(name="x", datatype="FP32", shape=(3,)),)


@dataclass(frozen=True)
class Completed:
    """The lane is free."""

    samples: int
    service_s: float


@dataclass(frozen=True)
class Failed:
    """The device is to be taken out."""

    error: EdgedError


@dataclass(frozen=True)
class Again:
    """Parts that shall run again."""

    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Renew:
    """The device is to be renewed."""


Told: TypeAlias = Completed | Failed | Again | Renew | Done
One = TypeVar("One", Completed, Failed, Again, Renew, Done)


class Around:
    """Everything around one device: gives it work by hand, and keeps what it tells in order."""

    def __init__(self, served: Served) -> None:
        self._works: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._told: queue.SimpleQueue[Told] = queue.SimpleQueue()
        ports = DevicePorts(
            take=lambda _device: self._works.get(),
            take_now=lambda _device: None,
            hand=lambda _device, _batch: None,
            call=lambda: None,
            completed=lambda _device, _model, n, seconds: self._told.put(Completed(n, seconds)),
            done=self._told.put,
            put_back=lambda parts: self._told.put(Again(tuple(parts))),
            failed=lambda _device, error: self._told.put(Failed(error)),
            renew=lambda _device: self._told.put(Renew()),
        )
        self.device = Device("cpu", {MODEL: served}, ports)

    def give(self, *parts: Part, **more: Any) -> None:
        """A batch of these."""
        samples = sum(part.samples for part in parts)
        self._works.put(Work(Batch(MODEL, parts, samples, "count", 0.0), **more))

    def give_work(self, work: Work | None) -> None:
        """Any work; None ends the thread."""
        self._works.put(work)

    def told(self, kind: type[One]) -> One:
        """The next thing that it told, which must be of this kind."""
        thing = self._told.get(timeout=PATIENCE_S)
        assert isinstance(thing, kind), thing
        return thing

    def silent(self) -> bool:
        """Whether nothing else was told."""
        return self._told.empty()


def ports(
    works: queue.SimpleQueue[Work | None],
    told: queue.SimpleQueue[Done],
    renew: Callable[[str], None] = lambda _device: None,
) -> DevicePorts:
    """Of a device that gets these works and tells of what ended."""
    return DevicePorts(
        take=lambda _device: works.get(),
        take_now=lambda _device: None,
        hand=lambda _device, _batch: None,
        call=lambda: None,
        completed=lambda _device, _model, _samples, _seconds: None,
        done=told.put,
        put_back=lambda _parts: None,
        failed=lambda _device, _error: None,
        renew=renew,
    )


@contextmanager
def running(served: Served) -> Iterator[Around]:
    """A device whose thread runs until the block ends."""
    around = Around(served)
    around.device.thread.start()
    try:
        yield around
    finally:
        around.give_work(None)
        around.device.thread.join(PATIENCE_S)
        served.runner.close()  # so that it has told everything
        assert not around.device.thread.is_alive()


def part(*rows: float, attempt: int = 0, received: float = 0.0) -> Part:
    """A request of one sample for each number."""
    x = np.array([[row, 0, 1] for row in rows], np.float32)
    request = Request(
        MODEL, "", len(rows), {"x": x}, 1e9, Priority.NORMAL, received,
        ReplyTo("r", None, 0), Receipt(1, 0, 0, 0),
    )  # fmt: skip
    return Part(request, 0, len(rows), attempt)
