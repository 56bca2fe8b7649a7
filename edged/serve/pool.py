"""Membership in a pool: devices that share the requests of one queue (docs/pool.md).

A device that stops leaves its pool first. Else the broker would go on giving it its share, which
would then lie in its session until it is back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from edged.protocol import PoolTopics
from edged.serve.subscriptions import Subscriptions

_LEAVE_S = 2.0
"""A broker that has not answered an UNSUBSCRIBE by then is not waited for."""
_LOOK_S = 0.01


class Membership:
    """This device's part in a pool; without one it does nothing.

    Args:
        pool: its topics; None: this device is in no pool.
        subscriptions: of the broker link; it is a member from its first connection on.
        receive_maximum: requests that the broker may have outstanding here.
    """

    def __init__(
        self, pool: PoolTopics | None, subscriptions: Subscriptions, receive_maximum: int
    ) -> None:
        self._filters = pool.subscriptions if pool else ()
        self._subscriptions = subscriptions
        self._most = receive_maximum
        self._pause = threading.Event()

    def join(self) -> None:
        """Takes requests of the pool, again."""
        if self._filters:
            self._subscriptions.join(self._filters)

    def leave(self) -> bool:
        """Takes no more; whether the broker has said so.

        Requests that were on the way come until then, and are answered as before.
        """
        return not self._filters or self._subscriptions.leave(self._filters, _LEAVE_S)

    def leave_empty(
        self, outstanding: Callable[[], int], arrivals: Callable[[], float], timeout_s: float
    ) -> float:
        """Leaves, and waits until nothing of the pool is left with the broker for this device.

        A broker that has more for a device than it may have outstanding sends the next request for
        each acknowledgement, and answers an UNSUBSCRIBE after those. So when less than that is
        outstanding, and nothing comes before the answer, the broker has nothing more.

        Args:
            outstanding: requests that arrived and were not answered.
            arrivals: requests that ever arrived.
            timeout_s: the longest wait; requests to the device itself may never cease.

        Returns:
            Seconds that it took.
        """
        began = time.monotonic()
        while self._filters and time.monotonic() < began + timeout_s:
            before, has_room = arrivals(), outstanding() < self._most
            if self.leave() and has_room and arrivals() == before:
                break
            self._pause.wait(_LOOK_S)
        return time.monotonic() - began
