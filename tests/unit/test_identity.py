"""The key of an engine: changed by whatever changes the engine, and by nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edged.build.identity import engine_key, engine_options
from edged.build.precision import ladders
from edged.build_options import EngineOptions
from edged.recipe import InputSpec, ModelInfo, OutputSpec, Recipe

SOURCES = {"model": "a", "recipe": "b", "dataset": "c", "ranges": "d"}
RUNTIME = {"runner": "tensorrt", "runtime": "tensorrt 10.3.0", "gpu": "Orin", "arch": "aarch64"}


def options(*, gpu: bool = True, sample: tuple[int, ...] = (4,), **engine: Any) -> dict[str, Any]:
    """What `engine_options` says of a recipe with this ``[engine]`` section."""
    recipe = Recipe(
        name="m",
        folder=Path(),
        model=ModelInfo(sha256="0" * 64),
        input=(InputSpec(name="x", datatype="FP32", shape=sample),),
        output=(OutputSpec(name="y", shape=(2,)),),
        engine=EngineOptions(**engine),
    )
    return engine_options(recipe, ladders(recipe.engine, gpu=gpu))


def key(
    sources: dict[str, str] = SOURCES,
    runtime: dict[str, str] = RUNTIME,
    wanted: dict[str, Any] | None = None,
) -> str:
    """The key with one part replaced."""
    return engine_key(sources, runtime, wanted or options())


def test_same_inputs_have_the_same_key() -> None:
    """In whatever order they are given."""
    assert key() == key(dict(reversed(SOURCES.items())), dict(reversed(RUNTIME.items())))
    assert key() == key(wanted=dict(reversed(options().items())))


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_counts(name: str) -> None:
    """Model, recipe, samples, ranges."""
    assert key({**SOURCES, name: "other"}) != key()


@pytest.mark.parametrize("name", RUNTIME)
def test_every_part_of_the_fingerprint_counts(name: str) -> None:
    """Kind of runner, its version, the GPU, the architecture."""
    assert key(runtime={**RUNTIME, name: "other"}) != key()


@pytest.mark.parametrize(
    "changed",
    [
        lambda: options(precision="fp16"),
        lambda: options(precision="fp32"),
        lambda: options(fp16_rest=False),
        lambda: options(precision="int8", fallback=False),
        lambda: options(precision="int8"),
        lambda: options(opt_batch=3),
        lambda: options(aux_streams=2),
        lambda: options(max_batch=8),
        lambda: options(sample=(5,)),
        lambda: options(gpu=False),
    ],
)
def test_every_option_counts(changed: Callable[[], dict[str, Any]]) -> None:
    """Precision, the FP16 rest, the fallback, streams, the profile."""
    assert key(wanted=changed()) != key()


def test_what_does_not_reach_the_engine_does_not_count_here() -> None:
    """A deadline is in the recipe's digest only."""
    assert options(slo_ms=5.0) == options()
