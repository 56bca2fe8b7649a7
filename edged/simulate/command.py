"""`edged simulate`: would this device carry that load?"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TextIO

from edged.engine_store import EngineStore
from edged.errors import BadParameterError, EdgedError
from edged.serve.price import price_of
from edged.serve.timer import BatchTimer
from edged.simulate import report
from edged.simulate.arrivals import Arrivals
from edged.simulate.capacity import Capacity, carries, find_capacity
from edged.simulate.device import Rules, Run, simulate
from edged.simulate.options import SimulateOptions
from edged.simulate.summary import Summary, summarize
from edged.simulate.workload import Plant, Workload, plant, workload

SEARCH_REQUESTS = 10_000
"""Requests of each run of the search for the headroom."""
ROUNDS, SEARCH_ROUNDS = 60, 6
"""Rounds of tuning in a run at most; they take longer than all the rest."""


def run(
    options: SimulateOptions,
    engines: Path,
    *,
    out: TextIO | None = None,
    err: TextIO | None = None,
) -> int:
    """Simulates, prints, draws.

    Args:
        options: the question.
        engines: folder of models.
        out: for the tables; None: standard output.
        err: for what went wrong; None: standard error.

    Returns:
        0; 1 if an SLO was given that the load does not keep; 2 if the question cannot be simulated.
    """
    out, err = out or sys.stdout, err or sys.stderr
    try:
        return _answer(options, engines, out)
    except (EdgedError, OSError) as error:
        print(f"edged simulate: {error}", file=err)
        return 2


def _answer(options: SimulateOptions, engines: Path, out: TextIO) -> int:
    manifest = EngineStore(engines).current(options.model).manifest if options.model else None
    device, load = plant(options, manifest), workload(options)
    price = _price(options.mode)
    came = load.make(load.load)
    runs = {
        "timer": _simulate(device, came, price, ROUNDS),
        "at once": _simulate(device, came, 0.0, 0),
    }
    summaries = {name: _summary(device, one) for name, one in runs.items()}
    found = None
    if math.isfinite(device.slo_s):

        def measure(amount: float) -> Summary:
            return _summary(
                device, _simulate(device, _first(load.make(amount)), price, SEARCH_ROUNDS)
            )

        found = find_capacity(measure, load.load, whole=load.whole)
    if options.plot:
        text = report.charts(runs, device, load, found)
        options.plot.write_text(text, encoding="utf-8")
    if options.json:
        print(json.dumps(report.document(device, load, summaries, found)), file=out)
    else:
        _print(out, device, load, summaries, found)
    return 0 if found is None or carries(summaries["timer"]) else 1


def _print(
    out: TextIO,
    device: Plant,
    load: Workload,
    summaries: dict[str, Summary],
    found: Capacity | None,
) -> None:
    report.print_report(out, device, load, summaries)
    if found is not None:
        report.print_answer(out, device, load, summaries["timer"], found)


def _price(mode: str) -> float:
    try:
        return price_of(mode)
    except ValueError as err:
        raise BadParameterError(str(err)) from err


def _first(came: Arrivals) -> Arrivals:
    """As many as the search needs."""
    return Arrivals(came.times[:SEARCH_REQUESTS], came.sources[:SEARCH_REQUESTS])


def _simulate(device: Plant, came: Arrivals, price: float, rounds: int) -> Run:
    """One run as the daemon would serve it, with at most so many rounds of tuning."""
    timer = BatchTimer(device.curve, device.cap, price=price, slo_s=device.slo_s)
    rules = Rules(
        slo_s=device.slo_s,
        expire=True,
        tune=timer.retune if rounds else None,
        tune_s=max(1.0, float(came.times[-1]) / max(1, rounds)),
    )
    return simulate(timer, came, device.device, rules)


def _summary(device: Plant, one: Run) -> Summary:
    return summarize(one, slo_s=device.slo_s)
