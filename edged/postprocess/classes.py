"""``kind = "classes"``: the most likely classes of each sample, with labels and scores."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from edged.postprocess.forms import Derived, OutputForm, Rows, check_labels, form_of
from edged.postprocess.options import ClassesOptions
from edged.postprocess.scores import Array, activated, byte_labels, largest, usable

CLASSES, SCORES, LABELS = "top_classes", "top_scores", "top_labels"


class Classes:
    """The best classes of a classifier. Implements `Postprocessor`.

    Args:
        options: as declared.
        outputs: of the model.

    Raises:
        ValueError: they do not fit each other.
    """

    def __init__(self, options: ClassesOptions, outputs: Mapping[str, OutputForm]) -> None:
        self._output = options.output or next(iter(outputs))
        form = form_of("output", self._output, outputs)
        entries = math.prod(form.shape)
        if form.length_axis is not None or not form.shape or entries != form.shape[-1]:
            raise ValueError(
                f"output {self._output!r} has shape {list(form.shape)} for one sample, but kind = "
                '"classes" needs one axis, with an entry for each class'
            )
        labels = options.labels or form.labels
        check_labels(labels, entries, self._output)
        self._k = min(options.k, entries)
        self._activation = options.activation
        self._labels = byte_labels(labels) if labels else None
        self.names: tuple[str, ...] = (LABELS, CLASSES, SCORES) if labels else (CLASSES, SCORES)
        self.counted: Mapping[str, str] = {}

    def __repr__(self) -> str:
        return f"<Classes: best {self._k} of {self._output}>"

    def run(self, outputs: Mapping[str, Array], rows: Rows) -> Derived:
        """The best classes of each sample.

        Returns:
            ``top_classes`` INT64 and ``top_scores`` FP32 ``[n, k]``, the largest first and equal
            ones by their index; with labels ``top_labels`` likewise.
        """
        raw = outputs[self._output].reshape(rows.count, -1)
        bad = ~usable(raw)
        if bad.any():
            raw = np.where(bad[:, np.newaxis], np.zeros_like(raw), raw)
        scores = activated(raw, self._activation)
        index = largest(scores, self._k)
        found: dict[str, Array] = {} if self._labels is None else {LABELS: self._labels[index]}
        found[CLASSES] = index
        found[SCORES] = np.take_along_axis(scores, index, axis=1)
        return Derived(found, bad)
