"""``report.json``: what a build found, beside the manifest; docs/engines.md says how to read it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from edged import __version__
from edged.build.candidates import Candidate
from edged.build.choice import LEAST_GAIN, medians
from edged.build.histogram import Histogram
from edged.build.identity import sha256
from edged.build.outcome import Outcome
from edged.build.peaks import measure_peaks
from edged.build.plan import PlanLayer
from edged.build.precision import Variant
from edged.build.work import intensity, linear_work, operators
from edged.errors import EdgedError
from edged.manifest import Manifest

if TYPE_CHECKING:
    from edged.build.graphs import Quantized

_FROM_MANIFEST = {
    "model", "key", "created", "runner", "fingerprint", "precision", "asked", "slo_ms", "slo_batch",
    "sources", "stages", "verdict", "latency_ms",
    "shorter_latency_ms", "notes",
}  # fmt: skip
_BYTES = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0}
_PEAKS_VERSION = 1
_SHOWN_BINS = 256


def report(outcome: Outcome, manifest: Manifest) -> dict[str, Any]:
    """The report as a JSON document.

    Args:
        outcome: what the build found.
        manifest: of the engine that is installed.
    """
    build, taken = outcome.shop.build, outcome.taken
    document: dict[str, Any] = {"edged": __version__}
    document |= manifest.model_dump(mode="json", include=_FROM_MANIFEST)
    document |= {"variant": str(outcome.decision.variant), "kept_fp32": taken.kept}
    document |= {"candidates": _candidates(outcome), "accuracy": _accuracy(outcome)}
    if outcome.quantized or _int8(outcome) is not None:
        document |= _quantization(outcome.shop.graphs.quantized)
        document |= _evidence(outcome)
    if taken.made.layers:
        document["plan"] = plan_report(taken.made.layers, outcome.quantized, taken.fallen)
    document |= {"graph": _graph(outcome), "roofline": _roofline(outcome)}
    return document | {"seconds": build.seconds, "warnings": list(build.dataset.warnings)}


def plan_report(
    layers: Sequence[PlanLayer], quantized: Sequence[str], fallen: dict[str, str]
) -> dict[str, Any]:
    """What TensorRT says of its layers, after fusion.

    Args:
        layers: as the builder or the inspector tells them.
        quantized: ONNX nodes that should be INT8.
        fallen: those of them that are not -> how they are computed.
    """
    return {
        "layers": len(layers),
        "linear": {
            layer.name: {"inputs": layer.inputs, "outputs": layer.outputs}
            for layer in layers
            if layer.linear
        },
        "int8": [node for node in quantized if node not in fallen],
        "fell_back": fallen,
    }


# ------------------------------------------------------------------ candidates and accuracy


def _int8(outcome: Outcome) -> Candidate | None:
    found = outcome.found.passed.items()
    return next((each for variant, each in found if variant.precision == "int8"), None)


def _candidates(outcome: Outcome) -> list[dict[str, Any]]:
    """Every precision that was tried, the one that is installed first."""
    rows = [_timed(outcome, variant) for variant in outcome.found.passed]
    rows.sort(key=lambda row: not row["installed"])
    rows += [
        {"variant": str(variant), "installed": False, "reason": why}
        for variant, why in outcome.found.failed.items()
    ]
    asked = outcome.shop.build.recipe.engine.precision
    if outcome.shop.target.runner == "onnx" and asked == "auto":
        rows.append(
            {
                "variant": "FP16",
                "installed": False,
                "reason": "not tried: ONNX Runtime computes FP16 on a CPU in FP32, with casts",
            }
        )
    return rows


def _timed(outcome: Outcome, variant: Variant) -> dict[str, Any]:
    decision, times = outcome.decision, medians(outcome.timings[variant])
    reasons = [why for why in decision.reasons if why.startswith(f"{variant} was not taken")]
    taken = variant == decision.variant
    why = f"at a batch of {decision.batch} no other one is {LEAST_GAIN - 1:.0%} faster or more"
    if len(outcome.timings) == 1:
        why = "the only one that was built"
    return {
        "variant": str(variant),
        "installed": taken,
        "reason": why if taken else "; ".join(reasons),
        "gain": round(decision.gains[variant], 3),
        "least_gain": LEAST_GAIN,
        "latency_ms": {str(n): round(seconds * 1e3, 4) for n, seconds in times.items()},
        "samples_s": {str(n): round(n / seconds, 1) for n, seconds in times.items()},
    }


def _accuracy(outcome: Outcome) -> list[dict[str, Any]]:
    """FP32 in ONNX Runtime, the Q/DQ graph there, and each engine, on the held-out split."""
    verdicts = {variant: each.verdict for variant, each in outcome.found.passed.items()}
    any_verdict = next(iter(verdicts.values()))
    first: dict[str, Any] = {"what": "FP32 model in ONNX Runtime", "samples": any_verdict.samples}
    if "fp32_top1" in any_verdict.metrics:
        first["top1"] = any_verdict.metrics["fp32_top1"]
    rows = [first]
    for variant, verdict in verdicts.items():
        qdq = outcome.found.passed[variant].qdq
        if qdq:
            rows.append({"what": "Q/DQ model in ONNX Runtime"} | _row(qdq))
        name = f"{variant} engine"
        rows.append({"what": name, "samples": verdict.samples} | _row(verdict.metrics))
        if "engine_sqnr_db" in qdq:
            rows[-1]["against_qdq_sqnr_db"] = qdq["engine_sqnr_db"]
    return rows


def _row(metrics: Any) -> dict[str, float]:
    named = {"engine_top1": "top1"}
    wanted = ("engine_top1", "agreement", "sqnr_db", "cosine")
    return {named.get(name, name): metrics[name] for name in wanted if name in metrics}


# ------------------------------------------------------------------ graphs


def _quantization(quantized: Quantized) -> dict[str, Any]:
    placement, ranges = quantized.placement, quantized.ranges
    if placement is None or ranges is None:
        return {"calibration": None, "int8": [{"node": name} for name in quantized.layers]}
    return {
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


def _evidence(outcome: Outcome) -> dict[str, Any]:
    """Histograms with the chosen ranges, and what each layer costs where a scan was made."""
    quantized = outcome.shop.graphs.quantized
    if quantized.ranges is None:
        return {"histograms": {}, "sensitivity": []}
    thresholds = quantized.ranges.thresholds()

    def make() -> bytes:
        seen = {name: _bins(found) for name, found in sorted(quantized.histograms().items())}
        return json.dumps(seen).encode()

    # Kept beside ranges.json: a build that takes that file as it is has seen no samples.
    inputs = {
        "sources": quantized.ranges.sources.model_dump(),
        "thresholds": sha256(json.dumps(thresholds, sort_keys=True).encode()),
    }
    seen = json.loads(outcome.shop.stages.get("histograms", inputs, make))
    return {
        "histograms": {
            name: found | {"threshold": thresholds[name]}
            for name, found in seen.items()
            if name in thresholds
        },
        "sensitivity": [asdict(cost) for cost in quantized.costs],
    }


def _bins(histogram: Histogram) -> dict[str, Any]:
    """A histogram's used part in at most 256 equal bins."""
    used = int(np.flatnonzero(histogram.counts)[-1]) + 1
    merged = -(-used // _SHOWN_BINS)
    counts = np.zeros(-(-used // merged) * merged, np.int64)
    counts[:used] = histogram.counts[:used]
    return {
        "upper": len(counts) * histogram.width,
        "counts": counts.reshape(-1, merged).sum(axis=1).tolist(),
        "zeros": histogram.zeros,
    }


def _graph(outcome: Outcome) -> dict[str, Any]:
    """Operators of the normalised graph, of the one that was built, and after fusion."""
    shop, taken = outcome.shop, outcome.taken
    built, _ = shop.graphs.of(outcome.decision.variant)
    if taken.made.layers:
        kinds = Counter(layer.kind for layer in taken.made.layers)
        by, after = "TensorRT's layers", dict(kinds.most_common())
    else:
        from edged.runners.onnx import optimized_model

        by = "ONNX Runtime's optimized graph"
        try:
            after = operators(optimized_model(built.strong, shop.folder))
        except EdgedError as err:  # a graph that it runs but cannot write
            by, after = f"not known: {err.message}", {}
    return {
        "model": operators(shop.graphs.single),
        "built": operators(built.strong),
        "fused": after,
        "fused_by": by,
        "layers": [asdict(layer) for layer in taken.made.layers],
    }


def _roofline(outcome: Outcome) -> dict[str, Any] | None:
    """Where the engines stand under what the device can do; None if that is not measured."""
    shop = outcome.shop
    bench = shop.target.bench
    if bench is None:
        return None
    inputs = {"fingerprint": dict(shop.target.fingerprint), "version": _PEAKS_VERSION}

    def make() -> bytes:
        with shop.build.stage("roofline", "measuring what the device can do at most", 0.96):
            found = measure_peaks(shop.target, shop.folder, bench)
        return json.dumps(asdict(found)).encode()

    try:
        peaks = json.loads(shop.stages.get("peaks", inputs, make))
    except EdgedError as err:
        shop.build.tell(f"no roofline: {err.message}", 0.97)
        return None
    layers = linear_work(shop.graphs.single, max((0, *shop.build.recipe.buckets)))
    batch = outcome.decision.batch
    points = [
        {
            "variant": str(variant),
            "batch": size,
            "intensity": round(intensity(layers, size, _BYTES[variant.precision]), 4),
            "operations_s": round(sum(each.operations for each in layers) * size / seconds),
        }
        for variant, rounds in outcome.timings.items()
        for size, seconds in medians(rounds).items()
    ]
    ridge = peaks["operations_s"] / peaks["bytes_s"]
    return {
        "peaks": {name: round(value) for name, value in peaks.items()},
        "measured": "FP32, by this runner",
        "graph": sha256(shop.graphs.single)[:12],
        "points": points if layers else [],
        "layers": [
            asdict(layer)
            | {"intensity": (found := round(intensity([layer], batch, 4.0), 3))}
            | {"bound_by": "memory" if found < ridge else "compute"}
            for layer in layers
        ],
    }
