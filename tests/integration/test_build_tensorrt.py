"""The build line for TensorRT without a GPU.

Plans are built for real, in the child process, by TensorRT-RTX; since no plan can run here, the
target opens the graph that the plan was built from with ONNX Runtime instead. What runs plans is
checked in tests/integration/gpu.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edged.build import target as targets
from edged.build.build_run import open_build
from edged.build.engine import import_tensorrt
from edged.build.pipeline import BuildResult, build_for
from edged.build.plan_process import BuildLimits
from edged.build.precision import Variant
from edged.build.target import Made, Order, Target, Tell, choose_target, plan_maker, why_no_tensorrt
from edged.build_options import Precision
from edged.engine_store import EngineStore
from edged.errors import BuildError, BuildStoppedError, EngineRefusedError
from edged.runners import Runner, input_specs, output_specs
from edged.runners.onnx import OnnxRunner
from tests.doubles import onnx_models
from tests.doubles.build_folders import BuildFolders, toy
from tests.doubles.variable_folders import BUCKETS, MOST, variable

INT8_FORMS = ("INT8 with an FP16 rest", "INT8 with an FP16 rest and FP32 sums", "INT8")
FINGERPRINT = {"runner": "tensorrt", "runtime": "tensorrt_rtx 1.7", "gpu": "none"}
Maker = Callable[[Order, Tell], Made]

pytestmark = pytest.mark.skipif(
    import_tensorrt() is None,
    reason=f"TensorRT is not installed (TensorRT-RTX has no wheel for {platform.machine()})",
)


@dataclass
class PlanTarget:
    """Builds plans, and runs their graphs; remembers which variants were asked for."""

    maker: Maker = field(default=plan_maker("cuda:0", FINGERPRINT, BuildLimits()))
    refused: tuple[str, ...] = ()
    tried: list[str] = field(default_factory=list)

    def target(self) -> Target:
        """As the pipeline takes it."""
        return Target("tensorrt", FINGERPRINT, self.make, self.open)

    def make(self, order: Order, tell: Tell) -> Made:
        """A real plan, unless this variant is one that cannot be built here."""
        self.tried.append(str(order.variant))
        if str(order.variant) in self.refused:
            raise BuildError(f"CHECK(dtype) failed in {order.variant}")
        return self.maker(order, tell)

    @staticmethod
    def open(order: Order, _made: Made) -> Runner:
        """The graph that the plan was built from."""
        recipe = order.recipe
        specs = input_specs(recipe.input), output_specs(recipe.output)
        return OnnxRunner(order.graphs.strong, *specs, recipe.engine.max_batch)


def build(
    folders: BuildFolders,
    target: PlanTarget,
    precision: Precision | None = None,
    told: list[tuple[str, float]] | None = None,
) -> BuildResult:
    """The whole line for a target."""
    engines = folders.root / "engines"
    run = open_build(
        "toy",
        engines,
        folders.root / "calib",
        lambda sentence, share: told.append((sentence, share)) if told is not None else None,
        precision,
    )
    return build_for(target.target(), run, EngineStore(engines))


def no_plan(_order: Order, _tell: Tell) -> Made:
    """For tests that must not get so far."""
    raise BuildError("not to be called")


def test_int8_plan_is_built_and_installed(tmp_path: Path) -> None:
    """Samples in, a plan out, with its kind, precision, log and report beside it."""
    folders, target = toy(tmp_path, onnx_models.residual_net()), PlanTarget()
    told: list[tuple[str, float]] = []
    result = build(folders, target, told=told)
    manifest = result.engine.manifest
    assert target.tried == ["INT8 with an FP16 rest"]
    assert (manifest.runner, manifest.precision, manifest.file) == (
        "tensorrt", "int8", "engine.plan",
    )  # fmt: skip
    assert manifest.fingerprint == FINGERPRINT
    assert manifest.notes == ()
    assert len(manifest.quantized) > 5
    assert len(result.engine.read()) > 10_000
    report = json.loads((result.engine.path.parent / "report.json").read_text())
    assert report["variant"] == "INT8 with an FP16 rest"
    assert report["plan"]["int8"] == list(manifest.quantized)
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert any("INT8 with an FP16 rest: Optimizing" in sentence for sentence, _ in told)


def test_variable_length_is_built_with_a_profile_for_each_length(tmp_path: Path) -> None:
    """One plan for all lengths, verified and timed at each; nothing to do a second time."""
    folders, target = variable(tmp_path), PlanTarget()
    manifest = build(folders, target).engine.manifest

    assert (manifest.runner, manifest.precision) == ("tensorrt", "int8")
    assert "middle" in manifest.quantized
    assert all(manifest.verdict.metrics[f"sqnr_db@{length}"] > 20 for length in (*BUCKETS, MOST))
    assert set(manifest.shorter_latency_ms) == {str(length) for length in BUCKETS}
    assert not build(folders, target).changed


def test_second_build_does_nothing(tmp_path: Path) -> None:
    """Not even after a fallback, which would otherwise be built again and again."""
    folders = toy(tmp_path)
    assert build(folders, PlanTarget(refused=INT8_FORMS)).engine.manifest.precision == "fp16"
    assert not build(folders, PlanTarget(no_plan)).changed


@pytest.mark.parametrize(
    ("precision", "layers"), [("fp16", {"Half"}), ("fp32", {"Float"})]
)  # fmt: skip
def test_float_plan_has_its_layers_in_that_precision(
    tmp_path: Path, precision: Precision, layers: set[str]
) -> None:
    """By the builder's own account, from what comes back from the child."""
    made: list[Made] = []
    real = plan_maker("cuda:0", FINGERPRINT, BuildLimits())

    def maker(order: Order, tell: Tell) -> Made:
        made.append(real(order, tell))
        return made[-1]

    manifest = build(toy(tmp_path), PlanTarget(maker), precision).engine.manifest
    assert (manifest.precision, manifest.quantized) == (precision, ())
    assert {layer.inputs[0] for layer in made[0].layers if layer.linear} == layers


