"""Post-processed outputs as people and reports read them.

Whether outputs are post-processed ones is told by their names (docs/protocol.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from edged.postprocess import classes, ctc, detection
from edged.postprocess.scores import Array
from edged.value import value

Meaning = Literal["classes", "detections", "texts"]

_NAMES: dict[Meaning, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "classes": ((classes.CLASSES, classes.SCORES), (classes.LABELS,)),
    "detections": (
        (detection.COUNT, detection.BOXES, detection.SCORES, detection.CLASSES),
        (detection.LABELS,),
    ),
    "texts": ((ctc.TEXT, ctc.CONFIDENCE), ()),
}
"""Outputs that there must be and may be."""
_DIGITS = 6


@value
class Said:
    """What an answer says of one sample.

    Attributes:
        gist: what makes it another answer than the one before.
        classes: what may be counted: the best class, or each one that was detected, as label or
            number; none of a text.
        confidence: of the least certain of them; None where nothing was found.
    """

    gist: tuple[str, ...]
    classes: tuple[str, ...]
    confidence: float | None


def meaning_of(outputs: Mapping[str, Array]) -> Meaning | None:
    """Which kind of post-processing outputs come from; None: they are a model's own."""
    for meaning, (needed, _) in _NAMES.items():
        if all(name in outputs for name in needed):
            return meaning
    return None


def only_derived(outputs: Mapping[str, Array]) -> Mapping[str, Array]:
    """Of outputs those that were made by post-processing, or all where none was."""
    meaning = meaning_of(outputs)
    if meaning is None:
        return outputs
    needed, more = _NAMES[meaning]
    return {name: outputs[name] for name in (*needed, *more) if name in outputs}


def documents(outputs: Mapping[str, Array]) -> list[Any]:
    """What is to be read in each sample, ready for JSON.

    Args:
        outputs: of an answer that has a meaning.

    Returns:
        Of a classifier a list of ``label``, ``class`` and ``score``, the best one first; of a
        detector likewise with ``box``; of a recogniser ``text`` and ``confidence``.
    """
    meaning = meaning_of(outputs)
    if meaning == "texts":
        pairs = zip(outputs[ctc.TEXT], outputs[ctc.CONFIDENCE], strict=True)
        return [{"text": _text(text), "confidence": _short(score)} for text, score in pairs]
    if meaning == "classes":
        count, k = outputs[classes.CLASSES].shape
        return [[_class(outputs, row, at) for at in range(k)] for row in range(count)]
    counts = outputs[detection.COUNT].tolist()
    return [[_box(outputs, row, at) for at in range(count)] for row, count in enumerate(counts)]


def said(outputs: Mapping[str, Array]) -> list[Said]:
    """What an answer says of each sample; ``outputs`` have a meaning."""
    meaning = meaning_of(outputs)
    if meaning == "texts":
        return [
            Said((item["text"],), (), item["confidence"] if item["text"] else None)
            for item in documents(outputs)
        ]
    if meaning == "classes":
        best = _names(outputs, classes.LABELS, classes.CLASSES, 1)
        scores = outputs[classes.SCORES][:, 0]
        return [Said(name, name, _short(s)) for name, s in zip(best, scores, strict=True)]
    found = []
    names = _names(outputs, detection.LABELS, detection.CLASSES, None)
    for row, count in enumerate(outputs[detection.COUNT].tolist()):
        seen = names[row][:count]
        scores = outputs[detection.SCORES][row, :count]
        found.append(Said(tuple(sorted(seen)), seen, _short(scores.min()) if count else None))
    return found


def _names(
    outputs: Mapping[str, Array], labels: str, numbers: str, most: int | None
) -> list[tuple[str, ...]]:
    if labels in outputs:
        return [tuple(map(_text, row)) for row in outputs[labels][:, :most]]
    return [tuple(map(str, row)) for row in outputs[numbers][:, :most].tolist()]


def _class(outputs: Mapping[str, Array], row: int, at: int) -> dict[str, Any]:
    label = outputs.get(classes.LABELS)
    named = {} if label is None else {"label": _text(label[row, at])}
    score = _short(outputs[classes.SCORES][row, at])
    return {**named, "class": int(outputs[classes.CLASSES][row, at]), "score": score}


def _box(outputs: Mapping[str, Array], row: int, at: int) -> dict[str, Any]:
    label = outputs.get(detection.LABELS)
    named = {} if label is None else {"label": _text(label[row, at])}
    return {
        **named,
        "class": int(outputs[detection.CLASSES][row, at]),
        "score": _short(outputs[detection.SCORES][row, at]),
        "box": [round(float(edge), 2) for edge in outputs[detection.BOXES][row, at]],
    }


def _text(item: Any) -> str:
    return bytes(item).decode("utf-8", "replace")


def _short(score: Any) -> float | None:
    """Enough digits to tell scores apart; None for what JSON cannot carry."""
    return round(float(score), _DIGITS) if np.isfinite(score) else None
