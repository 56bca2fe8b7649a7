"""A float graph that tells of each activation what calibration needs, and no more.

To give an activation out whole keeps it in memory until the batch is over, and to count each of
its values costs more time than many a layer. So the graph itself takes its extremes and a regular
sample of its values: ONNX Runtime frees the rest as it does in any run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from edged.build.onnx_graph import shape_of

Array = npt.NDArray[np.generic]

MOST_VALUES = 1 << 13
"""Values of one sample that are counted of an activation; larger ones are thinned out evenly.

With 256 samples that is 2 million values, so that 200 lie above a percentile of 99.99."""


@dataclass(frozen=True, eq=False)
class Observed:
    """An activation in one batch.

    Attributes:
        values: all of its values, or a regular sample of them.
        largest: magnitude of the largest one, NaN if any is NaN.
    """

    values: Array
    largest: float


@dataclass(frozen=True)
class ObservedGraph:
    """A graph with observers.

    Attributes:
        model: the graph, serialized.
        whole: activations that are outputs as they are.
        thinned: activations of which the outputs `_outputs` tell.
    """

    model: bytes
    whole: tuple[str, ...]
    thinned: tuple[str, ...]

    @property
    def outputs(self) -> tuple[str, ...]:
        """What to run the graph for."""
        return (*self.whole, *(name for tensor in self.thinned for name in _outputs(tensor)))

    def observed(self, outputs: Mapping[str, Array]) -> dict[str, Observed]:
        """Outputs of one run -> activations by name."""
        found = {name: observe(outputs[name]) for name in self.whole}
        for tensor in self.thinned:
            values, top, bottom, total = (outputs[name] for name in _outputs(tensor))
            # The sum is there for NaN, which a maximum may pass over; it may itself overflow.
            largest = math.nan if np.isnan(float(total)) else max(float(top), -float(bottom))
            found[tensor] = Observed(values, largest)
        return found


def observe(values: Array) -> Observed:
    """An activation that was given out whole."""
    if values.size == 0:
        return Observed(values, 0.0)
    extremes = np.array([values.max(), -values.min()], np.float64)
    return Observed(values, float(extremes.max()))


def thin(values: Array) -> Array:
    """A regular sample of each row of a batch, ``[n, *shape]``, as an observed graph takes it."""
    step = _step(values.shape[1:])
    return values if step == 1 else values.reshape(len(values), -1)[:, ::step]


def with_observers(model: onnx.ModelProto, tensors: Sequence[str]) -> ObservedGraph:
    """The model with outputs that tell of its activations.

    Args:
        model: a normalised model; not changed.
        tensors: names of activations, none of them a model input.
    """
    steps = {name: _step(shape_of(model, name)[1:]) for name in tensors}
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    present = {item.name for item in model.graph.output}
    for name, step in steps.items():
        if step > 1:
            _Observers(observed.graph).add(name, step)
        elif name not in present:
            observed.graph.output.append(onnx.ValueInfoProto(name=name))
    return ObservedGraph(
        bytes(observed.SerializeToString(deterministic=True)),
        tuple(name for name in tensors if steps[name] == 1),
        tuple(name for name in tensors if steps[name] > 1),
    )


def _outputs(tensor: str) -> tuple[str, str, str, str]:
    stem = f"{tensor}__observed"
    return (f"{stem}_values", f"{stem}_max", f"{stem}_min", f"{stem}_sum")


def _step(shape: Sequence[int | None]) -> int:
    """Every how many-th value of a sample is taken: 1 if all fit, or if the size is unknown."""
    sizes = [size for size in shape if size is not None]
    if len(sizes) < len(shape):
        return 1
    step = math.ceil(math.prod(sizes) / MOST_VALUES)
    # A step that shares a factor with an axis would pass over some of its columns or channels.
    while step > 1 and any(math.gcd(step, size) > 1 for size in sizes):
        step += 1
    return max(step, 1)


@dataclass(frozen=True)
class _Observers:
    """Writes observers into a graph."""

    graph: onnx.GraphProto

    def add(self, tensor: str, step: int) -> None:
        """Extremes, sum of magnitudes, and every ``step``-th value of each sample."""
        values, top, bottom, total = _outputs(tensor)
        for operator, output in (
            ("ReduceMax", top),
            ("ReduceMin", bottom),
            ("ReduceL1", total),
        ):
            self._node(operator, [tensor], output, keepdims=0)
        rows = f"{values}_rows"
        self._node("Reshape", [tensor, self._constant(f"{rows}_shape", [0, -1])], rows)
        slicing = {"starts": [0], "ends": [np.iinfo(np.int64).max], "axes": [1], "steps": [step]}
        names = [self._constant(f"{rows}_{part}", value) for part, value in slicing.items()]
        self._node("Slice", [rows, *names], values)
        for name in (values, top, bottom, total):
            self.graph.output.append(onnx.ValueInfoProto(name=name))

    def _constant(self, name: str, value: list[int]) -> str:
        self.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
        return name

    def _node(self, operator: str, inputs: list[str], output: str, **options: int) -> None:
        node = helper.make_node(operator, inputs, [output], name=output, **options)
        self.graph.node.append(node)
