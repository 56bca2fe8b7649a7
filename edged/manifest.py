"""``manifest.json`` beside an engine: all that serving needs to know of it.

Readable without any runtime. `edged.engine_store` installs and finds it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from edged.build_options import Precision
from edged.errors import EngineRefusedError
from edged.latency import LatencyCurve
from edged.postprocess import Options, Postprocessor
from edged.recipe import MODEL_NAME, InputSpec, OutputSpec, explain, postprocessor
from edged.settings_section import Section

MANIFEST_VERSION = 1


class Verdict(Section):
    """What verification found on the held-out split."""

    passed: bool
    samples: int
    metrics: Mapping[str, float]
    """E.g. ``fp32_top1``, ``engine_top1``, ``agreement``, ``sqnr_db``."""
    reasons: tuple[str, ...] = ()
    """Why it did not pass, a sentence each."""


class Manifest(Section):
    """All that serving needs to know of an engine."""

    manifest_version: Literal[1] = 1
    model: Annotated[str, Field(pattern=MODEL_NAME)]
    key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Digest over everything the engine was built from (sources, options, runtime, device)."""
    created: str
    """UTC, ISO 8601."""
    runner: Literal["onnx", "tensorrt"]
    fingerprint: Mapping[str, str]
    """What the engine is bound to; must equal the device's own to be loaded."""
    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    precision: Precision
    notes: tuple[str, ...] = ()
    """What an operator should know, a sentence each: why it is not another precision."""
    asked: str = ""
    """The precision that was asked for, ``auto`` or one of them."""
    slo_batch: int = 0
    """Batch size at which precisions were compared; 0 in a manifest of an earlier version."""
    stages: Mapping[str, str] = {}
    """Keys of the stages that it was made in: ``normalised``, ``quantized``, ``engine-...``."""
    sources: Mapping[str, str]
    """sha256 of the model, the calibration set, ranges.json and the recipe."""
    input: tuple[InputSpec, ...]
    output: tuple[OutputSpec, ...]
    max_batch: Annotated[int, Field(ge=1)]
    warm_sizes: tuple[int, ...]
    slo_ms: float
    refuse_nonfinite: bool = False
    """Whether a sample whose outputs hold NaN or infinity is answered with an error."""
    freshness: Literal["all", "latest"] = "all"
    """Whether every request counts, or of each source the latest one that waits."""
    postprocess: Options | None = None
    """What is made of the outputs before they are answered; None: nothing."""
    latency_ms: Mapping[str, float]
    """Batch size -> milliseconds when it was built; serving measures again at warm-up."""
    shorter_latency_ms: Mapping[str, Mapping[str, float]] = {}
    """Of inputs of variable length: padded length -> the same at that length; `latency_ms` is for
    the largest one."""
    quantized: tuple[str, ...]
    """Names of the layers with Q/DQ on both inputs; the runtime may still compute one in float."""
    verdict: Verdict

    @model_validator(mode="after")
    def _postprocess_fits(self) -> Manifest:
        _ = self.postprocessor
        return self

    @cached_property
    def postprocessor(self) -> Postprocessor | None:
        """What runs `postprocess`; None where there is none."""
        return postprocessor(self.postprocess, self.input, self.output)

    @property
    def curve(self) -> LatencyCurve:
        """The latency curve that was measured at build, for the largest length."""
        return LatencyCurve.measured((int(b), ms / 1e3) for b, ms in self.latency_ms.items())


def parse_manifest(model: str, text: str) -> Manifest:
    """A manifest as it stands in the store.

    Raises:
        EngineRefusedError: it is not valid, or of another model or version.
    """
    try:
        document: Any = json.loads(text)
        version = document.get("manifest_version") if isinstance(document, dict) else None
        if version != MANIFEST_VERSION:
            raise EngineRefusedError(
                f"manifest of {model!r} has version {version!r}, this edged reads "
                f"{MANIFEST_VERSION}; build the engine again"
            )
        manifest = Manifest.model_validate(document)
    except ValidationError as err:
        raise EngineRefusedError(f"manifest of {model!r} is not valid: {explain(err)}") from err
    except ValueError as err:
        raise EngineRefusedError(f"manifest of {model!r} is not JSON: {err}") from err
    if manifest.model != model:
        raise EngineRefusedError(
            f"manifest in the folder of {model!r} is of {manifest.model!r}; build the engine again"
        )
    return manifest
