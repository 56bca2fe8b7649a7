"""Writes what a bundled model consists of: model.onnx, sample files, dataset.toml, recipe digest.

The training scripts share it. The same weights and samples give the same bytes, so a second run
changes nothing that git would show (as long as torch, numpy and zlib are the same).
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
OPSET = 17
IR_VERSION = 8  # of opset 17; every runtime that knows the opset reads it

Array = np.ndarray[Any, np.dtype[Any]]


class Graph:
    """An ONNX graph that is written down node by node, each named after what it is."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: Array) -> str:
        """Adds a weight or another constant, and returns its name."""
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add(self, op: str, name: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Adds a node, and returns the name of its output, which is the node's."""
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def model(
        self, inputs: Mapping[str, Sequence[int]], outputs: Mapping[str, Sequence[int]]
    ) -> onnx.ModelProto:
        """The checked model; shapes are float32 samples, before which the batch axis comes."""

        def values(specs: Mapping[str, Sequence[int]]) -> list[onnx.ValueInfoProto]:
            return [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
                for name, shape in specs.items()
            ]

        graph = helper.make_graph(
            self.nodes, self.name, values(inputs), values(outputs), self.constants
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="edged",
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def run(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> Array:
    """First output of the model in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, dict(inputs))[0])


def read_recipe(folder: Path) -> dict[str, Any]:
    """The recipe as TOML has it, so that training prepares samples as serving will."""
    return tomllib.loads((folder / "recipe.toml").read_text(encoding="utf-8"))


def write_model(folder: Path, model: onnx.ModelProto) -> None:
    """Writes ``model.onnx``, and its digest into the recipe beside it."""
    data = model.SerializeToString(deterministic=True)
    (folder / "model.onnx").write_bytes(data)
    recipe = folder / "recipe.toml"
    text, found = re.subn(
        r'(?m)^sha256 = "[0-9a-f]*"',
        f'sha256 = "{hashlib.sha256(data).hexdigest()}"',
        recipe.read_text(encoding="utf-8"),
    )
    if found != 1:
        sys.exit(f"{recipe} must have exactly one sha256 line, it has {found}")
    recipe.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Split:
    """One split: arrays by input name, ``[n, *shape]`` as requests carry them, and int64 labels."""

    description: str
    inputs: Mapping[str, Array]
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)


def write_dataset(
    folder: Path,
    about: Mapping[str, str | int],
    train: tuple[str, int],
    splits: Mapping[str, Split],
) -> None:
    """Writes ``<split>.npz`` for each split, and ``dataset.toml``.

    Args:
        folder: ``calib/<model>``.
        about: provenance: source, license, seed and how the splits were made.
        train: description and number of the training samples, which are not written.
        splits: ``calibration`` and ``heldout``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Written by the training script (make models); docs of the fields: calib/README.md",
        *(f"{key} = {_toml(value)}" for key, value in about.items()),
        *("", "[train]", f"description = {_toml(train[0])}", f"count = {train[1]}"),
    ]
    for name, split in splits.items():
        path = folder / f"{name}.npz"
        np.savez_compressed(path, **split.inputs, labels=split.labels.astype(np.int64))
        lines += [
            *("", f"[{name}]", f"description = {_toml(split.description)}"),
            *("", f"[[{name}.files]]", f'path = "{path.name}"'),
            f'sha256 = "{hashlib.sha256(path.read_bytes()).hexdigest()}"',
            f"count = {len(split)}",
        ]
    (folder / "dataset.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _toml(value: str | int) -> str:
    return json.dumps(value, ensure_ascii=False)  # a JSON string or integer is a TOML one
