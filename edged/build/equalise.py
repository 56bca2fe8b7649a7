"""Gives the channels of a quantized activation more equal ranges, without changing the function.

One scale serves all channels of an activation, so a channel of large values costs the others their
resolution. What one layer multiplies a channel by, the next one divides it by: exact through ReLU
and whatever else only moves or picks values (Nagel et al., 2019, section 4.1; with activations on
one side as in Xiao et al., SmoothQuant, 2023). The factors are powers of two, so that the float
model's outputs stay the same to the bit and small differences between processors change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from edged.build.onnx_graph import GraphIndex, attribute, constant_array, shape_of
from edged.build.placement import Placement

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float64]

_PASSES = {"Relu", "MaxPool", "LeakyRelu", "Dropout", "Identity"}
_MOST = 6  # a channel is scaled by 2 ** -6 to 2 ** 6
_AXES_ARE_INPUTS = 18


@dataclass(frozen=True)
class Seam:
    """A place where channels can be scaled.

    Attributes:
        activation: the quantized tensor.
        maker: the node whose constants make its channels, a Conv, Gemm or LayerNormalization.
        readers: the quantized layers that read it: all of its readers.
        axis: of its channels.
        rank: of the tensor.
    """

    activation: str
    maker: str
    readers: tuple[str, ...]
    axis: int
    rank: int


def seams(model: onnx.ModelProto, placement: Placement) -> tuple[Seam, ...]:
    """All places in a normalised model where channels can be scaled, in graph order."""
    index = GraphIndex(model.graph)
    by_activation: dict[str, list[str]] = {}
    for layer in placement.layers:
        by_activation.setdefault(layer.activation, []).append(layer.node)
    found = []
    for activation, readers in by_activation.items():
        maker = _maker(index, activation, set(readers))
        rank = len(shape_of(model, activation))
        if maker is None or rank < 2 or not _scalable(index, maker):
            continue
        nodes = {node.name: node for node in index.readers[activation]}
        if all(_takes_channels(nodes[name], rank) for name in readers):
            axis = rank - 1 if maker.op_type in {"LayerNormalization", "Gemm"} else 1
            fits = all(
                (nodes[name].op_type == "Conv") == (maker.op_type == "Conv") for name in readers
            )
            if fits:
                found.append(Seam(activation, maker.name, tuple(readers), axis, rank))
    return tuple(found)


def _maker(index: GraphIndex, activation: str, layers: set[str]) -> onnx.NodeProto | None:
    """The node that makes an activation's channels, if nothing else reads on the way."""
    readers = index.readers.get(activation, [])
    if activation in index.outputs or any(node.name not in layers for node in readers):
        return None
    tensor = activation
    while (node := index.producer.get(tensor)) is not None:
        if node.op_type not in _PASSES:
            return node
        tensor = node.input[0]
        if index.only_reader(tensor) is None:
            return None
    return None


def _scalable(index: GraphIndex, maker: onnx.NodeProto) -> bool:
    if maker.op_type not in {"Conv", "Gemm", "LayerNormalization"}:
        return False
    constants = [index.constants.get(name) for name in maker.input[1:] if name]
    known = all(item is not None and item.data_type == item.FLOAT for item in constants)
    if maker.op_type == "LayerNormalization":
        last = attribute(maker, "axis", -1)
        return known and last == -1 and len(constants[0].dims if constants[0] else ()) == 1
    return known


def _takes_channels(node: onnx.NodeProto, rank: int) -> bool:
    """Whether a reader's weight has one row or column for each channel of its input."""
    if node.op_type == "Conv":
        return attribute(node, "group", 1) == 1
    if node.op_type == "Gemm":
        return rank == 2 and attribute(node, "transA", 0) == 0
    return True


