"""The batching evaluation: the timer against optima and against other servers' rules, simulated.

    python -m tests.bench.batching [RESULT.json] [--cell TEXT] [--quick]

A cell is a workload on a device. ``--cell`` picks those whose name holds the text, and may be given
several times: ``--cell "poisson 30"``, ``--cell cameras``. ``--quick`` takes a tenth of the
requests, for work on the timer; its tails are noise. ``--merge`` keeps what the result has of the
other cells.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

from tests.bench.batching_cells import PRICES, all_cells, evaluate
from tests.bench.batching_table import verdicts

COUNT = 120_000
"""Requests a cell, of which the first tenth warms up."""


_EXTRA = ("reasons", "attainment", "contended", "settled", "setting")


def cell_text(result: dict[str, Any]) -> str:
    """A cell's rows, and by how much the timer costs more than each."""
    own = result["rows"]["timer"]["cost_ms"]
    lines = ["", result["cell"]]
    for name, row in result["rows"].items():
        ahead = 100 * (own / row["cost_ms"] - 1)
        lines.append(
            f"  {name:<22} mean {row['mean_ms']:8.3f}  p99 {row.get('p99_ms', 0):8.2f}  "
            f"device {row['device_ms']:7.4f}  J {row['cost_ms']:9.3f}  timer {ahead:+7.2f} %"
            + "".join(f"  {key} {row[key]}" for key in _EXTRA if key in row)
        )
    if grid := result.get("grid"):
        setting, best = min(grid.items(), key=lambda item: float(item[1]))
        ahead = 100 * (own / best - 1)
        lines.append(f"  fixed delay, best {setting:>7}  J {best:.3f}  timer {ahead:+.2f} %")
    if "variation" in result:
        lines.append(
            f"  set-point {result['mean']:.3f}, CV {result['variation']:.3f}, "
            f"lag-1 {result['lag1']:+.3f}"
        )
    return "\n".join(lines)


def _rounded(value: Any) -> Any:
    """Six digits are more than a simulation means."""
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _write(path: Path, results: dict[str, Any]) -> None:
    """A cell a line, in the order of the table."""
    ordered = [results[cell.name] for cell in all_cells(COUNT) if cell.name in results]
    lines = ",\n".join(json.dumps(result) for result in ordered)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def main() -> int:
    """Runs the cells on all cores and writes what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", nargs="?", type=Path)
    parser.add_argument("--cell", action="append", default=[], help="only names that hold this")
    parser.add_argument("--quick", action="store_true", help="a tenth of the requests")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes; all cores")
    parser.add_argument("--merge", action="store_true", help="keep the result's other cells")
    options = parser.parse_args()
    cells = all_cells(COUNT // 10 if options.quick else COUNT)
    if options.cell:
        cells = [cell for cell in cells if any(text in cell.name for text in options.cell)]
    begun = time.monotonic()
    results: dict[str, Any] = {}
    if options.merge and options.result and options.result.exists():
        results = {it["cell"]: it for it in json.loads(options.result.read_text(encoding="utf-8"))}
    with multiprocessing.Pool(options.jobs) as pool:
        # Three by three: cells that differ in their price alone share most of their runs.
        for result in pool.imap_unordered(evaluate, cells, chunksize=len(PRICES)):
            sys.stdout.write(cell_text(result) + "\n")
            sys.stdout.flush()
            results[result["cell"]] = _rounded(result)
            if options.result:
                _write(options.result, results)
    sys.stdout.write(f"\n{len(cells)} cells in {time.monotonic() - begun:.0f} s\n")
    for verdict in verdicts(list(results.values())):
        said = "met" if verdict.met else f"NOT MET in {verdict.missed} of {verdict.cells}"
        if verdict.cells:
            sys.stdout.write(
                f"{verdict.what:<75} {verdict.found:8.2f} of {verdict.asked:g}, {verdict.where}: "
                f"{said}\n"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
