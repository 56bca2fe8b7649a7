"""preprocess: encoded images become pixels, and rows become a model's input."""

from __future__ import annotations

import io
import subprocess
import sys
import zlib
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from edged.errors import BadImageError
from edged.image_frame import ImageFrame
from edged.preprocess import MAX_PIXELS, decode_framed, decode_image, into

Pixels = npt.NDArray[np.uint8]


def encoded(pixels: Pixels, kind: str = "PNG", mode: str | None = None, **options: Any) -> bytes:
    """The pixels as a file's bytes."""
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(height: int, width: int) -> Pixels:
    """A smooth grey picture, which JPEG keeps well."""
    return np.add.outer(np.arange(height), np.arange(width)).astype(np.uint8)


@given(
    arrays.arrays(
        np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]))
    )
)
@settings(max_examples=50, deadline=None)
def test_png_of_the_right_size_is_lossless(pixels: Pixels) -> None:
    """A PNG of the model's own size and mode gives exactly its pixels."""
    height, width, channels = pixels.shape
    mode: Literal["L", "RGB"] = "L" if channels == 1 else "RGB"
    data = encoded(pixels[..., 0] if channels == 1 else pixels)
    decoded = decode_image(data, mode=mode, height=height, width=width)
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, pixels)


def test_jpeg_is_decoded_closely() -> None:
    """A JPEG of the model's size gives about its pixels."""
    pixels = gradient(32, 48)
    decoded = decode_image(encoded(pixels, "JPEG", quality=95), mode="L", height=32, width=48)
    assert decoded.shape == (32, 48, 1)
    assert np.abs(decoded[..., 0].astype(int) - pixels).max() <= 4


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_another_size_is_resized(kind: str) -> None:
    """A larger picture is made smaller by averaging, so a smooth one keeps its values."""
    pixels = np.repeat(np.repeat(gradient(16, 16) * 8, 20, axis=0), 20, axis=1)
    decoded = decode_image(encoded(pixels, kind), mode="L", height=16, width=16)
    inner = (slice(1, -1), slice(1, -1))
    difference = decoded[..., 0].astype(int) - gradient(16, 16) * 8
    assert np.abs(difference[inner]).max() <= 8


