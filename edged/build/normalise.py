"""A model as it was exported -> a normalised graph that the quantizer can rely on.

After `normalise`: opset 13 or later, one batch symbol and otherwise the recipe's static input
shapes (so that no placeholder dimension ties two axes together), constants as initializers, batch
normalisation folded into the convolution before it, every node with a unique name, shapes
inferred. The function that the graph computes is unchanged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper, shape_inference, version_converter
from onnx.reference import ReferenceEvaluator

from edged.build.onnx_graph import GraphIndex, constant_array, first_line, inputs_of
from edged.errors import BuildError

MIN_OPSET = 13  # per-channel QuantizeLinear
BATCH = "batch"

_MIN_IR_VERSION = 7  # the first that knows opset 13
_FOLDABLE = {
    "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Cast", "Slice", "Gather", "Concat",
    "Add", "Sub", "Mul", "Div", "Neg", "Sqrt", "Pow", "Exp", "Reciprocal",
}  # fmt: skip
"""Only what does not enlarge a constant by itself: they stand between a weight and its layer."""


def normalise(
    source: onnx.ModelProto, inputs: Mapping[str, tuple[int, ...]], *, reshape: bool = False
) -> onnx.ModelProto:
    """Brings a model into the form above.

    Args:
        source: as `load_model` gives it; not changed.
        inputs: one sample's shape by input name, without the batch axis, from the recipe.
        reshape: whether shapes that the model declares otherwise, a fixed batch axis among them,
            give way to the recipe's.

    Raises:
        BuildError: inputs or shapes are not the recipe's, the batch axis is fixed, or the opset
            cannot be raised.
    """
    model = _raise_opset(source)
    graph = model.graph
    _drop_constant_inputs(graph)
    _constants_to_initializers(graph)
    _fold_constants(graph)
    _fold_batch_norm(graph)
    _drop_unused(graph)
    _name_nodes(graph)
    if reshape:
        _forget_shapes(graph)
    _set_shapes(graph, inputs)
    try:
        inferred: onnx.ModelProto = shape_inference.infer_shapes(
            model, strict_mode=True, data_prop=True
        )
    except Exception as err:
        raise BuildError(f"the recipe's shapes do not fit the model: {first_line(err)}") from err
    return inferred


def _raise_opset(source: onnx.ModelProto) -> onnx.ModelProto:
    version = next(
        (item.version for item in source.opset_import if item.domain in {"", "ai.onnx"}), 0
    )
    model = onnx.ModelProto()
    model.CopyFrom(source)
    if version < MIN_OPSET:
        try:
            model = version_converter.convert_version(model, MIN_OPSET)
        except Exception as err:
            raise BuildError(
                f"the model has opset {version}, INT8 needs {MIN_OPSET} or later, and it cannot be "
                f"converted ({first_line(err)}); export it again with a later opset"
            ) from err
    model.ir_version = max(model.ir_version, _MIN_IR_VERSION)
    return model


def _drop_constant_inputs(graph: onnx.GraphProto) -> None:
    # Before IR version 4 every initializer had to be an input too, which makes it replaceable.
    constants = {item.name for item in graph.initializer}
    kept = [item for item in graph.input if item.name not in constants]
    del graph.input[:]
    graph.input.extend(kept)


def _constants_to_initializers(graph: onnx.GraphProto) -> None:
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        value = node.attribute[0]
        if value.name != "value":
            continue  # scalars and strings: no weight is written that way
        tensor = onnx.TensorProto()
        tensor.CopyFrom(value.t)
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
        graph.node.remove(node)


def _fold_constants(graph: onnx.GraphProto) -> None:
    constants = {item.name: item for item in graph.initializer}
    for node in list(graph.node):
        names = [name for name in node.input if name]
        if node.op_type not in _FOLDABLE or not names or not all(n in constants for n in names):
            continue
        feeds = {name: numpy_helper.to_array(constants[name]) for name in names}
        value = ReferenceEvaluator(node).run(None, feeds)[0]
        tensor = numpy_helper.from_array(np.ascontiguousarray(value), node.output[0])
        constants[tensor.name] = tensor
        graph.initializer.append(tensor)
        graph.node.remove(node)


def _fold_batch_norm(graph: onnx.GraphProto) -> None:
    """Conv then BatchNormalization becomes one Conv.

    Its weight is ``w * gamma / s``, its bias ``(b - mean) * gamma / s + beta``, with
    ``s = sqrt(variance + epsilon)``.
    """
    index = GraphIndex(graph)
    for node in [node for node in index.nodes if node.op_type == "BatchNormalization"]:
        conv = _conv_before(index, node)
        if conv is None:
            continue
        gamma, beta, mean, variance = (_floats(index, name) for name in node.input[1:5])
        weight = _floats(index, conv.input[1])
        bias = _floats(index, conv.input[2]) if len(conv.input) > 2 else np.zeros_like(mean)
        epsilon = next((item.f for item in node.attribute if item.name == "epsilon"), 1e-5)
        factor = gamma / np.sqrt(variance + epsilon)
        folded = {
            "weight": weight * factor.reshape(-1, *[1] * (weight.ndim - 1)),
            "bias": (bias - mean) * factor + beta,
        }
        # New names: another layer may share the weight or the bias.
        for part, value in folded.items():
            name = f"{conv.output[0]}_folded_{part}"
            graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
        del conv.input[1:]
        conv.input.extend(f"{conv.output[0]}_folded_{part}" for part in folded)
        conv.output[0] = node.output[0]
        graph.node.remove(node)


def _conv_before(index: GraphIndex, node: onnx.NodeProto) -> onnx.NodeProto | None:
    """The float32 convolution that only this batch normalisation reads, with constants on both."""
    source = node.input[0]
    conv = index.producer.get(source)
    if conv is None or conv.op_type != "Conv" or index.only_reader(source) is None:
        return None
    names = [*node.input[1:], *[name for name in conv.input[1:] if name]]
    constants = [index.constants.get(name) for name in names]
    fits = all(item is not None and item.data_type == item.FLOAT for item in constants)
    return conv if fits and len(node.output) == 1 else None


def _floats(index: GraphIndex, name: str) -> npt.NDArray[np.float64]:
    return constant_array(index, name).astype(np.float64)


def _drop_unused(graph: onnx.GraphProto) -> None:
    read = {name for node in graph.node for name in inputs_of(node)}
    read |= {item.name for item in graph.output}
    kept = [item for item in graph.initializer if item.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Names unnamed nodes ``<operator>_<n>`` in graph order, and sets doubles apart."""
    taken = Counter(node.name for node in graph.node if node.name)
    seen: Counter[str] = Counter()
    for node in graph.node:
        if node.name and taken[node.name] == 1:
            continue
        stem = node.name or node.op_type
        name = stem if node.name and not seen[stem] else f"{stem}_{seen[stem]}"
        while name != node.name and taken[name]:
            seen[stem] += 1
            name = f"{stem}_{seen[stem]}"
        seen[stem] += 1
        taken[name] += 1
        node.name = name


