"""Stands for the link's thread: has the pipeline take its turn whenever it is woken."""

from __future__ import annotations

import queue
import threading
from typing import final

from edged.serve.pipeline import Pipeline
from tests.doubles.runner import WAIT_S


@final
class Turns:
    """A thread that answers what has ended, and wakes the devices for what has arrived."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Pipeline | None] = queue.SimpleQueue()
        self._pipeline: Pipeline | None = None
        self.one_thread = threading.Lock()
        """Held by whoever has something arrive: in truth it is the same thread."""
        self._thread = threading.Thread(target=self._work, name="turns", daemon=True)

    def start(self, pipeline: Pipeline) -> None:
        """Starts the thread, and takes a first turn."""
        self._pipeline = pipeline
        self._thread.start()
        self.wake()

    def wake(self) -> None:
        """Has it take a turn, if it was started; from any thread."""
        if self._pipeline is not None:
            self._queue.put(self._pipeline)

    def stop(self) -> None:
        """Ends the thread after its last turn."""
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join(WAIT_S)

    def _work(self) -> None:
        while (pipeline := self._queue.get()) is not None:
            with self.one_thread:
                pipeline.turn()
            pipeline.settled()
