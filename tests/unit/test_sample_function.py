"""Samples that a Python function makes: run once, kept, checked, refused with a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edged.build.dataset import load_dataset
from edged.errors import BuildError
from edged.recipe import InputSpec

INPUTS = (InputSpec(name="x", datatype="FP32", shape=(3,)),)
SOUND = """
from pathlib import Path
import numpy as np

def made():
    with Path(__file__).with_name("calls").open("a") as file:
        file.write("called\\n")
    n = 0
    while True:
        yield {"x": np.full(3, n, np.float32), "labels": n % 2}
        n += 1

def wrong_shape():
    yield {"x": np.zeros(4, np.float32)}

def other_name():
    yield {"y": np.zeros(3, np.float32)}

def some_labels():
    yield {"x": np.zeros(3, np.float32), "labels": 1}
    while True:
        yield {"x": np.zeros(3, np.float32)}

def ends():
    return iter(())

def fails():
    raise OSError("no camera")
"""


def write(folder: Path, entry: str = "own:made", count: int = 64, source: str = SOUND) -> None:
    """dataset.toml and the module beside it."""
    (folder / "own.py").write_text(source)
    split = f'samples = "{entry}"\ncount = {count}\n'
    text = 'source = "a test"\nlicense = "none"\n'
    (folder / "dataset.toml").write_text(f"{text}[calibration]\n{split}[heldout]\n{split}")


def test_samples_and_labels_are_those_of_the_function(tmp_path: Path) -> None:
    """The first `count` samples, in their order, with their labels; the function runs once."""
    write(tmp_path)
    dataset = load_dataset(tmp_path, INPUTS)
    (batch,) = dataset.calibration.batches(64)
    assert np.array_equal(batch.inputs["x"][:, 0], np.arange(64))
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 1] * 32
    assert load_dataset(tmp_path, INPUTS).digest == dataset.digest
    assert (tmp_path / "calls").read_text() == "called\n"


def test_a_changed_module_is_run_again_and_changes_the_digest(tmp_path: Path) -> None:
    """The digest of the samples is bound to the source that makes them."""
    write(tmp_path)
    before = load_dataset(tmp_path, INPUTS).digest
    write(tmp_path, source=SOUND.replace("n = 0", "n = 5"))
    found = load_dataset(tmp_path, INPUTS)
    assert found.digest != before
    assert next(iter(found.heldout.batches(1))).inputs["x"][0, 0] == 5


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("gone:made", "does not lie beside dataset.toml and no such module is installed"),
        ("own:gone", "has no function 'gone'"),
        ("own:wrong_shape", r"is float32 \[4\], the recipe wants float32 \[3\]"),
        ("own:other_name", "does not give input 'x'"),
        ("own:some_labels", "gives 1 labels for 64 samples"),
        ("own:ends", "ended after 0 samples, dataset.toml asks for 64"),
        ("own:fails", "fails: OSError: no camera"),
        ("own", "should match pattern"),
    ],
)
def test_what_is_wrong_with_a_function_is_said(tmp_path: Path, entry: str, expected: str) -> None:
    """Each fault names the entry point and what to change; nothing half made is kept."""
    write(tmp_path, entry)
    with pytest.raises(BuildError, match=expected):
        load_dataset(tmp_path, INPUTS)
    kept = tmp_path / ".samples"
    assert not kept.exists() or not list(kept.iterdir())


def test_a_module_that_does_not_compile_is_the_datasets_fault(tmp_path: Path) -> None:
    """The error names file and reason."""
    write(tmp_path, source="def made(:\n")
    with pytest.raises(BuildError, match=r"own.py fails: SyntaxError"):
        load_dataset(tmp_path, INPUTS)


def test_held_back_samples_and_the_rest_are_the_whole(tmp_path: Path) -> None:
    """Every fifth sample is held back; no sample is in both parts, and none is in neither."""
    write(tmp_path)
    split = load_dataset(tmp_path, INPUTS).calibration
    parts = [
        [value for batch in split.batches(7, 50, part) for value in batch.inputs["x"][:, 0]]
        for part in ("all", "held back", "rest")
    ]
    assert sorted(parts[1] + parts[2]) == parts[0]
    assert (len(parts[1]), len(parts[2])) == (10, 40)
