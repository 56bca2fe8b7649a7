"""``report.json``: what a build found, beside the manifest; docs/engines.md says how to read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edged import __version__
from edged.build.plan import PlanLayer
from edged.build.ranges import Ranges
from edged.engine_store import Manifest

if TYPE_CHECKING:
    from edged.build.placement import Placement

_FROM_MANIFEST = {
    "model", "key", "created", "runner", "fingerprint", "precision", "sources", "verdict",
    "latency_ms", "notes",
}  # fmt: skip


def report(
    manifest: Manifest, placement: Placement | None, ranges: Ranges | None
) -> dict[str, Any]:
    """The report as a JSON document.

    Args:
        manifest: of the engine that was built.
        placement: what became INT8; None if the model brought its own Q/DQ nodes.
        ranges: the activations' ranges, likewise.
    """
    document = {"edged": __version__}
    document |= manifest.model_dump(mode="json", include=_FROM_MANIFEST)
    if placement is None or ranges is None:
        return document | {"calibration": None, "int8": [{"node": n} for n in manifest.quantized]}
    return document | {
        "calibration": {"method": ranges.method, "samples": ranges.samples},
        "int8": [
            {
                "node": layer.node,
                "operator": layer.operator,
                "activation": layer.activation,
                **ranges.tensors[layer.activation].model_dump(),
            }
            for layer in placement.layers
        ],
        "float": placement.kept,
        "shortcuts": {item.node: item.tensor for item in placement.shortcuts},
        "shared_ranges": [sorted(group) for group in placement.groups],
    }


def plan_report(layers: Sequence[PlanLayer], quantized: Sequence[str]) -> dict[str, Any]:
    """What TensorRT's builder says of its layers, after fusion.

    Args:
        layers: as the builder logged them.
        quantized: ONNX nodes that should be INT8.
    """
    inside = {node for layer in layers if layer.int8 for node in layer.nodes}
    return {
        "layers": len(layers),
        "linear": {
            layer.name: {"inputs": layer.inputs, "outputs": layer.outputs}
            for layer in layers
            if layer.linear
        },
        "int8": [node for node in quantized if node in inside],
    }
