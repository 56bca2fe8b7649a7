"""Which precisions are tried, in which order, and what happens when one cannot be had. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from edged.errors import BuildError, BuildStoppedError, EngineError, EngineRefusedError
from edged.recipe import EngineOptions, Precision

T = TypeVar("T")


@dataclass(frozen=True)
class Variant:
    """One way to compute a model.

    Attributes:
        precision: of the linear layers.
        fp16_rest: with INT8: whether everything else runs in FP16.
    """

    precision: Precision
    fp16_rest: bool = False

    def __str__(self) -> str:
        return self.precision.upper() + (" with an FP16 rest" if self.fp16_rest else "")

    @property
    def half(self) -> bool:
        """Whether any of its tensors are FP16."""
        return self.precision == "fp16" or self.fp16_rest


@dataclass(frozen=True)
class Choice(Generic[T]):
    """The first variant that could be had.

    Attributes:
        variant: it.
        result: what the attempt gave.
        notes: why those before it could not.
    """

    variant: Variant
    result: T
    notes: tuple[str, ...]


def ladder(options: EngineOptions, *, gpu: bool) -> tuple[Variant, ...]:
    """Variants in the order in which they are tried; the first one is what was asked for.

    On a CPU, FP16 gains nothing over FP32 and is built only if it was asked for.
    """
    int8 = [Variant("int8")]
    if gpu and options.fp16_rest:
        int8.insert(0, Variant("int8", fp16_rest=True))
    below = [Variant("fp32")]
    if gpu or options.precision == "fp16":
        below.insert(0, Variant("fp16"))
    rungs = {"int8": [*int8, *below], "fp16": below, "fp32": [Variant("fp32")]}
    wanted = rungs[options.precision]
    return tuple(wanted if options.fallback else wanted[:1])


def first_usable(variants: Sequence[Variant], attempt: Callable[[Variant], T]) -> Choice[T]:
    """Tries variants in order until one succeeds.

    Args:
        variants: at least one.
        attempt: builds, measures and verifies an engine.

    Raises:
        BuildError: none succeeded, with each reason; a single reason is given as it is.
        BuildStoppedError: an attempt was ended from outside; no other one is made.
    """
    reasons: dict[Variant, str] = {}
    for variant in variants:
        found = _try(variant, attempt)
        if isinstance(found, Choice):
            notes = tuple(f"{failed} could not be had: {why}" for failed, why in reasons.items())
            return Choice(variant, found.result, notes)
        reasons[variant] = found
    if len(set(reasons.values())) == 1:
        raise BuildError(next(iter(reasons.values())))
    raise BuildError("; ".join(f"{variant}: {why}" for variant, why in reasons.items()))


def _try(variant: Variant, attempt: Callable[[Variant], T]) -> Choice[T] | str:
    """What came of one attempt, or why nothing did."""
    try:
        return Choice(variant, attempt(variant), ())
    except BuildStoppedError:
        raise
    except (BuildError, EngineError, EngineRefusedError) as err:
        return err.message
