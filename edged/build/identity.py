"""What an engine was built from, as digests: the same key means that there is nothing to build.

Cheap: reads the small files and imports neither ONNX nor its runtime. Modification times do not
count.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from edged.build.dataset import Dataset
from edged.build.ranges import Sources
from edged.recipe import Recipe

BUILD_VERSION = 1
"""Raise it when the same sources give another engine: every engine is then built again."""

RANGES_FILE = "ranges.json"


def sha256(data: bytes) -> str:
    """Hexadecimal digest."""
    return hashlib.sha256(data).hexdigest()


def source_digests(recipe: Recipe, dataset: Dataset, calib: Path) -> dict[str, str]:
    """sha256 of the model, the recipe, the samples and ranges.json ("" where there is none).

    Args:
        recipe: its model digest must have been checked.
        dataset: the samples; both splits count.
        calib: ``calib/<model>``.
    """
    ranges = calib / RANGES_FILE
    return {
        "model": recipe.model.sha256,
        "recipe": sha256((recipe.folder / "recipe.toml").read_bytes()),
        "dataset": dataset.digest,
        "ranges": sha256(ranges.read_bytes()) if ranges.is_file() else "",
    }


def engine_key(sources: Mapping[str, str], runtime: Mapping[str, str]) -> str:
    """sha256 over all that an engine depends on: sources, runtime and this version's rules."""
    document = {"build": BUILD_VERSION, "sources": dict(sources), "runtime": dict(runtime)}
    return sha256(json.dumps(document, sort_keys=True).encode())


def calibration_sources(recipe: Recipe, dataset: Dataset) -> Sources:
    """Digests of what ranges depend on; the held-out split is not among it."""
    samples = [f"{file.spec.sha256} {file.spec.count}" for file in dataset.calibration.files]
    samples.append(f"limit {recipe.calibrate.samples}")
    inputs = [spec.model_dump(mode="json") for spec in recipe.input]
    return Sources(
        model=recipe.model.sha256,
        dataset=sha256("\n".join(samples).encode()),
        preprocessing=sha256(json.dumps(inputs, sort_keys=True).encode()),
    )
