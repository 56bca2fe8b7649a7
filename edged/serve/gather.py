"""Parts of batches -> one outcome a request. Pure; owned by the thread that answers.

A request may carry more samples than fit in one batch, and its last samples may share a batch with
others. Here its parts come together again, in the order of its samples.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edged.errors import EdgedError
from edged.serve.request import Array, Outcome, Part, Timings


class _Pending:
    __slots__ = ("error", "left", "pieces", "timings")

    def __init__(self, samples: int) -> None:
        self.left = samples
        self.pieces: list[tuple[int, Mapping[str, Array]]] = []
        self.timings = Timings()
        self.error: EdgedError | None = None


class Gatherer:
    """Requests of which some samples are still out."""

    def __init__(self) -> None:
        self._pending: dict[int, _Pending] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def __repr__(self) -> str:
        left = sum(pending.left for pending in self._pending.values())
        return f"<Gatherer {len(self._pending)} requests, {left} samples out>"

    def add(
        self,
        part: Part,
        outputs: Mapping[str, Array],
        timings: Timings,
        error: EdgedError | None = None,
        version: str = "",
    ) -> Outcome | None:
        """One part ended.

        Args:
            part: which samples of which request.
            outputs: ``[part.samples, *shape]`` by name; empty with an error.
            timings: of the batch it was in.
            error: why these samples have no outputs.
            version: of the engine that ran them.

        Returns:
            The request's outcome once all its samples have ended, else None. One failed part makes
            the outcome an error.
        """
        request = part.request
        if part.samples == request.samples:
            return outcome(part, outputs, timings, error, version)
        key = id(request)
        pending = self._pending.setdefault(key, _Pending(request.samples))
        pending.left -= part.samples
        pending.error = pending.error or error
        pending.pieces.append((part.start, outputs))
        pending.timings = _joined(pending.timings, timings) if len(pending.pieces) > 1 else timings
        if pending.left:
            return None
        del self._pending[key]
        if pending.error is not None:
            return outcome(part, {}, pending.timings, pending.error, version)
        pieces = [outputs for _, outputs in sorted(pending.pieces, key=lambda piece: piece[0])]
        whole = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
        return outcome(part, whole, pending.timings, None, version)


def rows_of(
    outputs: Mapping[str, Array], row: int, part: Part, length_axes: Mapping[str, int]
) -> dict[str, Array]:
    """The outputs of one part of a batch, without their padding.

    Args:
        outputs: of the batch, ``[samples, *shape]`` by name.
        row: where the part begins.
        part: which samples of which request.
        length_axes: by output, the axis of ``[samples, *shape]`` that was padded with the inputs.
    """
    rows = {name: array[row : row + part.samples] for name, array in outputs.items()}
    for name, axis in length_axes.items():
        if name in rows:
            kept = slice(part.request.unpadded)
            rows[name] = rows[name][(slice(None),) * axis + (kept,)]
    return rows


def outcome(
    part: Part,
    outputs: Mapping[str, Array],
    timings: Timings,
    error: EdgedError | None,
    version: str = "",
) -> Outcome:
    """The outcome of the request that a part belongs to."""
    request = part.request
    return Outcome(
        receipt=request.receipt,
        reply_to=request.reply_to,
        model=request.model,
        id=request.id,
        outputs=outputs,
        error=error,
        choices=request.outputs,
        received=request.received,
        deadline=request.deadline,
        timings=timings,
        samples=request.samples,
        version=version,
    )


def _joined(first: Timings, second: Timings) -> Timings:
    larger = first if first.batch_samples >= second.batch_samples else second
    queued = [timings.queue_s for timings in (first, second) if timings.batch_samples]
    return Timings(
        queue_s=min(queued, default=0.0),
        compute_s=max(first.compute_s, second.compute_s),
        batch_samples=larger.batch_samples,
        reason=larger.reason,
    )
