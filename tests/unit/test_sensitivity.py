"""Ranking layers, resuming a scan, and leaving out the costliest until a budget holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.build.holdout import Score
from edged.build.sensitivity import LayerCost, ScanState, fit, scan
from edged.errors import BuildError

COSTS = {"a": 0.01, "b": 0.2, "c": 0.0, "d": 0.05}


def quiet(_sentence: str, _share: float) -> None:
    """Nobody listens."""


def score(node: str) -> Score:
    """What a layer costs by itself."""
    return Score(COSTS[node], -30.0)


def test_layers_are_ranked_costliest_first(tmp_path: Path) -> None:
    """By the loss of the metric, then by noise, then by name."""
    noisy = {"x": Score(0.0, -10.0), "y": Score(0.0, -20.0), "w": Score(0.0, -20.0)}
    state = ScanState(tmp_path / "state", "key")
    assert [cost.node for cost in scan(list(COSTS), score, state, quiet)] == ["b", "d", "a", "c"]
    found = scan(list(noisy), noisy.__getitem__, ScanState(tmp_path / "other", "key"), quiet)
    assert [cost.node for cost in found] == ["x", "w", "y"]


def test_a_scan_that_was_interrupted_goes_on_where_it_stood(tmp_path: Path) -> None:
    """Layers that were scored are not scored again; the ranking is that of a whole scan."""
    asked: list[str] = []

    def interrupted(node: str) -> Score:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(node)
        return score(node)

    path = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        scan(list(COSTS), interrupted, ScanState(path, "key"), quiet)
    rest: list[str] = []

    def remembered(node: str) -> Score:
        rest.append(node)
        return score(node)

    found = scan(list(COSTS), remembered, ScanState(path, "key"), quiet)
    assert asked + rest == list(COSTS)
    assert [cost.node for cost in found] == ["b", "d", "a", "c"]
    assert [item.name for item in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"key": "key", "layers": {"a": 3}}', "[" * 9999])
def test_another_or_a_damaged_state_is_begun_anew(tmp_path: Path, text: str) -> None:
    """Scores of other sources never count, and a damaged file costs a scan, not a build."""
    path = tmp_path / "state"
    path.write_text(text)
    assert ScanState(path, "key").get("a") is None
    ScanState(path, "key").put("a", Score(0.5, -1.0))
    assert ScanState(path, "key").get("a") == Score(0.5, -1.0)
    assert ScanState(path, "another").get("a") is None


def test_the_time_that_is_left_is_told(tmp_path: Path) -> None:
    """After the first layer each line says how long the rest will take."""
    now = iter(range(0, 1000, 10))
    told: list[tuple[str, float]] = []
    state = ScanState(tmp_path / "state", "key")
    scan(
        list(COSTS), score, state, lambda text, share: told.append((text, share)),
        clock=lambda: float(next(now)),
    )  # fmt: skip
    assert told[0] == ("layer 1 of 4, a", 0.0)
    assert told[2] == ("layer 3 of 4, c, 20 s left", 0.5)


@settings(max_examples=100, deadline=None)
@given(costs=st.lists(st.integers(0, 20), min_size=2, max_size=12), budget=st.integers(0, 40))
def test_the_fewest_layers_are_left_that_hold_the_budget(costs: list[int], budget: int) -> None:
    """Where losses add up, bisection finds the smallest number of costliest layers."""
    ranked = [LayerCost(str(n), c, 0.0) for n, c in enumerate(sorted(costs, reverse=True))]
    total = sum(costs)

    def lost(left: Sequence[str]) -> Score:
        return Score(total - sum(ranked[int(n)].loss for n in left), 0.0)

    need = next(
        (k for k in range(len(costs)) if lost([str(n) for n in range(k)]).loss <= budget), None
    )
    if need is None:
        with pytest.raises(BuildError, match="does not hold with"):
            fit(ranked, lost, budget, lost([]))
    else:
        found = fit(ranked, lost, budget, lost([]))
        assert len(found.left) == need
        assert found.score.loss <= budget


def test_a_state_that_cannot_be_written_is_a_build_error(tmp_path: Path) -> None:
    """The folder is gone."""
    with pytest.raises(BuildError, match="cannot write the state"):
        ScanState(tmp_path / "gone" / "state", "key").put("a", Score(0, 0))
