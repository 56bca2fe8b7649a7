"""How an encoded image came to lie in a model's input, and the way back."""

from __future__ import annotations

from edged.value import value


@value
class ImageFrame:
    """``model pixel = source pixel * scale + left or top``.

    Attributes:
        width: of the source image, in pixels.
        height: likewise.
        scale_x: model pixels for one source pixel.
        scale_y: likewise.
        left: model pixels to the left of the image.
        top: model pixels above the image.
    """

    width: int
    height: int
    scale_x: float
    scale_y: float
    left: int = 0
    top: int = 0


def stretched(source: tuple[int, int], target: tuple[int, int]) -> ImageFrame:
    """The whole image over the whole input; sizes are width, height."""
    return ImageFrame(*source, target[0] / source[0], target[1] / source[1])


def letterboxed(
    source: tuple[int, int], target: tuple[int, int]
) -> tuple[ImageFrame, tuple[int, int]]:
    """The image in the middle of the input with its aspect ratio kept.

    Args:
        source: width, height.
        target: likewise.

    Returns:
        The frame, and the width and height that the image has in the input.
    """
    scale = min(target[0] / source[0], target[1] / source[1])
    width, height = (
        min(most, max(1, round(size * scale))) for size, most in zip(source, target, strict=True)
    )
    left, top = (target[0] - width) // 2, (target[1] - height) // 2
    frame = ImageFrame(*source, width / source[0], height / source[1], left, top)
    return frame, (width, height)
