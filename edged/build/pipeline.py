"""A model, left to right: recipe and samples in, an engine that earned its place out.

    dataset -> onnx_graph -> placement -> calibrate -> ranges -> quantize -> engine -> verify

`build_model` first compares digests, which takes no more than reading the files; ONNX and its
runtime are imported only if there is something to build.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edged.build.build_report import report
from edged.build.dataset import Dataset, load_dataset, model_inputs
from edged.build.identity import (
    RANGES_FILE,
    calibration_sources,
    engine_key,
    sha256,
    source_digests,
)
from edged.build.ranges import Ranges, Sources, read_ranges, write_ranges
from edged.engine_store import Engine, EngineStore, Manifest, Verdict
from edged.errors import BuildError, ConfigError, EngineError, EngineRefusedError
from edged.latency import LatencyCurve
from edged.recipe import MODEL_NAME, Recipe, load_recipe
from edged.runners import (
    Array,
    Runner,
    fingerprint,
    input_specs,
    load,
    output_specs,
    run_batch,
    warm_up,
)

if TYPE_CHECKING:
    import onnx

    from edged.build.placement import Placement
    from edged.runners.onnx import FloatGraph

RUNNER: Literal["onnx"] = "onnx"
REPORT_FILE = "report.json"

_CALIBRATION_BATCH = 16  # bounds what calibration holds of all activations at once

Progress = Callable[[str, float], None]
"""Called with a sentence and the share of the build that is done, 0 to 1."""


@dataclass(frozen=True)
class BuildResult:
    """What `build_model` did.

    Attributes:
        engine: the engine that is current now.
        changed: whether it was built just now; False: nothing had changed.
        seconds: what the call took.
    """

    engine: Engine
    changed: bool
    seconds: float


@dataclass
class _Build:
    """One build: its sources, and what its stages hand on."""

    recipe: Recipe
    model: bytes
    dataset: Dataset
    calib: Path
    runtime: dict[str, str]
    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    def sources(self) -> dict[str, str]:
        """Digests of the files as they are now; ranges.json changes during a build."""
        return source_digests(self.recipe, self.dataset, self.calib)

    @contextmanager
    def stage(self, name: str, sentence: str, share: float) -> Iterator[None]:
        """Tells that a stage begins, times it, and names the model in its errors."""
        self.progress(sentence, share)
        begun = time.monotonic()
        try:
            yield
        except (BuildError, EngineError, EngineRefusedError) as err:
            raise BuildError(f"model {self.recipe.name!r}, {name}: {err.message}") from err
        self.seconds[name] = round(time.monotonic() - begun, 3)


@dataclass(frozen=True)
class _Quantized:
    """The Q/DQ model and how it came about; no placement or ranges if the model brought its own."""

    model: bytes
    reference: bytes
    layers: tuple[str, ...]
    placement: Placement | None = None
    ranges: Ranges | None = None


def build_model(
    name: str,
    *,
    engines: Path,
    calib: Path,
    force: bool = False,
    progress: Progress = lambda _sentence, _share: None,
) -> BuildResult:
    """Builds the engine of one model and installs it, if anything changed since the last time.

    Args:
        name: the model's name; its recipe lies in ``engines/<name>``.
        engines: recipes and models; engines are installed below them.
        calib: calibration sets, ``calib/<name>``; ranges.json is written there.
        force: build and calibrate although nothing changed.
        progress: told what goes on.

    Raises:
        ConfigError: the recipe is missing or wrong.
        BuildError: a source is wrong, the engine did not pass its gates, or it cannot be written;
            the engine that served before stays.
        EngineRefusedError: the runtime that the engine is for is not installed.
    """
    begun = time.monotonic()
    build = _open(name, engines / name, calib / name, progress)
    store = EngineStore(engines)
    with store.building(name):
        engine = None if force else _unchanged(store, build)
        if engine is not None:
            progress(f"engine of {name} is up to date, nothing to do", 1.0)
            return BuildResult(engine, changed=False, seconds=time.monotonic() - begun)
        engine = _run(store, build, force=force)
    progress(f"engine of {name} is installed", 1.0)
    return BuildResult(engine, changed=True, seconds=time.monotonic() - begun)


def verify_model(
    name: str,
    *,
    engines: Path,
    calib: Path,
    progress: Progress = lambda _sentence, _share: None,
) -> Verdict:
    """Compares the installed engine of a model with its FP32 model on the held-out split.

    Args:
        name: the model's name.
        engines: recipes, models and engines.
        calib: calibration sets.
        progress: told what goes on.

    Raises:
        ConfigError: the recipe is missing or wrong.
        BuildError: a source is wrong.
        EngineRefusedError: no engine is installed that may run here.
    """
    build = _open(name, engines / name, calib / name, progress)
    runner = load(EngineStore(engines).usable(name, build.runtime))
    try:
        return _verify(build, _reference(build), runner)
    finally:
        runner.close()


# ------------------------------------------------------------------ sources and identity


def _open(name: str, folder: Path, calib: Path, progress: Progress) -> _Build:
    if not re.match(MODEL_NAME, name):
        raise ConfigError(f"{name[:80]!r} is no model name; allowed: {MODEL_NAME}")
    recipe = load_recipe(folder)
    try:
        model = recipe.model_path.read_bytes()
    except OSError as err:
        raise BuildError(
            f"model {name!r}: {recipe.model.file} cannot be read ({err.strerror}); "
            f"get it from: {recipe.model.source or 'where the recipe was made'}"
        ) from err
    if (digest := sha256(model)) != recipe.model.sha256:
        raise BuildError(
            f"model {name!r}: {recipe.model.file} has sha256 {digest}, the recipe says "
            f"{recipe.model.sha256}; restore the file, or put its digest into the recipe"
        )
    dataset = load_dataset(calib, recipe.input)
    return _Build(recipe, model, dataset, calib, fingerprint(RUNNER), progress)


def _unchanged(store: EngineStore, build: _Build) -> Engine | None:
    """The installed engine if it was built from these very sources and is whole."""
    try:
        engine = store.usable(build.recipe.name, build.runtime)
        engine.read()
    except EngineRefusedError:
        return None
    return engine if engine.manifest.key == engine_key(build.sources(), build.runtime) else None


# ------------------------------------------------------------------ stages


def _run(store: EngineStore, build: _Build, *, force: bool) -> Engine:
    quantized = _quantize(build, force=force)
    runner = _open_runner(build, quantized.model)
    try:
        verdict = _require_pass(_verify(build, quantized.reference, runner))
        curve = _measure(build, runner)
    finally:
        runner.close()
    with build.stage("install", "installing the engine", 0.98):
        return _install(store, build, quantized, verdict, curve)


def _quantize(build: _Build, *, force: bool) -> _Quantized:
    from edged.build import onnx_graph, placement, quantize

    with build.stage("read", "reading the model", 0.02):
        source = onnx_graph.load_model(build.model)
        if onnx_graph.has_quantization(source):
            layers = placement.quantized_nodes(source)
            return _Quantized(build.model, quantize.without_pairs(source), layers)
        shapes = {spec.name: spec.model_shape for spec in build.recipe.input}
        model = onnx_graph.normalise(source, shapes)
        placed = placement.place(model, build.recipe.quantize)
    ranges = _ranges(build, model, placed, force=force)
    with build.stage("quantize", f"quantizing {len(placed.layers)} layers", 0.5):
        data = quantize.quantize(model, placed, ranges.thresholds())
    layers = tuple(layer.node for layer in placed.layers)
    return _Quantized(data, build.model, layers, placed, ranges)


def _reference(build: _Build) -> bytes:
    """The model without quantization: itself, unless it brings its own Q/DQ nodes."""
    from edged.build import onnx_graph, quantize

    with build.stage("read", "reading the model", 0.02):
        source = onnx_graph.load_model(build.model)
        return (
            quantize.without_pairs(source) if onnx_graph.has_quantization(source) else build.model
        )


def _ranges(build: _Build, model: onnx.ModelProto, placed: Placement, *, force: bool) -> Ranges:
    path = build.calib / RANGES_FILE
    sources = calibration_sources(build.recipe, build.dataset)
    with build.stage("ranges", "comparing ranges.json with its sources", 0.05):
        known = None if force else read_ranges(path)
        options = build.recipe.calibrate
        why = ["there are none"] if known is None else []
        if known is not None:
            why = known.differences(sources, options, placed.tensors)
            if not why:
                return known
    with build.stage("calibrate", f"calibrating, known ranges: {', '.join(why)}", 0.06):
        ranges = _calibrate(build, model, sorted(placed.tensors), sources)
        write_ranges(path, ranges)
    return ranges


def _calibrate(
    build: _Build, model: onnx.ModelProto, tensors: list[str], sources: Sources
) -> Ranges:
    from edged.build.calibrate import calibrate
    from edged.build.onnx_graph import with_outputs

    inner = [name for name in tensors if all(name != spec.name for spec in build.recipe.input)]
    graph = _float_graph(with_outputs(model, inner))
    return calibrate(
        lambda inputs: graph.run(inputs, inner),
        _calibration_batches(build),
        tensors,
        build.recipe.calibrate,
        sources,
    )


def _calibration_batches(build: _Build) -> Iterator[dict[str, Array]]:
    limit = build.recipe.calibrate.samples
    total = min(limit, len(build.dataset.calibration))
    done = 0
    for batch in build.dataset.calibration.batches(_CALIBRATION_BATCH, limit):
        yield model_inputs(batch.inputs, build.recipe.input)
        done += len(batch)
        build.progress(f"calibrated on {done} of {total} samples", 0.06 + 0.44 * done / total)


def _float_graph(model: bytes) -> FloatGraph:
    from edged.runners.onnx import FloatGraph

    return FloatGraph(model)


def _open_runner(build: _Build, model: bytes) -> Runner:
    from edged.runners.onnx import OnnxRunner

    recipe = build.recipe
    with build.stage("engine", "loading the engine", 0.55):
        return OnnxRunner(
            model,
            input_specs(recipe.input),
            output_specs(recipe.output),
            recipe.engine.max_batch,
        )


def _verify(build: _Build, reference: bytes, runner: Runner) -> Verdict:
    """Compares on the held-out split."""
    from edged.build.verify import Comparison, judge

    recipe, heldout = build.recipe, build.dataset.heldout
    with build.stage("verify", f"verifying on {len(heldout)} held-out samples", 0.6):
        names = [spec.name for spec in recipe.output]
        graph = _float_graph(reference)
        comparison = Comparison(names[0])
        for batch in heldout.batches(recipe.engine.max_batch):
            inputs = model_inputs(batch.inputs, recipe.input)
            outputs = run_batch(runner, inputs).outputs
            comparison.add(graph.run(inputs, names), outputs, batch.labels)
        return judge(comparison.metrics(), comparison.samples, recipe.verify)


def _require_pass(verdict: Verdict) -> Verdict:
    if verdict.passed:
        return verdict
    raise BuildError(
        f"the engine did not pass and is not installed: {'; '.join(verdict.reasons)} "
        f"(measured: {', '.join(f'{k} {v:g}' for k, v in verdict.metrics.items())}). Exclude "
        "sensitive layers under [quantize], give better samples, or relax [verify]"
    )


def _measure(build: _Build, runner: Runner) -> LatencyCurve:
    sizes = build.recipe.engine.warm_sizes
    with build.stage("measure", f"measuring {len(sizes)} batch sizes", 0.75):
        return warm_up(
            runner,
            sizes,
            lambda done, total: build.progress(
                f"measured {done} of {total} batch sizes", 0.75 + 0.23 * done / total
            ),
        )


# ------------------------------------------------------------------ result


def _install(
    store: EngineStore,
    build: _Build,
    quantized: _Quantized,
    verdict: Verdict,
    curve: LatencyCurve,
) -> Engine:
    from edged.build.engine import ONNX_FILE

    digests = build.sources()
    points = zip(curve.sizes, curve.seconds, strict=True)
    manifest = Manifest(
        model=build.recipe.name,
        key=engine_key(digests, build.runtime),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        runner=RUNNER,
        fingerprint=build.runtime,
        file=ONNX_FILE,
        sha256=sha256(quantized.model),
        precision="int8",
        sources=digests,
        input=build.recipe.input,
        output=build.recipe.output,
        max_batch=build.recipe.engine.max_batch,
        warm_sizes=build.recipe.engine.warm_sizes,
        slo_ms=build.recipe.engine.slo_ms,
        latency_ms={str(size): round(seconds * 1e3, 4) for size, seconds in points},
        quantized=quantized.layers,
        verdict=verdict,
    )
    document = report(manifest, quantized.placement, quantized.ranges)
    document |= {"seconds": build.seconds, "warnings": list(build.dataset.warnings)}
    text = json.dumps(document, indent=2) + "\n"
    return store.install(manifest, {ONNX_FILE: quantized.model, REPORT_FILE: text.encode()})
