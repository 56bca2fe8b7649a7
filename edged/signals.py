"""What wakes the main thread: SIGTERM, SIGINT and SIGHUP, and other threads."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
from types import FrameType

EX_CUT_OFF = os.EX_TEMPFAIL
"""Exit code when the drain limit ended requests in hand; the broker delivers them again."""


class Signals:
    """The main thread's sleep, and what it was asked for.

    Attributes:
        stops: how often it was asked to stop; the second time the process ends at once.
        reload: it was asked to read the settings again; whoever does sets it to False.
    """

    def __init__(self) -> None:
        self.stops = 0
        self.reload = False
        # Put from a signal handler: an Event would take a lock that this thread may hold.
        self._woken: queue.SimpleQueue[None] = queue.SimpleQueue()

    def __repr__(self) -> str:
        return f"<Signals {self.stops} stops{', reload' if self.reload else ''}>"

    def catch(self) -> None:
        """From now on; only the main thread may."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def wake(self) -> None:
        """Ends the sleep; from any thread."""
        self._woken.put(None)

    def sleep(self, seconds: float) -> None:
        """Sleeps until the time is up or it is woken."""
        with contextlib.suppress(queue.Empty):
            self._woken.get(timeout=seconds)
            while True:
                self._woken.get_nowait()

    def ask_reload(self) -> None:
        """Has settings and engines looked at; from any thread."""
        self.reload = True
        self.wake()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self.ask_reload()
        else:
            self.stops += 1
            if self.stops > 1:
                os._exit(EX_CUT_OFF)  # asked twice: now
            self.wake()
