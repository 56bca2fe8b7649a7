"""Non-maximum suppression: of boxes that overlap, the best one stays.

The greedy order is kept exactly, without a loop over boxes: in a block of boxes, sorted by their
scores, ``kept = not suppressed by any kept box before`` is iterated until it stands. The first box
is right from the start, and each round makes at least one more of them right, so it ends at the
greedy outcome (Zheng et al., "Enhancing geometric factors in model learning and inference for
object detection and instance segmentation", 2021, cluster NMS).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edged.postprocess.scores import Flags, Indices

Boxes = npt.NDArray[np.float64]

_BLOCK = 128
"""Boxes that are compared with each other at once."""


def iou(one: Boxes, other: Boxes) -> Boxes:
    """Intersection over union of corners ``[a, 4]`` and ``[b, 4]`` (x1, y1, x2, y2): ``[a, b]``.

    A box without an area has an IoU of 0 with all.
    """
    a, b = one.T[:, :, np.newaxis], other.T[:, np.newaxis]
    width = np.minimum(a[2], b[2]) - np.maximum(a[0], b[0])
    height = np.minimum(a[3], b[3]) - np.maximum(a[1], b[1])
    shared = np.maximum(width, 0.0) * np.maximum(height, 0.0)
    union = _area(one)[:, np.newaxis] + _area(other) - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0.0))


def _area(boxes: Boxes) -> Boxes:
    x1, y1, x2, y2 = boxes.T
    return np.asarray(np.maximum(x2 - x1, 0.0) * np.maximum(y2 - y1, 0.0))


def suppress(boxes: Boxes, classes: Indices | None, *, iou_threshold: float, most: int) -> Indices:
    """Which boxes stay.

    Args:
        boxes: corners ``[n, 4]``, the best one first.
        classes: ``[n]``: only boxes of one class suppress each other; None: all do.
        iou_threshold: a box goes if its IoU with a kept one before it is above this.
        most: keep at most so many.

    Returns:
        Their indices, ascending.
    """
    kept = np.empty(0, np.int64)
    for start in range(0, len(boxes), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(boxes)))
        if len(kept):
            over = _overlap(boxes, classes, kept, block, iou_threshold)
            block = block[~over.any(axis=0)]
        over = np.triu(_overlap(boxes, classes, block, block, iou_threshold), 1)
        kept = np.concatenate([kept, block[_greedy(over)]])
        if len(kept) >= most:
            break
    return kept[:most]


def _overlap(
    boxes: Boxes, classes: Indices | None, one: Indices, other: Indices, iou_threshold: float
) -> Flags:
    over = iou(boxes[one], boxes[other]) > iou_threshold
    if classes is not None:
        over &= classes[one][:, np.newaxis] == classes[other]
    return np.asarray(over)


def _greedy(over: Flags) -> Flags:
    """Which of a block stay; ``over[i, j]``: i, before j, would suppress it."""
    stay = ~over.any(axis=0)
    while True:
        again = ~over[stay].any(axis=0)
        if (again == stay).all():
            return np.asarray(stay)
        stay = again
