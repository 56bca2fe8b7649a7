"""Puts Q/DQ node pairs into a float graph: explicit INT8 quantization, as TensorRT reads it.

Symmetric, zero point 0; activations per tensor, weights per output channel; weights stay float with
a pair behind them (older TensorRT refuses INT8 constants) and biases stay float (it refuses INT32
ones). A tensor has one pair, whoever reads it. The result is the same bytes for the same input.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from edged import __version__
from edged.build.onnx_graph import GraphIndex, check_model, constant_array
from edged.build.placement import LinearLayer, Placement
from edged.errors import BuildError

LEVELS = 127

Scale = npt.NDArray[np.floating[Any]]
WeightMethod = Literal["mse", "minmax"]

_SHRINK = np.linspace(1.0, 0.6, 21)
"""Below 0.6 of the largest weight no channel of the networks in docs/benchmarks.md gained."""


@dataclass(frozen=True)
class _Pair:
    """One Q/DQ pair: its tensor, its scale, and the channel axis if the scale is per channel."""

    tensor: str
    scale: Scale
    axis: int | None = None


def quantize(
    model: onnx.ModelProto,
    placement: Placement,
    thresholds: Mapping[str, float],
    weights: WeightMethod = "mse",
) -> bytes:
    """Inserts the pairs of a placement.

    Args:
        model: the normalised float model; not changed.
        placement: what to quantize in it.
        thresholds: magnitude that becomes 127, by activation tensor.
        weights: how the scales of weights are chosen.

    Returns:
        The Q/DQ model, serialized.

    Raises:
        BuildError: a threshold is missing or a weight is not finite.
    """
    index = GraphIndex(model.graph)
    activations = activation_pairs(placement, thresholds)
    rewired: dict[str, list[_Pair]] = {}
    for layer in placement.layers:
        weight = _Pair(layer.weight, weight_scale(index, layer, weights), layer.axis)
        rewired[layer.node] = [activations[layer.activation], weight]
    for shortcut in placement.shortcuts:
        rewired[shortcut.node] = [activations[shortcut.tensor]]
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    _Rewriter(quantized.graph).rewire(rewired)
    quantized.metadata_props.add(key="edged.version", value=__version__)
    check_model(quantized, "the quantized graph is not valid, a fault of edged")
    return bytes(quantized.SerializeToString(deterministic=True))


def activation_pairs(placement: Placement, thresholds: Mapping[str, float]) -> dict[str, _Pair]:
    """One per-tensor pair for each activation; members of a group share the largest threshold.

    Raises:
        BuildError: an activation has no threshold.
    """
    if missing := placement.tensors - set(thresholds):
        raise BuildError(
            f"no range for activation {min(missing)!r}; delete ranges.json to calibrate again"
        )
    effective = {name: thresholds[name] for name in placement.tensors}
    for group in placement.groups:
        effective |= dict.fromkeys(group, max(thresholds[name] for name in group))
    return {name: _Pair(name, _scale(np.float64(top))) for name, top in effective.items()}


def weight_scale(index: GraphIndex, layer: LinearLayer, method: WeightMethod = "mse") -> Scale:
    """One scale for each output channel; a channel of zeros gets 1/127.

    ``minmax``: ``max |w| / 127``. ``mse``: of `_SHRINK` times that, the one with the smallest
    squared error over the channel; a single large weight then costs the others less resolution.

    Raises:
        BuildError: a weight is NaN or infinite.
    """
    weight = constant_array(index, layer.weight).astype(np.float64)
    rows = np.moveaxis(weight, layer.axis, 0).reshape(weight.shape[layer.axis], -1)
    largest = np.abs(rows).max(axis=1, initial=0.0)
    if not np.isfinite(largest).all():
        raise BuildError(
            f"weight {layer.weight!r} of node {layer.node!r} holds NaN or infinite values; "
            "the model is damaged or its training diverged"
        )
    largest = np.where(largest > 0, largest, 1.0)
    return _scale(largest if method == "minmax" else largest * _best_shrink(rows, largest))


def _best_shrink(rows: npt.NDArray[np.float64], largest: npt.NDArray[np.float64]) -> Scale:
    """The factor of `_SHRINK` with the smallest squared error, for each row."""
    best, least = np.ones(len(rows)), np.full(len(rows), np.inf)
    for factor in _SHRINK:
        step = np.maximum(largest * factor / LEVELS, np.finfo(np.float32).tiny)[:, None]
        error = np.square(rows - np.clip(np.rint(rows / step), -LEVELS - 1, LEVELS) * step)
        found = error.sum(axis=1)
        better = found < least
        best, least = np.where(better, factor, best), np.where(better, found, least)
    return np.asarray(best, np.float64)


def _scale(largest: npt.NDArray[np.float64] | np.float64) -> Scale:
    # A scale below the smallest normal float32 may be flushed to zero, and x / 0 is NaN.
    smallest = np.finfo(np.float32).tiny
    return np.asarray(np.maximum(largest / LEVELS, smallest), np.float32)


class _Rewriter:
    """Rebuilds a graph's node list with pairs before the first node that reads them."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._nodes: list[onnx.NodeProto] = []
        self._done: dict[tuple[str, int | None], str] = {}
        self._taken = {name for node in graph.node for name in (*node.output, node.name)}
        self._taken |= {item.name for item in (*graph.input, *graph.initializer)}

    def rewire(self, pairs: Mapping[str, Iterable[_Pair]]) -> None:
        """Makes each named node read its tensors through their pairs."""
        for node in list(self._graph.node):
            for pair in pairs.get(node.name, ()):
                target = self._dequantized(pair)
                names = [target if name == pair.tensor else name for name in node.input]
                node.input[:] = names
            self._nodes.append(node)
        # Copied first: clearing the field frees the nodes that it holds.
        nodes = [self._copy(node) for node in self._nodes]
        del self._graph.node[:]
        self._graph.node.extend(nodes)

    @staticmethod
    def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        return copy

    def _dequantized(self, pair: _Pair) -> str:
        key = (pair.tensor, pair.axis)
        if key not in self._done:
            self._done[key] = self._insert(pair)
        return self._done[key]

    def _insert(self, pair: _Pair) -> str:
        scale, zero, quantized, dequantized = (
            self._name(f"{pair.tensor}_{part}")
            for part in ("scale", "zero_point", "quantized", "dequantized")
        )
        self._graph.initializer.append(numpy_helper.from_array(pair.scale, scale))
        zeros = np.zeros(pair.scale.shape, np.int8)
        self._graph.initializer.append(numpy_helper.from_array(zeros, zero))
        axis = {} if pair.axis is None else {"axis": pair.axis}
        for operator, source, target in (
            ("QuantizeLinear", pair.tensor, quantized),
            ("DequantizeLinear", quantized, dequantized),
        ):
            name = self._name(f"{pair.tensor}_{operator}")
            self._nodes.append(
                helper.make_node(operator, [source, scale, zero], [target], name=name, **axis)
            )
        return dequantized

    def _name(self, wanted: str) -> str:
        name, number = wanted, 1
        while name in self._taken:
            number += 1
            name = f"{wanted}_{number}"
        self._taken.add(name)
        return name


def without_pairs(model: onnx.ModelProto) -> bytes:
    """A Q/DQ model with its activations in float again: what its engine is compared with.

    Weights that are stored as INT8 stay what they dequantize to, since the float ones are lost.
    """
    stripped = onnx.ModelProto()
    stripped.CopyFrom(model)
    quantizers = {
        n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "QuantizeLinear"
    }
    original = {
        node.output[0]: quantizers[node.input[0]]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in quantizers
    }
    outputs = {item.name for item in model.graph.output}
    for node in stripped.graph.node:
        if node.op_type == "DequantizeLinear" and node.output[0] in original.keys() & outputs:
            node.op_type = "Identity"
            node.input[:] = [original[node.output[0]]]
            del node.attribute[:]
            continue
        node.input[:] = [original.get(name, name) for name in node.input]
    return bytes(stripped.SerializeToString(deterministic=True))
