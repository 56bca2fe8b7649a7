"""What the broker is asked to send: the filters of the requests, and what it says to them."""

from __future__ import annotations

import logging
import threading

from edged.metrics import Metrics
from edged.mqtt import reason_codes
from edged.serve.sending import Sending

log = logging.getLogger(__name__)

SHARED = "$share/"
"""A filter that begins so is shared with the other clients of its group (MQTT 5, 4.8.2)."""


class Subscriptions:
    """The filters of one broker link.

    Attributes:
        on: whether they are asked for; requests that a kept session holds come all the same.

    Args:
        filters: of the requests.
        out: sends packets.
        metrics: counters.
    """

    def __init__(self, filters: tuple[str, ...], out: Sending, metrics: Metrics) -> None:
        self.on = True
        self._filters = filters
        self._out = out
        self._metrics = metrics
        self._left = threading.Event()

    def __repr__(self) -> str:
        return f"<Subscriptions {', '.join(self._filters)}{'' if self.on else ', not asked for'}>"

    # -------------------------------------------------------------- for any thread

    def ask(self) -> None:
        """Asks for all of them, now and at each connection to come."""
        with self._out.lock:
            self.on = True
            self._out.subscribe(self._filters)

    def join(self, filters: tuple[str, ...]) -> None:
        """Asks for more, now and at each connection to come."""
        with self._out.lock:
            kept = (each for each in self._filters if each not in filters)
            self._filters = (*kept, *filters)
            if self.on:
                self._out.subscribe(self._filters)

    def leave(self, filters: tuple[str, ...], timeout_s: float) -> bool:
        """Asks for these no more; whether the broker has said within the time that it is so.

        What it has sent until then is to be answered all the same.
        """
        with self._out.lock:
            self._filters = tuple(each for each in self._filters if each not in filters)
            self._left.clear()
            self._out.unsubscribe(filters)
        return self._left.wait(timeout_s)

    # -------------------------------------------------------------- for the network thread

    def connected(self, *, shared: bool) -> None:
        """The broker has accepted the connection.

        Args:
            shared: it has shared subscriptions; asking one that has none would end the connection.
        """
        kept = tuple(each for each in self._filters if not each.startswith(SHARED))
        if not shared and kept != self._filters:
            self._filters = kept
            self._metrics.count("subscriptions_refused_total")
            log.error(
                "the broker has no shared subscriptions: this device gets no requests of its pool; "
                "use a broker that has them, or take serve.pool out of the settings"
            )
        if self.on:
            self._out.subscribe(self._filters)

    def answered(self, mid: int, reasons: tuple[int, ...]) -> None:
        """A SUBSCRIBE was answered."""
        self._out.subscribed(mid)
        refused = [reason_codes.name(reason) for reason in reasons if reason >= 0x80]
        if refused or len(reasons) != len(self._filters):
            self._metrics.count("subscriptions_refused_total")
            log.error(
                "the broker refuses subscriptions (%s): allow this client to read %s",
                ", ".join(refused) or "no answer for some",
                ", ".join(self._filters),
            )

    def left(self, mid: int) -> None:
        """An UNSUBSCRIBE was answered."""
        self._out.subscribed(mid)
        self._left.set()
