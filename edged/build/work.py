"""How much a graph computes and moves: operators, and the linear layers' arithmetic. Pure."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import onnx
from onnx import shape_inference

from edged.build.onnx_graph import GraphIndex, attribute
from edged.build.placement import LINEAR


@dataclass(frozen=True)
class LayerWork:
    """One linear layer.

    Attributes:
        node: its name.
        operator: Conv, Gemm or MatMul.
        operations: additions and multiplications for one sample; two for each product.
        values: entries of its activations that it reads and writes for one sample.
        weights: entries of its weight, read once a batch.
    """

    node: str
    operator: str
    operations: int
    values: int
    weights: int


def operators(model: bytes) -> dict[str, int]:
    """How often each operator occurs, the most frequent one first; subgraphs count as one node."""
    graph = onnx.load_from_string(model).graph
    found = Counter(node.op_type for node in graph.node)
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def linear_work(model: bytes) -> list[LayerWork]:
    """The linear layers of a float graph, in its order; those of unknown shapes are left out.

    Args:
        model: a normalised model: shapes fixed but for the batch.
    """
    graph = shape_inference.infer_shapes(onnx.load_from_string(model)).graph
    index = GraphIndex(graph)
    typed = (*graph.input, *graph.value_info, *graph.output)
    shapes = {item.name: _sample(item) for item in typed}
    found = []
    for node in graph.node:
        if node.op_type in LINEAR and node.input[0] in shapes and node.output[0] in shapes:
            read, written = shapes[node.input[0]], shapes[node.output[0]]
            if read is None or written is None:
                continue
            found.append(_work(index, node, read, written))
    return [layer for layer in found if layer is not None]


def _work(
    index: GraphIndex, node: onnx.NodeProto, read: list[int], written: list[int]
) -> LayerWork | None:
    weight = index.constants.get(node.input[1])
    if weight is None:
        return None
    size, outputs = math.prod(weight.dims), math.prod(written)
    if node.op_type == "Conv":
        # The weight is [out, in / groups, *kernel]: each output entry sums one of its rows.
        products = outputs * math.prod(weight.dims[1:])
    else:
        transposed = node.op_type == "Gemm" and attribute(node, "transB", 0)
        products = outputs * int(weight.dims[-1 if transposed else -2])
    return LayerWork(node.name, node.op_type, 2 * products, math.prod(read) + outputs, size)


def _sample(item: onnx.ValueInfoProto) -> list[int] | None:
    """Sizes behind the batch axis; None if one is unknown."""
    dims = item.type.tensor_type.shape.dim[1:]
    if not all(dim.HasField("dim_value") for dim in dims):
        return None
    return [int(dim.dim_value) for dim in dims]


def intensity(layers: list[LayerWork], batch: int, bytes_each: float) -> float:
    """Operations for each byte that has to be moved at least.

    Weights are read once a batch, activations of the linear layers once each; what is fused between
    them moves nothing.

    Args:
        layers: from `linear_work`.
        batch: samples in a batch.
        bytes_each: of one entry.
    """
    moved = sum(layer.weights + layer.values * batch for layer in layers) * bytes_each
    return sum(layer.operations for layer in layers) * batch / moved if moved else 0.0
