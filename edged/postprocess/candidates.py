"""A detector's outputs -> its boxes above a score, of a whole batch at once.

Only boxes above the threshold are decoded; all others cost one comparison.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edged.postprocess.forms import OutputForm, form_of
from edged.postprocess.nms import Boxes
from edged.postprocess.options import BoxFormat, DetectionOptions
from edged.postprocess.scores import Array, Flags, Floats, Indices, sigmoid, softmax
from edged.value import identity


@identity
class Candidates:
    """Boxes above the threshold, in the order of their samples.

    Attributes:
        sample: which sample each is of: ``[c]``.
        boxes: corners in pixels of the input, ``[c, 4]``.
        scores: ``[c]``.
        classes: ``[c]``.
        bad: samples with a score that is NaN or infinite: ``[n]``.
    """

    sample: Indices
    boxes: Boxes
    scores: Floats
    classes: Indices
    bad: Flags


class BoxReader:
    """Reads one box a row or a column, with the scores beside it or in an output of their own.

    Args:
        options: as declared.
        outputs: of the model.
        size: height and width of the input.

    Attributes:
        classes: that have a score, the background among them.

    Raises:
        ValueError: they do not fit each other.
    """

    def __init__(
        self,
        options: DetectionOptions,
        outputs: Mapping[str, OutputForm],
        size: tuple[int, int],
    ) -> None:
        self._options, self._size = options, size
        count, fields = self._shape("boxes", options.boxes, outputs)
        first = 4 + options.objectness
        self.classes = fields - first
        if options.scores:
            scores, self.classes = self._shape("scores", options.scores, outputs)
            if (fields, scores) != (4, count) or options.objectness:
                raise ValueError(
                    f"boxes {options.boxes!r} has {count} boxes of {fields} entries and scores "
                    f"{options.scores!r} has {scores}; with scores of their own, 4 entries a box, "
                    "as many scores as boxes and no objectness are needed"
                )
        if self.classes < 1:
            raise ValueError(
                f"output {options.boxes!r} has {fields} entries for each box, but {first} and a "
                "score for each class are needed; name the output that has them: scores"
            )
        if options.background is not None and options.background >= self.classes:
            raise ValueError(
                f"background {options.background} must be one of the {self.classes} classes"
            )
        if options.offsets:
            raise ValueError('offsets are for layout = "centerface" only')

    def _shape(self, field: str, name: str, outputs: Mapping[str, OutputForm]) -> tuple[int, int]:
        """Boxes, and entries of each."""
        form = form_of(field, name, outputs)
        shape = form.shape if len(form.shape) != 1 or field == "boxes" else (*form.shape, 1)
        if len(shape) != 2 or form.length_axis is not None:
            raise ValueError(
                f"output {name!r} has shape {list(form.shape)} for one sample, but {field} of "
                f"layout {self._options.layout!r} needs two axes"
            )
        if self._options.layout == "columns" and len(form.shape) == 2:
            return shape[1], shape[0]
        return shape[0], shape[1]

    def read(self, outputs: Mapping[str, Array]) -> Candidates:
        """The boxes of a batch."""
        options = self._options
        values = self._by_field(outputs[options.boxes])
        scores = self._by_field(outputs[options.scores]) if options.scores else values[:, 4:]
        objectness = None
        if options.objectness:
            objectness, scores = self._probability(scores[:, 0]), scores[:, 1:]
        scores, bad = self._activated(scores)
        if options.background is not None:
            scores = np.delete(scores, options.background, axis=1)
        best = scores.max(axis=1) if scores.shape[1] > 1 else scores[:, 0]
        best = self._finished(best, objectness)
        bad |= ~(best.max(axis=1) < np.inf)  # NaN is not below anything
        sample, anchor = np.nonzero(best >= options.score_threshold)
        classes = scores[sample, :, anchor].argmax(axis=1)
        if options.background is not None:
            classes += classes >= options.background
        boxes = corners(values[sample, :4, anchor].astype(np.float64), options.box_format)
        if options.normalised:
            height, width = self._size
            boxes *= (width, height, width, height)
        return Candidates(sample, boxes, best[sample, anchor], classes, bad)

    def _by_field(self, values: Array) -> Array:
        """``[n, entries, boxes]``, a view."""
        if values.ndim == 2:
            return values[:, np.newaxis]
        return values if self._options.layout == "columns" else values.transpose(0, 2, 1)

    def _activated(self, scores: Array) -> tuple[Array, Flags]:
        """Probabilities where the classes depend on each other, and samples without any."""
        if self._options.activation != "softmax":
            return scores, np.zeros(len(scores), np.bool_)
        peaks = scores.max(axis=1)
        bad = ~np.isfinite(peaks).all(axis=1)
        if bad.any():
            scores = np.where(bad[:, np.newaxis, np.newaxis], np.zeros_like(scores), scores)
        return softmax(scores.transpose(0, 2, 1)).transpose(0, 2, 1), bad

    def _finished(self, best: Array, objectness: Floats | None) -> Floats:
        """The scores as they are compared and answered; the sigmoid keeps their order."""
        found = self._probability(best)
        return found if objectness is None else found * objectness

    def _probability(self, values: Array) -> Floats:
        if self._options.activation == "sigmoid":
            values = np.where(values == np.inf, np.nan, values)  # what overflowed tells nothing
            return sigmoid(values)
        return np.asarray(values, np.float32)


class MapReader:
    """Reads CenterFace's maps: a score, a size and an offset for each cell of a grid.

    ``centre = (cell + offset + 0.5) * stride``, ``size = exp(s) * stride``; the first of the two
    maps of sizes and offsets is the vertical one (Xu et al., "CenterFace: joint face detection and
    alignment using face as point", 2019, 3.2, and the authors' code).

    Args:
        options: as declared.
        outputs: of the model.
        size: height and width of the input.

    Raises:
        ValueError: they do not fit each other.
    """

    classes = 1

    def __init__(
        self,
        options: DetectionOptions,
        outputs: Mapping[str, OutputForm],
        size: tuple[int, int],
    ) -> None:
        self._options = options
        shapes = {
            field: form_of(field, getattr(options, field), outputs).shape
            for field in ("scores", "boxes", "offsets")
        }
        grid = shapes["scores"][-2:]
        if len(grid) != 2 or shapes != {
            "scores": (1, *grid), "boxes": (2, *grid), "offsets": (2, *grid)
        }:  # fmt: skip
            raise ValueError(
                'layout = "centerface" needs scores [1, h, w], boxes and offsets [2, h, w], not '
                + ", ".join(f"{field} {list(shape)}" for field, shape in shapes.items())
            )
        if options.objectness or options.background is not None:
            raise ValueError('layout = "centerface" has no objectness and no background')
        self._stride = (size[0] / grid[0], size[1] / grid[1])

    def read(self, outputs: Mapping[str, Array]) -> Candidates:
        """The boxes of a batch."""
        options = self._options
        scores = outputs[options.scores][:, 0]
        if options.activation == "sigmoid":
            scores = sigmoid(np.where(scores == np.inf, np.nan, scores))
        bad = ~(scores.max(axis=(1, 2)) < np.inf)
        sample, row, column = np.nonzero(scores >= options.score_threshold)
        sizes, offsets = (
            outputs[name][sample, :, row, column].astype(np.float64)
            for name in (options.boxes, options.offsets)
        )
        cells = np.stack([row, column], axis=1)
        centres = (cells + offsets + 0.5) * self._stride
        halves = np.exp(sizes) * self._stride / 2.0
        low, high = centres - halves, centres + halves
        boxes = np.concatenate([low[:, ::-1], high[:, ::-1]], axis=1)
        found = np.asarray(scores[sample, row, column], np.float32)
        return Candidates(sample, boxes, found, np.zeros(len(sample), np.int64), bad)


def corners(boxes: Boxes, form: BoxFormat) -> Boxes:
    """Boxes ``[c, 4]`` of a format as x1, y1, x2, y2."""
    if form == "xyxy":
        return boxes
    if form == "yxyx":
        return boxes[:, [1, 0, 3, 2]]
    first, size = boxes[:, :2], boxes[:, 2:]
    low = first if form == "xywh" else first - size / 2.0
    return np.concatenate([low, low + size], axis=1)
