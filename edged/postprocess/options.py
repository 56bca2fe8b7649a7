"""``[postprocess]`` of a recipe: what is made of a model's outputs before they are answered."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from edged.postprocess.scores import Activation
from edged.settings_section import Section


class ClassesOptions(Section):
    """``kind = "classes"``: the most likely classes of each sample."""

    kind: Literal["classes"]
    output: str = ""
    """The model's output with the scores; "": its first one."""
    activation: Activation = "none"
    """What makes probabilities of them."""
    k: Annotated[int, Field(ge=1)] = 5
    """Classes of each sample, cut to as many as there are."""
    labels: tuple[str, ...] = ()
    """Names of the classes; empty: those of the output."""
    labels_file: str = ""
    """File beside the recipe with a label a line, instead."""


BoxFormat = Literal["xyxy", "xywh", "cxcywh", "yxyx"]
"""Corners; a corner, width and height; the centre, width and height; corners as TensorFlow has
them."""

Layout = Literal["rows", "columns", "centerface"]


class DetectionOptions(Section):
    """``kind = "detection"``: boxes above a score, without those that overlap a better one."""

    kind: Literal["detection"]
    layout: Layout = "rows"
    """``rows``: a row a box; ``columns``: a column a box; ``centerface``: maps of a score, sizes
    and offsets."""
    boxes: str
    """Output with the boxes; the scores follow in it where ``scores`` is not given."""
    scores: str = ""
    """Output with a score for each box and class."""
    offsets: str = ""
    """Output with the offsets, for ``centerface`` only."""
    box_format: BoxFormat = "xyxy"
    normalised: bool = False
    """Whether boxes are in fractions of the input instead of its pixels."""
    objectness: bool = False
    """Whether a score of there being anything stands before the classes', to be multiplied."""
    activation: Activation = "none"
    """What makes probabilities of the scores."""
    background: Annotated[int, Field(ge=0)] | None = None
    """Class that means nothing."""
    score_threshold: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Boxes below it are left out."""
    iou_threshold: Annotated[float, Field(ge=0, le=1)] = 0.45
    """A box is left out if its IoU with a better one is above it; 1 keeps all."""
    class_aware: bool = True
    """Whether boxes of different classes may overlap."""
    candidates: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """At most so many best boxes of a sample are looked at for overlaps."""
    max_detections: Annotated[int, Field(ge=1, le=10_000)] = 100
    """Boxes of one sample that are answered at most."""
    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    """Height and width of the input; None: those of the one that takes images."""
    labels: tuple[str, ...] = ()
    labels_file: str = ""
    """File beside the recipe with a label a line, instead."""


class CtcOptions(Section):
    """``kind = "ctc"``: the text that a recogniser reads, by its best class at each step."""

    kind: Literal["ctc"]
    output: str = ""
    """The model's output, ``[steps, classes]``; "": its first one."""
    activation: Activation = "none"
    """What makes probabilities of it."""
    blank: Annotated[int, Field(ge=0)] = 0
    """Class that means no character."""
    alphabet: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """What the other classes stand for, in their order."""
    alphabet_file: str = ""
    """File beside the recipe with one of them a line, instead; a line of one space is a space."""


Options: TypeAlias = Annotated[
    ClassesOptions | DetectionOptions | CtcOptions, Field(discriminator="kind")
]

LISTS = {"labels_file": "labels", "alphabet_file": "alphabet"}
"""Fields that name a file of lines, and where the lines go."""
