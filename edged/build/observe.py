"""A float graph that tells of each activation what calibration needs, and no more.

To give an activation out whole keeps it in memory until the batch is over, and to count each of
its values costs more time than many a layer. So the graph itself takes its extremes and a regular
sample of its values: ONNX Runtime frees the rest as it does in any run. Images are observed by
pooling, which ONNX Runtime does in the blocked layout of its convolutions: any other operator would
have it turn each of them back into a plain one first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from edged.build.onnx_graph import shape_of

Array = npt.NDArray[np.generic]

MOST_VALUES = 1 << 13
"""Values of one sample that are counted of an image; larger ones are thinned out evenly.

With 256 samples that is 2 million values, so that 200 lie above a percentile of 99.99."""


MOST_OTHERS = 1 << 16
"""Likewise of what is no image: transformers have tokens and channels with far larger values than
all others, and a sample of fixed positions passes over some of them."""

_IMAGE_AXES = 3  # channels, rows, columns
_MOST_UNEVEN = 4  # between the strides of rows and columns


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
        pooled: those of them that are images.
        squared: those of them of whose squares the largest is told.
        answers: the model's own outputs, looked at for what is not finite: the maximum of an image
            may pass over NaN, which a convolution then spreads to all that depends on it.
    """

    model: bytes
    whole: tuple[str, ...]
    thinned: tuple[str, ...]
    pooled: frozenset[str]
    squared: frozenset[str]
    answers: tuple[str, ...]

    @property
    def outputs(self) -> tuple[str, ...]:
        """What to run the graph for."""
        thinned = (name for tensor in self.thinned for name in self._outputs(tensor))
        return tuple(dict.fromkeys((*self.whole, *self.answers, *thinned)))

    def _outputs(self, tensor: str) -> tuple[str, ...]:
        return _outputs(tensor)[: 2 if tensor in self.pooled else 3]

    def observed(self, outputs: Mapping[str, Array]) -> dict[str, Observed]:
        """Outputs of one run -> activations by name, and the model's own outputs."""
        found = {name: observe(outputs[name]) for name in self.whole}
        for tensor in self.thinned:
            values, top, *total = (outputs[name] for name in self._outputs(tensor))
            largest = float(top.max())
            # The sum is there for NaN, which a maximum may pass over; it may itself overflow.
            if any(np.isnan(each) for each in total):
                largest = math.nan
            found[tensor] = Observed(
                values, math.sqrt(largest) if tensor in self.squared else largest
            )
        for name in self.answers:
            answer = observe(outputs[name])
            if name not in found or not math.isfinite(answer.largest):
                found[name] = answer
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
    shapes = {name: shape_of(model, name) for name in tensors}
    steps = {name: _step(shape[1:]) for name, shape in shapes.items()}
    makers = {name: node for node in model.graph.node for name in node.output}
    pooled, squared = set(), set()
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    present = {item.name for item in model.graph.output}
    for name, step in steps.items():
        strides = _strides(shapes[name])
        if step > 1 and strides:
            pooled.add(name)
            if not _never_negative(makers[name]):
                squared.add(name)
            _Observers(observed.graph).pool(name, strides, squared=name in squared)
        elif step > 1:
            _Observers(observed.graph).add(name, step)
        elif name not in present:
            observed.graph.output.append(onnx.ValueInfoProto(name=name))
    return ObservedGraph(
        bytes(observed.SerializeToString(deterministic=True)),
        tuple(name for name in tensors if steps[name] == 1),
        tuple(name for name in tensors if steps[name] > 1),
        frozenset(pooled),
        frozenset(squared),
        tuple(
            item.name
            for item in model.graph.output
            if item.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        ),
    )


def _outputs(tensor: str) -> tuple[str, str, str]:
    stem = f"{tensor}__observed"
    return (f"{stem}_values", f"{stem}_max", f"{stem}_sum")


def _step(shape: Sequence[int | None]) -> int:
    """Every how many-th value of a sample is taken: 1 if all fit, or if the size is unknown."""
    sizes = [size for size in shape if size is not None]
    if len(sizes) < len(shape):
        return 1
    most = MOST_VALUES if len(sizes) == _IMAGE_AXES else MOST_OTHERS
    step = math.ceil(math.prod(sizes) / most)
    # A step that shares a factor with an axis would pass over some of its columns or channels.
    while step > 1 and any(math.gcd(step, size) > 1 for size in sizes):
        step += 1
    return max(step, 1)


def _strides(shape: Sequence[int | None]) -> tuple[int, int] | None:
    """Every how many-th row and column of an image ``[n, c, h, w]`` is taken; None: no such image.

    Both are odd, as what up- and downsampling leaves repeats with powers of two; of those that take
    at most `MOST_VALUES` the pair that takes the most.
    """
    if len(shape) != 4 or None in shape[1:]:  # the axes in the docstring
        return None
    channels, *sizes = (size or 1 for size in shape[1:])
    odd = range(1, max(sizes) + 1, 2)
    taken = {
        pair: channels * math.prod(-(-size // step) for size, step in zip(sizes, pair, strict=True))
        for pair in itertools.product(odd, odd)
        if abs(pair[0] - pair[1]) <= _MOST_UNEVEN
    }
    fitting = {pair: count for pair, count in taken.items() if count <= MOST_VALUES}
    return max(fitting, key=lambda pair: fitting[pair]) if fitting else None


def _never_negative(node: onnx.NodeProto) -> bool:
    return node.op_type in {"Relu", "Sigmoid"}


@dataclass(frozen=True)
class _Observers:
    """Writes observers into a graph."""

    graph: onnx.GraphProto

    def add(self, tensor: str, step: int) -> None:
        """Largest magnitude, sum of magnitudes, and every ``step``-th value of each sample."""
        values, top, total = _outputs(tensor)
        for operator, output in (("ReduceMax", f"{top}_upper"), ("ReduceMin", f"{top}_lower")):
            self._node(operator, [tensor], output, keepdims=0)
        self._node("Neg", [f"{top}_lower"], f"{top}_turned")
        self._node("Max", [f"{top}_upper", f"{top}_turned"], top)
        self._node("ReduceL1", [tensor], total, keepdims=0)
        rows = f"{values}_rows"
        self._node("Reshape", [tensor, self._constant(f"{rows}_shape", [0, -1])], rows)
        slicing = {"starts": [0], "ends": [np.iinfo(np.int64).max], "axes": [1], "steps": [step]}
        names = [self._constant(f"{rows}_{part}", value) for part, value in slicing.items()]
        self._node("Slice", [rows, *names], values)
        self._give_out(values, top, total)

    def pool(self, tensor: str, strides: tuple[int, int], *, squared: bool) -> None:
        """The same but for the sum, by operators that ONNX Runtime has for blocked layouts."""
        values, top, _total = _outputs(tensor)
        self._node("MaxPool", [tensor], values, kernel_shape=[1, 1], strides=list(strides))
        if squared:
            self._node("Mul", [tensor, tensor], f"{top}_squares")
        self._node("GlobalMaxPool", [f"{top}_squares" if squared else tensor], top)
        self._give_out(values, top)

    def _give_out(self, *names: str) -> None:
        for name in names:
            self.graph.output.append(onnx.ValueInfoProto(name=name))

    def _constant(self, name: str, value: list[int]) -> str:
        self.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
        return name

    def _node(self, operator: str, inputs: list[str], output: str, **options: Any) -> None:
        node = helper.make_node(operator, inputs, [output], name=output, **options)
        self.graph.node.append(node)
