"""Which precisions are tried, in which order, and what happens when one cannot be had. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from edged.build_options import EngineOptions, Precision
from edged.errors import BuildError, BuildStoppedError, EngineError, EngineRefusedError

T = TypeVar("T")


@dataclass(frozen=True)
class Variant:
    """One way to compute a model.

    Attributes:
        precision: of the linear layers.
        fp16_rest: with INT8: whether everything else runs in FP16.
        wide: with an FP16 rest: whether INT8 layers hand out FP32, for kernels that would turn
            their integer sums into FP16 before they scale them.
    """

    precision: Precision
    fp16_rest: bool = False
    wide: bool = False

    def __str__(self) -> str:
        rest = " with an FP16 rest" if self.fp16_rest else ""
        return self.precision.upper() + rest + (" and FP32 sums" if self.wide else "")

    @property
    def half(self) -> bool:
        """Whether any of its tensors are FP16."""
        return self.precision == "fp16" or self.fp16_rest


Ladder = tuple[Variant, ...]
"""Variants in the order in which they are tried; the next one only if the one before fails."""


@dataclass(frozen=True)
class Found(Generic[T]):
    """What could be had.

    Attributes:
        passed: what each successful attempt gave, in the order of the ladders.
        failed: why the other ones could not.
    """

    passed: dict[Variant, T] = field(default_factory=dict)
    failed: dict[Variant, str] = field(default_factory=dict)

    def notes(self) -> tuple[str, ...]:
        """Why some could not be had, a sentence each."""
        return tuple(f"{variant} could not be had: {why}" for variant, why in self.failed.items())


def ladders(options: EngineOptions, *, gpu: bool) -> tuple[Ladder, ...]:
    """What is built: of each ladder the first variant that can be had.

    ``auto`` has one ladder for each precision, so that all are built and can be compared. A
    precision that was asked for has one ladder, from it down to FP32. On a CPU, ONNX Runtime
    computes FP16 graphs in FP32 with casts between: FP16 is built only if it was asked for.
    """
    int8: Ladder = (Variant("int8"),)
    if gpu and options.fp16_rest:
        mixed = Variant("int8", fp16_rest=True)
        int8 = (mixed, replace(mixed, wide=True), *int8)
    fp16: Ladder = (Variant("fp16"),) if gpu or options.precision == "fp16" else ()
    fp32: Ladder = (Variant("fp32"),)
    if options.precision == "auto":
        return tuple(ladder for ladder in (int8, fp16, fp32) if ladder)
    rungs = {"int8": int8 + fp16 + fp32, "fp16": fp16 + fp32, "fp32": fp32}
    wanted = rungs[options.precision]
    return (wanted if options.fallback else wanted[:1],)


def attempt_all(all_ladders: Sequence[Ladder], attempt: Callable[[Variant], T]) -> Found[T]:
    """Tries the variants of each ladder in order until one of it succeeds.

    Args:
        all_ladders: at least one variant in all.
        attempt: builds, runs and verifies an engine.

    Raises:
        BuildError: none succeeded, with each reason; a single reason is given as it is.
        BuildStoppedError: an attempt was ended from outside; no other one is made.
    """
    found: Found[T] = Found()
    for ladder in all_ladders:
        _attempt_one_of(ladder, attempt, found)
    if found.passed:
        return found
    reasons = found.failed
    if len(set(reasons.values())) == 1:
        raise BuildError(next(iter(reasons.values())))
    raise BuildError("; ".join(f"{variant}: {why}" for variant, why in reasons.items()))


def _attempt_one_of(ladder: Ladder, attempt: Callable[[Variant], T], found: Found[T]) -> None:
    for variant in ladder:
        try:
            found.passed[variant] = attempt(variant)
        except BuildStoppedError:  # noqa: PERF203  # a few attempts, seconds each
            raise
        except (BuildError, EngineError, EngineRefusedError) as err:
            found.failed[variant] = err.message
        else:
            return
