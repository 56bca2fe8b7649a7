"""Verdicts and tables of the batching evaluation, from its JSON.

    python -m tests.bench.batching_table [RESULT.json] [--write]

Prints Markdown; ``--write`` puts it between the two marks in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "tests" / "bench" / "results" / "batching.json"
DOCUMENT = ROOT / "docs" / "benchmarks.md"
FULL = 100_000
"""Requests of a cell from which on its tails mean something."""
BEGIN, END = "<!-- batching: begin -->", "<!-- batching: end -->"

Cell = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """One figure that was asked for.

    Attributes:
        what: it is about.
        asked: at most so much, in per cent unless the text says otherwise.
        found: the worst over its cells.
        where: the cell of the worst.
        missed: how many of its cells are over.
        cells: how many there are.
    """

    what: str
    asked: float
    found: float
    where: str
    missed: int
    cells: int

    @property
    def met(self) -> bool:
        """Whether every cell keeps it."""
        return self.missed == 0 and self.cells > 0


def _judge(
    what: str, asked: float, cells: Iterable[Cell], measure: Callable[[Cell], float | None]
) -> Verdict:
    values = [(value, cell["cell"]) for cell in cells if (value := measure(cell)) is not None]
    found, where = max(values, default=(math.nan, "no cell"))
    return Verdict(what, asked, found, where, sum(v > asked for v, _ in values), len(values))


def _over(figure: str, *others: str) -> Callable[[Cell], float]:
    """By how many per cent the timer's figure exceeds the worst of the others' (negative: less)."""

    def measure(cell: Cell) -> float:
        own = float(cell["rows"]["timer"][figure])
        least = min(float(cell["rows"][other][figure]) for other in others)
        return 100 * (own / least - 1)

    return measure


def _over_grid(cell: Cell) -> float:
    best = min(float(cost) for cost in cell["grid"].values())
    return 100 * (float(cell["rows"]["timer"]["cost_ms"]) / best - 1)


def _pick(cells: Sequence[Cell], family: str, *prices: float | None) -> list[Cell]:
    return [c for c in cells if c["family"] == family and (not prices or c["price"] in prices)]


def verdicts(cells: Sequence[Cell]) -> list[Verdict]:
    """Every figure of the evaluation."""
    lines, stepped = _pick(cells, "poisson", 0.0), _pick(cells, "stepped", 0.0)
    measured = _pick(cells, "measured", 0.0)
    modulated = _pick(cells, "mmpp", 2.0, 10.0)
    low = [c for c in modulated if c["load"] <= 10]
    tight = [c for c in _pick(cells, "cameras", 0.0) if 0 < c["window_ms"] <= 5]
    priced = {name: _pick(cells, name, 2.0, 10.0) for name in ("poisson", "stepped", "measured")}
    gridded = [*(cell for picked in priced.values() for cell in picked), *modulated]
    smdp = "J over the phase-seen SMDP"
    return [
        _judge("c = 0, linear curve, mean over greedy", 1, lines, _over("mean_ms", "greedy")),
        _judge("c = 0, linear curve, mean over SMDP", 1, lines, _over("mean_ms", "smdp")),
        _judge("c = 0, linear curve, p99 over greedy", 1, lines, _over("p99_ms", "greedy")),
        _judge("c = 0, linear curve, p99 over SMDP", 1, lines, _over("p99_ms", "smdp")),
        _judge("c = 0, stepped curve, mean over SMDP", 3, stepped, _over("mean_ms", "smdp")),
        _judge("c = 0, measured curve, mean over SMDP", 3, measured, _over("mean_ms", "smdp")),
        *(
            _judge(f"c = 2 and 10, {name}, J over SMDP", 2, picked, _over("cost_ms", "smdp"))
            for name, picked in priced.items()
        ),
        _judge(
            f"c = 2 and 10, MMPP from 20 % load, {smdp}",
            3, [c for c in modulated if c not in low], _over("cost_ms", "smdp"),
        ),
        _judge(f"c = 2 and 10, MMPP at 10 % load, {smdp}", 5, low, _over("cost_ms", "smdp")),
        _judge("c = 2 and 10, J over the best (K, T) of each cell", 1.5, gridded, _over_grid),
        _judge(
            "bursts, heavy tails, days; any c, J over the best (K, T) of each cell (not asked for)",
            1.5, [c for name in _SHAPED for c in _pick(cells, name)], _over_grid,
        ),
        *_slo_verdicts(_pick(cells, "slo")),
        *_contention_verdicts(_pick(cells, "contention")),
        _judge(
            "camera groups up to 5 ms, mean over the clairvoyant optimum",
            5, tight, _over("mean_ms", "clairvoyant"),
        ),
        *_steady_verdicts(_pick(cells, "steady")),
    ]  # fmt: skip


def _slo_verdicts(cells: Sequence[Cell]) -> list[Verdict]:
    def late(cell: Cell) -> float | None:
        slo_ms = float(cell["slo_ms"])
        if cell["rows"]["greedy"]["p99_ms"] > slo_ms:
            return None
        return 100 * (float(cell["rows"]["timer"]["p99_ms"]) / slo_ms - 1)

    able = [c for c in cells if "fixed delay, best" in c["rows"]]
    name = "use-the-slo, 25 ms: "
    return [
        _judge(f"{name}p99 over the SLO where greedy keeps it", 0, cells, late),
        _judge(
            f"{name}device time over the best (K, T) that keeps it",
            5, able, _over("device_ms", "fixed delay, best"),
        ),
    ]  # fmt: skip


def _contention_verdicts(cells: Sequence[Cell]) -> list[Verdict]:
    def missed(cell: Cell) -> float:
        return 100 * (1 - float(cell["rows"]["timer"]["contended"]))

    def settled(cell: Cell) -> float:
        return max(math.inf if n is None else int(n) for n in cell["rows"]["timer"]["settled"])

    return [
        _judge("2x contention: requests over 25 ms while it lasts", 1, cells, missed),
        _judge("2x contention: batches until phi is within 10 % (number)", 10, cells, settled),
    ]


def _steady_verdicts(cells: Sequence[Cell]) -> list[Verdict]:
    return [
        _judge("steady input: CV of the set-point M", 10, cells, lambda c: 100 * c["variation"]),
        _judge(
            "steady input: lag-1 of M, without its sign (number)",
            0.3,
            cells,
            lambda c: abs(c["lag1"]),
        ),
    ]


# ------------------------------------------------------------------ Markdown


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _verdict_table(cells: Sequence[Cell]) -> str:
    rows = []
    for one in verdicts(cells):
        said = "met" if one.met else f"**not met**: {one.missed} of {one.cells} cells over"
        rows.append([one.what, f"{one.asked:g}", f"{one.found:.2f}", one.where, said])
    return _table(("figure, % unless said otherwise", "at most", "worst", "where", "verdict"), rows)


def best_single(cells: Sequence[Cell]) -> str:
    """The ``K,T`` that is nearest to each cell's best one on average: what an operator can set."""
    names: list[str] = list(cells[0]["grid"])
    regret = {n: sum(c["grid"][n] / min(c["grid"].values()) for c in cells) for n in names}
    return min(regret, key=lambda name: regret[name])


