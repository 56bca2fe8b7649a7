"""Does the engine keep what the recipe asks? FP32 model against engine on the held-out split.

`Comparison` adds up batches, `judge` decides. Both pure: whoever calls runs the models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edged.build_options import VerifyOptions
from edged.errors import BuildError
from edged.manifest import Verdict

Array = npt.NDArray[np.generic]

PADDING = "padding_sqnr_db"
"""Metric: the FP32 model on padded samples against the same samples at their own lengths."""
LEAST_PADDING_DB = 40.0
"""Below it a build notes that padding changes answers; float sums in another order leave 100."""

LEAST_FLOAT_DB: Mapping[str, float] = {"fp32": 30.0, "fp16": 20.0}
"""SQNR below which a float engine is not the model's any more, whatever the recipe's gates say:
TF32 products keep 60 dB and more, FP16 ones 45 on the networks that were looked at."""

_MAX_DB = 200.0  # what identical outputs are given: beyond float64's precision


@dataclass
class Comparison:
    """Sums over the held-out split; memory does not depend on its size.

    Attributes:
        output: name of the output whose largest entry is the answer.
        samples: samples seen.
        labelled: samples with a label.
        agreed: samples whose answer is the same in both.
        right_fp32: labelled samples that the FP32 model answers rightly.
        right_engine: likewise the engine.
    """

    output: str
    samples: int = 0
    labelled: int = 0
    agreed: int = 0
    right_fp32: int = 0
    right_engine: int = 0
    _energy: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Comparison {self.samples} samples, {self.agreed} agreed>"

    def add(
        self,
        reference: Mapping[str, Array],
        engine: Mapping[str, Array],
        labels: Array | None = None,
    ) -> None:
        """Takes one batch in.

        Args:
            reference: the FP32 model's outputs, ``[n, *shape]`` by name.
            engine: the engine's outputs, of the same form.
            labels: index of the right entry for each sample, ``[n]``, or None.

        Raises:
            BuildError: the outputs are not of one form, or not finite.
        """
        for name, wanted in reference.items():
            self._add_energy(name, wanted, engine[name])
        expected, answered = (_answers(outputs[self.output]) for outputs in (reference, engine))
        self.samples += len(expected)
        self.agreed += int((expected == answered).all(axis=1).sum())
        if labels is not None:
            if expected.shape[1] != 1:
                raise BuildError(
                    f"output {self.output!r} gives {expected.shape[1]} answers a sample, but "
                    "labels are one a sample; put the classification output first in the recipe"
                )
            self.labelled += len(labels)
            self.right_fp32 += int((expected[:, 0] == labels).sum())
            self.right_engine += int((answered[:, 0] == labels).sum())

    def _add_energy(self, name: str, reference: Array, engine: Array) -> None:
        if reference.shape != engine.shape:
            raise BuildError(
                f"output {name!r} of the engine has shape {list(engine.shape)}, that of the FP32 "
                f"model {list(reference.shape)}: a fault of the build"
            )
        wanted, found = (np.asarray(rows, np.float64).reshape(-1) for rows in (reference, engine))
        for who, values in (("FP32 model", wanted), ("engine", found)):
            bad = int(values.size - np.isfinite(values).sum())
            if bad:
                raise BuildError(
                    f"output {name!r} of the {who} is NaN or infinite on the held-out split, in "
                    f"{bad} of {values.size} values of one batch"
                )
        error = wanted - found
        sums = np.array([wanted @ wanted, found @ found, wanted @ found, error @ error])
        self._energy[name] = self._energy.get(name, np.zeros(4)) + sums

    def metrics(self) -> dict[str, float]:
        """What was found, by name; see docs/engines.md.

        ``sqnr_db`` is ``10 log10(sum ref^2 / sum (ref - engine)^2)`` and ``cosine`` the cosine
        similarity over all samples; of several outputs the worst counts.

        Raises:
            BuildError: no samples were seen.
        """
        if self.samples == 0:
            raise BuildError("the held-out split has no samples; an engine cannot be verified")
        found = {
            "agreement": self.agreed / self.samples,
            "sqnr_db": min(_sqnr_db(sums) for sums in self._energy.values()),
            "cosine": min(_cosine(sums) for sums in self._energy.values()),
        }
        if self.labelled:
            found["fp32_top1"] = self.right_fp32 / self.labelled
            found["engine_top1"] = self.right_engine / self.labelled
        return {name: round(value, 6) for name, value in found.items()}


def loss(metrics: Mapping[str, float], options: VerifyOptions) -> float:
    """What is lost of the recipe's metric against the FP32 model, as a fraction; 0 is nothing.

    ``top1``: the drop of the accuracy, or without labels the share of samples whose largest entry
    is another one. ``cosine``: what the cosine similarity of the outputs lacks to 1.
    """
    if options.metric == "cosine":
        return 1 - metrics["cosine"]
    if "fp32_top1" in metrics:
        return round(metrics["fp32_top1"] - metrics["engine_top1"], 6)
    return 1 - metrics["agreement"]


def judge(metrics: Mapping[str, float], samples: int, options: VerifyOptions) -> Verdict:
    """Compares metrics with the recipe's gates.

    Args:
        metrics: from `Comparison.metrics`.
        samples: size of the held-out split.
        options: the recipe's gates.
    """
    reasons = []
    drop = loss(metrics, options)
    if options.metric == "cosine":
        if drop > options.max_drop:
            reasons.append(
                f"the cosine similarity of the outputs is {metrics['cosine']:.6f}, {drop:.6f} "
                f"below 1; max_drop allows {options.max_drop}"
            )
    else:
        reasons += _judge_answers(metrics, samples, options)
    return Verdict(
        passed=not reasons, samples=samples, metrics=dict(metrics), reasons=tuple(reasons)
    )


def check_float(precision: str, metrics: Mapping[str, float]) -> None:
    """Whether an engine that only rounds computes what the model does.

    A task metric can hide an engine that is wrong: of a classifier with clear answers 14 dB are
    enough to get each of them right.

    Args:
        precision: ``fp32``, ``fp16`` or ``int8``; of INT8 nothing is asked here.
        metrics: from `Comparison.metrics`.

    Raises:
        BuildError: it computes something else.
    """
    least = LEAST_FLOAT_DB.get(precision)
    if least is not None and metrics["sqnr_db"] < least:
        raise BuildError(
            f"the {precision.upper()} engine computes something else than the model: its outputs "
            f"keep {metrics['sqnr_db']:.1f} dB, and rounding alone leaves {least:g} or more; this "
            "is a fault of the engine or of its runtime, not of the recipe"
        )


def _judge_answers(metrics: Mapping[str, float], samples: int, options: VerifyOptions) -> list[str]:
    reasons = []
    drop = loss(metrics, options)
    if "fp32_top1" in metrics and drop > options.max_drop:
        reasons.append(
            f"top-1 accuracy fell from {metrics['fp32_top1']:.4f} to "
            f"{metrics['engine_top1']:.4f}, by {drop:.4f}; max_drop allows {options.max_drop}"
        )
    if metrics["agreement"] < options.min_agreement:
        reasons.append(
            f"the engine agrees with the FP32 model on {metrics['agreement']:.4f} of "
            f"{samples} samples; min_agreement asks for {options.min_agreement}"
        )
    return reasons


def _answers(output: Array) -> npt.NDArray[np.intp]:
    """Largest entry of the last axis: ``[n, answers]``, one column for a classifier."""
    rows = output.reshape(len(output), -1, output.shape[-1] if output.ndim > 1 else 1)
    return np.asarray(rows.argmax(axis=-1))


def _sqnr_db(sums: npt.NDArray[np.float64]) -> float:
    signal, error = float(sums[0]), float(sums[3])
    if error == 0:
        return _MAX_DB
    return 10 * math.log10(signal / error) if signal > 0 else -_MAX_DB


def _cosine(sums: npt.NDArray[np.float64]) -> float:
    norm = math.sqrt(float(sums[0]) * float(sums[1]))
    if norm == 0:
        return 1.0 if sums[3] == 0 else 0.0
    return float(sums[2]) / norm
