"""Which outputs a request asks for, and in which form. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from edged import v2
from edged.errors import BadTensorError
from edged.recipe import OutputSpec
from edged.serve.request import OutputChoice


def choices_of(
    body: v2.InferRequest, specs: Sequence[OutputSpec], *, binary: bool
) -> tuple[OutputChoice, ...]:
    """Which outputs to answer, and in which form.

    Args:
        body: the request.
        specs: the model's outputs.
        binary: whether outputs that do not say come in binary form.

    Raises:
        BadTensorError: it asks for an output that the model does not have.
    """
    if body.binary_output is not None:
        binary = body.binary_output
    return _chosen(body.outputs, tuple([spec.name for spec in specs]), binary)


@lru_cache(256)
def _chosen(
    asked: tuple[v2.RequestedOutput, ...],
    names: tuple[str, ...],
    binary: bool,  # noqa: FBT001  # a key of the cache
) -> tuple[OutputChoice, ...]:
    unknown = [output.name for output in asked if output.name not in names]
    if unknown:
        raise BadTensorError(
            f"the model has no output {v2.show(unknown[0])}; it has {', '.join(names)}"
        )
    return tuple(
        OutputChoice(
            output.name, binary if output.binary is None else output.binary, output.classes
        )
        for output in asked or tuple(v2.RequestedOutput(name) for name in names)
    )
