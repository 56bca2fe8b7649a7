"""A model of variable length as a build reads it: recipe, model, samples of lengths 1 to 12."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from edged.runners.onnx import FloatGraph
from tests.doubles.build_folders import BuildFolders
from tests.doubles.onnx_models import Array, masked_net

Floats = npt.NDArray[np.float32]

MOST = 12
BUCKETS = (4, 8)
_RECIPE = """\
[model]
sha256 = "{digest}"

[[input]]
name = "x"
datatype = "FP32"
shape = [12, 8]
[input.length]
buckets = [4, 8]
pad = {pad}
mask = "{mask}"

[[output]]
name = "last_out"
shape = [4]
{outputs}
[engine]
max_batch = 4
slo_ms = 60000
precision = "{precision}"

[calibrate]
method = "minmax"
"""
_EACH = """
[[output]]
name = "each_out"
shape = [12, 2]
length_axis = 0
"""
_DATASET = """\
source = "random"
license = "Apache-2.0"
"""
_FILE = """
[[{split}.files]]
path = "{split}.npz"
sha256 = "{digest}"
count = {count}
"""


class VariableFolders(BuildFolders):
    """``toy`` with inputs of variable length; samples lie padded beside their lengths."""

    def write(
        self,
        model: onnx.ModelProto,
        *,
        pad: float = 0.0,
        behind: float = np.nan,
        precision: str = "int8",
    ) -> None:
        """Writes all of it.

        Args:
            model: with or without an input ``mask``.
            pad: the recipe's.
            behind: what the sample files hold behind the data, which nobody should read.
            precision: the recipe's.
        """
        masked = any(item.name == "mask" for item in model.graph.input)
        self.engine.mkdir(parents=True, exist_ok=True)
        self.calib.mkdir(parents=True, exist_ok=True)
        data = model.SerializeToString(deterministic=True)
        (self.engine / "model.onnx").write_bytes(data)
        recipe = _RECIPE.format(
            digest=hashlib.sha256(data).hexdigest(),
            pad=pad,
            mask="mask" if masked else "",
            outputs=_EACH if masked else "",
            precision=precision,
        )
        (self.engine / "recipe.toml").write_text(recipe)
        text = _DATASET
        for split, seed in (("calibration", 1), ("heldout", 2)):
            samples = draw(seed, 72)
            path = self.calib / f"{split}.npz"
            np.savez(
                path,
                x=padded(samples, behind),
                lengths=np.array([len(sample) for sample in samples]),
                labels=np.array([int(answer(model, sample).argmax()) for sample in samples]),
            )
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            text += _FILE.format(split=split, digest=digest, count=len(samples))
        (self.calib / "dataset.toml").write_text(text)


def variable(root: Path, model: onnx.ModelProto | None = None, pad: float = 0.0) -> VariableFolders:
    """Folders of `masked_net`, or of another model."""
    folders = VariableFolders(root)
    folders.write(model or masked_net(), pad=pad)
    return folders


def draw(seed: int, count: int) -> list[Floats]:
    """Random samples ``[length, 8]``, each length from 1 to 12 as often."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(1 + n % MOST, 8)).astype(np.float32) for n in range(count)]


def padded(samples: list[Floats], behind: float) -> Floats:
    """``[n, 12, 8]``."""
    rows = np.full((len(samples), MOST, 8), behind, np.float32)
    for row, sample in zip(rows, samples, strict=True):
        row[: len(sample)] = sample
    return rows


def answer(model: onnx.ModelProto | bytes, sample: Floats, output: str = "last_out") -> Array:
    """What a model gives for one sample at its own length."""
    data = model if isinstance(model, bytes) else model.SerializeToString()
    graph = FloatGraph(data)
    inputs: dict[str, Array] = {"x": sample[None]}
    if "mask" in graph.input_names:
        inputs["mask"] = np.ones((1, len(sample)), np.int64)
    return np.asarray(graph.run(inputs, [output])[output][0])
