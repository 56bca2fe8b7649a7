"""What travels between a build and the child process that runs TensorRT's builder. Pure data."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from edged.build_options import Precision
from edged.errors import BuildError
from edged.recipe import InputSpec
from edged.runners import input_specs


@dataclass(frozen=True)
class ProfileShape:
    """Shapes of one input in an optimization profile, the batch axis included."""

    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]


@dataclass(frozen=True)
class TypedGraphs:
    """One model in two forms, serialized ONNX.

    Attributes:
        strong: every tensor has the type that it is computed in; for strongly typed networks.
        weak: all FP32, Q/DQ pairs included; for TensorRT 8, which takes precisions as flags.
    """

    strong: bytes
    weak: bytes


class ChildFile:
    """Names of the files in the child's folder."""

    JOB, STRONG, WEAK = "job.json", "strong.onnx", "weak.onnx"
    ANSWER, PLAN, TIMING_CACHE = "answer.json", "engine.plan", "timing.cache"
    STDERR = "stderr.txt"


class PlanJob(BaseModel):
    """What the child is to build."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    precision: Precision
    fp16_rest: bool = False
    profiles: tuple[dict[str, ProfileShape], ...]
    """Shapes by input name, one mapping a profile."""
    aux_streams: int = 0
    dla_core: int | None = None
    """Layers that this deep learning accelerator can run go there, the others to the GPU."""
    workspace_bytes: int | None = None
    """Limit for the layers' scratch memory; None: the builder's own."""


@dataclass(frozen=True)
class PlanLayer:
    """One layer of a built plan, as the builder reports it.

    Attributes:
        name: the builder's name.
        kind: its layer type, e.g. ``gemm``, ``correlation``, ``CaskConvolution``, ``kgen``.
        inputs: datatypes of its inputs, e.g. ``Int8``.
        outputs: datatypes of its outputs.
        nodes: ONNX nodes that went into it.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]

    @property
    def linear(self) -> bool:
        """Whether it is a matrix product or a convolution, and not pointwise work around one."""
        return bool(re.search(r"conv|correlation|gemm|matmul|mha", self.kind, re.IGNORECASE))

    @property
    def int8(self) -> bool:
        """Whether it is linear and its first input is INT8; a fused addition may bring others."""
        return self.linear and self.inputs[:1] == ("Int8",)


@dataclass(frozen=True)
class Plan:
    """A serialized TensorRT engine, and its layers where the builder told them."""

    data: bytes
    layers: tuple[PlanLayer, ...]

    def int8_nodes(self) -> frozenset[str]:
        """ONNX nodes whose linear layer runs in INT8."""
        return frozenset(node for layer in self.layers if layer.int8 for node in layer.nodes)