def maxima_graph(model: onnx.ModelProto, places: Iterable[Seam]) -> onnx.ModelProto:
    """The model with the largest magnitude of each channel as outputs `maximum_of` a seam."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    opset = next(item.version for item in made.opset_import if item.domain in {"", "ai.onnx"})
    for seam in places:
        axes = [axis for axis in range(seam.rank) if axis != seam.axis]
        name = maximum_of(seam)
        graph.node.append(
            helper.make_node("Abs", [seam.activation], [f"{name}_abs"], f"{name}_abs")
        )
        if opset < _AXES_ARE_INPUTS:
            node = helper.make_node("ReduceMax", [f"{name}_abs"], [name], axes=axes, keepdims=0)
        else:
            constant = numpy_helper.from_array(np.array(axes, np.int64), f"{name}_axes")
            graph.initializer.append(constant)
            node = helper.make_node("ReduceMax", [f"{name}_abs", constant.name], [name], keepdims=0)
        node.name = name
        graph.node.append(node)
        graph.output.append(onnx.ValueInfoProto(name=name))
    return made


def maximum_of(seam: Seam) -> str:
    """Name of the output that holds the largest magnitude of each channel, ``[channels]``."""
    return f"{seam.activation}__channel_maxima"


def channel_maxima(
    run: Callable[[Mapping[str, Array]], Mapping[str, Array]],
    batches: Iterable[Mapping[str, Array]],
) -> dict[str, Floats]:
    """Runs samples through the graph of maxima; the largest of each channel over all of them."""
    found: dict[str, Floats] = {}
    for batch in batches:
        for name, values in run(batch).items():
            here = np.asarray(values, np.float64)
            found[name] = np.maximum(found[name], here) if name in found else here
    return found


def equalise(
    model: onnx.ModelProto, places: Iterable[Seam], maxima: Mapping[str, Floats]
) -> onnx.ModelProto:
    """Scales the channels of each seam.

    Args:
        model: normalised; not changed.
        places: from `seams`.
        maxima: from `channel_maxima`.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    nodes = {node.name: node for node in made.graph.node}
    for seam in places:
        index = GraphIndex(made.graph)
        readers = [nodes[name] for name in seam.readers]
        weights = [_channel_weights(index, node) for node in readers]
        factors = factors_of(maxima[maximum_of(seam)], np.max(weights, axis=0))
        for node in readers:
            _scale(made.graph, index, node, (1, _input_axis(node)), factors)
        maker = nodes[seam.maker]
        for position in range(1, len(maker.input)):
            if maker.input[position]:
                axis = _output_axis(maker) if position == 1 else -1
                _scale(made.graph, index, maker, (position, axis), 1 / factors)
    return made


def factors_of(activations: Floats, weights: Floats) -> Floats:
    """What each channel of the activation is divided by, and its weights multiplied by.

    ``sqrt(activation / weight)``, half of the way for each side, relative to the geometric mean
    and rounded to a power of two. A channel that is zero on either side is left alone.

    Args:
        activations: largest magnitude of each channel.
        weights: largest magnitude of the weights that read the channel.
    """
    alive = (activations > 0) & (weights > 0) & np.isfinite(activations)
    if not alive.any():
        return np.ones(len(activations))
    wanted = np.zeros(len(activations))
    wanted[alive] = (np.log2(activations[alive]) - np.log2(weights[alive])) / 2
    wanted[alive] -= wanted[alive].mean()
    return np.asarray(np.exp2(np.clip(np.rint(wanted), -_MOST, _MOST)))


def _input_axis(node: onnx.NodeProto) -> int:
    if node.op_type == "Conv":
        return 1
    return 1 if node.op_type == "Gemm" and attribute(node, "transB", 0) else 0


def _output_axis(node: onnx.NodeProto) -> int:
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return 0


def _channel_weights(index: GraphIndex, node: onnx.NodeProto) -> Floats:
    weight = np.abs(constant_array(index, node.input[1]).astype(np.float64))
    others = tuple(axis for axis in range(weight.ndim) if axis != _input_axis(node))
    return np.asarray(weight.max(axis=others))


def _scale(
    graph: onnx.GraphProto,
    index: GraphIndex,
    node: onnx.NodeProto,
    where: tuple[int, int],
    factors: Floats,
) -> None:
    """Multiplies a constant of a node, at (position, axis); under a new name: it may be shared."""
    position, axis = where
    old = constant_array(index, node.input[position]).astype(np.float64)
    shape = [1] * old.ndim
    if old.ndim == 0 or old.shape[axis] == 1:
        shape = [len(factors)]
    else:
        shape[axis] = len(factors)
    value = (old * factors.reshape(shape)).astype(np.float32)
    name = f"{node.input[position]}__of_{node.name}"
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
    node.input[position] = name
