"""Trains ``digits``: a small residual CNN on scikit-learn's handwritten digits.

Run by ``make models``; writes model.onnx and the recipe's digest beside this file, and the
calibration and held-out samples to calib/digits. About a minute on two cores.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import bundle

SEED = 20
HELDOUT, CALIBRATION = 360, 256
EPOCHS, BATCH, RATE = 60, 64, 3e-3


def load_splits() -> dict[str, tuple[bundle.Array, bundle.Array]]:
    """uint8 images ``[n, 8, 8, 1]`` and labels: heldout, train, and calibration as a part of train.

    The set holds no image twice (tests/unit/test_bundled_models.py looks), so the splits are
    disjoint; classes have the same shares in each.
    """
    digits = load_digits()
    images = np.round(digits.images * 255 / 16).astype(np.uint8)[..., None]  # 0..16 -> 0..255
    labels = digits.target.astype(np.int64)
    train, heldout = train_test_split(
        np.arange(len(labels)), test_size=HELDOUT, stratify=labels, random_state=SEED
    )
    _, calibration = train_test_split(
        train, test_size=CALIBRATION, stratify=labels[train], random_state=SEED
    )
    parts = {"train": train, "calibration": calibration, "heldout": heldout}
    return {name: (images[part], labels[part]) for name, part in parts.items()}


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution and batch normalisation, which the ONNX file holds as one node."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs)
    )


class Net(nn.Module):
    """Five convolutions with one residual block, then two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = convolution(1, 32)
        self.conv2 = convolution(32, 32)
        self.conv3 = convolution(32, 32)
        self.conv4 = convolution(32, 64, stride=2)
        self.conv5 = convolution(64, 64)
        self.fc1 = nn.Linear(64 * 2 * 2, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[n, 10]`` of images ``[n, 1, 8, 8]`` in 0..1."""
        x = torch.relu(self.conv1(x))
        x = torch.relu(x + self.conv3(torch.relu(self.conv2(x))))
        x = torch.relu(self.conv5(torch.relu(self.conv4(x))))
        x = functional.max_pool2d(x, 2).flatten(1)
        x = functional.dropout(torch.relu(self.fc1(x)), 0.3, self.training)
        return self.fc2(x)


def augment(x: Tensor) -> Tensor:
    """Turns, scales, shifts and shears each image a little."""
    n = len(x)
    angle = torch.randn(n) * 0.12
    size = 1 + torch.randn(n, 2) * 0.07
    matrix = torch.empty(n, 2, 3)
    matrix[:, 0, 0], matrix[:, 0, 1] = angle.cos() * size[:, 0], -angle.sin()
    matrix[:, 1, 0], matrix[:, 1, 1] = angle.sin(), angle.cos() * size[:, 1]
    matrix[:, 0, 1] += torch.randn(n) * 0.1
    matrix[:, :, 2] = torch.randn(n, 2) * 0.08
    grid = functional.affine_grid(matrix, list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, align_corners=False)


def train(images: bundle.Array, labels: bundle.Array) -> Net:
    """A trained net, in evaluation mode."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    y = torch.from_numpy(labels)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=0.02)
    steps = len(x) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * steps)
    for epoch in range(EPOCHS):
        order = torch.randperm(len(x))
        total = 0.0
        for step in range(steps):
            chosen = order[step * BATCH : (step + 1) * BATCH]
            logits = net(augment(x[chosen]))
            loss = functional.cross_entropy(logits, y[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        if epoch % 10 == 9:
            print(f"digits: epoch {epoch + 1}/{EPOCHS}, loss {total / steps:.3f}", flush=True)
    return net.eval()


def export(net: Net) -> bundle.onnx.ModelProto:
    """The net as ONNX, batch normalisation folded into the convolutions."""
    graph = bundle.Graph("digits")

    def conv(name: str, x: str, stride: int = 1) -> str:
        layer, norm = getattr(net, name)
        factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        weight = (layer.weight * factor[:, None, None, None]).detach().numpy()
        bias = (norm.bias - norm.running_mean * factor).detach().numpy()
        return graph.add(
            "Conv",
            name,
            [x, graph.constant(f"{name}.weight", weight), graph.constant(f"{name}.bias", bias)],
            kernel_shape=[3, 3],
            pads=[1, 1, 1, 1],
            strides=[stride, stride],
        )

    def linear(name: str, x: str, output: str) -> str:
        layer = getattr(net, name)
        weight = graph.constant(f"{name}.weight", layer.weight.detach().numpy())
        bias = graph.constant(f"{name}.bias", layer.bias.detach().numpy())
        node = bundle.helper.make_node("Gemm", [x, weight, bias], [output], name=name, transB=1)
        graph.nodes.append(node)
        return output

    x = graph.add("Relu", "relu1", [conv("conv1", "image")])
    y = graph.add("Relu", "relu2", [conv("conv2", x)])
    x = graph.add("Relu", "relu3", [graph.add("Add", "add3", [x, conv("conv3", y)])])
    x = graph.add("Relu", "relu4", [conv("conv4", x, stride=2)])
    x = graph.add("Relu", "relu5", [conv("conv5", x)])
    x = graph.add("MaxPool", "pool", [x], kernel_shape=[2, 2], strides=[2, 2])
    x = graph.add("Flatten", "flatten", [x], axis=1)
    x = graph.add("Relu", "relu6", [linear("fc1", x, "fc1")])
    linear("fc2", x, "logits")
    return graph.model({"image": (1, 8, 8)}, {"logits": (10,)})


def main() -> None:
    """Trains, checks the exported model on the held-out digits, and writes everything."""
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(mode=True)
    torch.set_num_threads(1)  # the sums' order, and so the weights, do not depend on the cores
    splits = load_splits()
    model = export(train(*splits["train"]))
    images, labels = splits["heldout"]
    logits = bundle.run(model, {"image": images.transpose(0, 3, 1, 2).astype(np.float32) / 255})
    print(f"digits: FP32 held-out accuracy {np.mean(logits.argmax(1) == labels):.4f}")
    bundle.write_model(Path(__file__).resolve().parent, model)
    bundle.write_dataset(
        bundle.ROOT / "calib" / "digits",
        {
            "source": "sklearn.datasets.load_digits: test part of the UCI set 'Optical Recognition "
            "of Handwritten Digits' (Alpaydin and Kaynak, 1998), doi.org/10.24432/C50P49",
            "license": "CC BY 4.0",
            "seed": SEED,
            "method": f"scikit-learn's train_test_split, stratified: {HELDOUT} held out, of the "
            f"others {CALIBRATION} also calibrate; pixel = round(value * 255 / 16)",
        },
        ("all that are not held out, calibration among them", len(splits["train"][1])),
        {
            "calibration": bundle.Split(
                "a part of the training split", {"image": splits["calibration"][0]},
                splits["calibration"][1],
            ),
            "heldout": bundle.Split("never trained on", {"image": images}, labels),
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
