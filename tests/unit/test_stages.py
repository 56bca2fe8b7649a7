"""Finished stages: found again while nothing that they were made from changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edged.build.stages import Stages
from edged.errors import BuildError


def no_make() -> bytes:
    """For a stage that must be there."""
    raise AssertionError("made again")


def test_a_finished_stage_is_not_made_again(tmp_path: Path) -> None:
    """Its inputs are the same: another process finds it, and can read what it was made from."""
    inputs = {"model": "a", "options": {"exclude": ["x"]}}
    assert Stages(tmp_path / "s").get("quantized", inputs, lambda: b"graph") == b"graph"
    again = Stages(tmp_path / "s")
    assert again.get("quantized", dict(reversed(inputs.items())), no_make) == b"graph"
    (about,) = (tmp_path / "s").glob("*.json")
    assert json.loads(about.read_text())["inputs"] == inputs
    assert list(again.used) == ["quantized"]


def test_another_input_makes_it_again_and_keeps_the_first(tmp_path: Path) -> None:
    """Going back is free until the stages are pruned."""
    stages = Stages(tmp_path)
    stages.get("engine", {"gpu": "a"}, lambda: b"1")
    assert stages.get("engine", {"gpu": "b"}, lambda: b"2") == b"2"
    assert stages.get("engine", {"gpu": "a"}, no_make) == b"1"


@pytest.mark.parametrize("damage", ["cut", "no json", "half json"])
def test_a_stage_that_was_not_finished_is_made_again(tmp_path: Path, damage: str) -> None:
    """Killed between the two files, or damaged on the disk."""
    Stages(tmp_path).get("engine", {}, lambda: b"whole")
    (data,) = tmp_path.glob("*.bin")
    if damage == "cut":
        data.write_bytes(b"who")
    elif damage == "no json":
        data.with_suffix(".json").unlink()
    else:
        data.with_suffix(".json").write_text("{")
    assert Stages(tmp_path).get("engine", {}, lambda: b"anew") == b"anew"


def test_fresh_takes_nothing_and_keeps_what_it_makes(tmp_path: Path) -> None:
    """``--force`` makes all anew, for the next build too."""
    Stages(tmp_path).get("engine", {}, lambda: b"old")
    assert Stages(tmp_path, fresh=True).get("engine", {}, lambda: b"new") == b"new"
    assert Stages(tmp_path).get("engine", {}, no_make) == b"new"


def test_prune_leaves_what_this_build_used(tmp_path: Path) -> None:
    """Graphs and plans of old recipes do not fill the disk."""
    Stages(tmp_path).get("engine", {"gpu": "old"}, lambda: b"old")
    (tmp_path / ".new.crashed").write_bytes(b"half")
    stages = Stages(tmp_path)
    stages.get("engine", {"gpu": "here"}, lambda: b"here")
    stages.prune()
    assert len(list(tmp_path.iterdir())) == 2
    assert Stages(tmp_path).get("engine", {"gpu": "here"}, no_make) == b"here"


def test_a_stage_that_cannot_be_written_is_a_build_error(tmp_path: Path) -> None:
    """A file stands where the folder should be."""
    (tmp_path / "s").write_text("")
    with pytest.raises(BuildError, match=r"result of stage 'engine' .* cannot be written"):
        Stages(tmp_path / "s").get("engine", {}, lambda: b"x")
