"""``kind = "detection"``: boxes with scores and classes, the overlapping ones left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from edged.image_frame import ImageFrame
from edged.postprocess.candidates import BoxReader, Candidates, MapReader
from edged.postprocess.forms import Derived, OutputForm, Rows, check_labels
from edged.postprocess.nms import Boxes, suppress
from edged.postprocess.options import DetectionOptions
from edged.postprocess.scores import Array, Indices, byte_labels

BOXES, SCORES = "detection_boxes", "detection_scores"
CLASSES, LABELS = "detection_classes", "detection_labels"
COUNT = "num_detections"


class Detection:
    """The boxes of a detector. Implements `Postprocessor`.

    Args:
        options: as declared.
        outputs: of the model.
        size: height and width of the input that takes images, or None.

    Raises:
        ValueError: they do not fit each other.
    """

    def __init__(
        self,
        options: DetectionOptions,
        outputs: Mapping[str, OutputForm],
        size: tuple[int, int] | None,
    ) -> None:
        size = options.size or size
        if size is None:
            raise ValueError("no input of the model takes images: give size = [height, width]")
        reader = MapReader if options.layout == "centerface" else BoxReader
        self._reader = reader(options, outputs, size)
        self._options, self._size = options, size
        check_labels(options.labels, self._reader.classes, options.scores or options.boxes)
        self._labels = byte_labels(options.labels) if options.labels else None
        self.names: tuple[str, ...] = (COUNT, BOXES, SCORES, CLASSES)
        if self._labels is not None:
            self.names += (LABELS,)
        self.counted: Mapping[str, str] = {name: COUNT for name in self.names if name != COUNT}

    def __repr__(self) -> str:
        return f"<Detection: {self._options.layout} of {self._options.boxes}>"

    def run(self, outputs: Mapping[str, Array], rows: Rows) -> Derived:
        """The boxes of each sample, the best one first.

        Returns:
            ``num_detections`` INT64 ``[n]``, and ``[n, max_detections]`` that is filled up so far,
            with zeros (or empty labels) behind: ``detection_boxes`` FP32 ``[..., 4]`` as x1, y1,
            x2, y2, ``detection_scores`` FP32, ``detection_classes`` INT64, and with labels
            ``detection_labels``. Boxes are in pixels of the image that was sent, or of the input
            where it was a tensor, and cut at its edges.
        """
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            found = self._reader.read(outputs)
        bad = found.bad
        bad[found.sample[~np.isfinite(found.boxes).all(axis=1)]] = True
        kept = self._kept(found, bad)
        boxes = _placed(found.boxes[kept], found.sample[kept], rows, self._size)
        return Derived(self._filled(found, kept, boxes, rows.count), bad)

    def _kept(self, found: Candidates, bad: Array) -> Indices:
        """Indices of the candidates that stay, by sample and then by score."""
        options = self._options
        # Equal scores keep the order in which the model has the boxes.
        order = np.lexsort((-found.scores, found.sample))
        order = order[~bad[found.sample[order]]]
        kept = [np.empty(0, np.int64)]
        starts = np.searchsorted(found.sample[order], np.arange(len(bad) + 1))
        for start, end in pairwise(starts.tolist()):
            mine = order[start : min(end, start + options.candidates)]
            if options.iou_threshold < 1.0:
                classes = found.classes[mine] if options.class_aware else None
                stay = suppress(
                    found.boxes[mine],
                    classes,
                    iou_threshold=options.iou_threshold,
                    most=options.max_detections,
                )
                mine = mine[stay]
            kept.append(mine[: options.max_detections])
        return np.concatenate(kept)

    def _filled(
        self, found: Candidates, kept: Indices, boxes: Boxes, count: int
    ) -> dict[str, Array]:
        most = self._options.max_detections
        sample, classes = found.sample[kept], found.classes[kept]
        counts = np.bincount(sample, minlength=count).astype(np.int64)
        place = np.arange(len(kept)) - np.repeat(np.cumsum(counts) - counts, counts)
        filled: dict[str, Array] = {
            COUNT: counts,
            BOXES: np.zeros((count, most, 4), np.float32),
            SCORES: np.zeros((count, most), np.float32),
            CLASSES: np.zeros((count, most), np.int64),
        }
        filled[BOXES][sample, place] = boxes
        filled[SCORES][sample, place] = found.scores[kept]
        filled[CLASSES][sample, place] = classes
        if self._labels is not None:
            filled[LABELS] = np.full((count, most), b"", object)
            filled[LABELS][sample, place] = self._labels[classes]
        return filled


def _placed(boxes: Boxes, sample: Indices, rows: Rows, size: tuple[int, int]) -> Boxes:
    """Boxes in pixels of the source images, cut at their edges."""
    if any(frame is not None for frame in rows.frames):
        moves, scales, limits = _geometry(rows.frames, size)
        boxes = np.clip((boxes - moves[sample]) / scales[sample], 0.0, limits[sample])
        return np.asarray(boxes)
    height, width = size
    return np.asarray(np.clip(boxes, 0.0, (width, height, width, height)))


def _geometry(
    frames: Sequence[ImageFrame | None], size: tuple[int, int]
) -> tuple[Boxes, Boxes, Boxes]:
    """What is taken off, divided by, and the most, for each sample: ``[n, 4]``."""
    height, width = size
    plain = ImageFrame(width, height, 1.0, 1.0)
    each = [frame or plain for frame in frames]
    moves = np.array([(f.left, f.top) * 2 for f in each], np.float64)
    scales = np.array([(f.scale_x, f.scale_y) * 2 for f in each])
    return moves, scales, np.array([(f.width, f.height) * 2 for f in each], np.float64)
