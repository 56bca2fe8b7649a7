"""How good a quantized model is, on samples that were held back from calibration.

The float model's outputs are computed once and kept; samples of the held-out split stay unseen, so
that the gates at the end of the build judge independently.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edged.build.verify import Comparison, loss
from edged.build_options import VerifyOptions
from edged.errors import BuildError
from edged.runners.onnx import FloatGraph

Array = npt.NDArray[np.generic]

_TINY = 1e-30


@dataclass(frozen=True, order=True)
class Score:
    """What a quantized model loses; compares by the task's metric first.

    Attributes:
        loss: of the recipe's metric against the float model; 0 is none.
        noise_db: minus the output SQNR in dB, the mean over the samples: over all values at once
            the few samples that the model is least sure of would outvote all others.
    """

    loss: float
    noise_db: float

    @property
    def sqnr_db(self) -> float:
        """Signal to noise ratio of the outputs, in dB."""
        return -self.noise_db


class Holdout:
    """Samples with the float model's outputs.

    Args:
        reference: the float model, serialized.
        batches: model inputs and labels, or None where there are none.
        outputs: names of the outputs that count; answers are read from the first one.
        options: the recipe's metric.

    Raises:
        BuildError: there are no samples.
    """

    def __init__(
        self,
        reference: bytes,
        batches: Iterable[tuple[Mapping[str, Array], Array | None]],
        outputs: tuple[str, ...],
        options: VerifyOptions,
    ) -> None:
        graph = FloatGraph(reference)
        self._outputs = outputs
        self._options = options
        self._batches = [(inputs, labels, graph.run(inputs, outputs)) for inputs, labels in batches]
        if not self._batches:
            raise BuildError(
                "no calibration samples are left to hold back; add some to the dataset"
            )

    def __repr__(self) -> str:
        return f"<Holdout of {len(self)} samples>"

    def __len__(self) -> int:
        return sum(len(next(iter(inputs.values()))) for inputs, _, _ in self._batches)

    def score(self, model: bytes) -> Score:
        """Runs a model, serialized, and compares.

        Raises:
            BuildError: an output is not finite or of another shape.
        """
        graph, comparison = FloatGraph(model), Comparison(self._outputs[0])
        decibels: dict[str, list[float]] = {name: [] for name in self._outputs}
        for inputs, labels, expected in self._batches:
            found = graph.run(inputs, self._outputs)
            comparison.add(expected, found, labels)
            for name, known in decibels.items():
                known.extend(_sqnr_db(expected[name], found[name]))
        lost = max(0.0, loss(comparison.metrics(), self._options))
        worst = min(sum(known) / len(known) for known in decibels.values())
        return Score(round(lost, 6), round(-worst, 6))


def _sqnr_db(expected: Array, found: Array) -> list[float]:
    """Of each sample, within 0 to 100 dB."""
    wanted, other = (rows.reshape(len(rows), -1).astype(np.float64) for rows in (expected, found))
    signal, noise = np.square(wanted).sum(axis=1), np.square(wanted - other).sum(axis=1)
    ratio = (signal + _TINY) / (noise + _TINY)
    return [float(db) for db in np.clip(10 * np.log10(ratio), 0.0, 100.0)]