def _forget_shapes(graph: onnx.GraphProto) -> None:
    """Leaves nothing but the number of axes, so that the recipe's shapes can take their place."""
    for item in (*graph.input, *graph.output):
        for dim in item.type.tensor_type.shape.dim:
            dim.Clear()


def _set_shapes(graph: onnx.GraphProto, inputs: Mapping[str, tuple[int, ...]]) -> None:
    found = {item.name: item for item in graph.input}
    if set(found) != set(inputs):
        raise BuildError(
            f"the model's inputs are {sorted(found)}, the recipe names {sorted(inputs)}; "
            "correct the [[input]] tables of the recipe"
        )
    for name, shape in inputs.items():
        _set_input_shape(found[name], shape)
    for item in graph.output:
        for axis, dim in enumerate(item.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):
                dim.dim_param = BATCH if axis == 0 else f"{item.name}_axis{axis}"
    del graph.value_info[:]


def _set_input_shape(item: onnx.ValueInfoProto, shape: tuple[int, ...]) -> None:
    dims = item.type.tensor_type.shape.dim
    if not item.type.tensor_type.HasField("shape"):
        dims.extend(onnx.TensorShapeProto.Dimension() for _ in range(len(shape) + 1))
    declared = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
    wanted = (None, *shape)
    fits = len(declared) == len(wanted) and all(
        have in {None, want} for have, want in zip(declared[1:], shape, strict=True)
    )
    if not fits:
        text = ["?" if dim is None else dim for dim in declared]
        raise BuildError(
            f"input {item.name!r} of the model has shape {text}, the recipe gives samples of shape "
            f"{list(shape)}, which is {['batch', *shape]}; correct the recipe, transpose, or set "
            "reshape = true under [model] to have the recipe's shape taken"
        )
    if declared[0] is not None:
        raise BuildError(
            f"the batch axis of input {item.name!r} is fixed at {declared[0]}; export the model "
            "with a dynamic axis 0, so that requests can be batched, or set reshape = true under "
            "[model] to have it freed"
        )
    for dim, size in zip(dims, wanted, strict=True):
        dim.Clear()
        if size is None:
            dim.dim_param = BATCH
        else:
            dim.dim_value = size