_NAMES = ("timer", "greedy", "clipper+2ms", "cork", "pick-up 2ms", "ski rental")


def _gap_table(cells: Sequence[Cell]) -> str:
    """J over the SMDP's, in per cent, by policy and load."""
    single = best_single(cells)
    against = "SMDP" if "smdp" in cells[0]["rows"] else "the best fixed delay"
    head = [f"J over {against}, %", *(f"{c['load']} %" for c in cells)]
    rows = []
    for name in _NAMES:
        if name in cells[0]["rows"]:
            gaps = [100 * (c["rows"][name]["cost_ms"] / _best(c) - 1) for c in cells]
            rows.append([name, *(_short(gap) for gap in gaps)])
    single_gaps = [100 * (c["grid"][single] / _best(c) - 1) for c in cells]
    oracle_gaps = [100 * (min(c["grid"].values()) / _best(c) - 1) for c in cells]
    label = "fixed delay, one for all: K={}, T={} ms".format(*single.split(","))
    rows.append([label, *(_short(gap) for gap in single_gaps)])
    rows.append(["fixed delay, best of each load", *(_short(gap) for gap in oracle_gaps)])
    return _table(head, rows)


def _best(cell: Cell) -> float:
    if "smdp" in cell["rows"]:
        return float(cell["rows"]["smdp"]["cost_ms"])
    return min(float(cost) for cost in cell["grid"].values())


def _short(gap: float) -> str:
    return f"{gap:.1f}" if gap < 100 else f"{gap:.0f}"


