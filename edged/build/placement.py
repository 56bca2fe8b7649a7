"""Which layers become INT8, which stay in float and why. Pure.

Rules, after TensorRT's: only linear layers with a constant weight, their inputs but not their
outputs; a residual Add after a quantized convolution takes its shortcut through Q/DQ, so that the
addition fuses into the convolution; what meets in a Concat shares one range.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import onnx

from edged.build.onnx_graph import GraphIndex, attribute
from edged.build_options import QuantizeOptions
from edged.errors import BuildError

LINEAR = {"Conv", "Gemm", "MatMul", "ConvTranspose"}

# These move values without changing them, so their input and output can share one range.
_MOVES = {
    "MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice",
    "Concat",
}  # fmt: skip


@dataclass(frozen=True)
class LinearLayer:
    """One layer that becomes INT8.

    Attributes:
        node: its name.
        operator: Conv, Gemm or MatMul.
        activation: the tensor it reads.
        weight: its constant.
        axis: the output channels' axis of the weight.
    """

    node: str
    operator: str
    activation: str
    weight: str
    axis: int


@dataclass(frozen=True)
class Shortcut:
    """One input of a residual Add that goes through Q/DQ."""

    node: str
    tensor: str


@dataclass(frozen=True)
class Placement:
    """What to quantize.

    Attributes:
        layers: in graph order.
        shortcuts: in graph order.
        groups: tensors that share the largest threshold among them.
        kept: linear layers that stay in float -> why.
    """

    layers: tuple[LinearLayer, ...]
    shortcuts: tuple[Shortcut, ...] = ()
    groups: tuple[frozenset[str], ...] = ()
    kept: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Placement {len(self.layers)} layers INT8, {len(self.kept)} float>"

    @property
    def tensors(self) -> frozenset[str]:
        """Activations that need a range."""
        return frozenset(layer.activation for layer in self.layers) | {
            shortcut.tensor for shortcut in self.shortcuts
        }


def place(
    model: onnx.ModelProto, options: QuantizeOptions, left_out: Mapping[str, str] | None = None
) -> Placement:
    """Decides what becomes INT8.

    Args:
        model: a normalised model.
        options: the recipe's names to include and to exclude.
        left_out: further layers that stay in float -> why.

    Raises:
        BuildError: an unknown name, one that cannot be included, or nothing is left to quantize.
    """
    index = GraphIndex(model.graph)
    _check_names(index, options)
    linear = [node for node in index.nodes if node.op_type in LINEAR]
    impossible = {node.name: why for node in linear if (why := _impossible(index, node))}
    unwise = _unwise(index, linear, options) | _on_one_position(model, linear)
    if stuck := [name for name in options.include if name in impossible]:
        raise BuildError(f"node {stuck[0]!r} cannot be quantized: {impossible[stuck[0]]}")
    kept = {**unwise, **impossible}
    kept = {name: why for name, why in kept.items() if name not in options.include}
    kept |= {node.name: "excluded by the recipe" for node in linear if node.name in options.exclude}
    kept |= {name: why for name, why in (left_out or {}).items() if name not in kept}
    layers = tuple(_layer(node) for node in linear if node.name not in kept)
    if not layers:
        raise BuildError(_nothing(kept))
    shortcuts = _shortcuts(index, {layer.node for layer in layers})
    tensors = {layer.activation for layer in layers} | {item.tensor for item in shortcuts}
    order = {node.name: kept[node.name] for node in linear if node.name in kept}
    return Placement(layers, shortcuts, _groups(index, tensors), order)


def _nothing(kept: dict[str, str]) -> str:
    if not kept:
        return (
            "nothing can be quantized: the graph has no Conv, Gemm or MatMul outside of subgraphs"
        )
    listed = "; ".join(f"{name!r}: {why}" for name, why in list(kept.items())[:8])
    return (
        f"nothing is left to quantize, all {len(kept)} linear layers stay in float ({listed}); "
        "name layers under [quantize] include in the recipe"
    )


def _check_names(index: GraphIndex, options: QuantizeOptions) -> None:
    names = {node.name: node for node in index.nodes}
    for name in (*options.include, *options.exclude):
        if name not in names:
            near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
            linear = [node.name for node in index.nodes if node.op_type in LINEAR]
            hint = f"near it are {near}" if near else f"linear layers are {linear[:8]}"
            raise BuildError(f"the recipe names node {name!r}, which the model lacks; {hint}")
        if names[name].op_type not in LINEAR:
            raise BuildError(
                f"the recipe names node {name!r}, a {names[name].op_type}; only "
                f"{', '.join(sorted(LINEAR))} nodes can be included or excluded"
            )
    if both := set(options.include) & set(options.exclude):
        raise BuildError(f"node {min(both)!r} is in both include and exclude; keep one")


def _has_constant_weight(index: GraphIndex, node: onnx.NodeProto) -> bool:
    return node.input[1] in index.constants and node.input[0] not in index.constants


def _impossible(index: GraphIndex, node: onnx.NodeProto) -> str:
    """Why a linear node cannot become INT8; empty if it can."""
    weight = index.constants.get(node.input[1])
    if node.op_type == "ConvTranspose":
        return "transposed convolution: runs in float all the same"
    if node.input[0] in index.constants:
        return "the left operand is the constant one"
    if weight is None:
        matmul = node.op_type == "MatMul"
        return "both operands are activations" if matmul else "the weight is not a constant"
    if weight.data_type != onnx.TensorProto.FLOAT:
        return f"the weight is {onnx.TensorProto.DataType.Name(weight.data_type)}, not FLOAT"
    flat = node.op_type != "MatMul" or len(weight.dims) == 2
    return "" if flat else f"the weight has {len(weight.dims)} dimensions, not 2"


def _unwise(
    index: GraphIndex, linear: list[onnx.NodeProto], options: QuantizeOptions
) -> dict[str, str]:
    """Layers that could become INT8, and that the options' defaults leave in float -> why."""
    ends = _first_and_last(index, [n for n in linear if _has_constant_weight(index, n)])
    wanted = {"first linear layer": options.first, "last linear layer": options.last}
    found = {name: why for name, why in ends.items() if not wanted[why]}
    if not options.grouped:
        found |= {node.name: why for node in linear if (why := _grouped(node))}
    return found


