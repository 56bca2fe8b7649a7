"""Engines in a store without a build: for what a build would refuse to install, and for speed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from edged.engine_store import EngineStore, Manifest, Verdict
from edged.recipe import InputSpec, OutputSpec
from edged.runners import fingerprint

TABLE = np.array([[0, 1], [2, 3], [4, 5], [np.inf, 7]], np.float32)


def picker() -> onnx.ModelProto:
    """A model that fails in the middle of serving: ``y = TABLE[x]``.

    Input ``x`` INT64 [batch, 1], output ``y`` FP32 [batch, 1, 2]. Zeros are fine, so it warms up;
    index 3 gives infinity, and one outside -4 to 3 makes ONNX Runtime raise.
    """
    table = helper.make_tensor("table", TensorProto.FLOAT, TABLE.shape, TABLE.flatten().tolist())
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "x"], ["y"], axis=0)],
        "picker",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["batch", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1, 2])],
        [table],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model, full_check=True)
    return model


PICKER_INPUT = InputSpec(name="x", datatype="INT64", shape=(1,))
PICKER_OUTPUT = OutputSpec(name="y", shape=(1, 2))


def install_picker(
    root: Path,
    name: str,
    *,
    passed: bool = True,
    refuse_nonfinite: bool = False,
    bound_to: Mapping[str, str] | None = None,
    max_batch: int = 4,
) -> None:
    """Installs `picker` as the current engine of a model.

    Args:
        root: folder of the store.
        name: the model's.
        passed: what the manifest says of verification.
        refuse_nonfinite: whether infinity in an output is an error.
        bound_to: the manifest's fingerprint; None: this device's.
        max_batch: of the engine.
    """
    data = picker().SerializeToString(deterministic=True)
    digest = hashlib.sha256(data).hexdigest()
    manifest = Manifest(
        model=name,
        key=hashlib.sha256(name.encode()).hexdigest(),
        created="2026-01-01T00:00:00+00:00",
        runner="onnx",
        fingerprint=dict(bound_to or fingerprint("onnx")),
        file="engine.onnx",
        sha256=digest,
        precision="fp32",
        sources={"model": digest},
        input=(PICKER_INPUT,),
        output=(PICKER_OUTPUT,),
        max_batch=max_batch,
        warm_sizes=(1, max_batch),
        slo_ms=60_000.0,
        refuse_nonfinite=refuse_nonfinite,
        latency_ms={"1": 0.1},
        quantized=(),
        verdict=Verdict(
            passed=passed, samples=1, metrics={}, reasons=() if passed else ("it lost 3 of 10",)
        ),
    )
    store = EngineStore(root)
    with store.building(name):
        store.install(manifest, {"engine.onnx": data})
