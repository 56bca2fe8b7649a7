"""What became of each request: one row each. No clock and no I/O inside."""

from __future__ import annotations

import json
import math
from array import array

from edged import protocol

LOST, GOOD = 0, 1
"""Outcomes; an error's is its place in `Tally.errors`, which begins behind these."""
MOST_HEADERS = 20_000
"""Reply headers that are kept, to be read after the run; of a longer run they are a sample."""
NEVER = math.nan

Place = tuple[int, int]
"""Where a request was sent, for the order of answers: numbers of its connection and its class."""


class Tally:
    """The books of one run.

    Attributes:
        intended: when each request should have been sent, monotonic seconds.
        sent: when it was, `NEVER` where the broker took no more.
        answered: when its first answer came, or `NEVER`.
        outcome: `LOST`, `GOOD`, or the place of its error in ``errors``.
        classes: number of its class.
        errors: codes of errors, from place 2 on.
        duplicates: answers beyond one for a request.
        out_of_order: answers that came after the answer to a later request of the same connection
            and class.
        foreign: messages that answer nothing of this run.
        ended: requests that were answered.
        headers: number of a request -> header of its reply; of some or all.
        devices: answers by the device that the reply of a pool names.
    """

    def __init__(self) -> None:
        self.intended, self.sent, self.answered = array("d"), array("d"), array("d")
        self.outcome, self.classes = array("l"), array("l")
        self.errors: list[str] = ["lost", "ok"]
        self.duplicates = self.out_of_order = self.foreign = self.ended = 0
        self.headers: dict[int, bytes] = {}
        self.devices: dict[str, int] = {}
        self._every = 1
        self._latest: dict[Place, int] = {}

    def __repr__(self) -> str:
        return f"<Tally {self.ended} of {len(self.sent)} answered>"

    def __len__(self) -> int:
        return len(self.sent)

    def send(self, intended: float, sent: float, class_: int) -> int:
        """Books a request; returns its number."""
        self.intended.append(intended)
        self.sent.append(sent)
        self.answered.append(NEVER)
        self.outcome.append(LOST)
        self.classes.append(class_)
        return len(self.sent) - 1

    def answer(
        self, index: int, now: float, user: dict[str, str], payload: memoryview, place: Place
    ) -> bool:
        """Books an answer; whether it is the first one to its request.

        Args:
            index: number of the request that it names.
            now: when it came.
            user: its user properties.
            payload: its body; not kept.
            place: of the request.
        """
        if not 0 <= index < len(self.sent) or math.isnan(self.sent[index]):
            self.foreign += 1
            return False
        if self.outcome[index]:
            self.duplicates += 1
            return False
        self.answered[index] = now
        self.ended += 1
        latest = self._latest.get(place, -1)
        if index < latest:
            self.out_of_order += 1
        else:
            self._latest[place] = index
        status = user.get(protocol.STATUS, "")
        if status == "200":
            self.outcome[index] = GOOD
            self._keep(index, user, payload)
        else:
            self.outcome[index] = self._error(status, payload)
        if device := user.get(protocol.DEVICE):
            self.devices[device] = self.devices.get(device, 0) + 1
        return True

    def _keep(self, index: int, user: dict[str, str], payload: memoryview) -> None:
        if index % self._every:
            return
        length = user.get(protocol.HEADER_LENGTH, "")
        self.headers[index] = bytes(payload[: int(length) if length.isdecimal() else None])
        if len(self.headers) > MOST_HEADERS:
            self._every *= 2
            kept = {at: header for at, header in self.headers.items() if not at % self._every}
            self.headers = kept

    def _error(self, status: str, payload: memoryview) -> int:
        code = _code(bytes(payload)) or f"status {status or 'missing'}"
        if code not in self.errors[2:]:
            self.errors.append(code)
        return self.errors.index(code, 2)


def _code(body: bytes) -> str:
    """The ``code`` in the body of an error reply; "" if there is none."""
    document = read_object(body)
    code = document.get("code", "")
    return code if isinstance(code, str) else ""


def read_object(body: bytes) -> dict[str, object]:
    """A JSON object; empty where it is none."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
