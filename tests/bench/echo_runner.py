"""A runner that computes nothing: what is left is the service's own cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from edged.runners import Array, Completion, TensorSpec


class EchoRunner:
    """Gives every input back as it came. Implements `edged.runners.Runner`.

    Unlike the runners of engines it has no thread: ``done`` is called from ``submit``.

    Args:
        entries: float32 entries of one sample.
        max_batch: most samples in one batch.
    """

    device = "echo"
    sizes: Sequence[int] = ()
    lanes = 1

    def __init__(self, entries: int, max_batch: int = 64) -> None:
        self.inputs = (TensorSpec("x", np.dtype(np.float32), (entries,)),)
        self.outputs = (TensorSpec("y", np.dtype(np.float32), (entries,)),)
        self.max_batch = max_batch
        self._rows = np.zeros((max_batch, entries), np.float32)

    def prepare(self, progress: Callable[[int, int], None]) -> None:
        """There is nothing to prepare."""

    def staging(self, lane: int) -> Mapping[str, Array]:
        """The one input buffer."""
        return {"x": self._rows}

    def submit(self, lane: int, samples: int, done: Callable[[Completion], None]) -> None:
        """Answers at once."""
        now = time.monotonic()
        done(Completion(lane, samples, {"y": self._rows[:samples]}, now, now))

    def close(self) -> None:
        """There is nothing to give back."""
