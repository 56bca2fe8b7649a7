"""The inputs of a request against those of its model: names, datatypes, shapes and lengths. Pure.

An input may have one axis of variable length (`edged.recipe.LengthSpec`). All such inputs of a
request have the same length, and all of its samples have it; the device pads them to the smallest
bucket that holds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edged import v2
from edged.errors import BadDatatypeError, BadShapeError, BadTensorError
from edged.recipe import InputSpec
from edged.serve.request import Array
from edged.value import value


@value
class Inputs:
    """What a request brings.

    Attributes:
        tensors: every input by name, ``[samples, *shape]`` as it was sent.
        samples: in each of them.
        length: the bucket that holds them, 0 where the length is fixed.
        unpadded: the length that they have, likewise.
    """

    tensors: Mapping[str, Array]
    samples: int
    length: int = 0
    unpadded: int = 0


def describe(spec: InputSpec) -> str:
    """An input as a person would write it: ``tokens INT64 [n,1..512]``."""
    sizes = ["n", *map(str, spec.shape)]
    if spec.length is not None:
        sizes[spec.length.axis + 1] = f"1..{spec.max_length}"
    return f"{spec.name} {spec.datatype} [{','.join(sizes)}]"


def check_inputs(body: v2.InferRequest, specs: Sequence[InputSpec]) -> Inputs:
    """Every input of a request, sound.

    Raises:
        BadTensorError: an input is missing or unknown.
        BadDatatypeError: it has another datatype than the model's.
        BadShapeError: it has another shape, is too long, or differs from the others in its number
            of samples or its length.
    """
    given = {tensor.name: tensor for tensor in body.inputs}
    names = {spec.name for spec in specs}
    if given.keys() != names:
        odd = ", ".join(v2.show(name) for name in sorted(given.keys() ^ names)[:8])
        raise BadTensorError(
            f"inputs differ from the model's at {odd}; it takes {', '.join(map(describe, specs))}"
        )
    lengths = {}
    for spec in specs:
        tensor = given[spec.name]
        if tensor.datatype != spec.datatype:
            raise BadDatatypeError(
                f"input {spec.name!r} has datatype {tensor.datatype}, but this model takes "
                f"{describe(spec)}"
            )
        length = _check_shape(tensor.shape, spec)
        if length:
            lengths[spec.name] = length
    counts = {spec.name: given[spec.name].shape[0] for spec in specs}
    for what, numbers in (("numbers of samples", counts), ("lengths", lengths)):
        if len(set(numbers.values())) > 1:
            raise BadShapeError(f"inputs hold different {what}: {v2.show(numbers)}")
    unpadded = next(iter(lengths.values()), 0)
    bucket = next((spec.bucket(unpadded) for spec in specs if spec.length is not None), 0)
    return Inputs(
        {name: given[name].data for name in counts}, counts[specs[0].name], bucket, unpadded
    )


def _check_shape(shape: tuple[int, ...], spec: InputSpec) -> int:
    """The length of an input, 0 where it is fixed."""
    wanted, length = list(spec.shape), 0
    if spec.length is not None and len(shape) == len(wanted) + 1:
        length = shape[spec.length.axis + 1]
        wanted[spec.length.axis] = length
    if not shape or list(shape[1:]) != wanted:
        raise BadShapeError(
            f"input {spec.name!r} has shape {list(shape)}, but this model takes "
            f"{describe(spec)}, n samples from 1 on"
        )
    if spec.length is not None and not 1 <= length <= spec.max_length:
        raise BadShapeError(
            f"input {spec.name!r} has length {length}, but this model takes 1 to "
            f"{spec.max_length} (max_length): {describe(spec)}; cut it, or send it in pieces"
        )
    return length
