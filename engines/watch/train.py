"""Trains ``watch``: a small transformer on smartwatch motion, tested on people it never saw.

Run by ``make models``; writes model.onnx and the recipe's digest beside this file, and the
calibration and held-out samples to calib/watch. About a minute on two cores.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import math
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import bundle

HERE = Path(__file__).resolve().parent
DATA_SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"
SEED = 20
TRAIN_PEOPLE, HELDOUT_PEOPLE = (1, 2, 3, 4, 5, 6, 7), (8, 9, 10)
CALIBRATION = 256
WINDOW, STEP = 128, 16  # samples at 50 Hz; training windows overlap, the others do not
PATCH, WIDTH, HEADS, BLOCKS, CLASSES = 8, 64, 4, 3, 7
TOKENS, HEAD = WINDOW // PATCH, WIDTH // HEADS
EPOCHS, BATCH, RATE = 12, 128, 2e-3
SPECS = bundle.read_recipe(HERE)["input"][0]
SCALE = torch.tensor(SPECS["scale"], dtype=torch.float32)
OFFSET = torch.tensor(SPECS["offset"], dtype=torch.float32)


def load_recordings() -> list[tuple[bundle.Array, int, int]]:
    """Motion ``[n, 6]``, exercise and person of the 140 recordings that seglearn's package holds.

    The file is read from the package without importing it (which would need pandas). It is a
    pickle, which could run code, so only the one file that was looked at is read.
    """
    spec = importlib.util.find_spec("seglearn")
    if spec is None or spec.origin is None:
        sys.exit("seglearn is not installed; install the dependency group 'models'")
    data = (Path(spec.origin).parent / "data" / "watch_dataset.npy").read_bytes()
    if hashlib.sha256(data).hexdigest() != DATA_SHA256:
        sys.exit("seglearn's watch_dataset.npy is not the one of version 1.2.5")
    found = np.load(io.BytesIO(data), allow_pickle=True).item()
    # Half precision keeps more digits than the sensor has, and halves the files in calib/.
    motions = [motion.astype(np.float16).astype(np.float32) for motion in found["X"]]
    return list(zip(motions, found["y"].tolist(), found["subject"].tolist(), strict=True))


def windows(people: tuple[int, ...], step: int) -> tuple[bundle.Array, bundle.Array]:
    """Windows ``[n, WINDOW, 6]`` of these people's recordings, and their exercises."""
    cut = [
        (motion[at : at + WINDOW], exercise)
        for motion, exercise, person in load_recordings()
        if person in people
        for at in range(0, len(motion) - WINDOW + 1, step)
    ]
    return np.stack([window for window, _ in cut]), np.array([y for _, y in cut], np.int64)


class Block(nn.Module):
    """Self-attention, then a two-layer perceptron; each normalised first, each a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.value, self.project = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, TOKENS, WIDTH]`` to the same."""

        def heads(layer: nn.Linear, y: Tensor) -> Tensor:
            return layer(y).view(-1, TOKENS, HEADS, HEAD).transpose(1, 2)

        y = self.norm1(x)
        y = functional.scaled_dot_product_attention(
            heads(self.query, y), heads(self.key, y), heads(self.value, y)
        )
        x = x + self.dropout(self.project(y.transpose(1, 2).reshape(-1, TOKENS, WIDTH)))
        y = self.dropout(functional.gelu(self.fc1(self.norm2(x))))
        return x + self.dropout(self.fc2(y))


