"""What an engine was built from, as digests: the same key means that there is nothing to build.

Cheap: reads the small files and imports neither ONNX nor its runtime. Modification times do not
count.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edged.build.dataset import Dataset
from edged.build.plan import profiles_of
from edged.build.precision import Ladder
from edged.build.ranges import Sources
from edged.recipe import Recipe

BUILD_VERSION = 5
"""Raise it when the same sources give another engine: every engine is then built again."""

NORMALISER_VERSION = 1
"""Raise it when `normalise` makes another graph from the same model."""

QUANTIZER_VERSION = 2
"""Raise it when `quantize` makes another graph from the same placement and ranges."""

HALF_VERSION = 1
"""Raise it when `fp16.to_half` makes another graph."""

PLAN_VERSION = 1
"""Raise it when TensorRT is told to make another plan of the same graphs."""

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
        "recipe": recipe_digest(recipe),
        "dataset": dataset.digest,
        "ranges": sha256(ranges.read_bytes()) if ranges.is_file() else "",
    }


def recipe_digest(recipe: Recipe) -> str:
    """sha256 of what a recipe says, without what is for people only; comments do not count.

    The precision that the call asks for instead of the file's is part of it.
    """
    document = recipe.model_dump(
        mode="json",
        exclude={"name": True, "folder": True, "model": {"description", "source", "license"}},
    )
    if recipe.postprocess is None:  # digests of recipes without it stay what they were
        document.pop("postprocess")
    return sha256(json.dumps(document, sort_keys=True).encode())


def engine_key(
    sources: Mapping[str, str], runtime: Mapping[str, str], options: Mapping[str, Any]
) -> str:
    """sha256 over all that an engine depends on.

    Args:
        sources: from `source_digests`.
        runtime: the fingerprint of device and runtime, the kind of runner among it.
        options: from `engine_options`.
    """
    document = {
        "build": BUILD_VERSION,
        "sources": dict(sources),
        "runtime": dict(runtime),
        "options": dict(options),
    }
    return sha256(json.dumps(document, sort_keys=True).encode())


def engine_options(recipe: Recipe, ladders: Sequence[Ladder]) -> dict[str, Any]:
    """How an engine is built: what was asked for, not what came of it.

    So an engine that fell back to another precision is not built again and again.

    Args:
        recipe: with the precision that was asked for.
        ladders: variants in the order in which they are tried.
    """
    engine = recipe.engine
    profiles = profiles_of(recipe.input, engine.max_batch, engine.opt_batch)
    return {
        "variants": [[asdict(variant) for variant in ladder] for ladder in ladders],
        "aux_streams": recipe.engine.aux_streams,
        "profiles": [
            {name: asdict(shape) for name, shape in profile.items()} for profile in profiles
        ],
    }


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
