"""What goes into every kind of post-processing, and what comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from edged.image_frame import ImageFrame
from edged.postprocess.scores import Array, Flags
from edged.value import identity


@dataclass(frozen=True)
class OutputForm:
    """One output of a model.

    Attributes:
        shape: of one sample.
        labels: names of the entries of its last axis, or none.
        length_axis: axis of the sample that has the inputs' variable length, or None.
    """

    shape: tuple[int, ...]
    labels: tuple[str, ...] = ()
    length_axis: int | None = None


@identity
class Rows:
    """What is known of the samples of a batch besides their outputs.

    Attributes:
        count: samples.
        lengths: of each sample without its padding; empty: they are not padded.
        frames: how each sample's image lies in the input, None where it was sent as a tensor;
            empty: none was an image.
    """

    count: int
    lengths: Sequence[int] = ()
    frames: Sequence[ImageFrame | None] = ()


@identity
class Derived:
    """What was made of a batch.

    Attributes:
        outputs: ``[n, ...]`` by name; texts are object arrays of ``bytes`` (UTF-8).
        bad: samples whose outputs hold NaN or infinity, so that nothing can be said: ``[n]``.
    """

    outputs: Mapping[str, Array]
    bad: Flags


class Postprocessor(Protocol):
    """A declaration that fits its model, ready to be run. Any thread may use it."""

    names: tuple[str, ...]
    """Outputs that it makes, in the order of the answer."""
    counted: Mapping[str, str]
    """By output, the one that says how many entries of each sample are filled."""

    def run(self, outputs: Mapping[str, Array], rows: Rows) -> Derived:
        """What is made of a batch.

        Args:
            outputs: the model's, ``[n, *shape]`` by name.
            rows: what else is known of the samples.
        """


def form_of(field: str, name: str, outputs: Mapping[str, OutputForm]) -> OutputForm:
    """An output that a declaration names.

    Raises:
        ValueError: the model has none of this name.
    """
    if name not in outputs:
        raise ValueError(
            f"{field} = {name!r} is no output of the model; it has {', '.join(outputs)}"
        )
    return outputs[name]


def check_labels(labels: Sequence[str], classes: int, output: str) -> None:
    """Whether there is a label for each class, or none at all.

    Raises:
        ValueError: there are more or fewer.
    """
    if labels and len(labels) != classes:
        raise ValueError(
            f"{len(labels)} labels for the {classes} classes of output {output!r}: give one for "
            "each, or none"
        )
