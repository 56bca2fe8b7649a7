"""Calibration: samples through the float graph -> the range of each activation.

Histograms are streamed, so memory depends on one batch and on the number of tensors, not on the
number of samples. Everything but the loop in `collect` is pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edged.build.histogram import Histogram, NotFiniteError
from edged.build.observe import Observed, observe, thin
from edged.build.ranges import Ranges, Sources, TensorRange, percentile_of
from edged.build.thresholds import Method, tensor_range, threshold
from edged.build_options import CalibrateOptions
from edged.errors import BuildError

Array = npt.NDArray[np.generic]

CANDIDATES: Mapping[str, tuple[Method, float]] = {
    "mse": ("mse", 100.0),
    "minmax": ("minmax", 100.0),
    "percentile 99.99": ("percentile", 99.99),
    "percentile 99.999": ("percentile", 99.999),
    "entropy": ("entropy", 100.0),
}
"""What ``auto`` tries: method and percentile by what ranges.json calls it."""


Score = Callable[[Mapping[str, TensorRange]], float]
"""How good a quantized model with these ranges is; larger is better."""


@dataclass(frozen=True, eq=False)
class Collected:
    """What the samples showed: one histogram a tensor, each with a value other than zero."""

    histograms: Mapping[str, Histogram]
    samples: int

    def __repr__(self) -> str:
        return f"<Collected {len(self.histograms)} tensors over {self.samples} samples>"


def collect(
    run: Callable[[Mapping[str, Array]], Mapping[str, Observed]],
    batches: Iterable[Mapping[str, Array]],
    tensors: Sequence[str],
) -> Collected:
    """Runs batches through the float graph and counts what passes.

    Args:
        run: the float graph: model inputs by name ``[n, *shape]`` -> the wanted tensors by name.
        batches: model inputs, already preprocessed.
        tensors: names of the wanted activations; a model input is taken from the batch itself.

    Raises:
        BuildError: no samples, or a tensor is never anything but zero, or not finite, or not float.
    """
    histograms, samples = {name: Histogram() for name in tensors}, 0
    for batch in batches:
        size = len(next(iter(batch.values())))
        own = {name: _input(batch[name]) for name in tensors if name in batch}
        _observe(histograms, {**own, **run(batch)}, samples, size)
        samples += size
    if samples == 0:
        raise BuildError("the calibration split has no samples; add some to the dataset")
    for name, histogram in sorted(histograms.items()):
        if histogram.exponent is None:
            raise BuildError(
                f"activation {name!r} has no range: all of its {histogram.zeros} values are zero "
                f"in {samples} calibration samples; give samples that reach it, or exclude the "
                "layers that read it"
            )
    return Collected(histograms, samples)


def _input(values: Array) -> Observed:
    return Observed(thin(values), observe(values).largest)


def ranges_by(collected: Collected, method: Method, percentile: float) -> dict[str, TensorRange]:
    """The range of each tensor by one method, sorted by name."""
    return {
        name: tensor_range(histogram, threshold(histogram, method, percentile))
        for name, histogram in sorted(collected.histograms.items())
    }


def settle(
    collected: Collected,
    options: CalibrateOptions,
    sources: Sources,
    score: Score,
) -> Ranges:
    """Chooses thresholds by the recipe's method.

    Args:
        collected: what the samples showed.
        options: the recipe's.
        sources: digests that the ranges are bound to.
        score: for ``auto``.
    """
    chosen, scores = "", {}
    if options.method == "auto":
        tried = {name: ranges_by(collected, *how) for name, how in CANDIDATES.items()}
        scores = {name: round(score(found), 3) for name, found in tried.items()}
        chosen = max(scores, key=lambda name: scores[name])  # the first of equals
        tensors = tried[chosen]
    else:
        tensors = ranges_by(collected, options.method, options.percentile)
    return Ranges(
        sources=sources,
        method=options.method,
        percentile=percentile_of(options),
        chosen=chosen,
        scores=scores,
        samples=collected.samples,
        tensors=tensors,
    )


def _observe(
    histograms: Mapping[str, Histogram], found: dict[str, Observed], first: int, size: int
) -> None:
    samples = f"samples {first} to {first + size - 1}"
    for name, histogram in histograms.items():
        observed = found.pop(name)  # frees the array before the next one is looked at
        if observed.values.dtype != np.float32:
            raise BuildError(
                f"activation {name!r} is {observed.values.dtype}, only float32 can be calibrated; "
                "exclude the layers that read it"
            )
        try:
            histogram.reach(observed.largest)
            histogram.add(observed.values)
        except NotFiniteError as err:
            raise BuildError(
                f"activation {name!r}: {err}, in {samples}; the float "
                "model overflows there: exclude the layers that read it, or mend the samples"
            ) from err
    for name, answer in found.items():
        if not math.isfinite(answer.largest):
            raise BuildError(
                f"output {name!r} of the float model holds NaN or an infinity, in {samples}; mend "
                "the samples, or the model"
            )
