"""Networks of three sizes for benches on a GPU: MLP blocks over tokens, and a head, as ONNX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = 10


@dataclass(frozen=True)
class Network:
    """Shape of one network.

    Attributes:
        name: in tables.
        tokens: rows of a sample.
        width: columns of a sample.
        hidden: columns inside a block.
        blocks: number of blocks.
        pixels: bytes of each token, where a sample comes as the patches of an image and not as
            floats; 0: floats.
    """

    name: str
    tokens: int
    width: int
    hidden: int
    blocks: int
    pixels: int = 0

    @property
    def sample(self) -> tuple[int, int]:
        """Shape of one sample."""
        return (self.tokens, self.pixels or self.width)

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Of a sample's entries."""
        return np.dtype(np.uint8 if self.pixels else np.float32)

    def draw(self, random: np.random.Generator, count: int) -> np.ndarray[Any, np.dtype[Any]]:
        """So many random samples, ``[count, *sample]``."""
        if self.pixels:
            return random.integers(0, 256, (count, *self.sample), np.uint8)
        return random.standard_normal((count, *self.sample)).astype(np.float32)


SMALL = Network("small", tokens=4, width=64, hidden=128, blocks=2)
MEDIUM = Network("medium", tokens=49, width=256, hidden=1024, blocks=4)
LARGE = Network("large", tokens=196, width=768, hidden=3072, blocks=8)
HUGE = Network("huge", tokens=196, width=1024, hidden=4096, blocks=12)
VIT = Network("vit", tokens=784, width=1024, hidden=4096, blocks=4, pixels=192)
"""Behind 224 x 224 pixels in patches of 8 x 8 x 3, as an image arrives: much to compute a byte."""
DEEP = Network("deep", tokens=8, width=256, hidden=256, blocks=400)
"""Setup costs more than samples, as on a small GPU, and requests are small enough to be sent."""
NETWORKS = {each.name: each for each in (SMALL, MEDIUM, LARGE, HUGE, VIT)}


def network_onnx(network: Network, *, half: bool) -> bytes:
    """``x + W2 relu(W1 x)`` in a row, then the mean over tokens and ten classes.

    Input ``x`` ``[batch, tokens, width]``, output ``y`` ``[batch, 10]``; where samples are pixels,
    ``x`` is UINT8 ``[batch, tokens, pixels]`` and is brought to about -2..2 and to the width first.

    Args:
        network: its shape.
        half: compute in FP16; input and output stay FP32.
    """
    random = np.random.default_rng(0)
    dtype = np.float16 if half else np.float32
    nodes, weights = [], []

    def weight(name: str, rows: int, columns: int) -> str:
        values = random.standard_normal((rows, columns)) / np.sqrt(rows)
        weights.append(numpy_helper.from_array(values.astype(dtype), name))
        return name

    last = "x"
    if half or network.pixels:
        to = TensorProto.FLOAT16 if half else TensorProto.FLOAT
        nodes.append(helper.make_node("Cast", ["x"], ["cast"], to=to))
        last = "cast"
    if network.pixels:
        for name, value in (("gain", 1 / 64), ("middle", 2.0)):
            weights.append(numpy_helper.from_array(np.array(value, dtype), name))
        nodes += [
            helper.make_node("Mul", ["cast", "gain"], ["scaled"]),
            helper.make_node("Sub", ["scaled", "middle"], ["centred"]),
            helper.make_node("MatMul", ["centred", weight("embed", network.pixels, network.width)],
                             ["embedded"], name="embed"),
        ]  # fmt: skip
        last = "embedded"
    for block in range(network.blocks):
        wide, out = f"wide{block}", f"out{block}"
        first = weight(f"a{block}", network.width, network.hidden)
        second = weight(f"b{block}", network.hidden, network.width)
        nodes += [
            helper.make_node("MatMul", [last, first], [wide], name=f"first{block}"),
            helper.make_node("Relu", [wide], [f"relu{block}"]),
            helper.make_node("MatMul", [f"relu{block}", second], [out], name=f"second{block}"),
            helper.make_node("Add", [last, out], [f"sum{block}"]),
        ]
        last = f"sum{block}"
    nodes += [
        helper.make_node("ReduceMean", [last], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", weight("head", network.width, CLASSES)], ["logits"]),
        helper.make_node("Cast", ["logits"], ["y"], to=TensorProto.FLOAT),
    ]
    shape = ["batch", *network.sample]
    kind = TensorProto.UINT8 if network.pixels else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        network.name,
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", CLASSES])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def network_plan(network: Network, *, half: bool, max_batch: int = 32) -> bytes:
    """The engine of a network on the device that is here, batch 1 to ``max_batch``."""
    return onnx_plan(network_onnx(network, half=half), {"x": network.sample}, max_batch)


def onnx_plan(model: bytes, samples: Mapping[str, tuple[int, ...]], max_batch: int) -> bytes:
    """The engine of a float model on the device that is here.

    Straight through the builder's own calls, so that runner benches depend on the runner alone.

    Args:
        model: ONNX.
        samples: shape of one sample, by input.
        max_batch: batches are 1 to this.

    Raises:
        RuntimeError: the parser or the builder refuses it.
    """
    from edged.runners.tensorrt_engine import import_tensorrt

    trt = import_tensorrt()
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    flags = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    definition = builder.create_network(0 if flags is None else 1 << int(flags))
    parser = trt.OnnxParser(definition, trt.Logger(trt.Logger.ERROR))
    if not parser.parse(model):
        raise RuntimeError(str(parser.get_error(0)))
    profile = builder.create_optimization_profile()
    for name, sample in samples.items():
        shapes = [(size, *sample) for size in (1, max(1, max_batch // 4), max_batch)]
        profile.set_shape(name, *shapes)
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(definition, config)
    if plan is None:
        raise RuntimeError("the builder gave no engine")
    return bytes(plan)
