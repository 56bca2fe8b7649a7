"""Which outputs a request asks for, and in which form. Pure.

A model with post-processing has more outputs than its engine gives; without a word of the request
these are the answer, and the engine's own ones are had by their names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from edged import v2
from edged.errors import BadTensorError
from edged.postprocess import Postprocessor
from edged.recipe import OutputSpec
from edged.serve.request import OutputChoice

_NOTHING_COUNTED: Mapping[str, str] = {}


def choices_of(
    body: v2.InferRequest,
    specs: Sequence[OutputSpec],
    postprocessor: Postprocessor | None = None,
    *,
    binary: bool,
) -> tuple[OutputChoice, ...]:
    """Which outputs to answer, and in which form.

    Args:
        body: the request.
        specs: the model's outputs.
        postprocessor: what makes further ones of them, or None.
        binary: whether outputs that do not say come in binary form.

    Raises:
        BadTensorError: it asks for an output that the model does not have, or for a classification
            of one that was made by post-processing.
    """
    if body.binary_output is not None:
        binary = body.binary_output
    derived: tuple[str, ...] = ()
    counted: Mapping[str, str] = _NOTHING_COUNTED
    if postprocessor is not None:
        derived, counted = postprocessor.names, postprocessor.counted
    choices = _chosen(body.outputs, tuple([spec.name for spec in specs]), derived, binary)
    if not counted:
        return choices
    return tuple([_counted(choice, counted) for choice in choices])


def _counted(choice: OutputChoice, counted: Mapping[str, str]) -> OutputChoice:
    return OutputChoice(choice.name, choice.binary, choice.classes, counted.get(choice.name, ""))


@lru_cache(256)
def _chosen(
    asked: tuple[v2.RequestedOutput, ...],
    names: tuple[str, ...],
    derived: tuple[str, ...],
    binary: bool,  # noqa: FBT001  # a key of the cache
) -> tuple[OutputChoice, ...]:
    for output in asked:
        if output.name not in names and output.name not in derived:
            raise BadTensorError(
                f"the model has no output {v2.show(output.name)}; it has "
                f"{', '.join((*names, *derived))}"
            )
        if output.classes and output.name in derived:
            raise BadTensorError(
                f"output {v2.show(output.name)} is post-processed already; classification is for "
                f"{', '.join(names)}"
            )
    return tuple(
        OutputChoice(
            output.name, binary if output.binary is None else output.binary, output.classes
        )
        for output in asked or tuple(v2.RequestedOutput(name) for name in derived or names)
    )
