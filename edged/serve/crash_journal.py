"""What is on the devices, so that the next start knows what this process died of.

A file in memory (``/run``), mapped: its pages outlive the process, and no system call is made while
it is written. Each batch takes a slot, with the fingerprints of its requests, and gives it back.
What the slots hold at the next start was on a device when the process died. See
docs/decisions/0010-a-journal-of-what-is-on-the-devices.md.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import mmap
import os
from array import array
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from edged.serve.request import Batch

log = logging.getLogger(__name__)

MAGIC = 0x6564676564_01
"""``edged``, and the version of this layout."""
STRIKES = 1024
SLOTS = 64
SLOT = 256
"""Words of a slot: the number of fingerprints, and as many as fit; further ones are left out."""
MOST_AGE_S = 86_400
"""A death that is so long ago is forgotten: no broker delivers what was in hand then."""
_SLOTS_AT = 1 + 2 * STRIKES
WORDS = _SLOTS_AT + SLOTS * SLOT


class CrashJournal:
    """The file, and what it said at the start. Batches may begin and end on any thread.

    Attributes:
        deaths: fingerprint of a request that was on a device when the process died -> how often
            it was the only one.

    Args:
        words: 64-bit words of the file; None: nothing is written, and there were no deaths.
        now: Unix seconds.
    """

    def __init__(self, words: memoryview | None, now: float) -> None:
        self._words = words
        self._free = deque(range(_SLOTS_AT, WORDS, SLOT)) if words is not None else deque[int]()
        self._slots: dict[int, int] = {}
        self._strikes = recover(words, int(now)) if words is not None else {}
        self.deaths: Mapping[int, int] = {
            mark: deaths for mark, (deaths, _) in self._strikes.items()
        }

    def __repr__(self) -> str:
        return f"<CrashJournal {len(self._slots)} batches, {len(self._strikes)} suspects>"

    def began(self, batch: Batch) -> None:
        """A batch is going to run."""
        marks = [part.request.receipt.fingerprint for part in batch.parts]
        if (slot := self._take(marks)) is not None:
            self._slots[id(batch)] = slot

    def ended(self, batch: Batch) -> None:
        """It came back."""
        if (slot := self._slots.pop(id(batch), None)) is not None:
            self._give_back(slot)

    @contextlib.contextmanager
    def during(self, mark: int) -> Iterator[None]:
        """Something else that may end the process is done with one request."""
        slot = self._take((mark,))
        try:
            yield
        finally:
            if slot is not None:
                self._give_back(slot)

    def forget(self, mark: int) -> None:
        """A request ended well, and is no suspect any more."""
        if self._words is not None and mark in self._strikes:
            del self._strikes[mark]
            _write(self._words, self._strikes)

    def _take(self, marks: Sequence[int]) -> int | None:
        known = array("Q", [mark for mark in marks[: SLOT - 1] if mark])
        words = self._words
        if words is None or not known:
            return None
        try:
            slot = self._free.popleft()
        except IndexError:
            return None
        words[slot + 1 : slot + 1 + len(known)] = memoryview(known)
        words[slot] = len(known)  # last: until then it is empty
        return slot

    def _give_back(self, slot: int) -> None:
        if self._words is not None:
            self._words[slot] = 0
        self._free.append(slot)


def recover(words: memoryview, now: int) -> dict[int, tuple[int, int]]:
    """Reads what a run before has left, and makes the file ready for this one.

    Args:
        words: of the file, all 0 where it is new.
        now: Unix seconds.

    Returns:
        Fingerprint -> deaths at which it was alone, and when it was found last, in Unix seconds.
    """
    strikes: dict[int, tuple[int, int]] = {}
    if words[0] == MAGIC:
        for at in range(1, _SLOTS_AT, 2):
            mark, packed = words[at], words[at + 1]
            if mark and now - (packed & 0xFFFFFFFF) < MOST_AGE_S:
                strikes[mark] = (packed >> 32, packed & 0xFFFFFFFF)
        found: set[int] = set()
        for slot in range(_SLOTS_AT, WORDS, SLOT):
            found.update(words[slot + 1 : slot + 1 + min(words[slot], SLOT - 1)])
        for mark in found:
            strikes[mark] = (strikes.get(mark, (0, 0))[0] + (len(found) == 1), now)
    # In this order: to die in between counts a death twice, and loses none.
    _write(words, strikes)
    for slot in range(_SLOTS_AT, WORDS, SLOT):
        words[slot] = 0
    words[0] = MAGIC
    return strikes


def _write(words: memoryview, strikes: Mapping[int, tuple[int, int]]) -> None:
    latest = sorted(strikes.items(), key=lambda item: item[1][1])[-STRIKES:]
    flat = [word for mark, (deaths, when) in latest for word in (mark, deaths << 32 | when)]
    flat += [0] * (2 * STRIKES - len(flat))
    words[1:_SLOTS_AT] = memoryview(array("Q", flat))


def open_journal(path: Path, now: float) -> CrashJournal:
    """Opens the file, or makes it; without one the service runs all the same, and says so.

    Args:
        path: the file; its folder must exist.
        now: Unix seconds.
    """
    try:
        return CrashJournal(_mapped(path), now)
    except OSError as err:
        log.warning(
            "no crash journal (%s): a request that ends the process is run again at each start; "
            "let paths.journal be a file in a folder that this service can write",
            err,
        )
        return CrashJournal(None, now)


def _mapped(path: Path) -> memoryview:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    handle = os.open(path, flags, 0o600)
    try:
        # Held for as long as the file is mapped: of two services the second has none.
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Else a full disk would be a SIGBUS at the first write.
        os.posix_fallocate(handle, 0, WORDS * 8)
        mapped = mmap.mmap(handle, WORDS * 8)
    except OSError:
        os.close(handle)
        raise
    # The descriptor stays open, and the lock with it, until the process ends.
    return memoryview(mapped).cast("Q")
