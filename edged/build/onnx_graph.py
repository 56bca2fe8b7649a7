"""Reads ONNX files and looks around in their graphs. Knows no quantization."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from edged.errors import BuildError


class GraphIndex:
    """Who makes and who reads each tensor of a graph; built once, not kept up to date."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes: list[onnx.NodeProto] = list(graph.node)
        self.constants = {item.name: item for item in graph.initializer}
        self.outputs = {item.name for item in graph.output}
        self.producer = {name: node for node in graph.node for name in node.output if name}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in inputs_of(node):
                self.readers.setdefault(name, []).append(node)

    def __repr__(self) -> str:
        return f"<GraphIndex {len(self.nodes)} nodes, {len(self.constants)} constants>"

    def only_reader(self, tensor: str) -> onnx.NodeProto | None:
        """The node that reads a tensor, if it is the only one and the tensor is no output."""
        readers = self.readers.get(tensor, [])
        return readers[0] if len(readers) == 1 and tensor not in self.outputs else None


def inputs_of(node: onnx.NodeProto) -> list[str]:
    """Tensors that a node reads, those that its subgraphs take from outside included."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            own = {name for inner in graph.node for name in inner.output}
            own |= {item.name for item in (*graph.input, *graph.initializer)}
            read = [name for inner in graph.node for name in inputs_of(inner)]
            read += [item.name for item in graph.output]
            names += [name for name in read if name not in own]
    return names


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """An integer attribute of a node."""
    return next((int(item.i) for item in node.attribute if item.name == name), default)


def constant_array(index: GraphIndex, name: str) -> npt.NDArray[np.generic]:
    """The value of an initializer."""
    return np.asarray(numpy_helper.to_array(index.constants[name]))


def shape_of(model: onnx.ModelProto, tensor: str) -> tuple[int | None, ...]:
    """Inferred sizes of a tensor, None where one is not a number; (None, None) if unknown."""
    for item in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        if item.name == tensor and item.type.tensor_type.HasField("shape"):
            dims = item.type.tensor_type.shape.dim
            return tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)
    return (None, None)


def load_model(data: bytes) -> onnx.ModelProto:
    """Parses and checks an ONNX file.

    Raises:
        BuildError: no ONNX, not valid, without nodes, or with weights in other files.
    """
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as err:
        # protobuf raises its own DecodeError, whose class differs between its implementations.
        raise BuildError(
            f"the model is no ONNX file, or a damaged one ({len(data)} bytes): {first_line(err)}"
        ) from err
    if not model.graph.node:
        raise BuildError(
            f"the model file ({len(data)} bytes) holds no graph with nodes; is it an ONNX model?"
        )
    if outside := [t.name for t in model.graph.initializer if t.data_location == t.EXTERNAL]:
        raise BuildError(
            f"the weights of {len(outside)} tensors, e.g. {outside[0]!r}, lie in another file; "
            "save the model with all weights inside (onnx.save with save_as_external_data=False)"
        )
    check_model(model, "the model is not valid ONNX")
    return model


def check_model(model: onnx.ModelProto, what: str) -> None:
    """Runs ONNX's checker, shape inference included.

    Raises:
        BuildError: beginning with ``what``.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as err:
        # ValidationError, InferenceError, and a bare ValueError above 2 GB share no base.
        raise BuildError(f"{what}: {first_line(err)}") from err


def with_outputs(model: onnx.ModelProto, tensors: Sequence[str]) -> bytes:
    """The model with further tensors as outputs, serialized; for calibration."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    present = {item.name for item in exposed.graph.output}
    for name in tensors:
        if name not in present:
            exposed.graph.output.append(onnx.ValueInfoProto(name=name))
    return bytes(exposed.SerializeToString(deterministic=True))


def has_quantization(model: onnx.ModelProto) -> bool:
    """Whether the model brings its own Q/DQ nodes."""
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)


def first_line(err: BaseException) -> str:
    """The first line of an error of another library, cut to 300 characters."""
    return (str(err).strip() or type(err).__name__).splitlines()[0][:300]
