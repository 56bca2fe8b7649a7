"""The build report in a real browser: it loads, its script runs, nothing is fetched."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from edged.build.pipeline import BuildResult, build_model
from tests.doubles.build_folders import toy

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")

needs_browser = pytest.mark.skipif(
    BROWSER is None and os.environ.get("EDGED_REQUIRE_BROWSER") != "1",
    reason="chromium is not installed; EDGED_REQUIRE_BROWSER=1 makes that a failure",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    """A model that was built with all precisions compared and the device measured."""
    folders = toy(tmp_path_factory.mktemp("report"), more='precision = "auto"')
    return build_model(
        "toy", engines=folders.root / "engines", calib=folders.root / "calib", runner="onnx"
    )


def browse(folder: Path, page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Opens a page without a screen."""
    assert BROWSER is not None, "EDGED_REQUIRE_BROWSER=1, but chromium is not installed"
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--no-first-run", f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr",
        *options, page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=90)


def test_report_is_written_beside_the_engine_in_both_forms(built: BuildResult) -> None:
    """JSON has what the page shows: candidates with times, accuracy, graph, roofline."""
    report = json.loads(built.engine.path.with_name("report.json").read_text())
    assert {row["variant"] for row in report["candidates"]} == {"INT8", "FP32", "FP16"}
    timed = [row for row in report["candidates"] if "latency_ms" in row]
    assert all(sorted(row["latency_ms"]) == ["1", "2", "4"] for row in timed)
    assert [row["installed"] for row in report["candidates"]].count(True) == 1
    assert report["candidates"][0]["variant"].lower() == built.engine.manifest.precision
    assert report["slo_batch"] == built.engine.manifest.slo_batch == 4
    assert report["accuracy"][0]["what"] == "FP32 model in ONNX Runtime"
    assert report["graph"]["model"]["Gemm"] == 2
    assert sum(report["graph"]["fused"].values()) > 0
    assert all(peak > 0 for peak in report["roofline"]["peaks"].values())
    (histogram,) = report["histograms"].values()
    assert sum(histogram["counts"]) + histogram["zeros"] > 0
    assert 0 < histogram["threshold"] <= histogram["upper"]


@needs_browser
def test_report_opens_in_a_browser(built: BuildResult, tmp_path: Path) -> None:
    """Its script has run, one histogram is shown, and the console has no complaint."""
    page = built.engine.path.with_name("report.html")
    seen = browse(tmp_path, page, "--dump-dom")
    assert "<h1>toy" in seen.stdout
    assert re.search(r'<figure class="on"><figcaption>', seen.stdout)
    assert "CONSOLE" not in seen.stderr


@needs_browser
def test_report_is_drawn(built: BuildResult, tmp_path: Path) -> None:
    """The picture is no empty page."""
    page, picture = built.engine.path.with_name("report.html"), tmp_path / "report.png"
    browse(tmp_path, page, "--window-size=1100,3000", f"--screenshot={picture}")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 50_000
