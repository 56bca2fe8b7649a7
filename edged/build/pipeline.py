"""A model, left to right: recipe and samples in, an engine that earned its place out.

    dataset -> onnx_graph -> placement -> calibrate -> ranges -> quantize -> fp16
            -> engine (TensorRT: plan_process -> plan_child) -> measure -> verify -> install

`build_model` first compares digests, which takes no more than reading the files; ONNX and its
runtime are imported only if there is something to build. Precisions are tried in the order of
`precision.ladder` until one can be built, runs here and passes its gates.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from edged.build.build_report import plan_report, report
from edged.build.build_run import BuildRun, Progress, open_build
from edged.build.dataset import model_inputs
from edged.build.identity import engine_key, engine_options, sha256
from edged.build.plan_process import BuildLimits
from edged.build.precision import Choice, Variant, first_usable, ladder
from edged.build.target import (
    CACHE_FILE,
    ENGINE_FILES,
    LOG_FILE,
    Made,
    Order,
    Target,
    choose_target,
)
from edged.engine_store import BUILT, GOLDEN_FILE, Engine, EngineStore, Manifest, Verdict
from edged.errors import BuildError, BuildStoppedError, EngineRefusedError
from edged.latency import LatencyCurve
from edged.recipe import Precision
from edged.runners import Runner, fingerprint, load, run_batch, warm_up

if TYPE_CHECKING:
    from edged.build.graphs import ModelGraphs

REPORT_FILE = "report.json"

_GOLDEN_SAMPLES = 8


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


@dataclass(frozen=True)
class _Passed:
    """An engine that runs here and passed its gates."""

    made: Made
    verdict: Verdict
    curve: LatencyCurve
    kept: dict[str, str]
    cache: bytes | None
    golden: bytes


def build_model(
    name: str,
    *,
    engines: Path,
    calib: Path,
    force: bool = False,
    progress: Progress = lambda _sentence, _share: None,
    runner: Literal["auto", "onnx", "tensorrt"] = "auto",
    device: str = "cuda:0",
    precision: Precision | None = None,
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
        limits: what TensorRT's builder may use; None: no limits.

    Raises:
        ConfigError: the recipe is missing or wrong.
        BuildError: a source is wrong, no engine passed its gates, or it cannot be written; the
            engine that served before stays.
        BuildStoppedError: the builder was killed, ran into a limit or was cancelled; likewise.
        EngineRefusedError: the runtime that the engine is for cannot be used.
    """
    build = open_build(name, engines, calib, progress, precision)
    target = choose_target(runner, device, limits or BuildLimits())
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
    from edged.build.graphs import ModelGraphs

    build = open_build(name, engines, calib, progress)
    store = EngineStore(engines)
    kind = store.current(name).manifest.runner
    runner = load(store.usable(name, fingerprint(kind, device)), device=device)
    with _closing(runner), _naming(name):
        with build.stage("warm up", "warming the engine", 0.1):
            runner.prepare(lambda _done, _total: None)
        return _verify(build, ModelGraphs(build).reference, runner)


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


def _variants(build: BuildRun, target: Target) -> tuple[Variant, ...]:
    return ladder(build.recipe.engine, gpu=target.runner == "tensorrt")


def _key(build: BuildRun, target: Target) -> str:
    options = engine_options(build.recipe, _variants(build, target))
    return engine_key(build.sources(), target.fingerprint, options)


def _unchanged(store: EngineStore, build: BuildRun, target: Target) -> Engine | None:
    """The installed engine if it was built from these very sources and is whole."""
    try:
        engine = store.usable(build.recipe.name, target.fingerprint)
        engine.read()
    except EngineRefusedError:
        return None
    return engine if engine.manifest.key == _key(build, target) else None


# ------------------------------------------------------------------ stages


def _run(store: EngineStore, build: BuildRun, target: Target, *, force: bool) -> Engine:
    from edged.build.graphs import ModelGraphs

    graphs, variants = ModelGraphs(build, force=force), _variants(build, target)
    # Wrong sources end the build; only what an engine does on this device leads to the next one.
    if variants[0].precision == "int8":
        build.tell(f"{len(graphs.quantized.layers)} layers are quantized", 0.5)
    with _workplace(store, build.recipe.name) as workplace:
        choice = first_usable(
            variants, lambda variant: _attempt(build, target, graphs, variant, workplace)
        )
    with build.stage("install", "installing the engine", 0.98):
        return _install(store, build, target, graphs, choice)


@contextmanager
def _workplace(store: EngineStore, name: str) -> Iterator[Path]:
    """A folder beside the engines, so that what is large stays on their disk."""
    folder = Path(tempfile.mkdtemp(prefix=".work.", dir=store.root / name / BUILT))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _attempt(
    build: BuildRun, target: Target, graphs: ModelGraphs, variant: Variant, workplace: Path
) -> _Passed:
    """Makes, runs and judges one engine.

    Raises:
        EdgedError: it cannot be made, does not run here, or does not pass.
    """
    typed, kept = graphs.of(variant)
    order = Order(build.recipe, variant, typed, workplace)
    with build.stage("engine", f"building the engine in {variant}", 0.55):
        made = target.make(order, lambda what, share: build.tell(f"{variant}: {what}",
                                                                 0.55 + 0.15 * share))  # fmt: skip
    with build.stage("load", "loading the engine", 0.7):
        (workplace / CACHE_FILE).unlink(missing_ok=True)
        runner = target.open(order, made)
    with _closing(runner):
        curve = _measure(build, runner)
        verdict = _require_pass(_verify(build, graphs.reference, runner))
        golden = _golden(build, runner)
    cache = workplace / CACHE_FILE
    compiled = cache.read_bytes() if cache.is_file() else None
    return _Passed(made, verdict, curve, kept, compiled, golden)


