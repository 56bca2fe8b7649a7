"""One engine at every length of its inputs; with a fixed length that is one runner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, final

import numpy as np
import numpy.typing as npt

from edged.build.dataset import SampleBatch, model_inputs
from edged.build.dataset_files import cut
from edged.recipe import InputSpec, OutputSpec
from edged.runners import Array, Runner, at_length, run_batch


class Tensors(Protocol):
    """What takes and gives tensors: a recipe or a manifest."""

    @property
    def input(self) -> tuple[InputSpec, ...]:
        """Inputs."""

    @property
    def output(self) -> tuple[OutputSpec, ...]:
        """Outputs."""


def buckets_of(inputs: Sequence[InputSpec]) -> tuple[int, ...]:
    """Lengths that samples are padded to, ascending; (0,) where the length is fixed."""
    return next((spec.buckets for spec in inputs if spec.length is not None), (0,))


@final
class ByLength:
    """The runners of one engine by padded length; made when they are asked for.

    Args:
        runner: for the largest length.
        tensors: what it takes and gives.
    """

    def __init__(self, runner: Runner, tensors: Tensors) -> None:
        self._tensors = tensors
        self._runners = {buckets_of(tensors.input)[-1]: runner}
        self.largest = runner

    def __repr__(self) -> str:
        return f"<ByLength {sorted(self._runners)}>"

    def at(self, length: int) -> Runner:
        """The runner of a padded length, 0 where that is fixed.

        Raises:
            EngineRefusedError: this runtime has one length only.
        """
        if length not in self._runners:
            specs = self._tensors.input, self._tensors.output
            self._runners[length] = at_length(self.largest, *specs, length)
        return self._runners[length]

    def run(self, batch: SampleBatch) -> Mapping[str, Array]:
        """Outputs of a batch; like those of a service, zero behind each sample's length.

        Raises:
            EdgedError: the engine fails.
        """
        inputs = model_inputs(batch, self._tensors.input)
        outputs = run_batch(self.at(batch.padded), inputs).outputs
        return without_padding(outputs, batch, self._tensors.output)

    def close(self) -> None:
        """Closes all of them."""
        self.close_others()
        self.largest.close()

    def close_others(self) -> None:
        """Closes all but the one that it was given."""
        for runner in self._runners.values():
            if runner is not self.largest:
                runner.close()


def without_padding(
    outputs: Mapping[str, Array], batch: SampleBatch, specs: Sequence[OutputSpec]
) -> dict[str, Array]:
    """Outputs with zeros where a service cuts them off.

    Args:
        outputs: ``[n, *shape]`` by name.
        batch: whose.
        specs: of the model's outputs.
    """
    found = dict(outputs)
    for spec in specs:
        if batch.lengths is not None and spec.length_axis is not None and spec.name in found:
            found[spec.name] = cut(found[spec.name], batch.lengths, spec.length_axis + 1)
    return found


def one_by_one(
    graph: Any, batch: SampleBatch, inputs: Sequence[InputSpec], outputs: Sequence[OutputSpec]
) -> dict[str, Array]:
    """What a model gives for samples at their own lengths, without any padding.

    Args:
        graph: a `edged.runners.onnx.FloatGraph`.
        batch: samples of variable length.
        inputs: the recipe's.
        outputs: the recipe's.

    Returns:
        ``[n, *shape]`` by name, zero behind each sample's length.
    """
    names = [spec.name for spec in outputs]
    parts: list[dict[str, Array]] = []
    lengths: npt.NDArray[np.int64] = (
        np.zeros(0, np.int64) if batch.lengths is None else batch.lengths
    )
    for at, length in enumerate(lengths):
        own = SampleBatch(
            {name: rows[at : at + 1] for name, rows in batch.inputs.items()},
            None,
            lengths[at : at + 1],
            int(length),
        )
        parts.append(graph.run(model_inputs(own, inputs), names))
    return {spec.name: _joined([part[spec.name] for part in parts], spec, batch.padded)
            for spec in outputs}  # fmt: skip


def _joined(rows: Sequence[Array], spec: OutputSpec, padded: int) -> Array:
    if spec.length_axis is None:
        return np.concatenate(rows)
    shape = list(spec.shape)
    shape[spec.length_axis] = padded
    whole = np.zeros((len(rows), *shape), rows[0].dtype)
    for at, row in enumerate(rows):
        along = np.moveaxis(whole[at], spec.length_axis, 0)
        along[: row.shape[spec.length_axis + 1]] = np.moveaxis(row[0], spec.length_axis, 0)
    return whole
