"""A model, left to right: recipe and samples in, an engine that earned its place out.

    dataset -> onnx_graph -> placement -> calibrate -> ranges -> quantize -> fp16
            -> engine (TensorRT: plan_process -> plan_child) -> verify -> time in turn -> choose
            -> install

`build_model` first compares digests, which takes no more than reading the files; ONNX and its
runtime are imported only if there is something to build. What an earlier build finished is taken
from `stages`. Of the precisions that can be had here and keep their accuracy, the one that is
measured to be the fastest is installed.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edged.build.build_run import BuildRun, Progress, open_build
from edged.build.choice import Rounds, choose
from edged.build.identity import engine_key, engine_options
from edged.build.memory import available_bytes, child_memory_bytes
from edged.build.plan_process import BuildLimits
from edged.build.precision import Found, Ladder, Variant, attempt_all, ladders
from edged.build.stages import STAGES, Stages
from edged.build.target import Target, choose_target
from edged.build_options import WantedPrecision
from edged.device import dla_core
from edged.engine_store import BUILT, Engine, EngineStore
from edged.errors import BuildError, BuildStoppedError, EngineRefusedError
from edged.manifest import Verdict
from edged.runners import Array, Runner, fingerprint, load

if TYPE_CHECKING:
    from edged.build.candidates import Candidate, Workshop


_NO_LENGTHS = "a DLA runs one shape only, and inputs are of variable length ([input.length])"
_SHORTER_ROUNDS = 3  # nothing is decided by these times


@dataclass(frozen=True)
class BuildResult:
    """What `build_model` did.

    Attributes:
        engine: the engine that is current now; its manifest's notes say why it has not the
            precision that was asked for, if so.
        changed: whether it was built just now; False: nothing had changed.
        seconds: what the call took.
    """

    engine: Engine
    changed: bool
    seconds: float


def build_model(
    name: str,
    *,
    engines: Path,
    calib: Path,
    force: bool = False,
    progress: Progress = lambda _sentence, _share: None,
    runner: Literal["auto", "onnx", "tensorrt"] = "auto",
    device: str = "cuda:0",
    precision: WantedPrecision | None = None,
    limits: BuildLimits | None = None,
) -> BuildResult:
    """Builds the engine of one model and installs it, if anything changed since the last time.

    Args:
        name: the model's name; its recipe lies in ``engines/<name>``.
        engines: recipes and models; engines are installed below them.
        calib: calibration sets, ``calib/<name>``; ranges.json is written there.
        force: build and calibrate although nothing changed.
        progress: told what goes on.
        runner: what the engine is for; ``auto``: TensorRT where it can be used, else ONNX Runtime.
        device: ``cuda:N``, for TensorRT.
        precision: instead of the recipe's.
        limits: what TensorRT's builder may use; None: most of the memory that is free now.

    Raises:
        ConfigError: the recipe is missing or wrong.
        BuildError: a source is wrong, the runner cannot have such a model, no engine passed its
            gates, or it cannot be written; the engine that served before stays.
        BuildStoppedError: the builder was killed, ran into a limit or was cancelled; likewise.
        EngineRefusedError: the runtime that the engine is for cannot be used.
    """
    build = open_build(name, engines, calib, progress, precision)
    limits = limits or BuildLimits(memory_bytes=child_memory_bytes(available_bytes()))
    if build.recipe.buckets and runner != "onnx" and dla_core(device) is not None:
        raise BuildError(f"model {name!r}: {_NO_LENGTHS}; build it for cuda:0")
    target = choose_target(runner, device, limits)
    return build_for(target, build, EngineStore(engines), force=force)


def build_for(
    target: Target, build: BuildRun, store: EngineStore, *, force: bool = False
) -> BuildResult:
    """Builds and installs an engine for a target; `build_model` with its parts chosen.

    Args:
        target: what the engine is for.
        build: its sources.
        store: where it is installed.
        force: as in `build_model`.

    Raises:
        BuildError: as in `build_model`.
    """
    begun, name = time.monotonic(), build.recipe.name
    with store.building(name), _naming(name):
        engine = None if force else _unchanged(store, build, target)
        if engine is not None:
            build.tell(f"engine of {name} is up to date, nothing to do", 1.0)
            return BuildResult(engine, changed=False, seconds=time.monotonic() - begun)
        if target.reason:
            build.tell(f"building {target.reason}", 0.01)
        engine = _run(store, build, target, force=force)
    build.tell(f"engine of {name} is installed", 1.0)
    return BuildResult(engine, changed=True, seconds=time.monotonic() - begun)


def verify_model(
    name: str,
    *,
    engines: Path,
    calib: Path,
    progress: Progress = lambda _sentence, _share: None,
    device: str = "cuda:0",
) -> Verdict:
    """Compares the installed engine of a model with its FP32 model on the held-out split.

    Args:
        name: the model's name.
        engines: recipes, models and engines.
        calib: calibration sets.
        progress: told what goes on.
        device: ``cuda:N``, where a TensorRT engine is run.

    Raises:
        ConfigError: the recipe is missing or wrong.
        BuildError: a source is wrong.
        EngineRefusedError: no engine is installed that may run here.
    """
    from edged.build.candidates import verify
    from edged.build.graphs import ModelGraphs

    build = open_build(name, engines, calib, progress)
    store = EngineStore(engines)
    kind = store.current(name).manifest.runner
    runner = load(store.usable(name, fingerprint(kind, device)), device=device)
    with _closing(runner), _naming(name):
        with build.stage("warm up", "warming the engine", 0.1):
            runner.prepare(lambda _done, _total: None)
        return verify(build, ModelGraphs(build, _stages(store, name)).reference, runner)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Puts the model's name before the errors of its stages."""
    try:
        yield
    except BuildStoppedError as err:
        raise BuildStoppedError(f"model {name!r}, {err.message}") from err
    except BuildError as err:
        raise BuildError(f"model {name!r}, {err.message}") from err


