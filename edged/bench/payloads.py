"""A file or random numbers -> the bodies of requests, in the form that was asked for. Pure."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping

import numpy as np

from edged import protocol, v2
from edged.bench.options import BenchOptions, PayloadKind
from edged.client import Message, image_message, tensor_message
from edged.client.messages import Array
from edged.errors import BadParameterError, InputFileError
from edged.sample_file import SampleFile

RANDOM_REQUESTS = 16
"""So many different requests are made of random numbers, and sent in turn."""
_RANDOM = re.compile(r"([^=\[\]]+)=([A-Z0-9]+)\[(\d+(?:,\d+)*)?\]")
_FORMATS: dict[str, tuple[str, str]] = {
    "png": ("PNG", protocol.PNG),
    "jpeg": ("JPEG", protocol.JPEG),
}


def random_inputs(spec: str, samples: int, seed: int) -> dict[str, Array]:
    """Random numbers for every input, ``[RANDOM_REQUESTS * samples, *shape]``.

    Args:
        spec: ``name=DATATYPE[shape of one sample]``, several with ";".
        samples: in each request.
        seed: of the numbers.

    Raises:
        BadParameterError: it is written differently, or names no datatype that can be random.
    """
    chance = np.random.default_rng(seed)
    inputs: dict[str, Array] = {}
    for part in spec.split(";"):
        found = _RANDOM.fullmatch(part.strip())
        dtype = v2.DATATYPES.get(found[2]) if found else None
        if found is None or dtype is None or dtype.kind not in "fuib":
            raise BadParameterError(
                f"random input {part.strip()!r} must be name=DATATYPE[shape of one sample] with a "
                "datatype of docs/protocol.md, for example image=UINT8[8,8,1]"
            )
        one = tuple(map(int, found[3].split(","))) if found[3] else ()
        inputs[found[1]] = _random(chance, dtype, (RANDOM_REQUESTS * samples, *one))
    return inputs


def _random(
    chance: np.random.Generator, dtype: np.dtype[np.generic], shape: tuple[int, ...]
) -> Array:
    if dtype.kind == "f":
        return chance.random(shape).astype(dtype)
    if dtype.kind == "b":
        return chance.random(shape) < 0.5
    most = 127 if dtype == np.int8 else 255
    return chance.integers(0, most, shape, endpoint=True).astype(dtype)


def request_messages(sample: SampleFile, samples: int, kind: PayloadKind) -> list[Message]:
    """Cuts a file's arrays into requests of ``samples`` rows; an image is one request.

    Raises:
        InputFileError: the arrays differ in their number of rows, or have fewer than ``samples``.
        BadParameterError: what the file holds cannot be sent in this form.
    """
    if sample.image:
        return [_image_as_it_is(sample, samples, kind)]
    rows = {name: len(data) if data.ndim else 0 for name, data in sample.arrays.items()}
    count = min(rows.values(), default=0)
    if count < samples or len(set(rows.values())) > 1:
        raise InputFileError(
            f"the file's arrays have {rows} rows; every input needs the same number, and at least "
            f"the {samples} of one request"
        )
    return [
        _message({name: data[at : at + samples] for name, data in sample.arrays.items()}, kind)
        for at in range(0, count - samples + 1, samples)
    ]


def messages_of(options: BenchOptions, sample: SampleFile) -> list[Message]:
    """The requests of a run, sent in turn; see `request_messages`.

    Args:
        options: of the run.
        sample: the file; not looked at where numbers are random.
    """
    if options.random:
        inputs = random_inputs(options.random, options.samples, options.seed)
        sample = SampleFile(arrays=inputs)
    return request_messages(sample, options.samples, options.payload)


def _image_as_it_is(sample: SampleFile, samples: int, kind: PayloadKind) -> Message:
    own = {content_type: name for name, (_, content_type) in _FORMATS.items()}[sample.content_type]
    if samples != 1 or kind not in ("binary", own):
        raise BadParameterError(
            f"the file is one {own} image, which is one sample and sent as it is; it cannot become "
            f"{samples} samples as {kind}"
        )
    return image_message(sample.image, sample.content_type)


def _message(arrays: Mapping[str, Array], kind: PayloadKind) -> Message:
    if kind == "binary":
        return tensor_message(arrays)
    if kind == "json":
        return Message(_json(arrays), protocol.JSON)
    return _encoded(arrays, kind)


def _json(arrays: Mapping[str, Array]) -> bytes:
    tensors = tuple(v2.Tensor(name, data, binary=False) for name, data in arrays.items())
    return v2.write_request(v2.InferRequest(inputs=tensors))[0]


def _encoded(arrays: Mapping[str, Array], kind: PayloadKind) -> Message:
    data = next(iter(arrays.values()))
    fits = len(arrays) == 1 and data.dtype == np.uint8 and data.ndim in (3, 4) and len(data) == 1
    if not fits or (data.ndim == 4 and data.shape[3] not in (1, 3)):
        told = {name: f"{each.dtype} {list(each.shape)}" for name, each in arrays.items()}
        raise BadParameterError(
            f"{kind} needs one input of uint8 [1, height, width] with 1 or 3 channels and one "
            f"sample a request, not {told}; use the payload binary"
        )
    try:
        from PIL import Image
    except ImportError as err:
        raise BadParameterError(
            f"{kind} needs Pillow: pip install 'edged[images]', or use the payload binary"
        ) from err
    name, content_type = _FORMATS[kind]
    pixels = data[0] if data.ndim == 3 or data.shape[3] == 3 else data[0, :, :, 0]
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, name)
    return image_message(out.getvalue(), content_type)
