"""The build line on a GPU: plans that are built here run here, and pass their gates."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edged.build.pipeline import build_model, verify_model
from edged.build_options import Precision
from edged.engine_store import EngineStore
from edged.runners import fingerprint, load, warm_up

ROOT = Path(__file__).resolve().parents[3]

# Kernels are compiled at the first run, four variants may be built.
pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Copies of the bundled models and their samples."""
    for kind in ("engines", "calib"):
        shutil.copytree(ROOT / kind, tmp_path / kind, ignore=shutil.ignore_patterns("built"))
    return tmp_path


@pytest.mark.parametrize(
    ("precision", "least_db"), [("int8", 20.0), ("fp16", 45.0), ("fp32", 50.0)]
)  # fmt: skip
def test_watch_is_built_in_each_precision(
    folders: Path,
    precision: Precision,
    least_db: float,
    record_property: Callable[[str, object], None],
) -> None:
    """A transformer: INT8 as asked, FP16 and FP32 near the reference (FP32 may use TF32)."""
    engines, calib = folders / "engines", folders / "calib"
    told: list[str] = []
    result = build_model(
        "watch", engines=engines, calib=calib, runner="tensorrt", precision=precision,
        progress=lambda sentence, share: told.append(f"{share:4.0%} {sentence}"),
    )  # fmt: skip
    manifest = result.engine.manifest
    record_property("watch", [precision, manifest.verdict.metrics, manifest.latency_ms])
    assert (manifest.runner, manifest.precision) == ("tensorrt", precision)
    assert bool(manifest.quantized) == (precision == "int8")
    assert manifest.verdict.metrics["sqnr_db"] > least_db
    assert any("Building engine" in sentence for sentence in told)
    verdict = verify_model("watch", engines=engines, calib=calib)
    assert verdict.passed
    assert not build_model(
        "watch", engines=engines, calib=calib, runner="tensorrt", precision=precision
    ).changed


def test_digits_is_built_in_int8_or_falls_back_with_the_reason(
    folders: Path, record_property: Callable[[str, object], None]
) -> None:
    """Where INT8 convolutions cannot be built, the manifest says so and the engine serves."""
    engines, calib = folders / "engines", folders / "calib"
    result = build_model(
        "digits", engines=engines, calib=calib, runner="tensorrt", precision="int8"
    )
    manifest = result.engine.manifest
    record_property("digits", [manifest.precision, manifest.latency_ms, *manifest.notes])
    assert manifest.verdict.passed
    assert manifest.precision == "int8" or (
        manifest.notes[0].startswith("INT8 with an FP16 rest could not be had: ")
    )
    engine = EngineStore(engines).usable("digits", fingerprint("tensorrt", "cuda:0"))
    runner = load(engine, device="cuda:0")
    try:
        assert warm_up(runner, manifest.warm_sizes)(1) > 0
    finally:
        runner.close()


def test_the_fastest_precision_is_installed_and_the_others_have_a_reason(
    folders: Path, record_property: Callable[[str, object], None]
) -> None:
    """All that can be had are timed in turn; the report places them under measured peaks."""
    result = build_model(
        "watch", engines=folders / "engines", calib=folders / "calib", runner="tensorrt"
    )
    report = json.loads(result.engine.path.with_name("report.json").read_text())
    record_property("choice", report["candidates"])
    record_property("peaks", report["roofline"] and report["roofline"]["peaks"])
    timed = {row["variant"]: row for row in report["candidates"] if "latency_ms" in row}
    assert {"FP16", "FP32"} <= set(timed)
    size = str(report["slo_batch"])
    taken = report["candidates"][0]
    assert taken["installed"]
    fastest = min(row["latency_ms"][size] for row in timed.values())
    assert taken["latency_ms"][size] <= fastest * 1.2
    assert all(row["reason"] for row in report["candidates"])


def test_auto_takes_the_gpu(folders: Path) -> None:
    """Where TensorRT and a device can be used, nobody has to say so."""
    result = build_model(
        "watch", engines=folders / "engines", calib=folders / "calib", precision="fp16"
    )
    assert result.engine.manifest.runner == "tensorrt"
    assert result.engine.manifest.fingerprint == fingerprint("tensorrt", "cuda:0")