def _on_one_position(model: onnx.ModelProto, linear: list[onnx.NodeProto]) -> dict[str, str]:
    """Convolutions of a pooled image, as in squeeze and excitation: they gate whole channels."""
    sizes = {
        item.name: [dim.dim_value for dim in item.type.tensor_type.shape.dim][2:]
        for item in (*model.graph.value_info, *model.graph.output)
    }
    return {
        node.name: "convolves a single position: too little work to pay for INT8"
        for node in linear
        if node.op_type == "Conv" and set(sizes.get(node.output[0], ())) == {1}
    }


def _grouped(node: onnx.NodeProto) -> str:
    groups = attribute(node, "group", 1) if node.op_type == "Conv" else 1
    return f"grouped convolution ({groups} groups)" if groups > 1 else ""


def _first_and_last(index: GraphIndex, linear: list[onnx.NodeProto]) -> dict[str, str]:
    """Linear layers without a linear layer before them, or after them."""
    names = {node.name for node in linear}
    after = _reached(index.nodes, names, forward=True)
    before = _reached(index.nodes[::-1], names, forward=False)
    found = {node.name: "last linear layer" for node in linear if node.name not in before}
    return found | {node.name: "first linear layer" for node in linear if node.name not in after}


def _reached(nodes: Iterable[onnx.NodeProto], linear: set[str], *, forward: bool) -> set[str]:
    """Nodes with a linear layer before them (``forward``), or after them (nodes given reversed)."""
    marked: set[str] = set()
    reached = set()
    for node in nodes:
        source, target = (node.input, node.output) if forward else (node.output, node.input)
        if marked.intersection(source):
            reached.add(node.name)
        if node.name in reached or node.name in linear:
            marked.update(name for name in target if name)
    return reached


def _layer(node: onnx.NodeProto) -> LinearLayer:
    axis = {"Conv": 0, "MatMul": 1}.get(node.op_type)
    if axis is None:
        axis = 0 if attribute(node, "transB", 0) else 1
    return LinearLayer(node.name, node.op_type, node.input[0], node.input[1], axis)


def _shortcuts(index: GraphIndex, quantized: set[str]) -> tuple[Shortcut, ...]:
    depth = _depths(index)
    found = []
    for node in index.nodes:
        if node.op_type != "Add" or any(name in index.constants for name in node.input):
            continue
        makers = [index.producer.get(name) for name in node.input]
        convolved = [m is not None and m.op_type == "Conv" and m.name in quantized for m in makers]
        if not any(convolved):
            continue
        # Both from convolutions: the longer branch is the main one, the second on a tie.
        main = convolved.index(True)
        if all(convolved):
            main = 0 if depth[node.input[0]] > depth[node.input[1]] else 1
        found.append(Shortcut(node.name, node.input[1 - main]))
    return tuple(found)


def _depths(index: GraphIndex) -> dict[str, int]:
    depth: dict[str, int] = {}
    for node in index.nodes:
        deepest = max((depth.get(name, 0) for name in node.input), default=0)
        depth |= dict.fromkeys(node.output, deepest + 1)
    return depth


def _groups(index: GraphIndex, tensors: set[str]) -> tuple[frozenset[str], ...]:
    """Quantized tensors that are joined by a Concat, also through nodes that only move values."""
    group: dict[str, set[str]] = {}
    joined: set[str] = set()
    for node in index.nodes:
        if node.op_type not in _MOVES:
            continue
        sources = node.input if node.op_type == "Concat" else node.input[:1]
        members = set(sources) | {node.output[0]}
        merged = set().union(members, *(group.get(name, {name}) for name in members))
        group |= dict.fromkeys(merged, merged)
        if node.op_type == "Concat":
            joined |= members
    found = {frozenset(members & tensors) for members in group.values() if members & joined}
    return tuple(sorted((g for g in found if len(g) > 1), key=sorted))


def quantized_nodes(model: onnx.ModelProto) -> tuple[str, ...]:
    """Linear layers of a model with its own Q/DQ nodes whose inputs are both dequantized.

    Raises:
        BuildError: there is none.
    """
    index = GraphIndex(model.graph)
    made_by = {name: node.op_type for name, node in index.producer.items()}
    found = tuple(
        node.name or node.output[0]
        for node in index.nodes
        if node.op_type in LINEAR
        and {made_by.get(name) for name in node.input[:2]} == {"DequantizeLinear"}
    )
    if not found:
        raise BuildError(
            "the model has Q/DQ nodes, but no linear layer reads both of its inputs through them; "
            "quantize it properly, or give the float model"
        )
    return found
