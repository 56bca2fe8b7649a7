"""Golden samples: an engine answers a few known samples as it did when it was verified."""

from __future__ import annotations

import io
import zipfile
import zlib

import numpy as np

from edged import runners
from edged.engine_store import GOLDEN_FILE, Engine
from edged.errors import EngineRefusedError
from edged.runners import Runner

GOLDEN_TOLERANCE = 0.02
"""Of the largest output. A right engine stays far below on its device, a wrong one far above."""


def check_golden(engine: Engine, runner: Runner) -> None:
    """Runs the engine's golden samples and compares with what it gave when it was verified.

    Engines without golden samples pass.

    Raises:
        EngineRefusedError: it computes something else now, or the samples cannot be read.
    """
    path = engine.path.with_name(GOLDEN_FILE)
    if not path.is_file():
        return
    model = engine.manifest.model
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            inputs = {spec.name: arrays[f"in:{spec.name}"] for spec in runner.inputs}
            wanted = {spec.name: arrays[f"out:{spec.name}"] for spec in runner.outputs}
        found = runners.run_batch(runner, inputs).outputs
        off = {name: _relative_error(found[name], wanted[name]) for name in wanted}
    except _GOLDEN_PROBLEMS as err:
        raise EngineRefusedError(
            f"golden samples of {model!r} cannot be used: {err}; build it again"
        ) from err
    for name, share in off.items():
        if not share <= GOLDEN_TOLERANCE:
            raise EngineRefusedError(
                f"engine of {model!r} computes something else than when it was verified: output "
                f"{name!r} is off by {share:.3g} of its largest value, allowed is "
                f"{GOLDEN_TOLERANCE:g}; build it again"
            )


_GOLDEN_PROBLEMS = (
    OSError, EOFError, KeyError, TypeError, ValueError, AttributeError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip
"""What numpy raises for a damaged file, and for arrays that are not those of this engine."""


def _relative_error(found: runners.Array, wanted: runners.Array) -> float:
    """Largest difference, as a share of the largest value that is wanted."""
    if found.shape != wanted.shape:
        raise ValueError(f"an output has shape {found.shape}, the sample says {wanted.shape}")
    right = wanted.astype(np.float64)
    scale = max(float(np.max(np.abs(right), initial=0.0)), 1e-9)
    return float(np.max(np.abs(found.astype(np.float64) - right), initial=0.0)) / scale
