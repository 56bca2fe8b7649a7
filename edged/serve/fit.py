"""Whether the tensors of a request fit the model that it asks. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from edged import v2
from edged.errors import BadDatatypeError, BadShapeError, BadTensorError
from edged.recipe import InputSpec, OutputSpec
from edged.serve.request import Array, OutputChoice


def describe(spec: InputSpec) -> str:
    """Name, datatype and shape, as error messages say them."""
    sizes = ",".join(map(str, ("n", *spec.shape)))
    return f"{spec.name} {spec.datatype} [{sizes}]"


def inputs_of(body: v2.InferRequest, specs: Sequence[InputSpec]) -> tuple[dict[str, Array], int]:
    """Every input by name, and how many samples they hold.

    Raises:
        BadTensorError: an input is missing, unknown, or not of the model's datatype or shape.
    """
    given = {tensor.name: tensor for tensor in body.inputs}
    names = {spec.name for spec in specs}
    if given.keys() != names:
        odd = ", ".join(v2.show(name) for name in sorted(given.keys() ^ names)[:8])
        raise BadTensorError(
            f"inputs differ from the model's at {odd}; it takes {', '.join(map(describe, specs))}"
        )
    for spec in specs:
        tensor = given[spec.name]
        if tensor.datatype != spec.datatype:
            raise BadDatatypeError(
                f"input {spec.name!r} has datatype {tensor.datatype}, but this model takes "
                f"{describe(spec)}"
            )
        if tensor.shape[1:] != spec.shape or not tensor.shape:
            raise BadShapeError(
                f"input {spec.name!r} has shape {list(tensor.shape)}, but this model takes "
                f"{describe(spec)}, n samples from 1 on"
            )
    counts = {spec.name: given[spec.name].shape[0] for spec in specs}
    samples = counts[specs[0].name]
    if len(set(counts.values())) > 1:
        raise BadShapeError(f"inputs hold different numbers of samples: {v2.show(counts)}")
    return {name: given[name].data for name in counts}, samples


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
