"""`InferRequest` or `InferResponse` -> bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from edged.errors import BadTensorError
from edged.v2.tensors import BYTES, DATATYPES, InferRequest, InferResponse, RequestedOutput, Tensor


def write_request(request: InferRequest) -> tuple[bytes, int | None]:
    """Writes a request, byte for byte as Triton's Python client does.

    Returns:
        The body, and the length of its header, None if all of it is header.

    Raises:
        BadDatatypeError: a tensor has a dtype that V2 has no name for.
        BadTensorError: a tensor in JSON form holds NaN or infinity.
    """
    header: dict[str, Any] = {"id": request.id} if request.id else {}
    header["inputs"], tails = _declare(request.inputs, nulls=False)
    if request.outputs:
        header["outputs"] = [_ask(output) for output in request.outputs]
    if request.parameters:
        header["parameters"] = dict(request.parameters)
    return _join(header, tails)


def write_response(response: InferResponse) -> tuple[bytes, int | None]:
    """Writes an answer.

    NaN and infinity in a JSON list become ``null``; binary form keeps them.

    Returns:
        The body, and the length of its header, None if all of it is header.

    Raises:
        BadDatatypeError: a tensor has a dtype that V2 has no name for.
    """
    header: dict[str, Any] = {"id": response.id} if response.id else {}
    header["model_name"] = response.model_name
    if response.model_version:
        header["model_version"] = response.model_version
    if response.parameters:
        header["parameters"] = response.parameters
    if all(tensor.binary for tensor in response.outputs):
        # What is declared is the same from answer to answer: only the rest is written anew.
        tails = [_raw(tensor) for tensor in response.outputs]
        declared = _declared_text(
            tuple(
                [
                    (tensor.name, tensor.shape, tensor.datatype, tail.nbytes)
                    for tensor, tail in zip(response.outputs, tails, strict=True)
                ]
            )
        )
        text = f'{_dump(header)[:-1]},"outputs":{declared}}}'.encode("ascii")
        return b"".join([text, *(tail.data for tail in tails)]), (len(text) if tails else None)
    header["outputs"], tails = _declare(response.outputs, nulls=True)
    return _join(header, tails)


@lru_cache(256)
def _declared_text(outputs: tuple[tuple[str, tuple[int, ...], str, int], ...]) -> str:
    """The header's ``outputs`` for tensors in binary form, as JSON."""
    return _dump(
        [
            {
                "name": name,
                "shape": list(shape),
                "datatype": datatype,
                "parameters": {"binary_data_size": size},
            }
            for name, shape, datatype, size in outputs
        ]
    )


_dump = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def _ask(output: RequestedOutput) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    if output.classes:
        parameters["classification"] = output.classes
    if output.binary is not None:
        parameters["binary_data"] = output.binary
    return {"name": output.name, **({"parameters": parameters} if parameters else {})}


def _declare(
    tensors: Iterable[Tensor], *, nulls: bool
) -> tuple[list[dict[str, Any]], list[npt.NDArray[np.uint8]]]:
    """What the header says of the tensors, and the bytes that follow it."""
    declared, tails = [], []
    for tensor in tensors:
        entry: dict[str, Any] = {"name": tensor.name, "shape": list(tensor.shape)}
        entry["datatype"] = tensor.datatype
        if tensor.binary:
            tails.append(_raw(tensor))
            entry["parameters"] = {"binary_data_size": tails[-1].nbytes}
        else:
            entry["data"] = _listed(tensor, nulls=nulls)
        declared.append(entry)
    return declared, tails


def _listed(tensor: Tensor, *, nulls: bool) -> list[Any]:
    flat = tensor.data.ravel()
    if tensor.datatype == BYTES:
        return [bytes(item).decode("utf-8", "replace") for item in flat]
    values: list[Any] = flat.tolist()
    if flat.dtype.kind == "f" and not np.isfinite(flat).all():
        if not nulls:
            raise BadTensorError(
                f"tensor {tensor.name!r} holds NaN or infinity, which JSON cannot carry; "
                "send it in binary form"
            )
        return [value if math.isfinite(value) else None for value in values]
    return values


def _raw(tensor: Tensor) -> npt.NDArray[np.uint8]:
    """The tensor's bytes as they travel; its own memory where they lie there so already."""
    if tensor.datatype == BYTES:
        items = [bytes(item) for item in tensor.data.ravel()]
        joined = b"".join(len(item).to_bytes(4, "little") + item for item in items)
        return np.frombuffer(joined, dtype=np.uint8)
    little = np.ascontiguousarray(tensor.data, dtype=DATATYPES[tensor.datatype])
    return little.reshape(-1).view(np.uint8)


def _join(
    header: Mapping[str, Any], tails: list[npt.NDArray[np.uint8]]
) -> tuple[bytes, int | None]:
    text = _dump(header).encode("ascii")
    return b"".join([text, *(tail.data for tail in tails)]), (len(text) if tails else None)
