"""Engines are timed in turn, on real samples, at every size."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

import numpy as np
import pytest

from edged.build.choice import medians
from edged.build.timing import time_in_turn
from edged.errors import EdgedError, EngineError
from edged.runners import Array
from tests.doubles.runner import INPUTS, ScriptedRunner


def samples(count: int) -> dict[str, Array]:
    """Rows that are told apart by their number."""
    return {
        spec.name: np.broadcast_to(
            np.arange(count).reshape(-1, *[1] * len(spec.shape)), (count, *spec.shape)
        ).astype(spec.dtype)
        for spec in INPUTS
    }


def test_each_engine_has_one_time_a_round_at_each_size() -> None:
    """In turn: no engine runs all of its rounds before another one begins."""
    order: list[str] = []

    def noting(name: str) -> ScriptedRunner:
        def note(_number: int, _inputs: Mapping[str, Array]) -> EdgedError | None:
            order.append(name)
            return None

        return ScriptedRunner(fault=note)

    told: list[tuple[int, int]] = []
    runners = {"a": noting("a"), "b": noting("b")}
    try:
        found = time_in_turn(
            runners, samples(2), (1, 4), lambda done, total: told.append((done, total)), rounds=3
        )
    finally:
        for runner in runners.values():
            runner.close()
    assert {name: {n: len(t) for n, t in rounds.items()} for name, rounds in found.items()} == {
        "a": {1: 3, 4: 3}, "b": {1: 3, 4: 3},
    }  # fmt: skip
    assert all(seconds > 0 for rounds in found.values() for seconds in medians(rounds).values())
    assert told == [(1, 3), (2, 3), (3, 3)]
    changes = [name for name, _ in groupby(order)]
    assert len(changes) >= 2 * 3 * 2


def test_batches_are_made_of_the_samples_that_there_are() -> None:
    """A batch that is larger repeats them; none is made of zeros."""
    seen: list[Array] = []

    def note(_number: int, inputs: Mapping[str, Array]) -> EdgedError | None:
        seen.append(next(iter(inputs.values())).copy())
        return None

    runner = ScriptedRunner(fault=note)
    try:
        time_in_turn({"a": runner}, samples(3), (4,), rounds=1)
    finally:
        runner.close()
    first = seen[-1].reshape(4, -1)[:, 0]
    assert first.tolist() == [0, 1, 2, 0]


def test_an_engine_that_fails_ends_it() -> None:
    """It passed its gates a moment ago: that is told, not timed."""
    runner = ScriptedRunner(fault=lambda number, _inputs: EngineError(f"batch {number} failed"))
    try:
        with pytest.raises(EngineError, match="failed"):
            time_in_turn({"a": runner}, samples(1), (1,))
    finally:
        runner.close()
