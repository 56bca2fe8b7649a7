"""What a recipe says of its engine: how it is built, calibrated, quantized, and its gates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from edged.settings_section import Section

Precision = Literal["int8", "fp16", "fp32"]
"""What the linear layers of an engine compute in."""

WantedPrecision = Literal["auto", "int8", "fp16", "fp32"]
"""``auto``: whichever is measured to be the fastest of those that keep their accuracy."""


class EngineOptions(Section):
    """``[engine]``: how the engine is built and batched."""

    precision: WantedPrecision = "auto"
    fallback: bool = True
    """Whether the next precision is taken where an engine cannot be had in this one."""
    fp16_rest: bool = True
    """INT8 on TensorRT: whether what is not INT8 runs in FP16 instead of FP32."""
    aux_streams: Annotated[int, Field(ge=0, le=16)] = 0
    """Streams on which TensorRT may run independent layers besides the main one."""
    workspace_mib: Annotated[int, Field(ge=1)] | None = None
    """Scratch memory that TensorRT's layers may use, in MiB; None: from the free memory."""
    max_batch: Annotated[int, Field(ge=1, le=1024)] = 16
    opt_batch: Annotated[int, Field(ge=1)] | None = None
    """Batch size that TensorRT tunes its kernels for; None: the middle of 1 and max_batch."""
    batch_sizes: tuple[int, ...] = ()
    """Sizes that are warmed and measured; empty: powers of two up to max_batch, and max_batch."""
    slo_ms: Annotated[float, Field(gt=0, le=3_600_000)] = 1000.0
    """Deadline of a request that brings none, from its arrival."""
    refuse_nonfinite: bool = False
    """Whether a sample whose outputs hold NaN or infinity is answered with an error."""
    freshness: Literal["all", "latest"] = "all"
    """Whether every request counts, or of each source the latest one that waits."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> EngineOptions:
        if any(not 1 <= n <= self.max_batch for n in self.batch_sizes):
            raise ValueError(
                f"batch_sizes {list(self.batch_sizes)} must lie within 1 and max_batch "
                f"{self.max_batch}"
            )
        if self.opt_batch is not None and self.opt_batch > self.max_batch:
            raise ValueError(
                f"opt_batch {self.opt_batch} is above max_batch {self.max_batch}: a profile needs "
                "1 <= opt_batch <= max_batch"
            )
        if self.precision == "auto" and not self.fallback:
            raise ValueError(
                'fallback = false needs a precision: "int8", "fp16" or "fp32", not "auto"'
            )
        return self

    @property
    def warm_sizes(self) -> tuple[int, ...]:
        """Batch sizes to warm and to measure, ascending, 1 and max_batch always among them."""
        powers = {2**n for n in range(self.max_batch.bit_length())}
        sizes = set(self.batch_sizes) or {n for n in powers if n <= self.max_batch}
        return tuple(sorted(sizes | {1, self.max_batch}))


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
