"""Writes what a build reads: ``engines/<model>`` and ``calib/<model>``, with real files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edged.build.build_run import open_build
from edged.build.pipeline import BuildResult, build_for
from edged.build.target import onnx_target
from edged.build_options import WantedPrecision
from edged.engine_store import EngineStore
from edged.runners.onnx import FloatGraph
from tests.doubles.onnx_models import Array, mlp

_RECIPE = """\
[model]
sha256 = "{digest}"
source = "tests"

[[input]]
name = "x"
datatype = "FP32"
shape = {shape}

[[output]]
name = "{output}"
shape = [{classes}]

[engine]
max_batch = 4
{precision}
{more}
"""

_DATASET = """\
source = "random"
license = "Apache-2.0"

[[calibration.files]]
path = "calibration.npz"
sha256 = "{calibration}"
count = {calibration_count}

[[heldout.files]]
path = "heldout.npz"
sha256 = "{heldout}"
count = {heldout_count}
"""


@dataclass(frozen=True)
class BuildFolders:
    """One model called ``toy`` under a temporary folder."""

    root: Path

    @property
    def engine(self) -> Path:
        """``engines/toy``."""
        return self.root / "engines" / "toy"

    @property
    def calib(self) -> Path:
        """``calib/toy``."""
        return self.root / "calib" / "toy"

    def build(
        self,
        *,
        force: bool = False,
        precision: WantedPrecision | None = None,
        progress: Callable[[str, float], None] = lambda _sentence, _share: None,
    ) -> BuildResult:
        """Runs the whole line for ONNX Runtime."""
        run = open_build("toy", self.root / "engines", self.root / "calib", progress, precision)
        # Without the roofline, which takes longer than all the rest.
        target = replace(onnx_target(), bench=None)
        return build_for(target, run, EngineStore(self.root / "engines"), force=force)

    def write_model(self, model: onnx.ModelProto | bytes, more: str = "") -> None:
        """model.onnx and recipe.toml; ``more`` is further TOML."""
        self.engine.mkdir(parents=True, exist_ok=True)
        data = model if isinstance(model, bytes) else model.SerializeToString(deterministic=True)
        shape, output, classes = [12], "last_out", 3
        if isinstance(model, onnx.ModelProto):
            dims = model.graph.input[0].type.tensor_type.shape.dim
            shape = [int(dim.dim_value) for dim in dims[1:]]
            output = model.graph.output[0].name
            classes = int(model.graph.output[0].type.tensor_type.shape.dim[-1].dim_value)
        (self.engine / "model.onnx").write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        text = _RECIPE.format(
            digest=digest,
            shape=shape,
            output=output,
            classes=classes,
            # Most tests are about INT8, which a measurement would hardly ever choose here.
            precision="" if "precision =" in more else 'precision = "int8"',
            more=more,
        )
        (self.engine / "recipe.toml").write_text(text)

    def write_samples(self, calibration: Array, heldout: Array, labels: Array) -> None:
        """dataset.toml and both sample files."""
        self.calib.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, dict[str, Any]] = {
            "calibration": {"x": calibration},
            "heldout": {"x": heldout, "labels": labels},
        }
        digests = {}
        for name, content in arrays.items():
            path = self.calib / f"{name}.npz"
            np.savez(path, **content)
            digests[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        text = _DATASET.format(
            **digests, calibration_count=len(calibration), heldout_count=len(heldout)
        )
        (self.calib / "dataset.toml").write_text(text)


def toy(root: Path, model: onnx.ModelProto | None = None, more: str = "") -> BuildFolders:
    """A model with 64 random calibration and 100 held-out samples, labelled by the model itself."""
    folders = BuildFolders(root)
    model = model or mlp()
    folders.write_model(model, more)
    dims = model.graph.input[0].type.tensor_type.shape.dim
    shape = tuple(int(dim.dim_value) for dim in dims[1:])
    rng = np.random.default_rng(7)
    calibration, drawn = (
        rng.normal(size=(count, *shape)).astype(np.float32) for count in (64, 400)
    )
    (answers,) = FloatGraph(model.SerializeToString()).run({"x": drawn}).values()
    # Those it is surest of: a random model is often undecided, and a tie says nothing of INT8.
    ranked = np.sort(answers.astype(np.float64), axis=-1)
    sure = np.argsort(ranked[:, -2] - ranked[:, -1], kind="stable")[:100]
    folders.write_samples(calibration, drawn[sure], answers[sure].argmax(axis=-1).astype(np.int64))
    return folders
