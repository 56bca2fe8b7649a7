"""Verdicts of the batching evaluation, and the tables in the documents made from its JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tests.bench.batching_cells import Cell, all_cells, evaluate
from tests.bench.batching_table import BEGIN, DOCUMENT, END, RESULT, markdown, verdicts


def _cell(timer_ms: float, best_ms: float = 10.0, **said: Any) -> dict[str, Any]:
    row = {"mean_ms": best_ms, "p99_ms": best_ms, "device_ms": 1.0, "cost_ms": best_ms}
    own = dict.fromkeys(row, timer_ms)
    cell = {"family": "poisson", "load": 30, "price": 2.0, "cell": "poisson 30 % c=2"}
    rows = {"smdp": row, "greedy": row, "timer": own}
    return {**cell, "rows": rows, "grid": {"1,0": best_ms}, **said}


def test_a_figure_is_met_only_by_all_of_its_cells() -> None:
    """2 % over the optimum is met at 1.9 %, not at 2.1 %; the worst cell is named."""
    near, far = _cell(10.19), _cell(10.21, cell="the far one")

    (met,) = [v for v in verdicts([near]) if v.what == "c = 2 and 10, poisson, J over SMDP"]
    (missed,) = [v for v in verdicts([near, far]) if v.what == "c = 2 and 10, poisson, J over SMDP"]

    assert met.met
    assert met.found == pytest.approx(1.9)
    assert not missed.met
    assert (missed.where, missed.missed, missed.cells) == ("the far one", 1, 2)


def test_a_figure_without_cells_is_not_met() -> None:
    """Nothing measured is not a success."""
    found = verdicts([])

    assert len(found) > 15
    assert not any(verdict.met for verdict in found)
    assert all(math.isnan(verdict.found) for verdict in found)


def test_every_family_is_among_the_cells_of_the_table() -> None:
    """Loads of 5 to 95 %, c of 0, 2 and 10, three curves, and all the other workloads."""
    cells = all_cells(120_000)

    families = {cell.family for cell in cells}
    loads = {cell.load for cell in cells if cell.family == "poisson"}
    assert families == {
        "poisson", "stepped", "measured", "mmpp", "bursts", "pareto", "diurnal",
        "slo", "contention", "cameras", "steady",
    }  # fmt: skip
    assert {5, 10, 30, 50, 70, 90, 95} <= loads
    assert len({cell.name for cell in cells}) == len(cells)
    assert all(cell.count >= 100_000 for cell in cells)


@pytest.mark.parametrize(
    "cell",
    [
        Cell("poisson", 50, 10.0, count=4_000),
        Cell("slo", 50, math.inf, count=4_000),
        Cell("cameras", price=0.0, window_ms=2.0, count=3_000),
    ],
    ids=lambda cell: cell.family,
)
def test_a_cell_compares_the_timer_with_its_oracle_and_others(cell: Cell) -> None:
    """A small run of a cell has all its rows, and the timer does not beat the clairvoyant."""
    result = evaluate(cell)

    rows = result["rows"]
    assert {"timer", "greedy"} <= set(rows)
    assert len(rows) >= 4
    if "clairvoyant" in rows:
        assert rows["timer"]["mean_ms"] > 0.98 * rows["clairvoyant"]["mean_ms"]
    json.dumps(result, allow_nan=False)


def test_the_document_holds_the_tables_of_the_result() -> None:
    """docs/benchmarks.md is what the committed JSON makes: `batching_table --write`."""
    page = DOCUMENT.read_text(encoding="utf-8")
    section = page.split(BEGIN)[1].split(END)[0]

    assert section.strip() == markdown(json.loads(RESULT.read_text(encoding="utf-8"))).strip()
