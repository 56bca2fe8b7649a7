"""Steady load on a request path: a thread that keeps so many requests outstanding."""

from __future__ import annotations

import threading
from typing import final

from edged import protocol
from tests.doubles import digits
from tests.doubles.site import Site

IMAGES = digits.images()
PATIENCE_S = 60.0
OUTSTANDING = 48
DEADLINE_S = 600
"""Of each request: engines are built and loaded on the same processors, and the recipe's second is
too short for that on a busy machine. Deadlines are not what is tested under this load."""


@final
class SteadyLoad:
    """Sends held-out digits until the block ends; then all of them have ended.

    Attributes:
        sent: requests so far; each one's id and correlation is its number.

    Args:
        running: where to.
    """

    def __init__(self, running: Site) -> None:
        self._running = running
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send, daemon=True)
        self.sent = 0

    def __enter__(self) -> SteadyLoad:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(PATIENCE_S)
        self._running.link.wait_sent(self.sent)

    def _send(self) -> None:
        link = self._running.link
        while not self._stop.is_set():
            number = self.sent
            payload, length = digits.binary(IMAGES[number % len(IMAGES)][None], id=str(number))
            self._running.arrive(
                payload,
                model="digits",
                content_type=protocol.OCTET_STREAM,
                correlation=b"%d" % number,
                user={protocol.HEADER_LENGTH: str(length)},
                expiry_s=DEADLINE_S,
            )
            self.sent += 1
            link.wait(lambda: len(link.sent) >= self.sent - OUTSTANDING)

    def wait_more(self, count: int, status: str = "200") -> None:
        """Waits until so many more are answered so."""
        link = self._running.link

        def answered() -> int:
            return sum(sent.status == status for sent in list(link.sent))

        until = answered() + count
        link.wait(lambda: answered() >= until)
