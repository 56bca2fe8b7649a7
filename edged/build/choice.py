"""Which of the engines that passed is installed: the fastest one, by measurement. Pure.

They are compared at the batch size that the recipe's SLO leaves room for, since a device under load
runs that one. A lower precision has to be faster by more than measurements scatter: accuracy is not
given away for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from edged.build.precision import Variant

LEAST_GAIN = 1.03
"""How many times as fast a lower precision must be. Medians of two runs of the same engine differed
by up to 2 % on an idle machine."""

_ACCURACY = {"fp32": 0, "fp16": 1, "int8": 2}

Rounds = Mapping[int, Sequence[float]]
"""Seconds of one batch by its size, one entry a round."""


@dataclass(frozen=True)
class Decision:
    """Which variant, and why.

    Attributes:
        variant: the one that is installed.
        batch: the size at which they were compared.
        reasons: a sentence for each variant that was not taken, and one if the SLO cannot be held.
        gains: how many times as fast each variant is as FP32, or as the most accurate one there is.
    """

    variant: Variant
    batch: int
    reasons: tuple[str, ...]
    gains: Mapping[Variant, float]


def medians(rounds: Rounds) -> dict[int, float]:
    """Median time by batch size, in seconds."""
    return {size: median(times) for size, times in rounds.items()}


def slo_batch(timings: Mapping[Variant, Rounds], slo_s: float) -> tuple[int, bool]:
    """The largest measured batch size whose time fits the SLO in the fastest variant.

    Args:
        timings: of each variant that passed, over the same sizes.
        slo_s: the recipe's ``slo_ms`` in seconds; the time is that on the idle device, without
            waiting.

    Returns:
        The size, and whether it fits; the smallest one if none does.
    """
    times = [medians(rounds) for rounds in timings.values()]
    sizes = sorted(times[0])
    fitting = [size for size in sizes if min(each[size] for each in times) <= slo_s]
    return (fitting[-1], True) if fitting else (sizes[0], False)


def choose(timings: Mapping[Variant, Rounds], slo_s: float) -> Decision:
    """Chooses among variants that all keep their accuracy.

    The gain of one over another is the median of the ratios of each round, in which all were run
    in turn, so that what slowed a round slowed all of them.

    Args:
        timings: of each variant, at least one, over the same sizes and as many rounds.
        slo_s: the recipe's ``slo_ms`` in seconds.
    """
    batch, fits = slo_batch(timings, slo_s)
    ordered = sorted(timings, key=_inaccuracy)
    times = {variant: timings[variant][batch] for variant in ordered}
    best = ordered[0]
    for variant in ordered[1:]:
        if _gain(times[best], times[variant]) >= LEAST_GAIN:
            best = variant
    gains = {variant: _gain(times[ordered[0]], times[variant]) for variant in ordered}
    reasons = [_why_not(variant, best, times, batch) for variant in ordered if variant != best]
    if not fits:
        took = median(times[best]) * 1e3
        reasons.append(
            f"the SLO of {slo_s * 1e3:g} ms cannot be held: {best} takes {took:.3g} ms for a batch "
            f"of {batch}"
        )
    return Decision(best, batch, tuple(reasons), gains)


def _inaccuracy(variant: Variant) -> tuple[int, bool, bool]:
    return _ACCURACY[variant.precision], variant.fp16_rest, not variant.wide


def _gain(slow: Sequence[float], fast: Sequence[float]) -> float:
    return median(a / b for a, b in zip(slow, fast, strict=True))


def _why_not(
    variant: Variant, best: Variant, times: Mapping[Variant, Sequence[float]], batch: int
) -> str:
    mine, its = (median(times[each]) * 1e3 for each in (variant, best))
    gain = _gain(times[best], times[variant])
    if gain < 1:
        how = f"{1 / gain:.2f} times as long"
    else:
        how = f"{gain:.2f} times as fast, but {LEAST_GAIN:g} is asked of a lower precision"
    if _ACCURACY[variant.precision] < _ACCURACY[best.precision]:
        how = f"{1 / gain:.2f} times as long"
    return (
        f"{variant} was not taken: a batch of {batch} takes {mine:.3g} ms, in {best} {its:.3g} ms "
        f"({how})"
    )