def test_what_cannot_be_built_in_int8_falls_back_in_order(tmp_path: Path) -> None:
    """The three forms of INT8, FP16: the reasons go into the manifest and the report."""
    target = PlanTarget(refused=INT8_FORMS)
    result = build(toy(tmp_path), target)
    manifest = result.engine.manifest
    assert target.tried == [*INT8_FORMS, "FP16"]
    assert manifest.precision == "fp16"
    assert [note.partition(" could not")[0] for note in manifest.notes] == list(INT8_FORMS)
    assert "CHECK(dtype) failed in INT8" in manifest.notes[2]
    report = json.loads((result.engine.path.parent / "report.json").read_text())
    assert report["notes"] == list(manifest.notes)


def test_without_a_fallback_nothing_else_is_tried(tmp_path: Path) -> None:
    """The reason is the error, with model and stage, and nothing is installed."""
    target = PlanTarget(refused=("INT8 with an FP16 rest",))
    folders = toy(tmp_path, more="fallback = false")
    with pytest.raises(BuildError, match=r"^model 'toy', engine: CHECK\(dtype\) failed in INT8"):
        build(folders, target)
    assert target.tried == ["INT8 with an FP16 rest"]
    assert EngineStore(folders.root / "engines").models() == []


def test_stopped_build_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    """A cancelled build is no reason for another precision, and installs nothing."""
    folders = toy(tmp_path)
    target = PlanTarget(plan_maker("cuda:0", FINGERPRINT, BuildLimits(stop=lambda: True)))
    with pytest.raises(BuildStoppedError, match="model 'toy', engine: the build was cancelled"):
        build(folders, target)
    assert target.tried == ["INT8 with an FP16 rest"]
    left = {path.name for path in (folders.engine / "built").iterdir()}
    assert left == {".lock", ".stages"}  # what was finished before is kept for the next build


def test_recipe_reaches_the_builder(tmp_path: Path) -> None:
    """Profile, auxiliary streams and precision are the recipe's."""
    folders = toy(tmp_path, more="aux_streams = 3\nfp16_rest = false")
    recipe = open_build("toy", folders.root / "engines", folders.root / "calib", print).recipe
    job = targets.plan_job(recipe, Variant("int8"))
    assert (job.precision, job.fp16_rest, job.aux_streams) == ("int8", False, 3)
    (profile,) = job.profiles
    assert [shape[0] for shape in (profile["x"].minimum, profile["x"].maximum)] == [1, 4]


@pytest.mark.skipif(not why_no_tensorrt("cuda:0"), reason="this machine has a GPU and TensorRT")
def test_auto_takes_onnx_runtime_where_tensorrt_cannot_be_used() -> None:
    """An importable builder is not enough: there must be a device. The reason is told."""
    chosen = choose_target("auto", "cuda:0", BuildLimits())
    assert chosen.runner == "onnx"
    assert chosen.reason.startswith("for ONNX Runtime, since TensorRT cannot be used here: ")
    with pytest.raises(EngineRefusedError):
        choose_target("tensorrt", "cuda:0", BuildLimits())
