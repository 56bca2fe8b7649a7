"""What is made of a batch's outputs before they are answered: post-processing of all parts at once.

Done where the batch ended, so that neither the device nor the thread that answers waits for it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import field

import numpy as np

from edged.errors import EdgedError, InternalError
from edged.postprocess import Postprocessor, Rows
from edged.serve.request import Array, Part
from edged.value import identity

log = logging.getLogger(__name__)


@identity
class Derivation:
    """A batch with what was made of it.

    Attributes:
        outputs: the engine's, and those that were made of them.
        nonfinite: indices of parts that asked for what cannot be made, since their outputs hold NaN
            or infinity.
        error: why nothing could be made, which is a fault of ours.
    """

    outputs: Mapping[str, Array] = field(default_factory=dict)
    nonfinite: tuple[int, ...] = ()
    error: EdgedError | None = None


def derive(
    postprocessor: Postprocessor | None, parts: Sequence[Part], outputs: Mapping[str, Array]
) -> Derivation:
    """Post-processes a batch, if any of its parts asks for it.

    Args:
        postprocessor: of the model, or None.
        parts: in the order of their rows.
        outputs: ``[sum of samples, *shape]`` by name; empty where the batch failed.
    """
    if postprocessor is None or not outputs:
        return Derivation(outputs)
    wanted = [
        any(choice.name in postprocessor.names for choice in part.request.outputs) for part in parts
    ]
    if not any(wanted):
        return Derivation(outputs)
    try:
        made = postprocessor.run(outputs, _rows(parts))
    except Exception:
        log.exception("outputs could not be post-processed")
        return Derivation(
            error=InternalError("the answer could not be post-processed; ask for raw outputs")
        )
    bad = _parts_of(made.bad, parts) if made.bad.any() else ()
    return Derivation({**outputs, **made.outputs}, tuple(i for i in bad if wanted[i]))


def _rows(parts: Sequence[Part]) -> Rows:
    return Rows(
        sum(part.samples for part in parts),
        [part.request.unpadded for part in parts for _ in range(part.samples)],
        [part.request.frame for part in parts for _ in range(part.samples)],
    )


def _parts_of(bad: Array, parts: Sequence[Part]) -> tuple[int, ...]:
    """Indices of the parts that have a bad sample."""
    ends = np.cumsum([part.samples for part in parts])
    return tuple(np.unique(np.searchsorted(ends, np.flatnonzero(bad), side="right")).tolist())


def nonfinite(outputs: Mapping[str, Array], parts: Sequence[Part]) -> tuple[int, ...]:
    """Indices of the parts whose rows hold NaN or infinity in any floating-point output."""
    found, row = [], 0
    for index, part in enumerate(parts):
        rows = slice(row, row + part.samples)
        row += part.samples
        values = [array[rows] for array in outputs.values() if array.dtype.kind == "f"]
        if not all(np.isfinite(value).all() for value in values):
            found.append(index)
    return tuple(found)
