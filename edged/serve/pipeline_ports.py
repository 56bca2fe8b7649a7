"""What the request path calls: the link that it sends through, and who else wants to know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edged.serve.request import LinkDown, LinkUp, Outcome, Receipt, Reply


@dataclass(frozen=True)
class Sender:
    """The broker link as the pipeline uses it.

    Attributes:
        publish: hands a PUBLISH over; its packet identifier, or None if it was not taken.
        acknowledge: sends a PUBACK; False if its connection is gone.
        wake: has the link's thread call `Pipeline.turn`; from any thread.
    """

    publish: Callable[[Reply], int | None]
    acknowledge: Callable[[Receipt], bool]
    wake: Callable[[], None]


@dataclass(frozen=True)
class Watchers:
    """Who else wants to know.

    Attributes:
        answered: a request has ended with a reply on its way; must not wait.
        link: the connection came or went; must not wait.
    """

    answered: Callable[[Outcome, int], None]
    link: Callable[[LinkUp | LinkDown], None]
