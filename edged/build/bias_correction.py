"""Takes the mean error of each quantized layer off its bias.

Rounding weights and clipping activations shift the mean of a layer's output, an error that adds up
from layer to layer and that a bias can undo (Nagel et al., Data-Free Quantization Through Weight
Equalization and Bias Correction, 2019, section 4.2; here with measured means). One graph holds each
layer twice, once in float and once behind its Q/DQ pairs on the same float input, and gives out the
mean of their difference, one number for each output channel.

It does harm where a few positions, such as the first token of a sentence, hold values that are
clipped far below their size: the mean is then theirs alone. So whoever calls compares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from edged.build.onnx_graph import GraphIndex, constant_array, shape_of
from edged.build.placement import LinearLayer, Placement

Array = npt.NDArray[np.generic]
Means = dict[str, npt.NDArray[np.float64]]

_AXES_ARE_INPUTS = 18  # of ReduceMean, from this opset on


def shadowed(model: onnx.ModelProto, placement: Placement) -> tuple[onnx.ModelProto, Placement]:
    """The float model with a copy of each layer that can be corrected, and the mean differences.

    Args:
        model: normalised; not changed.
        placement: what is quantized.

    Returns:
        The model, whose outputs beside its own are `mean_output` of each layer, and a placement
        for it that quantizes the copies only.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    index = GraphIndex(model.graph)
    nodes = {node.name: node for node in model.graph.node}
    copies = []
    for layer in placement.layers:
        axes = _axes(model, nodes[layer.node])
        if axes is None or not _correctable(index, nodes[layer.node]):
            continue
        copies.append(_copy(made, nodes[layer.node], layer, axes))
    return made, Placement(tuple(copies), groups=placement.groups)


def mean_output(layer: str) -> str:
    """Name of the output that holds a layer's mean error, ``[channels]``."""
    return f"{layer}__mean_error"


def _axes(model: onnx.ModelProto, node: onnx.NodeProto) -> list[int] | None:
    """All axes of a layer's output but that of its channels; None if the rank is unknown."""
    if node.op_type in {"Conv", "Gemm"}:
        rank, channel = 2, 1
        if node.op_type == "Conv":
            rank = len(next(item for item in model.graph.initializer
                            if item.name == node.input[1]).dims)  # fmt: skip
    else:
        shape = shape_of(model, node.output[0])
        rank, channel = len(shape), len(shape) - 1
        if shape == (None, None):
            return None
    return [axis for axis in range(rank) if axis != channel]


def _copy(
    model: onnx.ModelProto, node: onnx.NodeProto, layer: LinearLayer, axes: list[int]
) -> LinearLayer:
    copy, graph = onnx.NodeProto(), model.graph
    copy.CopyFrom(node)
    copy.name = f"{layer.node}__copy"
    copy.output[0] = f"{copy.name}_out"
    difference, mean = f"{copy.name}_difference", mean_output(layer.node)
    graph.node.append(copy)
    graph.node.append(
        helper.make_node("Sub", [copy.output[0], node.output[0]], [difference], name=difference)
    )
    opset = next(item.version for item in model.opset_import if item.domain in {"", "ai.onnx"})
    if opset < _AXES_ARE_INPUTS:
        reduced = helper.make_node("ReduceMean", [difference], [mean], axes=axes, keepdims=0)
    else:
        constant = numpy_helper.from_array(np.array(axes, np.int64), f"{mean}_axes")
        graph.initializer.append(constant)
        reduced = helper.make_node("ReduceMean", [difference, constant.name], [mean], keepdims=0)
    reduced.name = mean
    graph.node.append(reduced)
    weight = next(item for item in graph.initializer if item.name == layer.weight)
    graph.output.append(
        helper.make_tensor_value_info(mean, onnx.TensorProto.FLOAT, [weight.dims[layer.axis]])
    )
    return replace(layer, node=copy.name)


def mean_errors(
    run: Callable[[Mapping[str, Array]], Mapping[str, Array]],
    batches: Iterable[Mapping[str, Array]],
) -> Means:
    """Runs samples through the shadowed graph, its copies quantized.

    Args:
        run: model inputs by name -> the mean outputs by name, each ``[channels]``.
        batches: model inputs, already preprocessed.

    Returns:
        Mean error of each channel by the name of its mean output.
    """
    sums: Means = {}
    samples = 0
    for batch in batches:
        size = len(next(iter(batch.values())))
        for name, mean in run(batch).items():
            sums[name] = sums.get(name, np.zeros(mean.shape)) + size * mean.astype(np.float64)
        samples += size
    return {name: total / samples for name, total in sums.items()}


def correct(model: onnx.ModelProto, placement: Placement, errors: Means) -> onnx.ModelProto:
    """The float model with the errors taken off the biases of its quantized layers.

    Args:
        model: normalised; not changed.
        placement: what is quantized.
        errors: from `mean_errors`; a layer without one keeps its bias.
    """
    corrected = onnx.ModelProto()
    corrected.CopyFrom(model)
    index = GraphIndex(corrected.graph)
    nodes = {node.name: node for node in corrected.graph.node}
    for layer in placement.layers:
        error = errors.get(mean_output(layer.node))
        if error is not None and np.isfinite(error).all():
            _correct_node(corrected.graph, index, nodes[layer.node], error)
    return corrected


def _bias(index: GraphIndex, node: onnx.NodeProto) -> tuple[onnx.NodeProto, int] | None:
    """The node that adds a layer's bias and the position of the bias among its inputs.

    A convolution and a Gemm without bias can be given one; a MatMul needs an addition behind it.
    """
    if node.op_type in {"Conv", "Gemm"}:
        return node, 2
    reader = index.only_reader(node.output[0])
    if reader is None or reader.op_type != "Add":
        return None
    other = 1 - list(reader.input).index(node.output[0])
    return (reader, other) if reader.input[other] in index.constants else None


def _correctable(index: GraphIndex, node: onnx.NodeProto) -> bool:
    found = _bias(index, node)
    if found is None:
        return False
    holder, position = found
    if (
        holder.op_type == "Gemm"
        and next((a.f for a in holder.attribute if a.name == "beta"), 1) != 1
    ):
        return False
    name = holder.input[position] if len(holder.input) > position else ""
    if not name:
        return True
    constant = index.constants.get(name)
    return constant is not None and constant.data_type == constant.FLOAT


def _correct_node(
    graph: onnx.GraphProto,
    index: GraphIndex,
    node: onnx.NodeProto,
    error: npt.NDArray[np.float64],
) -> None:
    found = _bias(index, node)
    if found is None:
        return
    holder, position = found
    present = holder.input[position] if len(holder.input) > position else ""
    old = constant_array(index, present).astype(np.float64) if present else np.zeros(len(error))
    # A bias of one number becomes one for each channel; a new name, as it may be shared.
    value = numpy_helper.from_array((old - error).astype(np.float32), f"{node.name}__bias")
    graph.initializer.append(value)
    if len(holder.input) > position:
        holder.input[position] = value.name
    else:
        holder.input.append(value.name)
