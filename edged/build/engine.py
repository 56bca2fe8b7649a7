"""Q/DQ graph -> engine. For ONNX Runtime the graph is the engine; TensorRT builds a plan from it.

One code path over ``tensorrt`` 8.6 to 11.x and ``tensorrt_rtx``: the module is a parameter, and
what it can do is asked of it, never derived from its version.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from edged.errors import BuildError

ONNX_FILE = "engine.onnx"
PLAN_FILE = "engine.plan"

# The last one is what TensorRT-RTX's bindings are called when its meta package is not installed.
_MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class ProfileShape:
    """Shapes of one input in an optimization profile, the batch axis included."""

    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]


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


def import_tensorrt() -> ModuleType | None:
    """The first TensorRT that is installed; None if there is none."""
    for name in _MODULES:
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    return None


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


def tensorrt_plan(
    trt: ModuleType,
    model: bytes,
    profiles: Sequence[Mapping[str, ProfileShape]],
    *,
    workspace_bytes: int | None = None,
) -> Plan:
    """Builds a plan from a Q/DQ graph.

    Args:
        trt: ``tensorrt`` or ``tensorrt_rtx``.
        model: the Q/DQ ONNX file's content.
        profiles: shapes by input name, one mapping a profile.
        workspace_bytes: limit for the layers' scratch memory; None: the builder's own.

    Raises:
        BuildError: the parser or the builder refuses it, with their messages.
    """
    logger = _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(network_flags(trt))
    _parse(trt, network, model, logger)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    for flag in weak_typing_flags(trt):
        config.set_flag(flag)
    if workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    for shapes in profiles:
        config.add_optimization_profile(_profile(builder, network, shapes))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError(f"TensorRT could not build the engine: {_said(logger)}")
    return Plan(bytes(plan), layers_from_log(logger.lines))


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


def _logger(trt: ModuleType) -> Any:
    """A logger that keeps what the builder says; errors apart."""

    class Lines(trt.ILogger):  # type: ignore[misc,name-defined]  # the module is a parameter
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            self.lines.append(message)
            if severity in {trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR}:
                self.errors.append(message)

    return Lines()


def network_flags(trt: Any) -> int:
    """Flags of a new network: strongly typed where that exists, else explicit batches."""
    flags = trt.NetworkDefinitionCreationFlag
    for name in ("STRONGLY_TYPED", "EXPLICIT_BATCH"):
        if hasattr(flags, name):
            return 1 << int(getattr(flags, name))
    return 0


def weak_typing_flags(trt: Any) -> list[Any]:
    """Builder flags for TensorRT 8, which types networks weakly: Q/DQ nodes need INT8 there."""
    if hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        return []
    return [getattr(trt.BuilderFlag, n) for n in ("INT8", "FP16") if hasattr(trt.BuilderFlag, n)]


def _parse(trt: ModuleType, network: Any, model: bytes, logger: Any) -> None:
    parser = trt.OnnxParser(network, logger)
    if parser.parse(model):
        return
    errors = [parser.get_error(number) for number in range(parser.num_errors)]
    lines = [_parser_error(error) for error in errors]
    raise BuildError(f"TensorRT cannot read the model: {'; '.join(lines) or _said(logger)}")


def _parser_error(error: Any) -> str:
    # TensorRT 8 knows the node's number only.
    name = error.node_name() if hasattr(error, "node_name") else ""
    operator = f" ({error.node_operator()})" if hasattr(error, "node_operator") else ""
    return f"node {name or error.node()}{operator}: {error.desc()}"


def _profile(builder: Any, network: Any, shapes: Mapping[str, ProfileShape]) -> Any:
    names = {network.get_input(number).name for number in range(network.num_inputs)}
    if names != set(shapes):
        raise BuildError(
            f"the profile names inputs {sorted(shapes)}, the model has {sorted(names)}"
        )
    profile = builder.create_optimization_profile()
    for name, shape in shapes.items():
        check_profile(name, shape)
        profile.set_shape(name, shape.minimum, shape.optimum, shape.maximum)
    return profile


def _said(logger: Any) -> str:
    return "; ".join(logger.errors) or "it gave no reason"
