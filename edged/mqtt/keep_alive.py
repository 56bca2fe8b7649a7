"""When to ping, and when a silent broker is taken for gone. Pure."""

from __future__ import annotations

from typing import Literal

PATIENCE = 1.5
"""Of the interval; the broker allows us as much (MQTT 5, 3.1.2.10)."""


class KeepAlive:
    """One connection's silence.

    Args:
        interval_s: longest silence from us; 0: none is too long.
        now: monotonic seconds.
    """

    def __init__(self, interval_s: float, now: float) -> None:
        self._interval_s = interval_s
        self._sent = self._received = now
        self._asked = False

    def __repr__(self) -> str:
        return f"<KeepAlive {self._interval_s:g} s{', asked' if self._asked else ''}>"

    def sent(self, now: float) -> None:
        """Something went out."""
        self._sent = now

    def received(self, now: float) -> None:
        """Something came in."""
        self._received = now
        self._asked = False

    def due(self, now: float) -> Literal["", "ping", "dead"]:
        """What is to be done at ``now``; a ping counts as sent."""
        if not self._interval_s:
            return ""
        if now - self._received >= PATIENCE * self._interval_s:
            return "dead"
        # Also while we send: nothing but an answer shows that the broker is there.
        silent = now - self._received >= self._interval_s and not self._asked
        if silent or now - self._sent >= self._interval_s:
            self._asked = True
            self._sent = now
            return "ping"
        return ""