@contextmanager
def _closing(runner: Runner) -> Iterator[None]:
    try:
        yield
    finally:
        runner.close()


def _stages(store: EngineStore, name: str, *, fresh: bool = False) -> Stages:
    return Stages(store.root / name / BUILT / STAGES, fresh=fresh)


def _ladders(build: BuildRun, target: Target) -> tuple[Ladder, ...]:
    return ladders(build.recipe.engine, gpu=target.runner == "tensorrt")


def _key(build: BuildRun, target: Target) -> str:
    options = engine_options(build.recipe, _ladders(build, target))
    return engine_key(build.sources(), target.fingerprint, options)


def _unchanged(store: EngineStore, build: BuildRun, target: Target) -> Engine | None:
    """The installed engine if it was built from these very sources and is whole."""
    try:
        engine = store.usable(build.recipe.name, target.fingerprint)
        engine.read()
    except EngineRefusedError:
        return None
    return engine if engine.manifest.key == _key(build, target) else None


# ------------------------------------------------------------------ what is built


def _run(store: EngineStore, build: BuildRun, target: Target, *, force: bool) -> Engine:
    from edged.build.candidates import Workshop
    from edged.build.graphs import ModelGraphs

    stages = _stages(store, build.recipe.name, fresh=force)
    graphs = ModelGraphs(build, stages, force=force)
    wanted = _ladders(build, target)
    # Wrong sources end the build; only what an engine does on this device leads to the next one.
    if wanted[0][0].precision == "int8":
        build.tell(f"{len(graphs.quantized.layers)} layers are quantized", 0.5)
    with _workplace(store, build.recipe.name) as folder, ExitStack() as opened:
        shop = Workshop(build, target, graphs, stages, folder)

        def attempt(variant: Variant) -> Candidate:
            candidate = shop.make(variant)
            opened.callback(candidate.runners.close)
            return candidate

        found = attempt_all(wanted, attempt)
        engine = _install(store, shop, found)
    stages.prune()
    return engine


@contextmanager
def _workplace(store: EngineStore, name: str) -> Iterator[Path]:
    """A folder beside the engines, so that what is large stays on their disk."""
    parent = store.root / name / BUILT
    try:
        for left in parent.glob(".work.*"):  # of a build that was killed: this one holds the lock
            shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=".work.", dir=parent))
    except OSError as err:
        raise BuildError(
            f"no working folder can be made beside the engines: {err.strerror or err}"
        ) from err
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _install(store: EngineStore, shop: Workshop, found: Found[Candidate]) -> Engine:
    from edged.build.installation import files_of, manifest_of
    from edged.build.outcome import Outcome

    build = shop.build
    timings = _time(build, found)
    decision = choose(timings, build.recipe.engine.slo_ms / 1e3)
    shorter = _time_shorter(build, found.passed[decision.variant])
    outcome = Outcome(shop, found, timings, decision, shorter)
    with build.stage("report", "writing the report", 0.95):
        manifest = manifest_of(outcome, _key(build, shop.target))
        files = files_of(outcome, manifest)
    with build.stage("install", "installing the engine", 0.98):
        return store.install(manifest, files)


def _time(build: BuildRun, found: Found[Candidate]) -> dict[Variant, Rounds]:
    from edged.build.timing import time_in_turn

    recipe = build.recipe
    sizes = recipe.engine.warm_sizes
    named = {str(variant): variant for variant in found.passed}
    with build.stage("measure", f"timing {', '.join(named)} at {len(sizes)} batch sizes", 0.8):
        times = time_in_turn(
            {name: found.passed[variant].runner for name, variant in named.items()},
            _timed_inputs(build, max((0, *recipe.buckets))),
            sizes,
            lambda done, total: build.tell(f"round {done} of {total}", 0.8 + 0.15 * done / total),
        )
    return {named[name]: rounds for name, rounds in times.items()}


def _time_shorter(build: BuildRun, taken: Candidate) -> dict[int, Rounds]:
    """Times the engine that was chosen at each padded length below the largest one."""
    from edged.build.timing import time_in_turn

    found = {}
    for length in build.recipe.buckets[:-1]:
        with build.stage("measure", f"timing it at length {length}", 0.95):
            times = time_in_turn(
                {"": taken.runners.at(length)},
                _timed_inputs(build, length),
                build.recipe.engine.warm_sizes,
                rounds=_SHORTER_ROUNDS,
            )
        found[length] = times[""]
    return found


def _timed_inputs(build: BuildRun, length: int) -> dict[str, Array]:
    """Held-out samples, as the model takes them, of a padded length if there are such."""
    from edged.build.dataset import model_inputs

    recipe = build.recipe
    batches = list(build.dataset.heldout.batches(recipe.engine.max_batch))
    batch = next((each for each in batches if each.padded == length), batches[0])
    return model_inputs(batch.up_to(length) if length else batch, recipe.input, length)
