"""A request that has ended the process before is answered, and not read again."""

from __future__ import annotations

import logging
from collections.abc import Callable

from edged.errors import EdgedError, PoisonError
from edged.serve.crash_journal import CrashJournal
from edged.serve.request import Arrival, Receipt, ReplyTo, Request
from edged.serve.suspects import MOST_DEATHS

log = logging.getLogger(__name__)

Decode = Callable[[Arrival, ReplyTo], Request]


class PoisonCheck:
    """Stands before the decoder. Any thread may use it.

    Args:
        decode: the decoder.
        journal: notes what the decoders of images, which are no Python, are given.
        refused: whether a request must not be run.
        tell: hears of each that is refused.
    """

    def __init__(
        self,
        decode: Decode,
        journal: CrashJournal,
        refused: Callable[[Receipt], bool],
        tell: Callable[[Arrival, EdgedError], None],
    ) -> None:
        self._decode = decode
        self._journal = journal
        self._refused = refused
        self._tell = tell

    def __call__(self, arrival: Arrival, to: ReplyTo) -> Request:
        """Decodes a request.

        Raises:
            PoisonError: it must not be run.
            EdgedError: the decoder's.
        """
        if self._refused(arrival.receipt):
            error = PoisonError(
                f"the service died {MOST_DEATHS} times while it ran this request and no other, so "
                "it is not run again; look at what it holds, and report it"
            )
            log.error(
                "a request is refused: %d processes died of it",
                MOST_DEATHS,
                extra={
                    "topic": arrival.topic[:200],
                    "correlation_hex": (arrival.correlation or b"")[:64].hex(),
                },
            )
            self._tell(arrival, error)
            raise error
        if arrival.content_type.startswith("image/"):
            with self._journal.during(arrival.receipt.fingerprint):
                return self._decode(arrival, to)
        return self._decode(arrival, to)
