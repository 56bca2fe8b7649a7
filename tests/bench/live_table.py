"""Tables for docs/benchmarks.md out of a result of `tests.bench.live_timer`.

python -m tests.bench.live_table RESULT.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def cells(document: dict[str, Any]) -> list[str]:
    """Each mode at each load, live and simulated."""
    lines = [
        (
            "| load | mode | mean ms | simulated | p99 ms | simulated | in SLO | simulated "
            "| device ms | simulated | batch | simulated | slower by |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in document["cells"]:
        live, model = cell["live"], cell["simulated"]
        pairs = (
            ("mean_ms", "{:.1f}"), ("p99_ms", "{:.1f}"), ("attainment", "{:.1%}"),
            ("device_ms", "{:.2f}"), ("mean_batch", "{:.1f}"),
        )  # fmt: skip
        numbers = [form.format(side[name]) for name, form in pairs for side in (live, model)]
        head = [f"{cell['load']:.0%}", cell["mode"]]
        slower = format(model["slower"], ".2f")
        lines.append(f"| {' | '.join([*head, *numbers, slower])} |")
    return lines


def contention(document: dict[str, Any]) -> list[str]:
    """Before, beside and after the co-tenant."""
    lines = ["| mode | phase | in SLO | mean ms | p99 ms | batch |", "|---|---|---|---|---|---|"]
    for row in document["contention"]:
        lines += [
            f"| {row['mode']} | {name} | {phase['attainment']:.1%} | {phase['mean_ms']:.1f} | "
            f"{phase['p99_ms']:.1f} | {phase['mean_batch']:.1f} |"
            for name, phase in row["phases"].items()
        ]
    return lines


def sentences(document: dict[str, Any]) -> list[str]:
    """The machine, the curve, the order of the modes, and what the timer itself costs."""
    every = document["cells"]
    same = [order for order in document["ranking"].values() if not order["reversed"]]
    decisions = [cell["decision_us"]["p50"] for cell in every if cell["decision_us"]]
    late = [cell["lateness_ms"]["p99"] for cell in every if cell["lateness_ms"]]
    curve = ", ".join(f"{size}: {ms:.2f}" for size, ms in document["curve_ms"].items())
    off = [max(abs(cell["off"][name]) for cell in every) for name in ("mean_ms", "device_ms")]
    return [
        (
            f"{document['runner']}, network {document['network']}, on {document['machine']}; "
            f"{document['seconds']:g} s a cell; "
            f"SLO {document['slo_ms']:.0f} ms; ms by batch size: {curve}."
        ),
        (
            f"The order of the modes by device time is the simulator's at {len(same)} of "
            f"{len(document['ranking'])} loads (times within 5 % count as level)."
        ),
        (
            f"Live differs from simulated by at most {off[0]:.0%} in the mean and {off[1]:.0%} in "
            "device time."
        ),
        (
            f"A decision took {min(decisions):.0f} to {max(decisions):.0f} us (median of a cell); "
            f"the armed time was missed by {max(late, default=0.0):.2f} ms at most (p99 of a cell)."
        ),
    ]


def main() -> None:
    """Prints Markdown."""
    document = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    parts = (sentences(document), [""], cells(document), [""], contention(document))
    sys.stdout.write("\n".join(line for part in parts for line in part) + "\n")


if __name__ == "__main__":
    main()
