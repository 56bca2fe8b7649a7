"""Builds a graph with TensorRT-RTX, which needs no GPU for that, and says what became INT8."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from edged.build.engine import import_tensorrt
from edged.build.graphs import ModelGraphs, Quantized
from edged.build.plan_process import BuildLimits, PlanRequest, build_plan
from edged.build.precision import Variant
from edged.build.target import plan_job
from edged.errors import BuildError
from edged.recipe import Recipe


def built(graphs: ModelGraphs, result: Quantized, variant: Variant) -> dict[str, Any]:
    """Parses and builds a variant; which of the quantized layers its plan has in INT8."""
    if import_tensorrt() is None:
        return {"error": "TensorRT is not installed"}
    recipe: Recipe = graphs._build.recipe
    typed, _kept = graphs.of(variant)
    with tempfile.TemporaryDirectory() as folder:
        try:
            request = PlanRequest(typed, plan_job(recipe, variant), "cuda:0")
            made = build_plan(request, Path(folder), BuildLimits(), lambda _what, _share: None)
        except BuildError as err:
            return {"error": err.message}
    inside = made.plan.int8_nodes()
    return {
        "layers": len(made.plan.layers),
        "int8": sum(node in inside for node in result.layers),
        "of": len(result.layers),
        "float all the same": [node for node in result.layers if node not in inside],
    }