def _measure(build: BuildRun, runner: Runner) -> LatencyCurve:
    sizes = build.recipe.engine.warm_sizes
    with build.stage("measure", f"measuring {len(sizes)} batch sizes", 0.7):
        return warm_up(
            runner,
            sizes,
            lambda done, total: build.tell(f"measured {done} of {total}", 0.7 + 0.2 * done / total),
        )


def _verify(build: BuildRun, reference: bytes, runner: Runner) -> Verdict:
    """Compares on the held-out split."""
    from edged.build.verify import Comparison, judge
    from edged.runners.onnx import FloatGraph

    recipe, heldout = build.recipe, build.dataset.heldout
    with build.stage("verify", f"verifying on {len(heldout)} held-out samples", 0.9):
        names = [spec.name for spec in recipe.output]
        graph = FloatGraph(reference)
        comparison = Comparison(names[0])
        for batch in heldout.batches(recipe.engine.max_batch):
            inputs = model_inputs(batch.inputs, recipe.input)
            outputs = run_batch(runner, inputs).outputs
            comparison.add(graph.run(inputs, names), outputs, batch.labels)
        return judge(comparison.metrics(), comparison.samples, recipe.verify)


def _golden(build: BuildRun, runner: Runner) -> bytes:
    """A few samples and what the engine answers, to be compared when it is loaded to serve."""
    batch = next(iter(build.dataset.heldout.batches(min(_GOLDEN_SAMPLES, runner.max_batch))))
    inputs = model_inputs(batch.inputs, build.recipe.input)
    outputs = run_batch(runner, inputs).outputs
    arrays = {f"in:{name}": rows for name, rows in inputs.items()}
    arrays |= {f"out:{name}": rows for name, rows in outputs.items()}
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]  # names are no keyword of savez
    return file.getvalue()


def _require_pass(verdict: Verdict) -> Verdict:
    if verdict.passed:
        return verdict
    raise BuildError(
        f"the engine did not pass and is not installed: {'; '.join(verdict.reasons)} "
        f"(measured: {', '.join(f'{k} {v:g}' for k, v in verdict.metrics.items())}). Exclude "
        "sensitive layers under [quantize], give better samples, or relax [verify]"
    )


# ------------------------------------------------------------------ result


def _install(
    store: EngineStore,
    build: BuildRun,
    target: Target,
    graphs: ModelGraphs,
    choice: Choice[_Passed],
) -> Engine:
    passed, engine = choice.result, build.recipe.engine
    quantized = graphs.quantized if choice.variant.precision == "int8" else None
    points = zip(passed.curve.sizes, passed.curve.seconds, strict=True)
    manifest = Manifest(
        model=build.recipe.name,
        key=_key(build, target),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        runner=target.runner,
        fingerprint=target.fingerprint,
        file=ENGINE_FILES[target.runner],
        sha256=sha256(passed.made.data),
        precision=choice.variant.precision,
        notes=(*choice.notes, *_float_layers(quantized.layers if quantized else (), passed.made)),
        sources=build.sources(),
        input=build.recipe.input,
        output=build.recipe.output,
        max_batch=engine.max_batch,
        warm_sizes=engine.warm_sizes,
        slo_ms=engine.slo_ms,
        refuse_nonfinite=engine.refuse_nonfinite,
        freshness=engine.freshness,
        latency_ms={str(size): round(seconds * 1e3, 4) for size, seconds in points},
        quantized=quantized.layers if quantized else (),
        verdict=passed.verdict,
    )
    document = report(
        manifest,
        quantized.placement if quantized else None,
        quantized.ranges if quantized else None,
    )
    document |= {"variant": str(choice.variant), "kept_fp32": passed.kept}
    document |= (
        {"plan": plan_report(passed.made.layers, manifest.quantized)} if passed.made.layers else {}
    )
    document |= {"seconds": build.seconds, "warnings": list(build.dataset.warnings)}
    files = {
        manifest.file: passed.made.data,
        GOLDEN_FILE: passed.golden,
        REPORT_FILE: (json.dumps(document, indent=2) + "\n").encode(),
    }
    if passed.made.log:
        files[LOG_FILE] = passed.made.log.encode()
    if passed.cache is not None:
        files[CACHE_FILE] = passed.cache
    return store.install(manifest, files)


def _float_layers(quantized: tuple[str, ...], made: Made) -> tuple[str, ...]:
    """A note if the builder says that it computes quantized layers in float all the same."""
    inside = {node for layer in made.layers if layer.int8 for node in layer.nodes}
    lost = [name for name in quantized if name not in inside]
    if not made.layers or not lost:
        return ()
    count = f"{len(lost)} of {len(quantized)} quantized layers"
    return (f"{count} run in float by TensorRT's own account, e.g. {lost[0]!r}",)