class Net(nn.Module):
    """Patches of 8 samples as tokens, three blocks, mean over the tokens, one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(PATCH * 6, WIDTH)
        self.position = nn.Parameter(torch.randn(TOKENS, WIDTH) * 0.02)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[n, CLASSES]`` of standardised motion ``[n, WINDOW, 6]``."""
        x = self.dropout(self.embed(x.reshape(-1, TOKENS, PATCH * 6)) + self.position)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def augment(x: Tensor) -> Tensor:
    """What differs from person to person: how the watch sits (a turn) and how fast one moves."""
    n = len(x)
    turn = torch.randn(n, 3) * math.radians(15)
    skew = torch.zeros(n, 3, 3)
    skew[:, 0, 1], skew[:, 0, 2], skew[:, 1, 2] = -turn[:, 2], turn[:, 1], -turn[:, 0]
    rotation = torch.matrix_exp(skew - skew.transpose(1, 2))
    speed = torch.empty(n, 1).uniform_(0.75, 1.25)
    time = torch.linspace(-1, 1, WINDOW)[None] * speed
    grid = torch.stack([time, torch.zeros_like(time)], -1)[:, None]
    x = torch.cat([x[..., :3] @ rotation, (x[..., 3:] @ rotation) * speed[..., None]], -1)
    x = functional.grid_sample(
        x.transpose(1, 2)[:, :, None], grid, padding_mode="reflection", align_corners=True
    )
    return x[:, :, 0].transpose(1, 2)


