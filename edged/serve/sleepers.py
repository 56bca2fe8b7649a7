"""A condition whose callers do not meet the sleepers at its lock.

`threading.Condition` wakes a sleeper while the caller still holds the lock, so that the sleeper
goes to sleep again at once: two changes of threads for one. Here the bells ring after the lock was
given back, and sleeping makes no new lock.
"""

from __future__ import annotations

import queue
import threading
from types import TracebackType


class Sleepers:
    """What `threading.Condition` does for a waiting room: one lock, many sleepers, all are called.

    Used as a context manager; `wait` and `notify_all` are for those inside.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asleep: list[queue.SimpleQueue[None]] = []
        self._called: list[queue.SimpleQueue[None]] = []
        self._own = threading.local()

    def __repr__(self) -> str:
        return f"<Sleepers {len(self._asleep)} asleep>"

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        called, self._called = self._called, []
        self._lock.release()
        for bell in called:
            bell.put(None)

    def wait(self, timeout: float | None = None) -> bool:
        """Gives the lock back, sleeps until it is called or the time is up, and takes it again."""
        bell: queue.SimpleQueue[None] | None = getattr(self._own, "bell", None)
        if bell is None:
            bell = self._own.bell = queue.SimpleQueue()
        self._asleep.append(bell)
        called, self._called = self._called, []
        self._lock.release()
        for other in called:
            other.put(None)
        try:
            bell.get(timeout=timeout)
        except queue.Empty:
            self._lock.acquire()
            if bell in self._asleep:
                self._asleep.remove(bell)
                return False
            bell.get()  # called in the same moment
            return True
        self._lock.acquire()
        return True

    def notify_all(self) -> None:
        """Calls all that sleep, once the lock is given back."""
        if self._asleep:
            self._called += self._asleep
            self._asleep.clear()
