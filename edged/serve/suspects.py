"""Requests that were on a device when the process died: run alone, and refused in the end. Pure.

Whoever shared a batch with the one that is to blame is a suspect like it. So after a death each
suspect runs alone, with nothing else in hand: the ones that come back are cleared. One that was
alone at two deaths is refused from then on; one is not enough, for somebody else may have killed
the process. What arrives meanwhile waits, in its order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

from edged.serve.request import Arrival, Receipt

MOST_DEATHS = 2
"""With so many, at each of which it was alone, a request is not run again."""


class Suspects:
    """The door of the request path. Owned by one thread, but for `refused`.

    Args:
        deaths: fingerprint of each suspect -> deaths at which it was alone.
        cleared: a suspect ended without ending the process.
    """

    def __init__(self, deaths: Mapping[int, int], cleared: Callable[[int], None]) -> None:
        self._deaths = dict(deaths)
        self._cleared = cleared
        self._inside = 0
        self._trial: Receipt | None = None
        self._waiting: deque[Arrival] = deque()

    def __repr__(self) -> str:
        return f"<Suspects {len(self._deaths)}, {len(self._waiting)} arrivals wait>"

    @property
    def waiting(self) -> int:
        """Arrivals that wait."""
        return len(self._waiting)

    def refused(self, receipt: Receipt) -> bool:
        """Whether a request must not be run; from any thread."""
        return self._deaths.get(receipt.fingerprint, 0) >= MOST_DEATHS

    def arrived(self, arrival: Arrival) -> bool:
        """Whether an arrival may go on; False: it waits, and `next` gives it back."""
        if not self._deaths:
            return True
        if self._waiting or self._trial or self._suspect(arrival.receipt):
            self._waiting.append(arrival)
            return False
        self._inside += 1
        return True

    def next(self) -> Arrival | None:
        """The arrival that may go on now."""
        if not self._waiting or self._trial is not None:
            return None
        receipt = self._waiting[0].receipt
        if self._suspect(receipt):
            if self._inside:
                return None
            self._trial = receipt
        self._inside += 1
        return self._waiting.popleft()

    def back(self, arrival: Arrival) -> None:
        """One of `next` found no room; it waits on."""
        self._inside -= 1
        self._trial = None
        self._waiting.appendleft(arrival)

    def ended(self, receipt: Receipt) -> None:
        """A request that was let in has been run, or refused; its reply is on no device."""
        if not self._deaths:
            return
        self._inside -= 1
        if receipt == self._trial:
            self._trial = None
            del self._deaths[receipt.fingerprint]
            self._cleared(receipt.fingerprint)

    def _suspect(self, receipt: Receipt) -> bool:
        return self._deaths.get(receipt.fingerprint, MOST_DEATHS) < MOST_DEATHS
