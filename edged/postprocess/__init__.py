"""What a model's outputs mean: classes with labels, boxes, text.

A recipe declares it (``[postprocess]``), its engine's manifest carries it, and serving runs it over
whole batches. Pure functions of arrays; one file for each kind.
"""

from __future__ import annotations

from collections.abc import Mapping

from edged.postprocess.classes import Classes
from edged.postprocess.ctc import Ctc
from edged.postprocess.detection import Detection
from edged.postprocess.forms import Derived, OutputForm, Postprocessor, Rows
from edged.postprocess.options import ClassesOptions, CtcOptions, Options

__all__ = ["Derived", "Options", "OutputForm", "Postprocessor", "Rows", "prepare"]


def prepare(
    options: Options, outputs: Mapping[str, OutputForm], size: tuple[int, int] | None
) -> Postprocessor:
    """What runs a declaration.

    Args:
        options: as declared.
        outputs: of the model, by name.
        size: height and width of the input that takes images, or None.

    Raises:
        ValueError: the declaration does not fit the model; the message says how.
    """
    made: Postprocessor
    if isinstance(options, ClassesOptions):
        made = Classes(options, outputs)
    elif isinstance(options, CtcOptions):
        made = Ctc(options, outputs)
    else:
        made = Detection(options, outputs, size)
    taken = [name for name in made.names if name in outputs]
    if taken:
        raise ValueError(
            f"the model has an output {taken[0]!r} of its own, which is what kind = "
            f'"{options.kind}" makes; rename the model\'s'
        )
    return made