@pytest.mark.parametrize("source", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_modes_are_converted(source: str, mode: Literal["L", "RGB"], channels: int) -> None:
    """Every allowed pixel format becomes the wanted one; white stays white."""
    white = np.full((4, 5, 3), 255, np.uint8)
    decoded = decode_image(encoded(white, mode=source), mode=mode, height=4, width=5)
    assert decoded.shape == (4, 5, channels)
    assert decoded.min() == 255


def test_transparent_palette_is_taken() -> None:
    """A palette with transparent entries is decoded without a warning, its alpha dropped."""
    image = Image.new("P", (3, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=bytes([0, 128]))
    decoded = decode_image(buffer.getvalue(), mode="RGB", height=2, width=3)
    assert np.array_equal(decoded, np.full((2, 3, 3), [10, 20, 30]))


def test_too_many_pixels_are_refused_by_the_header() -> None:
    """An image over the limit is refused although its pixels are missing: none was decoded."""
    header_only = encoded(gradient(100, 100))[:60]
    with pytest.raises(BadImageError, match=r"100x100 = 10000 pixels, allowed are 9999"):
        decode_image(header_only, mode="L", height=8, width=8, max_pixels=9999)


def test_decompression_bombs_are_refused() -> None:
    """A small file that claims hundreds of millions of pixels is refused, whatever its factor."""
    for side in (11_000, 30_000):
        header = encoded(np.zeros((1, 1), np.uint8))
        size = side.to_bytes(4, "big") * 2
        chunk = b"IHDR" + size + header[24:29]
        crc = zlib.crc32(chunk).to_bytes(4, "big")
        bomb = header[:12] + chunk + crc + header[33:]
        with pytest.raises(BadImageError, match=str(MAX_PIXELS)):
            decode_image(bomb, mode="L", height=8, width=8)


def test_animated_png_is_refused() -> None:
    """A PNG of several frames is refused with their number."""
    frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (0, 90, 180)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    with pytest.raises(BadImageError, match="animated with 3 frames, allowed is 1"):
        decode_image(buffer.getvalue(), mode="L", height=8, width=8)


def test_deep_pixels_are_refused() -> None:
    """16-bit grey is refused, since converting it would clip, not scale."""
    image = Image.fromarray(np.full((8, 8), 1000, np.uint16))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    with pytest.raises(BadImageError, match="at most 8 bits"):
        decode_image(buffer.getvalue(), mode="L", height=8, width=8)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF"])
def test_other_formats_are_refused(kind: str) -> None:
    """Only PNG and JPEG are read, although Pillow knows more."""
    with pytest.raises(BadImageError, match="no PNG or JPEG"):
        decode_image(encoded(gradient(8, 8), kind), mode="L", height=8, width=8)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_images_end_in_bad_image(kind: str, data: st.DataObject) -> None:
    """Cut or overwritten anywhere, an image is refused as a bad image or still decoded, no more."""
    noise = np.random.default_rng(1).integers(0, 256, (24, 24), dtype=np.uint8)
    whole = bytearray(encoded(noise, kind))
    if data.draw(st.booleans()):
        whole = whole[: data.draw(st.integers(0, len(whole) - 1))]
    for _ in range(data.draw(st.integers(0, 4)) if whole else 0):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = decode_image(bytes(whole), mode="L", height=24, width=24)
    except BadImageError:
        return
    assert decoded.shape == (24, 24, 1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_truncated_image_is_refused(kind: str) -> None:
    """An image that lacks its second half is not filled with grey."""
    noise = np.random.default_rng(1).integers(0, 256, (64, 64), dtype=np.uint8)
    data = encoded(noise, kind)
    with pytest.raises(BadImageError, match="truncated or damaged"):
        decode_image(data[: len(data) // 2], mode="L", height=64, width=64)


@pytest.mark.parametrize(("width", "height"), [(40, 20), (20, 40), (8, 8), (1, 300), (400, 200)])
def test_a_letterboxed_image_keeps_its_aspect_ratio(width: int, height: int) -> None:
    """It lies in the middle, as its frame says, with grey beside it; JPEG decodes smaller first."""
    for kind in ("PNG", "JPEG"):
        data = encoded(np.full((height, width), 255, np.uint8), kind)

        pixels, frame = decode_framed(data, mode="RGB", height=32, width=32, fill=7)

        across = slice(frame.left, frame.left + round(width * frame.scale_x))
        down = slice(frame.top, frame.top + round(height * frame.scale_y))
        assert (frame.width, frame.height) == (width, height)
        assert (pixels[down, across] == 255).all()
        assert (pixels == 255).sum() == pixels[down, across].size
        assert set(np.unique(pixels)) <= {7, 255}
        assert max(pixels[down, across].shape[:2]) == 32
        assert abs(pixels[down, across].shape[1] - max(1, 32 * width / max(width, height))) <= 0.5


def test_a_stretched_image_covers_all() -> None:
    """Its frame has the scale of each axis."""
    data = encoded(np.zeros((10, 40), np.uint8), "PNG")

    pixels, frame = decode_framed(data, mode="L", height=20, width=20)

    assert pixels.shape == (20, 20, 1)
    assert frame == ImageFrame(40, 10, 0.5, 2.0)


@given(
    rows=arrays.arrays(
        st.sampled_from([np.uint8, np.int16, np.float32, np.float64, np.bool_]),
        st.tuples(*[st.integers(1, 4)] * 4),
        elements=None,
        fill=st.nothing(),
    ).map(lambda rows: np.nan_to_num(rows.astype(rows.dtype), posinf=1, neginf=0)),
    order=st.permutations([0, 1, 2]),
    scale=st.sampled_from([None, 1, 0]),
    offset=st.sampled_from([None, 1, 0]),
)
@settings(max_examples=100, deadline=None)
def test_into_is_the_formula(
    rows: npt.NDArray[Any], order: list[int], scale: int | None, offset: int | None
) -> None:
    """The buffer holds (rows * scale + offset) in float32, transposed; without both, the rows."""
    channels = rows.shape[-1]
    rows = np.clip(rows, -1000, 1000) if rows.dtype != np.bool_ else rows
    # 1: one number for all, 0: one for each channel
    factor = None if scale is None else tuple(np.linspace(0.5, 2, 1 if scale else channels))
    summand = None if offset is None else tuple(np.linspace(-1, 3, 1 if offset else channels))
    expected = rows
    if factor is not None or summand is not None:
        expected = rows.astype(np.float32)
        expected = expected * np.array(1 if factor is None else factor, np.float32)
        expected = expected + np.array(0 if summand is None else summand, np.float32)
    expected = expected.transpose(0, *(axis + 1 for axis in order))
    buffer = np.zeros((len(rows) + 2, *expected.shape[1:]), expected.dtype)
    into(rows, buffer[1:-1], scale=factor, offset=summand, transpose=order)
    np.testing.assert_allclose(buffer[1:-1], expected, rtol=1e-6, atol=1e-6)
    assert not buffer[0].any()
    assert not buffer[-1].any()


def test_into_takes_scalars() -> None:
    """A sample without axes is scaled like any other."""
    out = np.empty(3, np.float32)
    into(np.array([1, 2, 3], np.int32), out, scale=(2.0,), offset=(1.0,))
    assert out.tolist() == [3, 5, 7]


def test_into_never_broadcasts() -> None:
    """One row does not silently fill a buffer for two."""
    with pytest.raises(ValueError, match="do not fit"):
        into(np.zeros((1, 4), np.uint8), np.empty((2, 4), np.float32), scale=(1.0,))


def test_into_never_casts_a_plain_copy() -> None:
    """Without scale and offset the dtypes must be the same."""
    with pytest.raises(ValueError, match="must be float64"):
        into(np.zeros((1, 4)), np.empty((1, 4), np.float32))


def test_without_pillow_the_message_says_what_to_install() -> None:
    """Pillow is optional: without it images are refused, and everything else works."""
    script = (
        "import sys; sys.modules['PIL'] = None\n"
        "from edged.errors import UnsupportedContentTypeError\n"
        "from edged.preprocess import decode_image\n"
        "try:\n    decode_image(b'', mode='L', height=1, width=1)\n"
        "except UnsupportedContentTypeError as err:\n    print(err)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60
    )
    assert "install edged[images]" in done.stdout
