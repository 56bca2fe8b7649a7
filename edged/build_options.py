"""What a recipe says of its build: calibration, quantization, and what the engine has to keep."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from edged.settings_section import Section


class CalibrateOptions(Section):
    """``[calibrate]``: how activation ranges are found."""

    method: Literal["mse", "percentile", "minmax", "entropy", "auto"] = "mse"
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    samples: Annotated[int, Field(ge=1)] = 256
    """At most so many samples of the calibration split are used."""


class QuantizeOptions(Section):
    """``[quantize]``: which linear layers become INT8."""

    exclude: tuple[str, ...] = ()
    """Node names that stay in float; a name that the model lacks is an error."""
    include: tuple[str, ...] = ()
    """Node names that are quantized although the defaults would leave them in float."""
    first: bool = False
    """Whether the first linear layers become INT8 too."""
    last: bool = False
    """Whether the last linear layers become INT8 too."""
    grouped: bool = False
    """Whether grouped and depthwise convolutions become INT8 too."""
    weights: Literal["mse", "minmax", "auto"] = "mse"
    """How the scale of each output channel of a weight is chosen; ``auto`` tries both."""
    equalise: bool = False
    """Whether channels are scaled between layers so that their ranges are more equal."""
    bias_correction: bool = True
    """Whether the mean error of each quantized layer is taken off its bias."""
    accuracy_budget: Annotated[float, Field(gt=0, le=1)] | None = None
    """Largest loss of the metric on held back calibration samples; the most sensitive layers stay
    in float until it holds."""


class VerifyOptions(Section):
    """``[verify]``: what the engine has to keep on the held-out split."""

    metric: Literal["top1", "cosine"] = "top1"
    max_drop: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Largest accepted drop of the metric against the FP32 model, as a fraction."""
    min_agreement: Annotated[float, Field(ge=0, le=1)] = 0.97
    """Smallest accepted share of samples whose top-1 is the FP32 model's."""
