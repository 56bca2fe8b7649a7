"""``calib/<model>/ranges.json``: the range of every quantized activation, and where it came from.

The file is committed and reviewed like a lock file: same samples and same model give the same
bytes, and a build takes it as it is while its digests are those of the present sources. Pure but
for `read_ranges` and `write_ranges`.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from edged import __version__
from edged.build_options import CalibrateOptions
from edged.errors import BuildError
from edged.recipe import explain

# ONNX Runtime's kernels differ by about 1e-6 between processors; five digits hide that, so the same
# calibration gives the same file on another machine, and cost nothing next to 127 levels.
_DIGITS = 5


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TensorRange(_Strict):
    """One activation tensor over all calibration samples; magnitudes ``|x|``."""

    threshold: Annotated[float, Field(gt=0)]
    """Magnitude that becomes 127; larger ones are clipped to it."""
    amax: Annotated[float, Field(gt=0)]
    """Largest magnitude seen."""
    p50: float
    p99: float
    p99_9: float
    zeros: float
    """Share of values that are exactly zero."""
    clipped: float
    """Share of values above the threshold."""
    lost: float = 0.0
    """Share of the values other than zero that are rounded to zero."""
    sqnr_db: float
    """Signal to quantization noise of this tensor alone at the threshold, from the histogram."""

    @field_validator("*", mode="after")
    @classmethod
    def _short(cls, value: float) -> float:
        return short_float(value)


class Sources(_Strict):
    """sha256 digests of what the ranges depend on."""

    model: str
    """The ONNX file."""
    dataset: str
    """The calibration samples and their order."""
    preprocessing: str
    """The recipe's inputs."""


class Ranges(_Strict):
    """The whole file."""

    version: Literal[1] = 1
    tool: str = f"edged {__version__}"
    """What wrote the file; for the reader, a build does not compare it."""
    sources: Sources
    method: Literal["mse", "percentile", "minmax", "entropy", "auto"]
    percentile: float | None = None
    chosen: str = ""
    """With ``auto``: the candidate that was best."""
    scores: Mapping[str, float] = {}
    """With ``auto``: output SQNR in dB over calibration samples, by candidate."""
    samples: int
    """Samples that were run."""
    tensors: Mapping[str, TensorRange]
    """By tensor name in the ONNX graph, sorted."""

    def thresholds(self) -> dict[str, float]:
        """Threshold by tensor."""
        return {name: found.threshold for name, found in self.tensors.items()}

    def differences(
        self, sources: Sources, options: CalibrateOptions, tensors: frozenset[str]
    ) -> list[str]:
        """What makes these ranges useless for a build, a phrase each; empty: they can be used.

        Args:
            sources: the digests of the present files.
            options: the recipe's calibration options.
            tensors: the activations that need a range.
        """
        found = [
            f"another {name}"
            for name in ("model", "dataset", "preprocessing")
            if getattr(self.sources, name) != getattr(sources, name)
        ]
        wanted = percentile_of(options)
        if (self.method, self.percentile) != (options.method, wanted):
            found.append(f"method {self.method}, not {options.method}")
        if missing := tensors - set(self.tensors):
            found.append(f"no range for {len(missing)} tensors, e.g. {min(missing)!r}")
        return found

    def to_json(self) -> str:
        """The file's text: sorted, one tensor a line, the same for the same ranges."""
        document = self.model_dump(mode="json")
        tensors = document.pop("tensors")
        lines = [f"    {json.dumps(name)}: {json.dumps(tensors[name])}" for name in sorted(tensors)]
        head = json.dumps(document, indent=2)[:-2]
        body = "{\n" + ",\n".join(lines) + "\n  }" if lines else "{}"
        return f'{head},\n  "tensors": {body}\n}}\n'


def percentile_of(options: CalibrateOptions) -> float | None:
    """The percentile if the method uses one."""
    return options.percentile if options.method == "percentile" else None


def short_float(value: float) -> float:
    """Rounds to the digits that are kept in the file."""
    return float(f"{value:.{_DIGITS}g}")


def parse_ranges(text: str) -> Ranges:
    """Reads the text of a ranges file.

    Raises:
        BuildError: it is no ranges file of this version.
    """
    try:
        return Ranges.model_validate(json.loads(text))
    except ValidationError as err:
        raise BuildError(
            f"ranges.json is not valid: {explain(err)}; delete it to calibrate again"
        ) from err
    except (ValueError, RecursionError) as err:
        raise BuildError(f"ranges.json is not JSON: {err}; delete it to calibrate again") from err


def read_ranges(path: Path) -> Ranges | None:
    """Reads a ranges file; None if there is none.

    Raises:
        BuildError: unreadable or damaged. It may have been edited by hand: it is not overwritten.
    """
    try:
        return parse_ranges(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as err:
        raise BuildError(f"ranges.json cannot be read: {err}") from err


def write_ranges(path: Path, ranges: Ranges) -> None:
    """Writes a ranges file whole or not at all.

    Raises:
        BuildError: the folder cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=".ranges.", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(ranges.to_json())
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as err:
        raise BuildError(
            f"cannot write ranges.json of {path.parent.name!r}: {err.strerror or err}; "
            "make the calibration folder writable for the user that builds"
        ) from err
