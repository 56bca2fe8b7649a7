"""A real `BrokerLink` on a test's broker, and someone who keeps all that it tells."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from edged.metrics import Metrics
from edged.serve.link_handlers import LinkHandlers
from edged.serve.mqtt import BrokerLink
from edged.serve.request import Arrival, LinkDown, LinkUp
from edged.settings import BrokerSettings
from tests.doubles.broker import Mosquitto
from tests.doubles.wire import WAIT_S, Address

TOPIC = "edged/v1/dev/infer/m"
FILTERS = ("edged/v1/dev/infer/+", "edged/v1/dev/infer/+/+", "edged/v1/dev/infer/+/rq/+/+")
STATUS = "edged/v1/dev/status"


class Heard:
    """Whom the link tells: keeps everything, and wakes whoever waits for it."""

    def __init__(self) -> None:
        self.arrivals: list[Arrival] = []
        self.delivered: list[int] = []
        self.changes: list[tuple[float, LinkUp | LinkDown]] = []
        self.fail = False
        self.hold = threading.Event()
        self.hold.set()
        self._changed = threading.Condition()

    def handlers(self) -> LinkHandlers:
        """As the link wants them."""
        return LinkHandlers(self.arrived, self._delivered, self._link, self._status)

    def arrived(self, arrival: Arrival) -> bool:
        """Keeps it, or fails if it was told to."""
        self.hold.wait(WAIT_S)
        if self.fail:
            raise RuntimeError("a fault in a handler")
        return self._keep(self.arrivals.append, arrival)

    def _delivered(self, mid: int, _accepted: bool) -> None:  # noqa: FBT001  # the interface
        self._keep(self.delivered.append, mid)

    def _link(self, change: LinkUp | LinkDown) -> None:
        self._keep(self.changes.append, (time.monotonic(), change))

    def _keep(self, append: Callable[..., None], item: object) -> bool:
        with self._changed:
            append(item)
            self._changed.notify_all()
        return True

    @staticmethod
    def _status(state: str, session: int) -> bytes:
        return json.dumps({"state": state, "session": session}).encode()

    def wait(self, condition: Callable[[], bool]) -> None:
        """Waits until something that was heard makes the condition true."""
        with self._changed:
            assert self._changed.wait_for(condition, WAIT_S), (self.arrivals, self.changes)

    def wait_arrivals(self, count: int) -> list[Arrival]:
        """The arrivals, once there are so many."""
        self.wait(lambda: len(self.arrivals) >= count)
        return self.arrivals

    def ups(self) -> list[LinkUp]:
        """Connections so far."""
        return [change for _, change in self.changes if isinstance(change, LinkUp)]

    def downs(self) -> list[LinkDown]:
        """Losses so far."""
        return [change for _, change in self.changes if isinstance(change, LinkDown)]


def settings(broker: Address, **more: object) -> BrokerSettings:
    """Short pauses; everything else as by default."""
    values = {"host": broker.host, "port": broker.port, "backoff_min_s": 0.05, "backoff_max_s": 0.2}
    return BrokerSettings.model_validate(values | more)


@contextmanager
def running(
    broker: Address, metrics: Metrics | None = None, *, client_id: str = "edged-dev",
    **more: object,
) -> Iterator[tuple[BrokerLink, Heard]]:  # fmt: skip
    """A link that was started; stopped in order at the end."""
    heard = Heard()
    link = BrokerLink(
        settings(broker, **more), client_id, STATUS, FILTERS, heard.handlers(), metrics or Metrics()
    )
    link.start()
    try:
        yield link, heard
    finally:
        link.stop(b'{"state":"offline"}')


@contextmanager
def subscribed(broker: Mosquitto, **more: object) -> Iterator[tuple[BrokerLink, Heard]]:
    """A link whose subscriptions stand: the broker acknowledged the birth that follows them."""
    with running(broker, **more) as (link, heard):  # type: ignore[arg-type]  # passed on
        heard.wait(lambda: len(heard.delivered) >= 1)
        yield link, heard


def wait_until(condition: Callable[[], bool]) -> bool:
    """Looks again and again: for what nobody announces."""
    until = time.monotonic() + WAIT_S
    pause = threading.Event()
    while not condition() and time.monotonic() < until:
        pause.wait(0.01)
    return condition()