class PlanAnswer(BaseModel):
    """What the child says when it ends by itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    error: str | None = None
    """Why there is no plan."""
    layers: tuple[PlanLayer, ...] = ()


def fallen_back(quantized: Sequence[str], layers: Sequence[PlanLayer]) -> dict[str, str]:
    """Nodes that should be INT8, but that the builder computes in float -> how, by its own account.

    Args:
        quantized: names of the ONNX nodes with Q/DQ pairs on their inputs.
        layers: as the builder or the inspector tells them; empty: nothing is known.
    """
    if not layers:
        return {}
    inside = {node for layer in layers if layer.int8 for node in layer.nodes}
    return {name: _how(name, layers) for name in quantized if name not in inside}


def _how(name: str, layers: Sequence[PlanLayer]) -> str:
    holding = [layer for layer in layers if name in layer.nodes]
    linear = [layer for layer in holding if layer.linear]
    if not holding:
        return "no layer names this node: it was folded into a constant or into another layer"
    layer = (linear or holding)[0]
    reads = "x".join(layer.inputs[:2]) or "unknown types"
    return (
        f"layer {layer.name!r} ({layer.kind}) reads {reads}: the builder has no INT8 kernel that "
        "fits here, or took a float one for being faster"
    )


def profiles_of(
    inputs: Sequence[InputSpec], max_batch: int, opt_batch: int | None = None
) -> tuple[dict[str, ProfileShape], ...]:
    """Optimization profiles: batches from 1 to max_batch, one profile for each padded length.

    Samples only ever run at a padded length, so a profile has that one length; a range of lengths
    would make the builder take kernels that fit all of them.

    Args:
        inputs: the recipe's; of variable length with their masks.
        max_batch: the largest batch.
        opt_batch: what it is tuned for; None: the middle.

    Raises:
        BuildError: not 1 <= opt_batch <= max_batch.
    """
    optimum = opt_batch or (max_batch + 1) // 2
    lengths = next((spec.buckets for spec in inputs if spec.length is not None), (0,))
    profiles = tuple(
        {
            spec.name: ProfileShape(*((size, *spec.shape) for size in (1, optimum, max_batch)))
            for spec in input_specs(inputs, length)
        }
        for length in lengths
    )
    for shapes in profiles:
        for name, shape in shapes.items():
            check_profile(name, shape)
    return profiles


def for_dla(job: PlanJob, core: int) -> PlanJob:
    """The same job for a DLA, which takes one fixed batch size: the largest one."""
    profiles = tuple(
        {
            name: ProfileShape(shape.maximum, shape.maximum, shape.maximum)
            for name, shape in profile.items()
        }
        for profile in job.profiles
    )
    return job.model_copy(update={"dla_core": core, "profiles": profiles})


def check_profile(name: str, shape: ProfileShape) -> None:
    """Refuses what TensorRT refuses late, or with another tensor's name.

    Raises:
        BuildError: ranks differ, an entry is below 1, or not minimum <= optimum <= maximum.
    """
    triple = (shape.minimum, shape.optimum, shape.maximum)
    ordered = len({len(item) for item in triple}) == 1 and all(
        1 <= low <= best <= high for low, best, high in zip(*triple, strict=True)
    )
    if not ordered:
        raise BuildError(
            f"the profile of input {name!r} must have 1 <= minimum <= optimum <= maximum on each "
            f"axis, not {list(shape.minimum)}, {list(shape.optimum)}, {list(shape.maximum)}"
        )


def check_profile_names(found: set[str], shapes: Mapping[str, ProfileShape]) -> None:
    """Refuses a profile for other inputs than the model's, which TensorRT would take.

    Raises:
        BuildError: with both sets of names.
    """
    if found != set(shapes):
        raise BuildError(
            f"the profile names inputs {sorted(shapes)}, the model has {sorted(found)}"
        )


def layers_from_log(lines: Sequence[str]) -> tuple[PlanLayer, ...]:
    """Layers from the block that a builder logs at detailed profiling verbosity.

    This is how the datatypes of layers are known without a GPU: the inspector needs a driver.
    """
    text = next((line for line in lines if line.lstrip().startswith("Layers:")), "")
    block = text.split("I/O Tensors:")[0].split("\nBindings:")[0]
    found = (_LAYER.search(line) for line in block.splitlines())
    return tuple(
        PlanLayer(
            name=match["name"],
            kind=match["kind"],
            inputs=tuple(_DATATYPE.findall(match["inputs"])),
            outputs=tuple(_DATATYPE.findall(match["outputs"])),
            nodes=tuple(_NODE.findall(match["rest"])),
        )
        for match in found
        if match
    )


def layers_from_inspector(text: str) -> tuple[PlanLayer, ...]:
    """Layers from the engine inspector's JSON, at detailed profiling verbosity.

    TensorRT 8 and 10 tell one ``Format/Datatype`` in words, 11 tells both apart; what is missing
    or of another form is left out. Without details a layer is its name only.
    """
    try:
        listed = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError):
        return ()
    layers = listed if isinstance(listed, list) else []
    return tuple(_inspected(item) for item in layers if isinstance(item, dict))


def _inspected(item: Mapping[str, Any]) -> PlanLayer:
    return PlanLayer(
        name=str(item.get("Name", "")),
        kind=str(item.get("LayerType", "")),
        inputs=_inspected_types(item.get("Inputs")),
        outputs=_inspected_types(item.get("Outputs")),
        nodes=tuple(_NODE.findall(str(item.get("Metadata", "")))),
    )


def _inspected_types(tensors: Any) -> tuple[str, ...]:
    listed = tensors if isinstance(tensors, list) else []
    known = [tensor for tensor in listed if isinstance(tensor, dict)]
    words = (str(each.get("Datatype") or each.get("Format/Datatype", "")) for each in known)
    found = (_WORD_TYPE.search(word) for word in words)
    return tuple(_TYPE_NAMES[match[0].upper()] if match else "unknown" for match in found)


_TYPE_NAMES = {
    "INT8": "Int8", "FP16": "Half", "HALF": "Half", "FP32": "Float", "FLOAT": "Float",
    "BF16": "BFloat16", "BFLOAT16": "BFloat16", "FP8": "Fp8", "INT32": "Int32", "INT64": "Int64",
    "BOOL": "Bool",
}  # fmt: skip
_WORD_TYPE = re.compile(r"\b(?:" + "|".join(_TYPE_NAMES) + r")\b", re.IGNORECASE)

_LAYER = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\](?:, Constants: "
    r"\[.*?\])?, Outputs: \[(?P<outputs>.*)\], (?:TacticName|Tactic)(?P<rest>.*)"
)
_DATATYPE = re.compile(r"Datatype: (\w+)")
_NODE = re.compile(r"\[ONNX Layer: ([^\]\x1e]+)\]")
