"""A sample -> a model's input; the same code for calibration and for serving.

An encoded image becomes pixels (`decode_image`), and rows as requests carry them become rows as
the model takes them (`into`). Both are pure.
"""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edged.errors import BadImageError, UnsupportedContentTypeError
from edged.image_frame import ImageFrame, letterboxed, stretched

Array = npt.NDArray[np.generic]
Pixels = npt.NDArray[np.uint8]

MAX_PIXELS = 16 * 1024 * 1024
"""More than the 12.3 million of the usual 4056x3040 camera module; 48 MB once decoded to RGB."""

_FORMATS = ("PNG", "JPEG")
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")  # 8 bits a channel or fewer; no CMYK, no 16-bit grey


@functools.cache
def _pillow() -> Any:
    try:
        from PIL import Image
    except ModuleNotFoundError as err:
        raise UnsupportedContentTypeError(
            "images cannot be decoded here: Pillow is not installed; install edged[images], "
            "or send the pixels as a tensor"
        ) from err
    # Far above MAX_PIXELS, Pillow warns before we can look at the size; we refuse either way.
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    return Image


def prepare_images() -> None:
    """Loads Pillow and its PNG and JPEG plugins now, so that no request has to wait for it.

    Without Pillow nothing happens: requests with an image are then refused one by one.
    """
    with contextlib.suppress(UnsupportedContentTypeError):
        _pillow().preinit()


def decode_image(
    data: bytes | memoryview,
    *,
    mode: Literal["L", "RGB"],
    height: int,
    width: int,
    max_pixels: int = MAX_PIXELS,
    fill: int | None = None,
) -> Pixels:
    """The pixels that `decode_framed` gives."""
    return decode_framed(
        data, mode=mode, height=height, width=width, max_pixels=max_pixels, fill=fill
    )[0]


def decode_framed(
    data: bytes | memoryview,
    *,
    mode: Literal["L", "RGB"],
    height: int,
    width: int,
    max_pixels: int = MAX_PIXELS,
    fill: int | None = None,
) -> tuple[Pixels, ImageFrame]:
    """Decodes one PNG or JPEG, converted to ``mode`` and resized to ``height`` x ``width``.

    An image of another size is resized with Pillow's bilinear filter, which averages when it makes
    an image smaller; the aspect ratio is kept only with ``fill``. A JPEG more than
    twice as large as needed is decoded at 1/2, 1/4 or 1/8 of its size first. Alpha is dropped, and
    an EXIF orientation is not applied. Grey is ITU-R 601-2 luma, ``0.299 R + 0.587 G + 0.114 B``.

    Args:
        data: the encoded image.
        mode: ``L`` for one grey channel, ``RGB`` for three.
        height: rows of the result.
        width: columns of the result.
        max_pixels: larger images are refused by their header, before any pixel is decoded.
        fill: grey of what is beside the image, which then lies in the middle with its aspect ratio
            kept (letterbox); None: the image is stretched over all of it.

    Returns:
        uint8 ``[height, width, channels]``, and how the image lies in it.

    Raises:
        BadImageError: no PNG or JPEG, truncated or damaged, too large, animated, or of a pixel
            format other than grey, palette or RGB with at most 8 bits a channel.
        UnsupportedContentTypeError: Pillow is not installed.
    """
    pillow = _pillow()
    try:
        with pillow.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_header(image, max_pixels)
            source = image.size
            if image.width > 2 * width and image.height > 2 * height:
                image.draft(mode, (2 * width, 2 * height))  # JPEG only; PNG ignores it
            return _fitted(_convert(image, mode), source, (width, height), fill)
    except BadImageError:
        raise
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as err:
        raise BadImageError(
            f"the image has far more than the allowed {max_pixels} pixels; send a smaller one"
        ) from err
    except pillow.UnidentifiedImageError as err:
        raise BadImageError(
            f"the {len(data)} bytes are no PNG or JPEG image; send one of these, complete"
        ) from err
    # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, zlib.error and more on
    # crafted files; whatever it is, the image is what is wrong.
    except Exception as err:
        raise BadImageError(
            f"the image of {len(data)} bytes is truncated or damaged ({err}); send it again, "
            "complete"
        ) from err


def _fitted(
    image: Any, source: tuple[int, int], target: tuple[int, int], fill: int | None
) -> tuple[Pixels, ImageFrame]:
    """An image, as large as its source or reduced, in a size of width and height."""
    frame, size = stretched(source, target), target
    if fill is not None:
        frame, size = letterboxed(source, target)
    if image.size != size:
        image = image.resize(size, _pillow().Resampling.BILINEAR)
    channels = len(image.getbands())
    pixels = np.array(image, dtype=np.uint8).reshape(size[1], size[0], channels)
    if size == target:
        return pixels, frame
    whole = np.full((target[1], target[0], channels), fill, np.uint8)
    whole[frame.top : frame.top + size[1], frame.left : frame.left + size[0]] = pixels
    return whole, frame


def _check_header(image: Any, max_pixels: int) -> None:
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise BadImageError(
            f"the image is {image.width}x{image.height} = {pixels} pixels, allowed are "
            f"{max_pixels}; send a smaller one"
        )
    if image.format == "PNG" and getattr(image, "n_frames", 1) > 1:
        raise BadImageError(
            f"the PNG is animated with {image.n_frames} frames, allowed is 1; send one frame"
        )
    if image.mode not in _MODES:
        raise BadImageError(
            f"the image has pixel format {image.mode!r}, allowed are grey, palette and RGB with at "
            "most 8 bits a channel; convert it first"
        )


def _convert(image: Any, mode: str) -> Any:
    if image.mode == "P":  # its colours may carry alpha, which only RGBA takes without complaint
        image = image.convert("RGBA")
    return image.convert(mode)


def into(
    rows: Array,
    out: Array,
    *,
    scale: Sequence[float] | None = None,
    offset: Sequence[float] | None = None,
    transpose: Sequence[int] | None = None,
) -> None:
    """Writes ``rows * scale + offset``, transposed, into a buffer that is already there.

    No copy of the rows is made: numpy converts while it writes. Without scale and offset the values
    are copied as they are. The arithmetic is float32.

    Args:
        rows: ``[n, *shape]`` as requests carry them.
        out: ``[n, *model_shape]``, float32 with a scale or an offset, else of the rows' dtype.
        scale: one number, or one for each entry of the rows' last axis.
        offset: likewise.
        transpose: axis order of the model's sample, without the batch axis: ``[2, 0, 1]`` writes
            height, width, channels as channels, height, width.

    Raises:
        ValueError: shapes or dtypes do not fit: a fault of the caller.
    """
    target = out
    if transpose is not None:
        order = np.argsort(transpose)
        target = out.transpose(0, *(int(axis) + 1 for axis in order))
    if target.shape != rows.shape:
        raise ValueError(f"rows {rows.shape} do not fit the buffer {out.shape} by {transpose=}")
    wanted = rows.dtype if scale is None and offset is None else np.dtype(np.float32)
    if out.dtype != wanted:
        raise ValueError(f"the buffer is {out.dtype}, must be {wanted}")
    if scale is not None:
        factor = np.asarray(scale, np.float32)
        np.multiply(rows, factor, out=target, dtype=np.float32, casting="unsafe")
        rows = target
    if offset is not None:
        summand = np.asarray(offset, np.float32)
        np.add(rows, summand, out=target, dtype=np.float32, casting="unsafe")
    elif scale is None:
        np.copyto(target, rows, casting="no")
