"""Small ONNX models with seeded random weights, one for each form the build line must know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[np.generic]


@dataclass
class GraphWriter:
    """Writes nodes one after another; each call returns the tensor it makes."""

    seed: int = 0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def constant(self, name: str, value: Array) -> str:
        """An initializer."""
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def random(self, name: str, *shape: int) -> str:
        """A float32 weight of a size that keeps activations near 1."""
        fan_in = int(np.prod(shape)) / max(shape[0], shape[-1]) if len(shape) > 1 else 100.0
        value = self.rng.normal(size=shape) / np.sqrt(fan_in)
        return self.constant(name, value.astype(np.float32))

    def node(self, operator: str, inputs: Sequence[str], name: str = "", **options: Any) -> str:
        """Any node; its output is called ``<name>_out``."""
        output = f"{name or f'{operator}{len(self.nodes)}'}_out"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=name, **options))
        return output

    def conv(self, source: str, name: str, channels: tuple[int, int], **options: Any) -> str:
        """Conv (channels in, out) with a 3x3 kernel, padding 1 and a bias, then Relu."""
        group = options.get("group", 1)
        weight = self.random(f"{name}_w", channels[1], channels[0] // group, 3, 3)
        bias = self.random(f"{name}_b", channels[1])
        return self.node("Conv", [source, weight, bias], name, pads=[1, 1, 1, 1], **options)

    def gemm(self, source: str, name: str, sizes: tuple[int, int], *, trans_b: bool = True) -> str:
        """Gemm (inputs, outputs) with a bias."""
        shape = sizes[::-1] if trans_b else sizes
        weight, bias = self.random(f"{name}_w", *shape), self.random(f"{name}_b", sizes[1])
        return self.node("Gemm", [source, weight, bias], name, transB=int(trans_b))

    def matmul(self, source: str, name: str, sizes: tuple[int, int]) -> str:
        """MatMul with a constant right operand."""
        return self.node("MatMul", [source, self.random(f"{name}_w", *sizes)], name)

    def model(
        self,
        inputs: dict[str, Sequence[int | str]],
        outputs: dict[str, Sequence[int | str]],
        opset: int = 17,
    ) -> onnx.ModelProto:
        """Closes the graph; shapes include the batch axis."""
        graph = helper.make_graph(
            self.nodes,
            "test",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        model.ir_version = 8
        onnx.checker.check_model(model, full_check=True)
        return model


def residual_net() -> onnx.ModelProto:
    """Stem, identity block, downsample block, concat block, a depthwise convolution and a Gemm.

    Input ``x`` [batch, 4, 8, 8], output ``head_out`` [batch, 5]. Every node that the quantizer
    should know of has a name; the Relus have none.
    """
    g = GraphWriter()
    stem = g.node("Relu", [g.conv("x", "stem", (4, 16))])
    a = g.node("Relu", [g.conv(stem, "identity_a", (16, 16))])
    b = g.conv(a, "identity_b", (16, 16))
    identity = g.node("Relu", [g.node("Add", [b, stem], "identity_add")])
    a = g.node("Relu", [g.conv(identity, "down_a", (16, 32), strides=[2, 2])])
    b = g.conv(a, "down_b", (32, 32))
    shortcut = g.conv(identity, "down_skip", (16, 32), strides=[2, 2])
    down = g.node("Relu", [g.node("Add", [b, shortcut], "down_add")])
    left = g.node("Relu", [g.conv(down, "left", (32, 16))])
    right = g.node("Relu", [g.conv(down, "right", (32, 16))])
    more = g.node("Relu", [g.conv(left, "more", (16, 16))])
    joined = g.node("Concat", [left, right, more], "join", axis=1)
    mixed = g.node("Relu", [g.conv(joined, "mix", (48, 32))])
    depthwise = g.node("Relu", [g.conv(mixed, "depthwise", (32, 32), group=32)])
    wide = g.node("Relu", [g.conv(depthwise, "wide", (32, 32))])
    flat = g.node("Flatten", [g.node("GlobalAveragePool", [wide])])
    hidden = g.node("Relu", [g.gemm(flat, "hidden", (32, 32), trans_b=False)])
    g.gemm(hidden, "head", (32, 5))
    return g.model({"x": ["batch", 4, 8, 8]}, {"head_out": ["batch", 5]})


def attention_net() -> onnx.ModelProto:
    """One transformer block without normalisation: x [batch, 6, 16] -> head_out [batch, 4].

    ``q``, ``k``, ``v`` share one input; ``scores`` and ``mix`` multiply two activations.
    """
    g = GraphWriter(seed=1)
    embedded = g.matmul("x", "embed", (16, 16))
    q, k, v = (g.matmul(embedded, name, (16, 16)) for name in "qkv")
    turned = g.node("Transpose", [k], perm=[0, 2, 1])
    weights = g.node("Softmax", [g.node("MatMul", [q, turned], "scores")], axis=-1)
    mixed = g.node("MatMul", [weights, v], "mix")
    added = g.node("Add", [g.matmul(mixed, "project", (16, 16)), embedded])
    widened = g.node("Relu", [g.matmul(added, "up", (16, 32))])
    narrowed = g.matmul(widened, "down", (32, 16))
    pooled = g.node("ReduceMean", [narrowed], axes=[1], keepdims=0)
    g.gemm(pooled, "head", (16, 4))
    return g.model({"x": ["batch", 6, 16]}, {"head_out": ["batch", 4]})


def mlp(features: int = 12, hidden: int = 24, classes: int = 3) -> onnx.ModelProto:
    """Three layers, the middle one quantizable.

    Input ``x`` [batch, features], output ``last_out`` [batch, classes].
    """
    g = GraphWriter(seed=2)
    a = g.node("Relu", [g.gemm("x", "first", (features, hidden))])
    b = g.node("Relu", [g.matmul(a, "middle", (hidden, hidden))])
    g.gemm(b, "last", (hidden, classes))
    return g.model({"x": ["batch", features]}, {"last_out": ["batch", classes]})


def two_layers() -> onnx.ModelProto:
    """First and last layer and nothing between: by default nothing is left to quantize."""
    g = GraphWriter(seed=3)
    g.gemm(g.node("Relu", [g.gemm("x", "first", (12, 12))]), "last", (12, 3))
    return g.model({"x": ["batch", 12]}, {"last_out": ["batch", 3]})


def no_linear_layers() -> onnx.ModelProto:
    """Only a Relu: x [batch, 12] -> act_out."""
    g = GraphWriter()
    g.node("Relu", ["x"], "act")
    return g.model({"x": ["batch", 12]}, {"act_out": ["batch", 12]})


def hidden_weights() -> onnx.ModelProto:
    """Weights behind Constant, Identity and Transpose nodes, BatchNormalization, unnamed nodes.

    Opset 12, placeholder dimensions "?" on several axes: x [batch, 4, 8, 8] -> y [batch, 3].
    """
    g = GraphWriter(seed=4)
    weight = g.rng.normal(size=(8, 4, 3, 3)).astype(np.float32) / 6
    g.nodes.append(
        helper.make_node("Constant", [], ["w1"], value=numpy_helper.from_array(weight, "value"))
    )
    conv = g.node("Conv", ["x", "w1"], pads=[1, 1, 1, 1])
    for part in ("scale", "shift", "mean", "variance"):
        value = g.rng.uniform(0.5, 1.5, size=8).astype(np.float32)
        g.constant(part, value)
    normal = g.node("BatchNormalization", [conv, "scale", "shift", "mean", "variance"])
    second = g.conv(g.node("Relu", [normal]), "", (8, 8))
    flat = g.node("Flatten", [g.node("GlobalAveragePool", [second])])
    turned = g.node("Transpose", [g.random("w3", 8, 8)], perm=[1, 0])
    third = g.node("MatMul", [flat, g.node("Identity", [turned])])
    last = helper.make_node("MatMul", [third, g.random("w4", 8, 3)], ["y"])
    g.nodes.append(last)
    return g.model({"x": ["?", 4, "?", "?"]}, {"y": ["?", "?"]}, opset=12)


def unusual_layers() -> onnx.ModelProto:
    """A transposed convolution, a left-hand constant, and a weight that is computed.

    x [batch, 4, 4, 4] -> end_out [batch, 4, 4].
    """
    g = GraphWriter(seed=5)
    first = g.conv("x", "first", (4, 8))
    up = g.node("ConvTranspose", [first, g.random("up_w", 8, 4, 2, 2)], "up", strides=[2, 2])
    body = g.conv(up, "body", (4, 4))
    tail = g.conv(body, "tail", (4, 1))
    flat = g.node("Squeeze", [tail, g.constant("axes", np.array([1], np.int64))])
    left = g.node("MatMul", [g.random("left_w", 8, 8), flat], "left")
    doubled = g.node("Mul", [g.random("base_w", 8, 8), g.random("factor", 1, 8)])
    computed = g.node("MatMul", [left, doubled], "computed")
    g.node("MatMul", [computed, g.random("end_w", 8, 4)], "end")
    return g.model({"x": ["batch", 4, 4, 4]}, {"end_out": ["batch", 8, 4]})


def masked_net() -> onnx.ModelProto:
    """A model of variable length that applies its mask; the layer ``middle`` is quantizable.

    Inputs ``x`` FP32 [batch, length, 8] and ``mask`` INT64 [batch, length]; outputs ``last_out``
    [batch, 4], of the mean over the data alone, and ``each_out`` [batch, length, 2].
    """
    g = GraphWriter(seed=6)
    a = g.node("Relu", [g.matmul("x", "first", (8, 24))])
    b = g.node("Relu", [g.matmul(a, "middle", (24, 24))])
    weight = g.node("Cast", ["mask"], to=TensorProto.FLOAT)
    column = g.node("Unsqueeze", [weight, g.constant("last_axis", np.array([2], np.int64))])
    along = g.constant("along", np.array([1], np.int64))
    total = g.node("ReduceSum", [g.node("Mul", [b, column]), along], keepdims=0)
    count = g.node("ReduceSum", [column, along], keepdims=0)
    g.gemm(g.node("Div", [total, count]), "last", (24, 4))
    g.matmul(b, "each", (24, 2))
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        g.nodes,
        "masked",
        [
            tensor("x", TensorProto.FLOAT, ["batch", "length", 8]),
            tensor("mask", TensorProto.INT64, ["batch", "length"]),
        ],
        [
            tensor("last_out", TensorProto.FLOAT, ["batch", 4]),
            tensor("each_out", TensorProto.FLOAT, ["batch", "length", 2]),
        ],
        g.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model, full_check=True)
    return model


def unmasked_net() -> onnx.ModelProto:
    """The same without a mask: the mean is over the padding too.

    Input ``x`` FP32 [batch, length, 8], output ``last_out`` [batch, 4].
    """
    g = GraphWriter(seed=6)
    a = g.node("Relu", [g.matmul("x", "first", (8, 24))])
    b = g.node("Relu", [g.matmul(a, "middle", (24, 24))])
    mean = g.node("ReduceMean", [b], axes=[1], keepdims=0)
    g.gemm(mean, "last", (24, 4))
    return g.model({"x": ["batch", "length", 8]}, {"last_out": ["batch", 4]})
