"""A deserialized TensorRT engine: what differs between TensorRT and TensorRT-RTX is in here."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edged.device import dla_core
from edged.errors import EngineRefusedError
from edged.runners import TensorSpec

log = logging.getLogger(__name__)

MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")


def import_tensorrt() -> ModuleType:
    """The TensorRT module that is installed; the full one is preferred.

    Raises:
        EngineRefusedError: there is none.
    """
    for name in MODULES:
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    raise EngineRefusedError(
        "this engine needs TensorRT, and neither tensorrt nor tensorrt_rtx can be imported; on a "
        "Jetson it comes with JetPack (apt install python3-libnvinfer)"
    )


def check_dla(trt: ModuleType, device: str) -> None:
    """Whether TensorRT finds the DLA of this name.

    Raises:
        EngineRefusedError: it does not, as on every chip but Xavier's and Orin's, and with TensorRT
            10.8 to 11.3, which support none.
    """
    cores = trt.Runtime(_make_logger(trt)).num_DLA_cores
    if (core := dla_core(device)) is not None and core >= cores:
        raise EngineRefusedError(
            f"there is no {device} here: {trt.__name__} {trt.__version__} finds {cores} DLA cores; "
            "use cuda:0"
        )


class TensorRTEngine:
    """A deserialized engine; whatever differs between TensorRT and TensorRT-RTX is in here.

    Args:
        trt: ``tensorrt`` or ``tensorrt_rtx``.
        plan: the serialized engine.
        specs: inputs and outputs that it must have.
        cache: file for what TensorRT-RTX compiles; None: it is not kept.
        dla: the DLA core that runs it; None: the GPU.

    Raises:
        EngineRefusedError: it is not for this TensorRT, this device or these specs.
    """

    def __init__(
        self,
        trt: ModuleType,
        plan: bytes,
        specs: tuple[Sequence[TensorSpec], Sequence[TensorSpec]],
        cache: Path | None,
        dla: int | None = None,
    ) -> None:
        self._trt = trt
        self._logger = _make_logger(trt)
        self._runtime = trt.Runtime(self._logger)
        if dla is not None:
            self._runtime.DLA_core = dla
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineRefusedError(
                f"{trt.__name__} {trt.__version__} refuses the engine file: {self.said()}; "
                "build it again on this device"
            )
        self.check(*specs)
        self._users = 1
        self._cache_file = cache
        self._config, self._cache = self._make_config()

    def said(self) -> str:
        """The last errors that TensorRT logged."""
        return "; ".join(self._logger.errors[-3:]) or "it gave no reason"

    def shared(self) -> TensorRTEngine:
        """The same engine for one runner more; each closes it once."""
        self._users += 1
        return self

    def check(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        """Whether it has these tensors; an axis of variable length fits any length.

        Raises:
            EngineRefusedError: it has others.
        """
        engine, modes = self._engine, self._trt.TensorIOMode
        names = [engine.get_tensor_name(n) for n in range(engine.num_io_tensors)]
        for mode, specs in ((modes.INPUT, inputs), (modes.OUTPUT, outputs)):
            found = {name for name in names if engine.get_tensor_mode(name) == mode}
            wanted = {spec.name for spec in specs}
            if found != wanted:
                raise EngineRefusedError(
                    f"the engine has {mode.name.lower()}s {sorted(found)}, its manifest names "
                    f"{sorted(wanted)}; build it again"
                )
        for spec in (*inputs, *outputs):
            dtype = np.dtype(self._trt.nptype(engine.get_tensor_dtype(spec.name)))
            shape = tuple(engine.get_tensor_shape(spec.name))[1:]
            if dtype != spec.dtype or not _fits(shape, spec.shape):
                raise EngineRefusedError(
                    f"tensor {spec.name!r} of the engine is {dtype} {list(shape)}, its manifest "
                    f"says {spec.dtype} {list(spec.shape)}; build it again"
                )

    def profile_for(self, size: int, inputs: Sequence[TensorSpec]) -> int:
        """The optimization profile that covers a batch, the one tuned nearest to its size.

        Args:
            size: of the batch.
            inputs: with the shape of a sample.

        Raises:
            EngineRefusedError: none covers it.
        """
        fitting = []
        for profile in range(self._engine.num_optimization_profiles):
            tuned = [self._tuned_for(spec, size, profile) for spec in inputs]
            if None not in tuned:
                fitting.append((abs((tuned[0] or size) - size), profile))
        if not fitting:
            shapes = {spec.name: [size, *spec.shape] for spec in inputs}
            raise EngineRefusedError(
                f"no optimization profile of the engine covers {shapes}; build it again"
            )
        return min(fitting)[1]

    def _tuned_for(self, spec: TensorSpec, size: int, profile: int) -> int | None:
        """Batch size that a profile is tuned for; None: it does not cover this one."""
        low, best, high = self._engine.get_tensor_profile_shape(spec.name, profile)
        wanted = (size, *spec.shape)
        covered = all(a <= n <= b for a, n, b in zip(low, wanted, high, strict=True))
        return int(best[0]) if covered else None

    def context(self, profile: int, stream: int) -> Any:
        """A new execution context set to a profile.

        Raises:
            EngineRefusedError: out of memory, most likely.
        """
        engine = self._engine
        context = (
            engine.create_execution_context(self._config)
            if self._config is not None
            else engine.create_execution_context()
        )
        if context is None:
            raise EngineRefusedError(
                f"no execution context could be made ({self.said()}): most likely the device has "
                "too little memory; lower max_batch or serve fewer models"
            )
        if engine.num_optimization_profiles > 1:
            context.set_optimization_profile_async(profile, stream)
        return context

    def _make_config(self) -> tuple[Any, Any]:
        """TensorRT-RTX: what is compiled at the first run is kept, and compiled at once."""
        if not hasattr(self._trt, "IRuntimeCache"):
            return None, None
        config = self._engine.create_runtime_config()
        strategies = getattr(self._trt, "DynamicShapesKernelSpecializationStrategy", None)
        if strategies is not None:
            config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        cache = config.create_runtime_cache()
        with contextlib.suppress(OSError):  # then it is compiled anew
            if self._cache_file is not None and self._cache_file.is_file():
                # A cache of another version is ignored by the runtime, and written anew.
                cache.deserialize(self._cache_file.read_bytes())
        config.set_runtime_cache(cache)
        return config, cache

    def save_cache(self) -> None:
        """Keeps what was compiled for the next start; it is no fault if that cannot be written."""
        if self._cache is None or self._cache_file is None:
            return
        temporary = self._cache_file.with_suffix(".new")
        try:
            temporary.write_bytes(bytes(self._cache.serialize()))
            temporary.rename(self._cache_file)
        except OSError as err:
            log.info("the runtime cache is not kept: %s", err.strerror)

    def close(self) -> None:
        """Gives the engine back once all of its runners are closed."""
        self._users -= 1
        if self._users:
            return
        self._cache = self._config = self._engine = self._runtime = None


def _fits(built: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether an engine's shape, -1 where it is variable, is that of a sample."""
    return len(built) == len(wanted) and all(
        axis in {-1, entry} for axis, entry in zip(built, wanted, strict=True)
    )


def _make_logger(trt: ModuleType) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        """Keeps errors for our messages, passes warnings to the log."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity in {trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR}:
                self.errors.append(text.strip()[:300])
                del self.errors[:-20]
            elif severity == trt.ILogger.WARNING:
                log.debug("%s: %s", trt.__name__, text.strip()[:300])

    return Logger()
