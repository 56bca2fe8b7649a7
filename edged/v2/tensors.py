"""What a V2 body holds: datatypes, tensors, requests, answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

import numpy as np
import numpy.typing as npt

from edged.errors import BadDatatypeError
from edged.value import identity, value

Array = npt.NDArray[Any]
Dtype = np.dtype[Any]

DATATYPES: dict[str, Dtype] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"), "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"), "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"), "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"), "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"),
}  # fmt: skip
"""V2 datatypes of fixed size and what they are in numpy."""
BYTES = "BYTES"
"""Strings: in answers only, as an object array of ``bytes``."""

_NAMES = {dtype: name for name, dtype in DATATYPES.items()}


@identity
class Tensor:
    """One named tensor.

    Attributes:
        name: its name.
        data: its entries in its shape; a read-only view of the body where that was parsed.
            Strings (`BYTES`) are an object array of ``bytes``.
        binary: raw bytes after the header (True) or a list in the header (False).
    """

    name: str
    data: Array
    binary: bool = True

    @property
    def datatype(self) -> str:
        """The V2 datatype; raises BadDatatypeError if V2 has none for the array."""
        return datatype_of(self.data.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """The whole shape, batch axis included."""
        return self.data.shape


@value
class RequestedOutput:
    """One entry of a request's ``outputs``.

    Attributes:
        name: name of the output.
        binary: ``parameters.binary_data``; None if the request does not say.
        classes: ``parameters.classification``, 0 for the tensor itself.
    """

    name: str
    binary: bool | None = None
    classes: int = 0


@identity
class InferRequest:
    """A request body.

    Attributes:
        inputs: the tensors, no name twice.
        outputs: what is asked for, no name twice; empty: every output.
        id: chosen by the requester, "" for none.
        parameters: the request's own ``parameters``, unchecked but for ``binary_data_output``.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[RequestedOutput, ...] = ()
    id: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def binary_output(self) -> bool | None:
        """``binary_data_output``: how outputs come that do not say; None if not given."""
        value: bool | None = self.parameters.get("binary_data_output")
        return value


@identity
class InferResponse:
    """An answer's body.

    Attributes:
        model_name: the model.
        model_version: which version of it, "" if not said.
        outputs: the tensors, no name twice.
        id: the request's, "" for none.
        parameters: the answer's own.
    """

    model_name: str
    model_version: str
    outputs: tuple[Tensor, ...]
    id: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Array:
        """The entries of the output of that name; KeyError if there is none."""
        return {tensor.name: tensor.data for tensor in self.outputs}[name]


def datatype_of(dtype: Dtype) -> str:
    """V2's name for a numpy dtype of either byte order (object arrays are `BYTES`).

    Raises:
        BadDatatypeError: V2 has none for it.
    """
    name = _NAMES.get(dtype)
    if name is not None:
        return name
    if dtype.kind == "O":
        return BYTES
    name = _NAMES.get(dtype.newbyteorder("<"))
    if name is None:
        raise BadDatatypeError(
            f"numpy dtype {dtype} has no V2 datatype; convert it to one of {', '.join(DATATYPES)}"
        )
    return name


def string_array(items: Sequence[bytes]) -> Array:
    """Object array of one axis; numpy would make fixed-width strings of a plain list."""
    made = np.empty(len(items), dtype=object)
    made[:] = items
    return made
