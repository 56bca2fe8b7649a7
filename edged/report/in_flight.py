"""Which rows were taken out of the outbox and are on their way. Pure: no clock, lock or I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

NO_BOUNDARY = -(1 << 63)


class InFlight:
    """Rows on their way, and how far each stream was read.

    Rows up to the boundary are the backlog, those above it are live; each of the two is read in the
    order of ids.

    Args:
        streams: names.
    """

    def __init__(self, streams: Iterable[str]) -> None:
        self.ids: dict[int, str] = {}
        self.boundary = NO_BOUNDARY
        self._read = {name: {True: NO_BOUNDARY, False: NO_BOUNDARY} for name in streams}

    def __repr__(self) -> str:
        return f"<InFlight {len(self.ids)} rows>"

    def begin_backlog(self, last_id: int) -> None:
        """What is stored up to ``last_id`` is backlog from now on, what comes is live."""
        self.boundary = max(self.boundary, last_id)

    def ranges(self, stream: str, backlog: bool | None) -> list[tuple[int, int | None]]:  # noqa: FBT001  # handed on
        """Ids to read next: (above, up to), in their order.

        Args:
            stream: its name.
            backlog: only that part, or with False only the live one; None: both.
        """
        read = self._read[stream]
        parts: list[tuple[int, int | None]] = []
        if backlog is not False:
            parts.append((read[True], self.boundary))
        if backlog is not True:
            parts.append((max(read[False], self.boundary), None))
        return parts

    def take(self, stream: str, row: int) -> None:
        """A row is on its way."""
        self.ids[row] = stream
        read = self._read[stream]
        part = row <= self.boundary
        read[part] = max(read[part], row)

    def release(self, ids: Iterable[int]) -> None:
        """Rows have to be taken again; ids that are not on their way are passed over."""
        for row in ids:
            stream = self.ids.pop(row, None)
            if stream is not None:
                read = self._read[stream]
                part = row <= self.boundary
                read[part] = min(read[part], row - 1)

    def adopt(self, other: InFlight, moved: Mapping[int, int]) -> dict[int, int]:
        """Takes over rows of another store that are on their way there.

        Args:
            other: of the store that ends.
            moved: old id -> new id.

        Returns:
            Old id -> new id of those on their way.
        """
        kept = {old: moved[old] for old in other.ids if old in moved}
        self.ids.update({new: other.ids[old] for old, new in kept.items()})
        return kept
