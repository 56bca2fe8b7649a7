"""One engine that wants to be installed: made, opened on this device, and compared with FP32."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edged.build.build_run import BuildRun
from edged.build.dataset import model_inputs
from edged.build.identity import PLAN_VERSION, sha256
from edged.build.lengths import ByLength
from edged.build.plan import PlanLayer, fallen_back
from edged.build.precision import Variant
from edged.build.stages import Stages
from edged.build.target import CACHE_FILE, Made, Order, Target, plan_job
from edged.build.verify import check_float
from edged.errors import BuildError
from edged.manifest import Verdict
from edged.runners import Runner, run_batch

if TYPE_CHECKING:
    from edged.build.graphs import ModelGraphs

_GOLDEN_SAMPLES = 8


@dataclass(frozen=True)
class Candidate:
    """An engine that runs here and passed its gates.

    Attributes:
        made: its file.
        runners: it, opened, by length; whoever has the candidate closes them.
        verdict: on the held-out split.
        qdq: TensorRT in INT8: the metrics of the Q/DQ graph in ONNX Runtime, and the engine's
            ``sqnr_db`` against that; what is lost there is quantization's, what is lost between
            the two is the builder's.
        kept: nodes that FP16 leaves in FP32 -> why.
        fallen: quantized nodes that TensorRT computes in float -> how.
        stage: key of the engine's stage.
        folder: where the runtime keeps what it compiled.
    """

    made: Made
    runners: ByLength
    verdict: Verdict
    kept: dict[str, str]
    folder: Path
    qdq: dict[str, float] = field(default_factory=dict)
    fallen: dict[str, str] = field(default_factory=dict)
    stage: str = ""

    @property
    def runner(self) -> Runner:
        """For the largest length, where that is variable."""
        return self.runners.largest

    @property
    def cache(self) -> bytes | None:
        """What the runtime compiled at the first run, if it keeps that."""
        file = self.folder / CACHE_FILE
        return file.read_bytes() if file.is_file() else None


@dataclass(frozen=True)
class Workshop:
    """Where and from what candidates are made.

    Attributes:
        build: its sources.
        target: what the engine is for.
        graphs: the model's graphs.
        stages: what earlier builds finished.
        folder: for temporary files, on the engines' disk.
    """

    build: BuildRun
    target: Target
    graphs: ModelGraphs
    stages: Stages
    folder: Path

    def make(self, variant: Variant) -> Candidate:
        """Makes, opens, runs and judges one engine.

        Raises:
            EdgedError: it cannot be made, does not run here, or does not pass.
        """
        build, target, slug = self.build, self.target, _slug(variant)
        graphs, kept = self.graphs.of(variant)
        folder = self.folder / slug
        folder.mkdir(exist_ok=True)
        order = Order(build.recipe, variant, graphs, folder)
        with build.stage("engine", f"building the engine in {variant}", 0.55):
            made = self._made(order)
            fallen = self._check_precision(variant, made)
        with build.stage("load", f"loading the engine in {variant}", 0.7):
            runner = target.open(order, made)
        runners = ByLength(runner, build.recipe)
        try:
            with build.stage("warm up", f"warming the engine in {variant}", 0.72):
                runner.prepare(lambda _done, _total: None)
            verdict, qdq = self._verify(variant, runners)
            _require_pass(verdict)
            check_float(variant.precision, verdict.metrics)
        except BaseException:
            runners.close()
            raise
        stage = self.stages.used.get(f"engine-{slug}", "")
        return Candidate(made, runners, verdict, kept, folder, qdq, fallen, stage)

    def _made(self, order: Order) -> Made:
        """The engine file and its layers; from the stages if nothing that they need has changed."""
        target, build = self.target, self.build

        def tell(what: str, share: float) -> None:
            build.tell(f"{order.variant}: {what}", 0.55 + 0.15 * share)

        if target.runner == "onnx":
            return target.make(order, tell)
        packed = self.stages.get(
            f"engine-{_slug(order.variant)}",
            self._inputs(order),
            lambda: _pack(target.make(order, tell)),
        )
        return _unpack(packed)

    def _inputs(self, order: Order) -> dict[str, Any]:
        job = plan_job(order.recipe, order.variant).model_dump(mode="json")
        # The limit that was asked for, not the memory that happens to be free.
        job["workspace_bytes"] = order.recipe.engine.workspace_mib
        return {
            "strong": sha256(order.graphs.strong),
            "weak": sha256(order.graphs.weak),
            "job": job,
            "version": PLAN_VERSION,
            "fingerprint": dict(self.target.fingerprint),
        }

    def _check_precision(self, variant: Variant, made: Made) -> dict[str, str]:
        """Nodes that are not INT8 although they should be.

        Raises:
            BuildError: none is: that is no INT8 engine, whatever its name.
        """
        if variant.precision != "int8":
            return {}
        layers = self.graphs.quantized.layers
        fallen = fallen_back(layers, made.layers)
        if layers and len(fallen) == len(layers):
            name, how = next(iter(fallen.items()))
            raise BuildError(
                f"none of the {len(layers)} quantized layers runs in INT8 by TensorRT's own "
                f"account, e.g. {name!r}: {how}; the engine would be {variant} by name only"
            )
        return fallen

    def _verify(self, variant: Variant, runners: ByLength) -> tuple[Verdict, dict[str, float]]:
        """Compares with the FP32 model, and in INT8 on TensorRT with the Q/DQ graph."""
        from edged.build.compare import compare
        from edged.runners.onnx import FloatGraph

        build, recipe = self.build, self.build.recipe
        heldout = build.dataset.heldout
        with build.stage("verify", f"verifying {variant} on {len(heldout)} held-out samples", 0.75):
            reference, qdq = FloatGraph(self.graphs.reference), None
            if self.target.runner == "tensorrt" and variant.precision == "int8":
                qdq = FloatGraph(self.graphs.quantized.model)
            compared = compare(build, reference, runners, qdq)
            verdict = compared.verdict(recipe.verify)
        found = dict(compared.qdq.metrics()) if qdq else {}
        if qdq:
            found["engine_sqnr_db"] = compared.builder.metrics()["sqnr_db"]
        return verdict, found

    def golden(self, runner: Runner) -> bytes:
        """A few samples and what the engine answers, to be compared when it is loaded to serve."""
        heldout = self.build.dataset.heldout
        batch = next(iter(heldout.batches(min(_GOLDEN_SAMPLES, runner.max_batch))))
        recipe = self.build.recipe
        inputs = model_inputs(batch, recipe.input, max((0, *recipe.buckets)))
        outputs = run_batch(runner, inputs).outputs
        arrays = {f"in:{name}": rows for name, rows in inputs.items()}
        arrays |= {f"out:{name}": rows for name, rows in outputs.items()}
        file = io.BytesIO()
        np.savez(file, **arrays)  # type: ignore[arg-type]  # names are no keyword of savez
        return file.getvalue()


def verify(build: BuildRun, reference: bytes, runner: Runner) -> Verdict:
    """Compares an engine with the FP32 model on the held-out split.

    Args:
        build: its sources.
        reference: the FP32 model.
        runner: prepared.

    Raises:
        BuildError: the outputs are not of one form, or not finite.
    """
    from edged.build.compare import compare
    from edged.runners.onnx import FloatGraph

    runners = ByLength(runner, build.recipe)
    try:
        with build.stage("verify", f"verifying on {len(build.dataset.heldout)} samples", 0.9):
            found = compare(build, FloatGraph(reference), runners)
            return found.verdict(build.recipe.verify)
    finally:
        runners.close_others()


def _require_pass(verdict: Verdict) -> None:
    if not verdict.passed:
        raise BuildError(
            f"the engine did not pass and is not installed: {'; '.join(verdict.reasons)} "
            f"(measured: {', '.join(f'{k} {v:g}' for k, v in verdict.metrics.items())}). Exclude "
            "sensitive layers under [quantize], give better samples, or relax [verify]"
        )


def _slug(variant: Variant) -> str:
    rest = "-fp16" if variant.fp16_rest else ""
    return variant.precision + rest + ("-wide" if variant.wide else "")


def _pack(made: Made) -> bytes:
    """One line of JSON with layers and log, then the plan."""
    about = {"layers": [asdict(layer) for layer in made.layers], "log": made.log}
    return json.dumps(about).encode() + b"\n" + made.data


def _unpack(packed: bytes) -> Made:
    line, _, data = packed.partition(b"\n")
    about = json.loads(line)
    return Made(data, tuple(_layer(item) for item in about["layers"]), about["log"])


def _layer(item: Mapping[str, Any]) -> PlanLayer:
    return PlanLayer(
        name=item["name"],
        kind=item["kind"],
        inputs=tuple(item["inputs"]),
        outputs=tuple(item["outputs"]),
        nodes=tuple(item["nodes"]),
    )
