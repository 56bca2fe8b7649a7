"""Samples as requests carry them -> a model's input buffers; the same code for builds and serving.

Samples of variable length are padded behind, and their mask is written.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from edged import preprocess
from edged.recipe import InputSpec, LengthSpec

Array = npt.NDArray[np.generic]


def stage(
    spec: InputSpec, rows: Array, buffers: Mapping[str, Array], first: int, unpadded: int = 0
) -> None:
    """Writes samples of one length, preprocessed.

    Args:
        spec: their input.
        rows: ``[n, *shape]`` as requests carry them, with ``unpadded`` at the variable axis.
        buffers: by name of the model's input ``[most, *model_shape]``, masks ``[most, length]``.
        first: row of the buffers that the first sample goes to.
        unpadded: length of the samples; not looked at where the length is fixed.
    """
    here = slice(first, first + len(rows))
    out = buffers[spec.name][here]
    if spec.length is not None:
        out = _padded(spec, spec.length, out, unpadded)
        if spec.length.mask:
            mask = buffers[spec.length.mask][here]
            mask[:, :unpadded] = 1
            mask[:, unpadded:] = 0
    preprocess.into(rows, out, scale=spec.scale, offset=spec.offset, transpose=spec.transpose)


def _padded(spec: InputSpec, length: LengthSpec, out: Array, unpadded: int) -> Array:
    """Fills a buffer up behind the data; the part of it that the data goes into."""
    along = np.moveaxis(out, spec.model_axis + 1, 1)  # a view
    along[:, unpadded:] = np.asarray(length.pad).astype(out.dtype)
    return np.moveaxis(along[:, :unpadded], 1, spec.model_axis + 1)
