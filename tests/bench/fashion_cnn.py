"""A small residual CNN, trained on Fashion-MNIST with numpy alone, as ONNX.

Nothing but numpy, so that the figures need no training framework: about ten minutes on two cores.

    python -m tests.bench.fashion_cnn DATASET_FOLDER OUT.onnx [EPOCHS]
"""

from __future__ import annotations

import gzip
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Floats = npt.NDArray[np.float32]
LAYERS = (
    # name, channels in, channels out, stride
    ("stem", 1, 16, 2),
    ("wide1", 16, 32, 1),
    ("same1", 32, 32, 1),
    ("down2", 32, 64, 2),
    ("same2", 64, 64, 1),
)
BATCH = 100


def load(folder: Path, part: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Images ``[n, 28, 28, 1]`` and labels of ``train`` or ``t10k``."""
    with gzip.open(folder / f"{part}-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28, 1)
    with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz") as file:
        return images, np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)


def _columns(x: Floats, stride: int) -> Floats:
    """3x3 patches: ``[n, h, w, c]`` -> ``[n, h', w', 9 c]``, padding 1."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1], x.shape[2]
    parts = [
        padded[:, i : i + height : stride, j : j + width : stride]
        for i in range(3)
        for j in range(3)
    ]
    return np.concatenate(parts, axis=3)


def _uncolumns(columns: Floats, shape: tuple[int, ...], stride: int) -> Floats:
    """The adjoint of `_columns`."""
    out = np.zeros((shape[0], shape[1] + 2, shape[2] + 2, shape[3]), np.float32)
    channels = shape[3]
    for at in range(9):
        i, j = divmod(at, 3)
        out[:, i : i + shape[1] : stride, j : j + shape[2] : stride] += columns[
            ..., at * channels : (at + 1) * channels
        ]
    return out[:, 1:-1, 1:-1]


class Network:
    """Weights, and their gradients by hand. Layers ``same*`` are residual."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.weights: dict[str, Floats] = {}
        for name, inside, outside, _ in LAYERS:
            scale = np.sqrt(2 / (9 * inside))
            self.weights[f"{name}_w"] = (rng.normal(size=(9 * inside, outside)) * scale).astype(
                "f4"
            )
            self.weights[f"{name}_b"] = np.zeros(outside, np.float32)
        self.weights["head_w"] = (rng.normal(size=(64, 10)) / 8).astype("f4")
        self.weights["head_b"] = np.zeros(10, np.float32)
        self._moments = {k: [np.zeros_like(v), np.zeros_like(v)] for k, v in self.weights.items()}
        self._steps = 0

    def step(self, x: Floats, labels: npt.NDArray[np.int64], rate: float) -> float:
        """One step of Adam on a batch; returns the loss."""
        kept = []
        for name, _, _, stride in LAYERS:
            columns = _columns(x, stride)
            out = columns @ self.weights[f"{name}_w"] + self.weights[f"{name}_b"]
            if name.startswith("same"):
                out += x
            active = out > 0
            kept.append((x.shape, columns, active))
            x = out * active
        pooled = x.mean(axis=(1, 2))
        logits = pooled @ self.weights["head_w"] + self.weights["head_b"]
        logits -= logits.max(axis=1, keepdims=True)
        chance = np.exp(logits)
        chance /= chance.sum(axis=1, keepdims=True)
        rows = np.arange(len(labels))
        loss = float(-np.log(chance[rows, labels] + 1e-9).mean())
        back = chance
        back[rows, labels] -= 1
        back /= len(labels)
        gradients = {"head_w": pooled.T @ back, "head_b": back.sum(axis=0)}
        grown = (back @ self.weights["head_w"].T)[:, None, None] / (x.shape[1] * x.shape[2])
        d = np.broadcast_to(grown, x.shape).astype(np.float32)
        for (name, _, outside, stride), (shape, columns, active) in zip(
            LAYERS[::-1], kept[::-1], strict=True
        ):
            d = d * active
            flat = d.reshape(-1, outside)
            gradients[f"{name}_w"] = columns.reshape(len(flat), -1).T @ flat
            gradients[f"{name}_b"] = flat.sum(axis=0)
            if name != "stem":
                inner = _uncolumns(d @ self.weights[f"{name}_w"].T, shape, stride)
                d = inner + d if name.startswith("same") else inner
        self._adam(gradients, rate)
        return loss

    def _adam(self, gradients: dict[str, Floats], rate: float) -> None:
        self._steps += 1
        for name, gradient in gradients.items():
            first, second = self._moments[name]
            first += 0.1 * (gradient - first)
            second += 0.001 * (gradient**2 - second)
            scaled = first / (1 - 0.9**self._steps)
            spread = np.sqrt(second / (1 - 0.999**self._steps)) + 1e-8
            self.weights[name] -= np.float32(rate) * scaled / spread

    def to_onnx(self) -> onnx.ModelProto:
        """The network as ONNX: ``image`` [batch, 1, 28, 28] in 0 to 1 -> ``logits`` [batch, 10]."""
        nodes, constants, x = [], [], "image"
        for name, inside, outside, stride in LAYERS:
            weight = self.weights[f"{name}_w"].reshape(3, 3, inside, outside).transpose(3, 2, 0, 1)
            constants.append(numpy_helper.from_array(np.ascontiguousarray(weight), f"{name}_w"))
            constants.append(numpy_helper.from_array(self.weights[f"{name}_b"], f"{name}_b"))
            nodes.append(
                helper.make_node(
                    "Conv", [x, f"{name}_w", f"{name}_b"], [f"{name}_out"], name,
                    strides=[stride, stride], pads=[1, 1, 1, 1],
                )
            )  # fmt: skip
            out = f"{name}_out"
            if name.startswith("same"):
                nodes.append(helper.make_node("Add", [out, x], [f"{name}_sum"], f"{name}_add"))
                out = f"{name}_sum"
            nodes.append(helper.make_node("Relu", [out], [f"{name}_relu"], f"{name}_relu"))
            x = f"{name}_relu"
        nodes.append(helper.make_node("GlobalAveragePool", [x], ["pooled"], "pool"))
        nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"))
        nodes.append(helper.make_node("Gemm", ["flat", "head_w", "head_b"], ["logits"], "head"))
        constants += [numpy_helper.from_array(self.weights[n], n) for n in ("head_w", "head_b")]
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 28, 28])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])
        graph = helper.make_graph(nodes, "fashion", [image], [logits], constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 8
        return model


def train(folder: Path, epochs: int) -> Network:
    """Trains with random shifts and flips, the rate falling to zero."""
    images, labels = load(folder, "train")
    network, rng = Network(), np.random.default_rng(1)
    steps, done = epochs * len(images) // BATCH, 0
    for epoch in range(epochs):
        begun, losses = time.monotonic(), []
        for at in range(0, len(images), BATCH):
            if at == 0:
                order = rng.permutation(len(images))
            index = order[at : at + BATCH]
            x = images[index].astype(np.float32) / np.float32(255)
            if rng.random() < 0.5:
                x = x[:, :, ::-1]
            x = np.roll(x, tuple(rng.integers(-1, 2, size=2)), axis=(1, 2)).astype(np.float32)
            losses.append(network.step(x, labels[index], 2e-3 * (1 - done / steps)))
            done += 1
        spent = time.monotonic() - begun
        sys.stdout.write(f"epoch {epoch + 1}: loss {np.mean(losses):.4f}, {spent:.0f} s\n")
    return network


if __name__ == "__main__":
    trained = train(Path(sys.argv[1]), int(sys.argv[3]) if len(sys.argv) > 3 else 6)
    onnx.save(trained.to_onnx(), sys.argv[2])
