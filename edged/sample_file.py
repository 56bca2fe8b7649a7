"""A file (.npy, .npz, PNG, JPEG) -> what a request carries. Told apart by content, not by name."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from edged.errors import InputFileError
from edged.protocol import JPEG, PNG

Array = npt.NDArray[Any]

STDIN = "-"
_NPY = b"\x93NUMPY"
_NPZ = b"PK\x03\x04"
_IMAGES = {b"\x89PNG\r\n\x1a\n": PNG, b"\xff\xd8\xff": JPEG}


@dataclass(frozen=True)
class SampleFile:
    """What a file holds: named arrays, or one encoded image.

    Attributes:
        arrays: by input name; empty for an image.
        image: the file's content; empty for arrays.
        content_type: of the image, "" for arrays.
    """

    arrays: Mapping[str, Array] = field(default_factory=dict)
    image: bytes = b""
    content_type: str = ""


def read_sample_file(name: str, stdin: BinaryIO, *, input_name: str) -> SampleFile:
    """Reads a file.

    Args:
        name: its path, or ``-`` for standard input.
        stdin: standard input.
        input_name: what the array of a .npy file is called; a .npz file names its own.

    Raises:
        InputFileError: missing, unreadable, damaged, or none of the four formats.
    """
    shown = "standard input" if name == STDIN else repr(name)
    try:
        content = stdin.read() if name == STDIN else Path(name).read_bytes()
    except OSError as err:
        raise InputFileError(f"{shown} cannot be read: {err.strerror}") from err
    for magic, content_type in _IMAGES.items():
        if content.startswith(magic):
            return SampleFile(image=content, content_type=content_type)
    if not content.startswith((_NPY, _NPZ)):
        raise InputFileError(
            f"{shown} ({len(content)} bytes) is no .npy, .npz, PNG or JPEG file; "
            "numpy.save and numpy.savez write the first two"
        )
    try:
        return SampleFile(arrays=_arrays(content, input_name))
    # numpy and zipfile raise a dozen unrelated types for a damaged file.
    except Exception as err:
        raise InputFileError(f"{shown} is damaged or holds no plain arrays: {err}") from err


def _arrays(content: bytes, input_name: str) -> dict[str, Array]:
    loaded = np.load(io.BytesIO(content), allow_pickle=False)  # a pickle could run code
    if isinstance(loaded, np.ndarray):
        return {input_name: loaded}
    with loaded:
        return {name: loaded[name] for name in loaded.files}
