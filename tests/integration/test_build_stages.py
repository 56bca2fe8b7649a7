"""What a change rebuilds, and what an interrupted build leaves: old or new, never half."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edged.build.pipeline import BuildResult
from edged.engine_store import EngineStore
from edged.errors import BuildError
from edged.runners import fingerprint
from tests.doubles import onnx_models
from tests.doubles.build_folders import BuildFolders, toy

ROOT = Path(__file__).resolve().parents[2]

_BUILD = """
import os, resource, signal, sys
from pathlib import Path
from tests.doubles.build_folders import BuildFolders
limit, stop_at = int(sys.argv[2]), sys.argv[3]
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

def progress(sentence, _share):
    print(sentence, flush=True)
    if stop_at and stop_at in sentence:
        os.kill(os.getpid(), signal.SIGKILL)

BuildFolders(Path(sys.argv[1])).build(progress=progress)
"""


@pytest.fixture
def folders(tmp_path: Path) -> BuildFolders:
    """A model that builds."""
    return toy(tmp_path)


def in_child(
    folders: BuildFolders, *, largest_file: int = 0, die_at: str = ""
) -> subprocess.CompletedProcess[str]:
    """A build in a process of its own that may be killed or run out of space."""
    return subprocess.run(
        [sys.executable, "-c", _BUILD, str(folders.root), str(largest_file), die_at],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=90,
    )  # fmt: skip


def rebuilt(folders: BuildFolders) -> tuple[BuildResult, set[str]]:
    """Builds, and tells which steps were really done."""
    told: list[str] = []
    result = folders.build(progress=lambda sentence, _share: told.append(sentence))
    steps = {
        "normalise": "normalising the model",
        "calibrate": "calibrating, known ranges",
        "quantize": "quantizing 1 layers",
        "half": "turning the graph into FP16",
        "verify": "verifying",
    }
    return result, {step for step, text in steps.items() if any(text in line for line in told)}


def edit(folders: BuildFolders, old: str, new: str) -> None:
    """Changes the recipe."""
    recipe = folders.engine / "recipe.toml"
    text = recipe.read_text()
    assert old in text
    recipe.write_text(text.replace(old, new))


def touch_heldout(folders: BuildFolders) -> None:
    """Other held-out samples, the same calibration samples."""
    with np.load(folders.calib / "calibration.npz") as arrays:
        calibration = arrays["x"]
    with np.load(folders.calib / "heldout.npz") as arrays:
        folders.write_samples(calibration, arrays["x"][:90], arrays["labels"][:90])


def touch_calibration(folders: BuildFolders) -> None:
    """Other calibration samples."""
    with np.load(folders.calib / "calibration.npz") as arrays:
        calibration = arrays["x"] * np.float32(1.25)
    with np.load(folders.calib / "heldout.npz") as arrays:
        folders.write_samples(calibration, arrays["x"], arrays["labels"])


@pytest.mark.parametrize(
    ("change", "steps"),
    [
        (lambda f: edit(f, "max_batch = 4", "max_batch = 4\nslo_ms = 7.0"), {"verify"}),
        (lambda f: edit(f, "max_batch = 4", "max_batch = 2"), {"verify"}),
        (touch_heldout, {"verify"}),
        (touch_calibration, {"calibrate", "quantize", "verify"}),
        (
            lambda f: edit(f, "[engine]", '[calibrate]\nmethod = "minmax"\n[engine]'),
            {"calibrate", "quantize", "verify"},
        ),
        (
            lambda f: edit(f, "[engine]", '[quantize]\nweights = "minmax"\n[engine]'),
            {"quantize", "verify"},
        ),
        (
            lambda f: f.write_model(onnx_models.mlp(), "# the same\n"),
            set(),
        ),
    ],
    ids=["slo", "profile", "heldout", "samples", "method", "weights", "comment"],
)
def test_a_change_rebuilds_what_depends_on_it_and_nothing_else(
    folders: BuildFolders, change: Callable[[BuildFolders], None], steps: set[str]
) -> None:
    """Normalised graph, Q/DQ graph and engine are found again while their inputs hold."""
    first, done = rebuilt(folders)
    assert {"normalise", "calibrate", "quantize", "verify"} <= done
    change(folders)
    second, done = rebuilt(folders)
    assert done == steps
    assert second.changed == bool(steps)
    assert (second.engine.manifest.key != first.engine.manifest.key) == bool(steps)


def test_manifest_names_the_keys_of_its_stages(folders: BuildFolders) -> None:
    """Readable without any runtime; each lies in the stages with what it was made from."""
    manifest = folders.build().engine.manifest
    assert set(manifest.stages) == {"normalised", "quantized"}
    about = folders.engine / "built" / ".stages"
    document = json.loads(
        (about / f"quantized-{manifest.stages['quantized'][:16]}.json").read_text()
    )
    assert {"calibration", "method", "options", "quantizer", "normalised"} <= set(
        document["inputs"]
    )


def test_killed_build_leaves_no_engine_and_the_next_one_goes_on(folders: BuildFolders) -> None:
    """Killed while the engine is verified: what was finished is not done again."""
    ended = in_child(folders, die_at="verifying")
    assert ended.returncode == -signal.SIGKILL
    assert "quantizing" in ended.stdout
    assert EngineStore(folders.root / "engines").models() == []
    result, done = rebuilt(folders)
    assert result.changed
    assert done == {"verify"}
    assert not list((folders.engine / "built").glob(".work.*"))


def test_killed_build_leaves_the_engine_that_served(folders: BuildFolders) -> None:
    """Old or new: here the old one, whole."""
    first = folders.build()
    edit(folders, "max_batch = 4", "max_batch = 2")
    assert in_child(folders, die_at="installing").returncode == -signal.SIGKILL
    engine = EngineStore(folders.root / "engines").usable("toy", fingerprint("onnx"))
    assert engine == first.engine
    engine.read()


@pytest.mark.parametrize("bytes_left", [10, 600, 3000])
def test_no_space_left_is_told_and_the_engine_that_served_stays(
    folders: BuildFolders, bytes_left: int
) -> None:
    """A file that cannot grow stops the build with a reason; with room it succeeds."""
    first = folders.build()
    edit(folders, "max_batch = 4", "max_batch = 2")
    edit(folders, "[engine]", '[quantize]\nweights = "minmax"\n[engine]')
    ended = in_child(folders, largest_file=bytes_left)
    assert ended.returncode == 1
    said = ended.stderr.strip().splitlines()[-1]
    assert "BuildError" in said
    assert "File too large" in said
    assert EngineStore(folders.root / "engines").current("toy") == first.engine
    assert folders.build().changed


def test_second_build_of_a_model_is_refused_with_the_process_of_the_first(
    folders: BuildFolders,
) -> None:
    """So that one knows whom to wait for."""
    command = [sys.executable, "-c", _BUILD, str(folders.root), "0", ""]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        first.stdout.readline()  # it holds the lock
        os.kill(first.pid, signal.SIGSTOP)
        try:
            with pytest.raises(BuildError, match=rf"is running \(process {first.pid}\); wait"):
                folders.build()
        finally:
            os.kill(first.pid, signal.SIGCONT)
        first.communicate(timeout=60)
    assert first.returncode == 0
    assert not folders.build().changed


def test_second_run_does_nothing_in_under_a_second(folders: BuildFolders) -> None:
    """Of processor time, whatever else the machine does; it only compares digests."""
    folders.build()
    begun = time.process_time()
    assert not folders.build().changed
    assert time.process_time() - begun < 1.0
