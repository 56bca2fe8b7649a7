"""Engines in a store: manifests that are right, contents that are any bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from edged.engine_store import Engine, EngineStore
from edged.manifest import Manifest, Verdict
from edged.recipe import InputSpec, OutputSpec

HERE = {"runner": "onnx", "arch": "here"}


def manifest(
    data: bytes = b"engine",
    *,
    passed: bool = True,
    key: str = "a" * 64,
    here: Mapping[str, str] = HERE,
) -> Manifest:
    """A manifest of model ``m`` for this content."""
    return Manifest(
        model="m",
        key=key,
        created="2025-01-01T00:00:00+00:00",
        runner="onnx",
        fingerprint=here,
        file="engine.onnx",
        sha256=hashlib.sha256(data).hexdigest(),
        precision="int8",
        sources={"model": "b"},
        input=(InputSpec(name="x", datatype="FP32", shape=(4,), scale=(0.5,)),),
        output=(OutputSpec(name="y", shape=(2,)),),
        max_batch=4,
        warm_sizes=(1, 2, 4),
        slo_ms=100,
        latency_ms={"4": 3.0, "1": 1.0, "2": 2.0},
        quantized=("layer",),
        verdict=Verdict(passed=passed, samples=9, metrics={}, reasons=() if passed else ("bad",)),
    )


def install(
    store: EngineStore,
    data: bytes = b"engine",
    *,
    key: str = "a" * 64,
    here: Mapping[str, str] = HERE,
) -> Engine:
    """Installs an engine with this content."""
    return store.install(
        manifest(data, key=key, here=here), {"engine.onnx": data, "report.json": b"{}"}
    )
