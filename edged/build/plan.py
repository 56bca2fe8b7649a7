"""What travels between a build and the child process that runs TensorRT's builder. Pure data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from edged.errors import BuildError
from edged.recipe import InputSpec, Precision


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


def profile_of(inputs: Sequence[InputSpec], max_batch: int) -> dict[str, ProfileShape]:
    """One optimization profile: batches from 1 to max_batch, tuned for the middle."""
    middle = (max_batch + 1) // 2
    return {
        spec.name: ProfileShape(*((size, *spec.model_shape) for size in (1, middle, max_batch)))
        for spec in inputs
    }


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


_LAYER = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\](?:, Constants: "
    r"\[.*?\])?, Outputs: \[(?P<outputs>.*)\], (?:TacticName|Tactic)(?P<rest>.*)"
)
_DATATYPE = re.compile(r"Datatype: (\w+)")
_NODE = re.compile(r"\[ONNX Layer: ([^\]\x1e]+)\]")
