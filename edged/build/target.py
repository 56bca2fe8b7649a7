"""What an engine is built for, and how one is made and opened there: ONNX Runtime or TensorRT."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edged.build.identity import sha256
from edged.build.memory import available_bytes, workspace_bytes
from edged.build.plan import PlanJob, PlanLayer, TypedGraphs, for_dla, profiles_of
from edged.build.plan_process import BuildLimits, PlanRequest, build_plan
from edged.build.precision import Variant
from edged.device import dla_core, read_device
from edged.errors import EngineRefusedError
from edged.recipe import Recipe
from edged.runners import Runner, fingerprint, input_specs, output_specs

Kind = Literal["onnx", "tensorrt"]

ENGINE_FILES: dict[Kind, str] = {"onnx": "engine.onnx", "tensorrt": "engine.plan"}
CACHE_FILE = "engine.cache"  # what TensorRT-RTX compiled at the first run; the runner reads it
LOG_FILE = "build.log"

Tell = Callable[[str, float], None]
"""Called with a sentence and the share of the work that is done, 0 to 1."""


@dataclass(frozen=True)
class Made:
    """An engine file's content, and what its builder told of it."""

    data: bytes
    layers: tuple[PlanLayer, ...] = ()
    log: str = ""


@dataclass(frozen=True)
class Order:
    """One engine to make.

    Attributes:
        recipe: whose.
        variant: how it computes.
        graphs: the model in that variant.
        workplace: folder for temporary files.
    """

    recipe: Recipe
    variant: Variant
    graphs: TypedGraphs
    workplace: Path


@dataclass(frozen=True)
class Bench:
    """Sizes of the two graphs that `peaks` measures a device with.

    Attributes:
        rows: batch of the product that measures operations.
        columns: its width.
        steps: products in a row, short and long graph.
        wide: width of the matrices that measure bytes; one of them is larger than any cache.
        reads: such matrices, short and long graph.
    """

    rows: int
    columns: int
    steps: tuple[int, int]
    wide: int
    reads: tuple[int, int]


_CPU = Bench(rows=256, columns=512, steps=(1, 5), wide=3072, reads=(1, 4))
_GPU = Bench(rows=1024, columns=4096, steps=(4, 36), wide=4096, reads=(1, 5))


@dataclass(frozen=True)
class Target:
    """Where an engine shall run.

    Attributes:
        runner: its kind of runner.
        fingerprint: what the engine is bound to.
        make: turns an order into an engine; raises `BuildError`.
        open: loads what was made; raises `EngineRefusedError`.
        reason: why it is this one, where nobody chose it.
        bench: how it is measured for the roofline of the report; None: it is not.
    """

    runner: Kind
    fingerprint: Mapping[str, str]
    make: Callable[[Order, Tell], Made]
    open: Callable[[Order, Made], Runner]
    reason: str = field(default="", compare=False)
    bench: Bench | None = None


def choose_target(
    runner: Literal["auto", "onnx", "tensorrt"], device: str, limits: BuildLimits
) -> Target:
    """The target for a kind of runner.

    Args:
        runner: ``auto`` takes TensorRT where it and the device can be used, else ONNX Runtime.
        device: ``cuda:N`` for TensorRT.
        limits: of the child process that runs TensorRT's builder.

    Raises:
        EngineRefusedError: that kind cannot run here.
    """
    if runner == "onnx":
        return onnx_target()
    why = why_no_tensorrt(device)
    if not why:
        return tensorrt_target(device, limits)
    if runner == "auto":
        return onnx_target(f"for ONNX Runtime, since TensorRT cannot be used here: {why}")
    raise EngineRefusedError(why)


def why_no_tensorrt(device: str) -> str:
    """Why TensorRT cannot be used on a device; empty if it can (module, driver and device)."""
    try:
        fingerprint("tensorrt", device)
    except EngineRefusedError as err:
        return err.message
    except ImportError as err:
        # A binding that is installed, but not the library that it binds.
        return f"{err.name or 'a binding'} cannot be imported: {err}"
    return ""


def onnx_target(reason: str = "") -> Target:
    """ONNX Runtime on the CPU: the graph is the engine.

    Raises:
        EngineRefusedError: ONNX Runtime is not installed.
    """

    def open_onnx(order: Order, made: Made) -> Runner:
        from edged.runners.onnx import OnnxRunner

        recipe = order.recipe
        specs = input_specs(recipe.input), output_specs(recipe.output)
        return OnnxRunner(made.data, *specs, recipe.engine.max_batch)

    return Target(
        "onnx",
        fingerprint("onnx"),
        lambda order, _tell: Made(order.graphs.strong),
        open_onnx,
        reason,
        _CPU,
    )


def tensorrt_target(device: str, limits: BuildLimits) -> Target:
    """TensorRT on a GPU: a plan, built in a child process.

    Raises:
        EngineRefusedError: TensorRT or the device cannot be used.
    """
    bound_to = fingerprint("tensorrt", device)

    def open_plan(order: Order, made: Made) -> Runner:
        from edged.runners.tensorrt import TensorRTRunner

        recipe, max_batch = order.recipe, order.recipe.engine.max_batch
        return TensorRTRunner(
            made.data,
            input_specs(recipe.input),
            output_specs(recipe.output),
            max_batch,
            device=device,
            sizes=recipe.engine.warm_sizes if dla_core(device) is None else (max_batch,),
            cache=order.workplace / CACHE_FILE,
        )

    make = plan_maker(device, bound_to, limits)
    return Target("tensorrt", bound_to, make, open_plan, bench=_GPU)


def plan_maker(
    device: str, bound_to: Mapping[str, str], limits: BuildLimits
) -> Callable[[Order, Tell], Made]:
    """How a plan is made for a device; needs no GPU where the builder needs none."""

    def make(order: Order, tell: Tell) -> Made:
        job = plan_job(order.recipe, order.variant)
        core = dla_core(device)
        timing = sha256(repr(sorted(bound_to.items())).encode())[:12]
        request = PlanRequest(
            order.graphs,
            job if core is None else for_dla(job, core),
            device,
            timing_cache=order.workplace.parent / f".timing-{timing}.cache",
        )
        built = build_plan(request, order.workplace, limits, tell)
        return Made(built.plan.data, built.plan.layers, built.log)

    return make


def plan_job(recipe: Recipe, variant: Variant) -> PlanJob:
    """What TensorRT is asked for."""
    available = available_bytes()
    return PlanJob(
        precision=variant.precision,
        fp16_rest=variant.fp16_rest,
        profiles=profiles_of(recipe.input, recipe.engine.max_batch, recipe.engine.opt_batch),
        aux_streams=recipe.engine.aux_streams,
        workspace_bytes=workspace_bytes(recipe.engine.workspace_mib, read_device(), available),
    )