def _slo_table(cells: Sequence[Cell]) -> str:
    names = ("greedy", "deferred latest", "fixed delay, best", "timer")
    rows = []
    for name in names:
        shown = [c["rows"].get(name) for c in cells]
        rows.append(
            [name, *(f"{r['device_ms']:.2f} [{r['p99_ms']:.1f}]" if r else "none" for r in shown)]
        )
    ratios = [c["rows"]["greedy"]["device_ms"] / c["rows"]["timer"]["device_ms"] for c in cells]
    rows.append(["greedy / timer", *(f"{ratio:.1f}" for ratio in ratios)])
    return _table(["device ms a request [p99]", *(f"{c['load']} %" for c in cells)], rows)


def _contention_table(cells: Sequence[Cell]) -> str:
    rows = []
    for number, cell in enumerate(cells):
        price = "use-the-slo" if cell["price"] is None else f"c = {cell['price']:g}"
        for name, row in cell["rows"].items():
            if name == "timer" or number == 0:
                settled = [str(n) for n in row.get("settled", ())]
                rows.append([
                    f"{name}, {price}" if name == "timer" else name,
                    f"{row['contended_mean_ms']:.1f}", f"{row['contended_p99_ms']:.1f}",
                    f"{100 * row['contended']:.1f}", f"{row['device_ms']:.2f}",
                    " ".join(settled) or "-",
                ])  # fmt: skip
    rows.sort(key=lambda row: row[0].startswith("timer"))
    head = ("policy", "mean", "p99", "in time, %", "device ms, whole run", "batches to settle")
    return _table(head, rows)


def _camera_table(cells: Sequence[Cell]) -> str:
    names = list(cells[0]["rows"])
    names.sort(key=lambda name: (name == "timer", name == "clairvoyant"))
    windows = [f"{c['window_ms']:g} ms" if c["window_ms"] else "own phases" for c in cells]
    rows = []
    for name in names:
        shown = [c["rows"][name] for c in cells]
        rows.append([name, *(f"{r['mean_ms']:.2f} / {r['device_ms']:.2f}" for r in shown)])
    return _table(["mean / device, ms", *windows], rows)


def markdown(cells: Sequence[Cell]) -> str:
    """The whole section."""
    short = " (a short run, `--quick`: its tails are noise)" if cells[0]["count"] < FULL else ""
    parts = [f"{len(cells)} cells, {cells[0]['count']} requests each or more{short}.\n"]
    parts.append(_verdict_table(cells))
    for family, what in _FAMILIES.items():
        for price in (0.0, 2.0, 10.0):
            if picked := _pick(cells, family, price):
                parts += [f"{what}, c = {price:g}:\n", _gap_table(picked)]
    if picked := _pick(cells, "slo"):
        parts += ["use-the-slo, 25 ms, Poisson:\n", _slo_table(picked)]
    if picked := _pick(cells, "contention"):
        parts += [f"{_CONTENTION}:\n", _contention_table(picked)]
    for price in (0.0, 2.0, 10.0):
        if picked := _pick(cells, "cameras", price):
            parts += [f"{_CAMERAS}, c = {price:g}:\n", _camera_table(picked)]
    return "\n".join(parts)


_SHAPED = ("bursts", "pareto", "diurnal")
_FAMILIES = {
    "poisson": "Poisson, 2 + 0.25 b ms",
    "stepped": "Poisson, the same padded to powers of two",
    "measured": "Poisson, the measured curve",
    "mmpp": "MMPP (0.5x for 400 ms, 3x for 100 ms)",
    "bursts": "Bursts of 4 on average (geometric)",
    "pareto": "Pareto gaps of shape 1.5",
    "diurnal": "Days of a minute, from a fifth of the mean rate to 1.8 times",
}


_CONTENTION = (
    "The device twice as slow for half of the time, 30 % load, SLO 25 ms; latency in ms while it "
    "is slow"
)
_CAMERAS = "16 cameras on one trigger at 30 fps, by the window in which their frames come"


def main() -> int:
    """Prints or writes the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", nargs="?", type=Path, default=RESULT)
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    options = parser.parse_args()
    text = markdown(json.loads(options.result.read_text(encoding="utf-8")))
    if options.write:
        page = DOCUMENT.read_text(encoding="utf-8")
        before, rest = page.split(BEGIN)
        after = rest.split(END)[1]
        DOCUMENT.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
