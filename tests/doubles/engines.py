"""Engines in a store without a build: for what a build would refuse to install, and for speed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from edged.engine_store import EngineStore
from edged.manifest import Manifest, Verdict
from edged.recipe import InputSpec, LengthSpec, OutputSpec
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


def averager() -> onnx.ModelProto:
    """A model of variable length: the mean of the data, and each entry doubled.

    Inputs ``x`` FP32 [batch, length, 2] and ``mask`` INT64 [batch, length]; outputs ``mean`` FP32
    [batch, 2], over the positions whose mask is 1, and ``twice`` FP32 [batch, length, 2].
    """
    nodes = [
        helper.make_node("Cast", ["mask"], ["weight"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["weight", "last"], ["column"]),
        helper.make_node("Mul", ["x", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "along"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["column", "along"], ["count"], keepdims=0),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
        helper.make_node("Add", ["x", "x"], ["twice"]),
    ]
    tensor, floats = helper.make_tensor_value_info, TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "averager",
        [
            tensor("x", floats, ["batch", "length", 2]),
            tensor("mask", TensorProto.INT64, ["batch", "length"]),
        ],
        [tensor("mean", floats, ["batch", 2]), tensor("twice", floats, ["batch", "length", 2])],
        [
            helper.make_tensor("last", TensorProto.INT64, [1], [2]),
            helper.make_tensor("along", TensorProto.INT64, [1], [1]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model, full_check=True)
    return model


AVERAGER_INPUT = InputSpec(
    name="x",
    datatype="FP32",
    shape=(8, 2),
    length=LengthSpec(axis=0, buckets=(3, 5), pad=99.0, mask="mask"),
)
AVERAGER_OUTPUTS = (
    OutputSpec(name="mean", shape=(2,)),
    OutputSpec(name="twice", shape=(8, 2), length_axis=0),
)


def install_averager(root: Path, name: str, data: bytes = b"") -> None:
    """Installs `averager`, or other bytes, as the current engine of a model of lengths 1 to 8."""
    data = data or averager().SerializeToString(deterministic=True)
    manifest = _manifest(
        name, data, input=(AVERAGER_INPUT,), output=AVERAGER_OUTPUTS, latency_ms={"1": 0.1}
    )
    store = EngineStore(root)
    with store.building(name):
        store.install(manifest, {"engine.onnx": data})


def _manifest(name: str, data: bytes, **more: Any) -> Manifest:
    """Of an ONNX engine that passed; a zero for what nobody looks at."""
    digest = hashlib.sha256(data).hexdigest()
    fields: dict[str, Any] = {
        "model": name,
        "key": hashlib.sha256(name.encode()).hexdigest(),
        "created": "2026-01-01T00:00:00+00:00",
        "runner": "onnx",
        "fingerprint": dict(fingerprint("onnx")),
        "file": "engine.onnx",
        "sha256": digest,
        "precision": "fp32",
        "sources": {"model": digest},
        "max_batch": 4,
        "warm_sizes": (1, 4),
        "slo_ms": 60_000.0,
        "latency_ms": {"1": 0.1},
        "quantized": (),
        "verdict": Verdict(passed=True, samples=1, metrics={}, reasons=()),
    }
    return Manifest(**(fields | more))


def install(
    root: Path, name: str, model: bytes, given: InputSpec, answer: OutputSpec, max_batch: int
) -> None:
    """Installs any ONNX model of one input and one output as the current engine of a model."""
    sizes = tuple(2**n for n in range(max_batch.bit_length()) if 2**n <= max_batch)
    manifest = _manifest(
        name, model, input=(given,), output=(answer,), max_batch=max_batch, warm_sizes=sizes
    )
    store = EngineStore(root)
    with store.building(name):
        store.install(manifest, {"engine.onnx": model})


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
    reasons = () if passed else ("it lost 3 of 10",)
    manifest = _manifest(
        name,
        data,
        fingerprint=dict(bound_to or fingerprint("onnx")),
        input=(PICKER_INPUT,),
        output=(PICKER_OUTPUT,),
        max_batch=max_batch,
        warm_sizes=(1, max_batch),
        refuse_nonfinite=refuse_nonfinite,
        verdict=Verdict(passed=passed, samples=1, metrics={}, reasons=reasons),
    )
    store = EngineStore(root)
    with store.building(name):
        store.install(manifest, {"engine.onnx": data})
