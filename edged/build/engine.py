"""An ONNX graph -> a TensorRT plan, in this process. Builds run it in a child: `plan_child`.

One code path over ``tensorrt`` 8.6 to 11.x and ``tensorrt_rtx``: the module is a parameter, and
what it can do is asked of it, never derived from its version.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from edged.build.plan import (
    Plan,
    PlanJob,
    PlanLayer,
    ProfileShape,
    TypedGraphs,
    check_profile,
    check_profile_names,
    layers_from_inspector,
    layers_from_log,
)
from edged.build.plan_progress import PhaseTree
from edged.errors import BuildError

# The last one is what TensorRT-RTX's bindings are called when its meta package is not installed.
_MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")

Progress = Callable[[str, float], None]
"""Called with what the builder does and the share of its work that is done, 0 to 1."""


def import_tensorrt() -> ModuleType | None:
    """The first TensorRT that is installed; None if there is none."""
    for name in _MODULES:
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    return None


def tensorrt_plan(
    trt: ModuleType,
    graphs: TypedGraphs,
    job: PlanJob,
    *,
    timing_cache: Path | None = None,
    progress: Progress = lambda _what, _share: None,
) -> Plan:
    """Builds a plan.

    Args:
        trt: ``tensorrt`` or ``tensorrt_rtx``.
        graphs: the form for strongly typed networks is taken where those exist.
        job: precision and limits.
        timing_cache: measured kernel times, read if it exists and fits, then written; where the
            module has such a thing.
        progress: told what goes on; where the module can tell.

    Raises:
        BuildError: the parser or the builder refuses it, with their messages.
    """
    logger = _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(network_flags(trt))
    _parse(trt, network, graphs.strong if strongly_typed(trt) else graphs.weak, logger)
    config = builder.create_builder_config()
    _configure(trt, config, job)
    monitor = _monitor(trt, progress)
    if monitor is not None:
        config.progress_monitor = monitor
    for shapes in job.profiles:
        config.add_optimization_profile(_profile(builder, network, shapes))
    with _timing_cache(config, timing_cache):
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError(f"TensorRT could not build the engine: {_said(logger)}")
    data = bytes(plan)
    return Plan(data, layers_from_log(logger.lines) or _inspected_layers(trt, data, logger))


def _inspected_layers(trt: ModuleType, plan: bytes, logger: Any) -> tuple[PlanLayer, ...]:
    """Layers from the engine inspector, for builders that do not log them; needs a device."""
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        return ()
    inspector = engine.create_engine_inspector()
    return layers_from_inspector(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def strongly_typed(trt: Any) -> bool:
    """Whether networks take their types from the graph (TensorRT 10 and later)."""
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def network_flags(trt: Any) -> int:
    """Flags of a new network: strongly typed where that exists, else explicit batches."""
    flags = trt.NetworkDefinitionCreationFlag
    for name in ("STRONGLY_TYPED", "EXPLICIT_BATCH"):
        if hasattr(flags, name):
            return 1 << int(getattr(flags, name))
    return 0


def weak_typing_flags(trt: Any, job: PlanJob) -> list[Any]:
    """Builder flags for TensorRT 8, which takes precisions from them: Q/DQ nodes need INT8."""
    if strongly_typed(trt):
        return []
    wanted = {
        "INT8": job.precision == "int8",
        "FP16": job.precision == "fp16" or job.fp16_rest,
    }
    return [getattr(trt.BuilderFlag, name) for name, on in wanted.items() if on]


def _configure(trt: Any, config: Any, job: PlanJob) -> None:
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    for flag in weak_typing_flags(trt, job):
        config.set_flag(flag)
    if job.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.workspace_bytes)
    if job.dla_core is not None:
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = job.dla_core
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    if hasattr(config, "max_aux_streams"):
        config.max_aux_streams = job.aux_streams


@contextlib.contextmanager
def _timing_cache(config: Any, file: Path | None) -> Iterator[None]:
    """Lends the builder a timing cache, and keeps what it measured if the build succeeded."""
    if file is None or not hasattr(config, "create_timing_cache"):
        yield
        return
    with warnings.catch_warnings():
        # TensorRT-RTX still has the calls, deprecated and without effect.
        warnings.simplefilter("ignore", DeprecationWarning)
        cache = config.create_timing_cache(file.read_bytes() if file.is_file() else b"")
        # A cache of another version or device is refused; the build then measures anew.
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, ignore_mismatch=False)
        yield
        measured = config.get_timing_cache()
        if measured is not None and (data := bytes(measured.serialize())):
            temporary = file.with_suffix(".new")
            temporary.write_bytes(data)
            temporary.rename(file)


def _logger(trt: ModuleType) -> Any:
    """A logger that keeps what the builder says, and repeats warnings and errors on stderr."""
    severities = trt.ILogger.Severity

    class Lines(trt.ILogger):  # type: ignore[misc,name-defined]  # the module is a parameter
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            self.lines.append(message)
            if severity in {severities.ERROR, severities.INTERNAL_ERROR}:
                self.errors.append(message)
            if severity not in {severities.INFO, severities.VERBOSE}:
                sys.stderr.write(f"{severity.name}: {message}\n")

    return Lines()


def _monitor(trt: ModuleType, progress: Progress) -> Any:
    """TensorRT's progress monitor (10 and later); None where there is none."""
    if not hasattr(trt, "IProgressMonitor"):
        return None
    tree = PhaseTree()

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc,name-defined]  # likewise
        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            progress(name, tree.start(name, parent, steps))

        def step_complete(self, name: str, step: int) -> bool:
            progress(name, tree.step(name, step))
            return True

        def phase_finish(self, name: str) -> None:
            progress(name, tree.finish(name))

    return Monitor()


def _parse(trt: ModuleType, network: Any, model: bytes, logger: Any) -> None:
    parser = trt.OnnxParser(network, logger)
    if parser.parse(model):
        return
    errors = [parser.get_error(number) for number in range(parser.num_errors)]
    lines = [_parser_error(error) for error in errors]
    raise BuildError(f"TensorRT cannot read the model: {'; '.join(lines) or _said(logger)}")


def _parser_error(error: Any) -> str:
    if error.node() < 0:  # the file as a whole
        return str(error.desc())
    # TensorRT 8 knows the node's number only.
    name = error.node_name() if hasattr(error, "node_name") else ""
    operator = f" ({error.node_operator()})" if hasattr(error, "node_operator") else ""
    return f"node {name or error.node()}{operator}: {error.desc()}"


def _profile(builder: Any, network: Any, shapes: Mapping[str, ProfileShape]) -> Any:
    check_profile_names(
        {network.get_input(number).name for number in range(network.num_inputs)}, shapes
    )
    profile = builder.create_optimization_profile()
    for name, shape in shapes.items():
        check_profile(name, shape)
        profile.set_shape(name, shape.minimum, shape.optimum, shape.maximum)
    return profile


def _said(logger: Any) -> str:
    return "; ".join(logger.errors) or "it gave no reason"
