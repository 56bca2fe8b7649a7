"""``edged build MODEL --sensitivity``: ranks layers by what they cost in INT8, builds nothing."""

from __future__ import annotations

from pathlib import Path

from edged.build.build_run import Progress, open_build
from edged.build.sensitivity import LayerCost
from edged.engine_store import BUILT, EngineStore
from edged.errors import BuildError


def scan_model(
    name: str,
    *,
    engines: Path,
    calib: Path,
    progress: Progress = lambda _sentence, _share: None,
) -> tuple[LayerCost, ...]:
    """Quantizes one layer of a model at a time and scores it on held back calibration samples.

    Each score is on disk when the next layer begins: a scan that is ended goes on from there.

    Args:
        name: the model's name; its recipe lies in ``engines/<name>``.
        engines: recipes and models.
        calib: calibration sets; ranges.json is written there if it does not hold.
        progress: told after each layer, with the time that is left.

    Returns:
        The layers that a build would quantize, the costliest first.

    Raises:
        ConfigError: the recipe is missing or wrong.
        BuildError: a source is wrong, or nothing can be quantized.
    """
    from edged.build.graphs import ModelGraphs
    from edged.build.stages import STAGES, Stages

    build = open_build(name, engines, calib, progress)
    with EngineStore(engines).building(name):
        stages = Stages(engines / name / BUILT / STAGES)
        try:
            costs = ModelGraphs(build, stages).scan()
        except BuildError as err:
            raise BuildError(f"model {name!r}, {err.message}") from err
    build.tell(f"{len(costs)} layers of {name} are ranked", 1.0)
    return costs
