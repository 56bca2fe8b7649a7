"""A float or Q/DQ graph -> the same with FP16 inside, for strongly typed TensorRT networks.

A strongly typed network computes each layer in the type that its tensors have in the ONNX file, so
FP16 has to stand there. Inputs and outputs of the model stay FP32. A node becomes FP16 if its
operator is known to be safe (`HALF`) and nothing that it touches leaves float16's range; all others
stay FP32, with casts between. Pure: the largest magnitudes of the activations come from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference, version_converter

from edged.build.onnx_graph import GraphIndex, check_model, constant_array, inputs_of
from edged.build.placement import LINEAR
from edged.errors import BuildError

Array = npt.NDArray[np.generic]

HALF = LINEAR | {
    "QuantizeLinear", "DequantizeLinear",
    "Add", "Sub", "Mul", "Div", "Neg", "Abs", "Max", "Min", "Where",
    "Relu", "LeakyRelu", "PRelu", "Clip", "Elu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh",
    "Erf", "Gelu", "MaxPool", "AveragePool", "GlobalMaxPool",
    "Concat", "Split", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather",
    "Identity", "Expand", "Tile", "Pad", "DepthToSpace", "SpaceToDepth",
}  # fmt: skip
"""Operators that may run in FP16. Not among them: what sums many values or leaves the range easily
(Softmax, normalisations, Reduce*, GlobalAveragePool, Pow, Exp, Log, Sqrt, Reciprocal), and whatever
has inputs that must be FP32 (Resize) or subgraphs."""

LARGEST = float(np.finfo(np.float16).max)  # 65504
SMALLEST = float(np.finfo(np.float16).tiny)  # 2^-14: below it numbers lose digits one by one

_HIGHEST_PEAK = LARGEST / 2  # the samples that were seen are not the largest there will be
_LOWEST_SQNR_DB = 60.0  # of a constant; rounding alone leaves about 74 dB
_QDQ_OPSET = 19  # the first whose QuantizeLinear takes float16


@dataclass(frozen=True)
class HalfGraph:
    """The FP16 graph.

    Attributes:
        model: serialized.
        kept: nodes that stay FP32 although their operator is safe -> why.
    """

    model: bytes
    kept: dict[str, str]

    def __repr__(self) -> str:
        return f"<HalfGraph {len(self.model)} bytes, {len(self.kept)} nodes kept in FP32>"


def to_half(model: onnx.ModelProto, peaks: Mapping[str, float], *, wide: bool = False) -> HalfGraph:
    """Converts a graph.

    Args:
        model: float32, with or without Q/DQ pairs, shapes fixed but for the batch; not changed.
        peaks: largest magnitude by activation tensor, from `find_peaks`; a tensor that is not
            named, as those inside Q/DQ pairs, is taken to be within range.
        wide: leave quantized layers and their pairs in FP32, for kernels that turn integer sums
            into float16 before they scale them: five products of 127 x 127 leave its range.

    Raises:
        BuildError: Q/DQ nodes, but the opset cannot be raised to 19.
    """
    half = _with_half_pairs(model)
    _raise_weight_scales(half.graph)
    floats = _float_tensors(half)
    index = GraphIndex(half.graph)
    kept = _kept(index, floats, peaks, wide=wide)
    _Caster(half.graph, floats).convert(kept.keys() | _single(index))
    half.producer_name = "edged"
    check_model(half, "the FP16 graph is not valid, a fault of edged")
    names = {index.nodes[at].name or index.nodes[at].output[0]: why for at, why in kept.items()}
    return HalfGraph(bytes(half.SerializeToString(deterministic=True)), names)


def activations(model: onnx.ModelProto) -> list[str]:
    """Float tensors that the nodes of a graph make: those whose peaks `to_half` asks for."""
    floats = _float_tensors(model)
    return [name for node in model.graph.node for name in node.output if name in floats]


def find_peaks(
    run: Callable[[Mapping[str, Array]], Mapping[str, Array]],
    batches: Iterable[Mapping[str, Array]],
) -> dict[str, float]:
    """Largest magnitude of each tensor over all batches.

    Args:
        run: gives the activations of a batch by name.
        batches: model inputs, which are counted too.
    """
    peaks: dict[str, float] = {}
    for batch in batches:
        for name, values in {**batch, **run(batch)}.items():
            if values.size and values.dtype.kind == "f":
                peaks[name] = max(peaks.get(name, 0.0), float(np.abs(values).max()))
    return peaks


# ------------------------------------------------------------------ opset and scales


def _with_half_pairs(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose opset knows float16 scales, if it has Q/DQ nodes."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    version = next(item.version for item in model.opset_import if item.domain in {"", "ai.onnx"})
    pairs = any(node.op_type == "DequantizeLinear" for node in model.graph.node)
    if not pairs or version >= _QDQ_OPSET:
        return copy
    try:
        return version_converter.convert_version(copy, _QDQ_OPSET)
    except Exception as err:
        # RuntimeError and several of its own; no common base.
        raise BuildError(
            f"FP16 around INT8 layers needs opset {_QDQ_OPSET}, the model has {version} and cannot "
            f"be converted ({str(err).strip().splitlines()[0][:200]}); export it again with opset "
            f"{_QDQ_OPSET} or later, or set fp16_rest = false under [engine]"
        ) from err


def _raise_weight_scales(graph: onnx.GraphProto) -> None:
    """Channels of almost nothing get the smallest scale that float16 holds with all its digits.

    Their scales would lose digits, down to zero. It is done where it costs a weight less than 3 dB
    of its quantization error; other weights keep their scales, and their layers stay FP32.
    """
    index = GraphIndex(graph)
    for node in index.nodes:
        if node.op_type != "QuantizeLinear" or not set(node.input[:2]) <= index.constants.keys():
            continue
        weight, scale = (constant_array(index, name).astype(np.float64) for name in node.input[:2])
        raised = np.maximum(scale, SMALLEST)
        if (raised == scale).all():
            continue
        axis = next((item.i for item in node.attribute if item.name == "axis"), 1)
        before, after = (_rounding_error(weight, scales, axis) for scales in (scale, raised))
        if after <= 2 * before:
            value = numpy_helper.from_array(raised.astype(np.float32), node.input[1])
            index.constants[node.input[1]].CopyFrom(value)


def _rounding_error(
    weight: npt.NDArray[np.float64], scale: npt.NDArray[np.float64], axis: int
) -> float:
    """``sum (w - scale * round(w / scale))^2``."""
    if scale.ndim:
        shape = [1] * weight.ndim
        shape[axis] = -1
        scale = scale.reshape(shape)
    return float(np.square(weight - scale * np.clip(np.rint(weight / scale), -128, 127)).sum())


# ------------------------------------------------------------------ which nodes


def _float_tensors(model: onnx.ModelProto) -> frozenset[str]:
    inferred = shape_inference.infer_shapes(model)
    graph = inferred.graph
    typed = (*graph.input, *graph.value_info, *graph.output)
    names = {i.name for i in typed if i.type.tensor_type.elem_type == TensorProto.FLOAT}
    return frozenset(names | {i.name for i in graph.initializer if i.data_type == i.FLOAT})


def _single(index: GraphIndex) -> set[int]:
    """Positions of the nodes whose operator stays FP32."""
    return {at for at, node in enumerate(index.nodes) if node.op_type not in HALF}


def _kept(
    index: GraphIndex, floats: frozenset[str], peaks: Mapping[str, float], *, wide: bool
) -> dict[int, str]:
    """Positions of nodes with a safe operator that stay FP32 all the same -> why."""
    found: dict[int, str] = {}
    for at, node in enumerate(index.nodes):
        if node.op_type in HALF:
            reasons = (_out_of_range(index, node, n, peaks) for n in (*node.input, *node.output)
                       if n in floats)  # fmt: skip
            if why := next((reason for reason in reasons if reason), ""):
                found[at] = why
            elif wide and _is_quantized(index, node):
                found[at] = "its integer sums may leave the range of float16 before they are scaled"
    return _spread(index, found)


def _is_quantized(index: GraphIndex, node: onnx.NodeProto) -> bool:
    makers = (index.producer.get(name) for name in node.input[:2]) if node.op_type in LINEAR else ()
    return any(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)


def _out_of_range(
    index: GraphIndex, node: onnx.NodeProto, name: str, peaks: Mapping[str, float]
) -> str:
    """Why float16 cannot hold a tensor of a node; empty if it can."""
    if name in index.constants:
        scale = node.op_type in {"QuantizeLinear", "DequantizeLinear"} and name == node.input[1]
        return _poor_constant(name, constant_array(index, name).astype(np.float64), scale=scale)
    peak = peaks.get(name, 0.0)
    if peak > _HIGHEST_PEAK:
        return f"tensor {name!r} reaches {peak:.4g}, float16 ends at {LARGEST:g}"
    if 0 < peak < SMALLEST:
        return f"tensor {name!r} stays below {peak:.2g}, where float16 loses digits"
    return ""


def _poor_constant(name: str, value: npt.NDArray[np.float64], *, scale: bool) -> str:
    if not value.size:
        return ""
    largest, smallest = (float(f(np.abs(value))) for f in (np.max, np.min))
    if not largest <= LARGEST:
        return f"constant {name!r} reaches {largest:.4g}, float16 ends at {LARGEST:g}"
    if scale and smallest < SMALLEST:
        return f"scale {name!r} goes down to {smallest:.2g}, where float16 loses digits"
    error = float(np.square(value - value.astype(np.float16)).sum())
    energy = float(np.square(value).sum())
    if error * 10 ** (_LOWEST_SQNR_DB / 10) > energy:
        return f"constant {name!r} is too small for float16 (largest magnitude {largest:.2g})"
    return ""


def _spread(index: GraphIndex, found: dict[int, str]) -> dict[int, str]:
    """A cast between a layer and its pairs would undo its INT8: they have one type together."""
    position = {name: at for at, node in enumerate(index.nodes) for name in node.output}
    tied: dict[int, set[int]] = {}
    for at, node in enumerate(index.nodes):
        if node.op_type not in LINEAR | {"DequantizeLinear"}:
            continue
        wanted = "QuantizeLinear" if node.op_type == "DequantizeLinear" else "DequantizeLinear"
        for name in node.input[:2]:
            source = position.get(name)
            if source is not None and index.nodes[source].op_type == wanted:
                tied.setdefault(at, set()).add(source)
                tied.setdefault(source, set()).add(at)
    waiting, spread = list(found), dict(found)
    while waiting:
        at = waiting.pop()
        for other in tied.get(at, set()) - spread.keys():
            spread[other] = spread[at]
            waiting.append(other)
    return dict(sorted(spread.items()))


# ------------------------------------------------------------------ casts


class _Caster:
    """Rewrites a graph's nodes: an FP32 tensor keeps its name, its FP16 form gets another one.

    So subgraphs and the model's outputs, which want FP32, need no renaming.
    """

    def __init__(self, graph: onnx.GraphProto, floats: frozenset[str]) -> None:
        self._graph = graph
        self._floats = floats
        self._constants = {item.name: item for item in graph.initializer}
        self._nodes: list[onnx.NodeProto] = []
        self._half: dict[str, str] = {}
        self._taken = {name for node in graph.node for name in (*node.output, node.name)}
        self._taken |= {item.name for item in (*graph.input, *graph.initializer)}

    def convert(self, single: set[int]) -> None:
        """Makes all nodes FP16 but those at the positions ``single``."""
        wanted = {item.name for item in self._graph.output}
        wanted |= {n for at, node in enumerate(self._graph.node) if at in single
                   for n in inputs_of(node)}  # fmt: skip
        for at, original in enumerate(self._graph.node):
            node = onnx.NodeProto()
            node.CopyFrom(original)
            if at not in single:
                node.input[:] = [self._to_half(name) for name in original.input]
                node.output[:] = [self._made_half(name) for name in original.output]
            self._nodes.append(node)
            for name in original.output if at not in single else ():
                if name in wanted and name in self._half:
                    self._cast(self._half[name], name, TensorProto.FLOAT)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        del self._graph.value_info[:]
        self._drop_unused()

    def _to_half(self, name: str) -> str:
        if name not in self._floats:
            return name
        if name not in self._half:
            target = self._made_half(name)
            if name in self._constants:
                value = numpy_helper.to_array(self._constants[name]).astype(np.float16)
                self._graph.initializer.append(numpy_helper.from_array(value, target))
            else:
                self._cast(name, target, TensorProto.FLOAT16)
        return self._half[name]

    def _made_half(self, name: str) -> str:
        if name not in self._floats:
            return name
        self._half[name] = self._name(f"{name}_fp16")
        return self._half[name]

    def _cast(self, source: str, target: str, to: int) -> None:
        name = self._name(f"{target}_Cast")
        self._nodes.append(helper.make_node("Cast", [source], [target], name=name, to=to))

    def _name(self, wanted: str) -> str:
        name, number = wanted, 1
        while name in self._taken:
            number += 1
            name = f"{wanted}_{number}"
        self._taken.add(name)
        return name

    def _drop_unused(self) -> None:
        read = {name for node in self._graph.node for name in inputs_of(node)}
        read |= {item.name for item in self._graph.output}
        kept = [item for item in self._graph.initializer if item.name in read]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)
