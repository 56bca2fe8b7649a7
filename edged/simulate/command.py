"""`edged simulate`: would this device carry that load?"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from edged.engine_store import EngineStore
from edged.errors import BadParameterError, EdgedError
from edged.serve.price import price_of
from edged.serve.timer import BatchTimer
from edged.serve.tuning import EVERY_S
from edged.simulate import report
from edged.simulate.arrivals import Arrivals
from edged.simulate.capacity import Capacity, find_capacity
from edged.simulate.device import Rules, Run, simulate
from edged.simulate.options import SimulateOptions
from edged.simulate.summary import Summary, summarize
from edged.simulate.workload import Plant, Workload, plant, workload

SEARCH_REQUESTS = 10_000
"""Requests of each run of the search for the headroom, at least."""
SLOS = 20.0
"""Every run lasts so many times as long as the SLO, at least."""
LEAST_CAME = 20
"""From fewer arrivals nothing is told."""


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
    if options.plot and (options.plot.suffix != ".svg" or not options.plot.parent.is_dir()):
        raise BadParameterError(
            f"plot {str(options.plot)!r} must be an .svg file in a folder that exists"
        )
    name = (options.model or "").partition("@")[0]
    manifest = EngineStore(engines).current(name).manifest if name else None
    device, load = plant(options, manifest), workload(options)
    price = _price(options.mode)
    slos_s = SLOS * device.slo_s if math.isfinite(device.slo_s) else 0.0
    seconds = max(load.period_s, slos_s)
    came = _enough(load.make(load.load, options.requests, seconds))
    runs = {
        "timer": _simulate(device, came, price, tune=True),
        "at once": _simulate(device, came, 0.0, tune=False),
    }
    summaries = {name: _summary(device, load, one) for name, one in runs.items()}
    found = None
    if math.isfinite(device.slo_s):

        def measure(amount: float) -> Summary:
            if amount == load.load:  # or the headroom and the answer could differ
                return summaries["timer"]
            some = load.make(amount, SEARCH_REQUESTS, seconds)
            return _summary(device, load, _simulate(device, some, price, tune=True))

        most = device.most_rate / load.each if load.each else math.inf
        found = find_capacity(measure, load.load, whole=load.whole, most=most)
    if options.plot:
        text = report.charts(runs, device, load, found)
        options.plot.write_text(text, encoding="utf-8")
    if options.json:
        print(json.dumps(report.document(device, load, summaries, found)), file=out)
    else:
        _print(out, device, load, summaries, found)
    return 0 if found is None or found.load >= load.load else 1


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


def _enough(came: Arrivals) -> Arrivals:
    if len(came) < LEAST_CAME:
        raise BadParameterError(
            f"only {len(came)} requests came, and {LEAST_CAME} are needed to tell anything; ask "
            "for more with --requests, or for less --dropout, or record a longer trace"
        )
    return came


def _simulate(device: Plant, came: Arrivals, price: float, *, tune: bool) -> Run:
    """One run as the daemon would serve it."""
    timer = BatchTimer(device.curve, device.cap, price=price, slo_s=device.slo_s)
    tuned = timer.retune if tune else None
    rules = Rules(slo_s=device.slo_s, expire=True, tune=tuned, tune_s=EVERY_S)
    return simulate(timer, came, device.device, rules)


def _summary(device: Plant, load: Workload, one: Run) -> Summary:
    """In figures, and against the most that the device can do."""
    summary = summarize(one, slo_s=device.slo_s)
    if not one.arrivals.rate > 0:
        return summary
    # Within a long SLO a peak may be worked off.
    peak = load.peak if SLOS * device.slo_s <= load.period_s else 1.0
    most = device.device.most(device.cap, float(one.arrivals.times[-1]))
    return replace(summary, offered=peak * one.arrivals.rate / most)