def train(motion: bundle.Array, labels: bundle.Array) -> Net:
    """A trained net, in evaluation mode."""
    x, y = torch.from_numpy(motion), torch.from_numpy(labels)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=0.05)
    steps = len(x) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RATE, total_steps=EPOCHS * steps, pct_start=0.15
    )
    for epoch in range(EPOCHS):
        order = torch.randperm(len(x))
        total = 0.0
        for step in range(steps):
            chosen = order[step * BATCH : (step + 1) * BATCH]
            standard = augment(x[chosen]) * SCALE + OFFSET
            logits = net(standard + torch.randn_like(standard) * 0.05)
            loss = functional.cross_entropy(logits, y[chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        if epoch % 3 == 2:
            print(f"watch: epoch {epoch + 1}/{EPOCHS}, loss {total / steps:.3f}", flush=True)
    return net.eval()


class Exporter:
    """Writes the net down as an ONNX graph."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.graph = bundle.Graph("watch")
        self.half = self.scalar("half", 0.5)
        self.one = self.scalar("one", 1.0)
        self.sqrt2 = self.scalar("sqrt2", math.sqrt(2))
        self.split = self.graph.constant("split_heads", np.array([0, TOKENS, HEADS, HEAD]))
        self.merge = self.graph.constant("merge_heads", np.array([0, TOKENS, WIDTH]))

    def scalar(self, name: str, value: float) -> str:
        """A float32 constant."""
        return self.graph.constant(name, np.array(value, np.float32))

    def linear(self, name: str, layer: nn.Linear, x: str, factor: float = 1.0) -> str:
        """MatMul with the constant weight, then Add with the bias; both times ``factor``."""
        weight = (layer.weight.T * factor).detach().numpy()
        bias = (layer.bias * factor).detach().numpy()
        x = self.graph.add("MatMul", name, [x, self.graph.constant(f"{name}.weight", weight)])
        return self.graph.add("Add", f"{name}.add", [x, self.graph.constant(f"{name}.bias", bias)])

    def norm(self, name: str, layer: nn.LayerNorm, x: str) -> str:
        """LayerNormalization over the last axis."""
        weight = self.graph.constant(f"{name}.weight", layer.weight.detach().numpy())
        bias = self.graph.constant(f"{name}.bias", layer.bias.detach().numpy())
        return self.graph.add(
            "LayerNormalization", name, [x, weight, bias], axis=-1, epsilon=layer.eps
        )

    def gelu(self, name: str, x: str) -> str:
        """Gelu by Erf; opset 17 has no operator of its own."""
        add = self.graph.add
        y = add("Erf", f"{name}.erf", [add("Div", f"{name}.div", [x, self.sqrt2])])
        y = add("Mul", f"{name}.mul", [x, add("Add", f"{name}.plus", [y, self.one])])
        return add("Mul", name, [y, self.half])

    def attention(self, name: str, block: Block, x: str) -> str:
        """Self-attention; the factor 1/sqrt(HEAD) lies in the query's weights."""
        add = self.graph.add

        def heads(part: str, layer: nn.Linear, perm: list[int], factor: float = 1.0) -> str:
            y = self.linear(f"{name}.{part}", layer, x, factor)
            y = add("Reshape", f"{name}.{part}.split", [y, self.split])
            return add("Transpose", f"{name}.{part}.heads", [y], perm=perm)

        query = heads("query", block.query, [0, 2, 1, 3], 1 / math.sqrt(HEAD))
        key = heads("key", block.key, [0, 2, 3, 1])
        value = heads("value", block.value, [0, 2, 1, 3])
        y = add("MatMul", f"{name}.scores", [query, key])
        y = add("Softmax", f"{name}.softmax", [y], axis=-1)
        y = add("MatMul", f"{name}.context", [y, value])
        y = add("Transpose", f"{name}.context.back", [y], perm=[0, 2, 1, 3])
        y = add("Reshape", f"{name}.context.merge", [y, self.merge])
        return self.linear(f"{name}.project", block.project, y)

    def model(self) -> bundle.onnx.ModelProto:
        """The whole net."""
        net, add = self.net, self.graph.add
        patches = self.graph.constant("patches_shape", np.array([0, TOKENS, PATCH * 6]))
        x = self.linear("embed", net.embed, add("Reshape", "patches", ["motion", patches]))
        position = self.graph.constant("position.weight", net.position.detach().numpy())
        x = add("Add", "position", [x, position])
        for number, block in enumerate(net.blocks, start=1):
            name = f"block{number}"
            y = self.attention(name, block, self.norm(f"{name}.norm1", block.norm1, x))
            x = add("Add", f"{name}.residual1", [x, y])
            y = self.linear(f"{name}.fc1", block.fc1, self.norm(f"{name}.norm2", block.norm2, x))
            y = self.linear(f"{name}.fc2", block.fc2, self.gelu(f"{name}.gelu", y))
            x = add("Add", f"{name}.residual2", [x, y])
        x = add("ReduceMean", "mean", [self.norm("norm", net.norm, x)], axes=[1], keepdims=0)
        weight = self.graph.constant("head.weight", net.head.weight.detach().numpy())
        bias = self.graph.constant("head.bias", net.head.bias.detach().numpy())
        head = bundle.helper.make_node("Gemm", [x, weight, bias], ["logits"], name="head", transB=1)
        self.graph.nodes.append(head)
        return self.graph.model({"motion": (WINDOW, 6)}, {"logits": (CLASSES,)})


def main() -> None:
    """Trains, checks the exported model on unseen people, and writes everything."""
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(mode=True)
    torch.set_num_threads(1)  # the sums' order, and so the weights, do not depend on the cores
    examples = windows(TRAIN_PEOPLE, STEP)
    model = Exporter(train(*examples)).model()
    motion, labels = windows(HELDOUT_PEOPLE, WINDOW)
    logits = bundle.run(model, {"motion": motion * SCALE.numpy() + OFFSET.numpy()})
    print(f"watch: FP32 accuracy on unseen people {np.mean(logits.argmax(1) == labels):.4f}")
    bundle.write_model(HERE, model)
    write_samples(len(examples[0]), motion, labels)


def write_samples(trained: int, motion: bundle.Array, labels: bundle.Array) -> None:
    """Draws the calibration windows, and writes both splits."""
    candidates, exercises = windows(TRAIN_PEOPLE, WINDOW)
    drawn = np.random.default_rng(SEED).choice(len(candidates), CALIBRATION, replace=False)
    drawn.sort()
    bundle.write_dataset(
        bundle.ROOT / "calib" / "watch",
        {
            "source": "seglearn 1.2.5, seglearn.datasets.load_watch: Burns et al., Shoulder "
            "physiotherapy exercise recognition, arxiv.org/abs/1802.01489",
            "license": "BSD-3-Clause (seglearn)",
            "seed": SEED,
            "method": f"by person: {list(TRAIN_PEOPLE)} train, {list(HELDOUT_PEOPLE)} are held "
            f"out; windows of {WINDOW} samples at 50 Hz, rounded to half precision",
        },
        (f"people {list(TRAIN_PEOPLE)}, a window every {STEP} samples", trained),
        {
            "calibration": bundle.Split(
                f"people {list(TRAIN_PEOPLE)}, drawn from windows that do not overlap",
                {"motion": candidates[drawn]}, exercises[drawn],
            ),
            "heldout": bundle.Split(
                f"people {list(HELDOUT_PEOPLE)}, all windows that do not overlap",
                {"motion": motion}, labels,
            ),
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
