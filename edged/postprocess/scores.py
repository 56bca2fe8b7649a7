"""Scores of classes: probabilities, and the largest of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

Activation = Literal["none", "softmax", "sigmoid"]
"""What makes probabilities of a model's outputs; ``none`` where they are probabilities already."""

_LOW = 0xFFFFFFFF


def activated(rows: Array, activation: Activation) -> Floats:
    """Probabilities of the entries of the last axis.

    Args:
        rows: ``[..., classes]``; each row has a finite largest entry (see `usable`).
        activation: what makes probabilities of them.

    Returns:
        float32 of the same shape.
    """
    if activation == "softmax":
        return softmax(rows)
    return sigmoid(rows) if activation == "sigmoid" else np.asarray(rows, np.float32)


def usable(rows: Array) -> Flags:
    """Whether each row of the last axis tells its classes apart: its largest entry is finite.

    An entry of -infinity has the probability 0. NaN, which is the largest wherever there is one,
    and +infinity tell nothing: an overflow leaves them behind.

    Args:
        rows: ``[..., classes]``.

    Returns:
        ``[...]``.
    """
    return np.asarray(np.isfinite(rows.max(axis=-1)), np.bool_)


def softmax(rows: Array) -> Floats:
    """``exp(x - max) / sum(exp(x - max))`` over the last axis, for a finite largest entry."""
    wide = np.asarray(rows, np.float64)
    with np.errstate(over="ignore", under="ignore"):  # to -infinity and 0, as it should be
        powers = np.exp(wide - wide.max(axis=-1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)


def sigmoid(values: Array) -> Floats:
    """``1 / (1 + exp(-x))``, by the hyperbolic tangent, which does not overflow."""
    half = np.tanh(np.asarray(values, np.float32) * np.float32(0.5))
    return np.asarray(half * np.float32(0.5) + np.float32(0.5), np.float32)


def largest(rows: Floats, k: int) -> Indices:
    """Indices of the largest entries of each row, descending; equal ones by their index.

    Value and index make one whole number that no two entries share, so that a partial sort has one
    outcome only: the bits of a float32 order as those of an integer do (IEEE 754, 5.10), but for
    negative ones, which are turned round.

    Args:
        rows: ``[n, entries]`` without NaN.
        k: entries of each row, at most as many as there are.

    Returns:
        ``[n, k]``.
    """
    entries = rows.shape[1]
    bits = np.ascontiguousarray(rows + np.float32(0.0)).view(np.int32)  # -0 becomes 0
    ordered = np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits).astype(np.int64)
    keys = (ordered << 32) | np.arange(entries - 1, -1, -1)
    if k < entries:
        keys = np.partition(keys, entries - k, axis=1)[:, entries - k :]
    best = np.sort(keys, axis=1)[:, ::-1]
    return np.asarray(entries - 1 - (best & _LOW), np.int64)


def byte_labels(labels: Sequence[str]) -> Array:
    """Labels as an object array of ``bytes`` (UTF-8), as V2's BYTES tensors have them."""
    made = np.empty(len(labels), object)
    made[:] = [label.encode() for label in labels]
    return made
