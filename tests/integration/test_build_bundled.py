"""The bundled models: what is committed is what the build makes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edged.build.pipeline import build_model
from edged.build.ranges import parse_ranges

ROOT = Path(__file__).resolve().parents[2]
MODELS = sorted(path.parent.name for path in (ROOT / "engines").glob("*/recipe.toml"))


@pytest.mark.parametrize("name", MODELS)
def test_bundled_model_builds_from_its_samples_to_its_committed_ranges(
    name: str, tmp_path: Path
) -> None:
    """Calibrating anew passes the gates and gives the committed ranges (to 1 %: CPUs differ)."""
    for kind in ("engines", "calib"):
        ignored = shutil.ignore_patterns("built")
        shutil.copytree(ROOT / kind / name, tmp_path / kind / name, ignore=ignored)
    result = build_model(
        name,
        engines=tmp_path / "engines",
        calib=tmp_path / "calib",
        force=True,
        runner="onnx",
        precision="int8",
    )
    metrics = result.engine.manifest.verdict.metrics
    assert metrics["fp32_top1"] - metrics["engine_top1"] <= 0.005
    committed, made = (
        parse_ranges((folder / "calib" / name / "ranges.json").read_text())
        for folder in (ROOT, tmp_path)
    )
    assert made.sources == committed.sources
    expected = {
        tensor: pytest.approx(top, rel=0.01) for tensor, top in committed.thresholds().items()
    }
    assert made.thresholds() == expected
