"""``kind = "ctc"``: greedy decoding of connectionist temporal classification.

The best class at each step; repetitions are one, blanks are none (Graves et al., "Connectionist
temporal classification", 2006, 3.2, best path decoding).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edged.postprocess.forms import Derived, OutputForm, Rows, form_of
from edged.postprocess.options import CtcOptions
from edged.postprocess.scores import Array, Flags, Floats, sigmoid

TEXT, CONFIDENCE = "text", "text_confidence"


class Ctc:
    """The text of a recogniser. Implements `Postprocessor`.

    Args:
        options: as declared.
        outputs: of the model.

    Raises:
        ValueError: they do not fit each other.
    """

    def __init__(self, options: CtcOptions, outputs: Mapping[str, OutputForm]) -> None:
        self._output = options.output or next(iter(outputs))
        form = form_of("output", self._output, outputs)
        if len(form.shape) != 2 or form.length_axis == 1:
            raise ValueError(
                f"output {self._output!r} has shape {list(form.shape)} for one sample, but kind = "
                '"ctc" needs [steps, classes]'
            )
        classes = form.shape[1]
        if len(options.alphabet) != classes - 1:
            raise ValueError(
                f"the alphabet has {len(options.alphabet)} entries, but output {self._output!r} "
                f"has {classes} classes: give one for each class but the blank ({classes - 1})"
            )
        if options.blank >= classes:
            raise ValueError(f"blank {options.blank} must be one of the {classes} classes")
        self._activation, self._blank = options.activation, options.blank
        letters = list(options.alphabet)
        letters.insert(options.blank, "")
        self._letters = np.array(letters, object)
        self._padded = form.length_axis == 0
        self.names: tuple[str, ...] = (TEXT, CONFIDENCE)
        self.counted: Mapping[str, str] = {}

    def __repr__(self) -> str:
        return f"<Ctc: {len(self._letters) - 1} letters from {self._output}>"

    def run(self, outputs: Mapping[str, Array], rows: Rows) -> Derived:
        """The text of each sample.

        Returns:
            ``text`` BYTES ``[n]``, and ``text_confidence`` FP32 ``[n]``: the mean probability of
            the steps that gave a character, 0 for an empty text.
        """
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return self._read(outputs[self._output], rows)

    def _read(self, raw: Array, rows: Rows) -> Derived:
        best = raw.argmax(axis=2)  # of NaN where there is one
        peaks = np.take_along_axis(raw, best[:, :, np.newaxis], axis=2)[:, :, 0]
        data = self._data(raw.shape[1], rows)
        bad = np.asarray((~np.isfinite(peaks) & data).any(axis=1))
        kept = (best != self._blank) & data & ~bad[:, np.newaxis]
        kept[:, 1:] &= best[:, 1:] != best[:, :-1]
        sample, step = np.nonzero(kept)
        counts = np.bincount(sample, minlength=rows.count)
        chances = self._chances(raw, peaks, sample, step)
        sums = np.bincount(sample, weights=chances, minlength=rows.count)
        letters, ends = self._letters[best[sample, step]], np.cumsum(counts)
        texts = np.empty(rows.count, object)
        texts[:] = [
            "".join(letters[end - count : end]).encode()
            for end, count in zip(ends, counts, strict=True)
        ]
        means = (sums / np.maximum(counts, 1)).astype(np.float32)
        return Derived({TEXT: texts, CONFIDENCE: means}, bad)

    def _data(self, steps: int, rows: Rows) -> Flags:
        """Which steps are no padding: ``[n or 1, steps]``."""
        if not self._padded or not rows.lengths:
            return np.ones((1, steps), np.bool_)
        return np.arange(steps) < np.asarray(rows.lengths)[:, np.newaxis]

    def _chances(self, raw: Array, peaks: Array, sample: Array, step: Array) -> Floats:
        """Probabilities of the best classes, of the steps that count only."""
        best = peaks[sample, step]
        if self._activation == "softmax":
            shifted = raw[sample, step].astype(np.float64) - best[:, np.newaxis]
            return np.asarray(1.0 / np.exp(shifted).sum(axis=1), np.float32)
        return sigmoid(best) if self._activation == "sigmoid" else np.asarray(best, np.float32)
