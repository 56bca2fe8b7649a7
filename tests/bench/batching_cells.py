"""Cells of the batching evaluation: one workload on one device, under every policy.

All policies of a cell see the same arrivals. The timer knows the measured curve and nothing of the
workload; the oracles know its rate, and its phase where it has one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from edged.latency import LatencyCurve
from edged.serve.timer import BatchTimer, Decision, Waiting
from edged.serve.tuning import EVERY_S
from edged.simulate import arrivals as models
from edged.simulate.arrivals import Arrivals, Cameras, Modulation
from edged.simulate.device import Device, Policy, Rules, simulate
from edged.simulate.summary import Summary, settle_batches, stability, summarize
from tests.doubles import batching_policies as rules
from tests.oracles.clairvoyant import clairvoyant
from tests.oracles.smdp import Problem, Process, iterate_policies

CAP = 32
SIZES = (1, 2, 4, 8, 16, 32)
LINEAR = LatencyCurve(SIZES, tuple(0.002 + 0.00025 * size for size in SIZES))
STEPPED = LatencyCurve(LINEAR.sizes, LINEAR.seconds, stepped=True)
MEASURED = LatencyCurve.measured(
    # Milliseconds of the bundled model `watch` on ONNX Runtime (CPU), from its engine's manifest.
    (size, ms / 1e3)
    for size, ms in {1: 0.4119, 2: 0.4119, 4: 0.4642, 8: 0.7486, 16: 1.3188, 32: 1.9675}.items()
)
CURVES = {"linear": LINEAR, "stepped": STEPPED, "measured": MEASURED}
LOADS = (5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95)
PRICES = (0.0, 2.0, 10.0)
SLO_S = 0.025
SLACK_S = 0.0005
"""Kept free before a deadline; nothing is late in a simulation."""
MODULATION = Modulation((0.5, 3.0), (0.4, 0.1))
CAMERAS, FPS = 16, 30.0
LEAST_S = 40
"""Simulated seconds at least: a fast device would be through before the timer was tuned."""
GRID = [(1, 0.0), *((k, t) for k in (2, 4, 8, 16, 32) for t in (0.5, 1, 2, 5, 10, 20))]
"""``(K, T in ms)`` that an operator could set; T scales with the curve's own setup time."""
SLO_GRID = [(k, t) for k in (4, 8, 16, 32) for t in (2, 4, 6, 8, 10, 12, 15, 18, 20, 22)]


@dataclass(frozen=True)
class Cell:
    """A workload on a device.

    Attributes:
        family: poisson, stepped, measured, mmpp, bursts, pareto, diurnal, slo, contention, cameras
            or steady.
        load: mean rate in percent of the device's capacity.
        price: c.
        window_ms: of camera groups.
        count: requests.
        seed: of the arrivals.
    """

    family: str
    load: int = 0
    price: float = 0.0
    window_ms: float = 0.0
    count: int = 120_000
    seed: int = 1

    @property
    def name(self) -> str:
        """As in the results: ``poisson 30 % c=2``."""
        if self.family == "cameras":
            return f"cameras {self.window_ms:g} ms c={self.price:g}"
        return f"{self.family} {self.load} % c={self.price:g}"

    @property
    def curve(self) -> LatencyCurve:
        """Of the device."""
        return CURVES.get(self.family, LINEAR)

    @property
    def rate(self) -> float:
        """Arrivals a second."""
        return self.load / 100 * CAP / self.curve(CAP)


def timer(curve: LatencyCurve, price: float, slo_s: float = math.inf) -> BatchTimer:
    """The timer under test, as the daemon makes it."""
    return BatchTimer(curve, CAP, price=price, slack_s=SLACK_S, slo_s=slo_s)


def evaluate(cell: Cell) -> dict[str, Any]:
    """Runs a cell; a row for each policy."""
    price = cell.price if math.isfinite(cell.price) else None
    return {**asdict(cell), "cell": cell.name, "price": price, **_FAMILIES[cell.family](cell)}


def _row(summary: Summary, price: float) -> dict[str, Any]:
    figures = asdict(summary)
    figures.pop("histogram")
    return {**figures, "cost_ms": summary.cost_ms(price)}


def _ask(policy: Policy, cell: Cell, came: Arrivals, slo_s: float = math.inf) -> dict[str, Any]:
    return _row(_run(policy, cell, came, slo_s), cell.price)


def _run(policy: Policy, cell: Cell, came: Arrivals, slo_s: float = math.inf) -> Summary:
    run = simulate(policy, came, Device(cell.curve), _rules(policy, slo_s))
    return summarize(run, slo_s=slo_s)


def _rules(policy: Policy, slo_s: float = math.inf) -> Rules:
    """The timer is tuned as in the daemon, other policies are not."""
    if isinstance(policy, BatchTimer):
        return Rules(slo_s=slo_s, tune=policy.retune, tune_s=EVERY_S)
    return Rules(slo_s=slo_s)


# ------------------------------------------------------------------ Poisson and modulated arrivals


def _others(cell: Cell) -> dict[str, dict[str, Any]]:
    """Policies that are shipped elsewhere, with their usual settings."""
    found = {name: _row(it, cell.price) for name, it in _priceless(replace(cell, price=0)).items()}
    if cell.price:
        rental = rules.SkiRental(CAP, cell.curve.line()[0], cell.price)
        found["ski rental"] = _ask(rental, cell, _arrivals(replace(cell, price=0)))
    return found


@functools.lru_cache(maxsize=1)
def _priceless(cell: Cell) -> dict[str, Summary]:
    """What goes by no price is the same run in the next cell, which differs in its price alone."""
    unit = cell.curve.line()[0] / LINEAR.line()[0]  # milliseconds of a device with 2 ms of setup
    policies: dict[str, Policy] = {
        "greedy": rules.Greedy(CAP),
        "cork": rules.Cork(CAP, 0.001 * unit),
        "clipper+2ms": rules.Clipper(CAP, SLO_S * unit, 0.002 * unit),
        "pick-up 2ms": rules.PickUp(CAP, 0.002 * unit),
    }
    return {name: _run(policy, cell, _arrivals(cell)) for name, policy in policies.items()}


def _grid(cell: Cell) -> dict[str, float]:
    """``K,T`` -> J_c in ms."""
    runs = _fixed_delays(replace(cell, price=0))
    return {name: summary.cost_ms(cell.price) for name, summary in runs.items()}


@functools.lru_cache(maxsize=1)
def _fixed_delays(cell: Cell) -> dict[str, Summary]:
    unit = cell.curve.line()[0] / LINEAR.line()[0]
    came = _arrivals(cell)
    return {
        f"{count},{delay_ms:g}": summarize(
            rules.fixed_delay(came, cell.curve, CAP, count, delay_ms * 1e-3 * unit)
        )
        for count, delay_ms in GRID
    }


@functools.lru_cache(maxsize=1)
def _arrivals(cell: Cell) -> Arrivals:
    if cell.family == "mmpp":
        return models.mmpp(cell.rate, cell.count, cell.seed, modulation=MODULATION)
    if cell.family == "bursts":
        return models.bursts(cell.rate, cell.count, cell.seed, mean_size=4)
    if cell.family == "pareto":
        return models.pareto(cell.rate, cell.count, cell.seed, shape=1.5)
    if cell.family == "diurnal":
        return models.diurnal(cell.rate, cell.count, cell.seed, period_s=60, swing=0.8)
    if cell.family == "cameras":
        window = cell.window_ms / 1e3 if cell.window_ms else None
        setup = Cameras(CAMERAS, FPS, window_s=window)
        return models.cameras(setup, cell.count / CAMERAS / FPS, cell.seed)
    return models.poisson(cell.rate, max(cell.count, int(cell.rate * _least_s(cell))), cell.seed)


def _least_s(cell: Cell) -> float:
    """`LEAST_S` with all requests, less in a quick run."""
    return LEAST_S * min(1.0, cell.count / 100_000)


def _renewal(cell: Cell) -> dict[str, Any]:
    return _compare(cell, Process((cell.rate,)), states=256 if cell.load < 80 else 768)


def _modulated(cell: Cell) -> dict[str, Any]:
    sojourns = tuple(1 / seconds for seconds in MODULATION.sojourns_s)
    return _compare(cell, Process(MODULATION.rates(cell.rate), sojourns), states=384)


def _compare(cell: Cell, process: Process, states: int) -> dict[str, Any]:
    full = cell.curve is not LINEAR
    problem = Problem(process, cell.curve, CAP, cell.price, states=states, full=full)
    best = iterate_policies(problem)
    came = _arrivals(replace(cell, price=0))
    rows = {"smdp": _ask(rules.Table(CAP, best.actions, came.phases), cell, came)}
    rows |= _others(cell)
    rows["timer"] = _ask(timer(cell.curve, cell.price), cell, came)
    return {"rows": rows, "exact_ms": best.cost * 1e3, "grid": _grid(cell)}


def _shaped(cell: Cell) -> dict[str, Any]:
    """Arrivals that no oracle here solves: compared with the best fixed delay of the cell."""
    rows = _others(cell)
    rows["timer"] = _ask(timer(cell.curve, cell.price), cell, _arrivals(replace(cell, price=0)))
    return {"rows": rows, "grid": _grid(cell)}


# ------------------------------------------------------------------ the SLO, contention, cameras


def _slo(cell: Cell) -> dict[str, Any]:
    came = models.poisson(cell.rate, cell.count, cell.seed)
    rows = {
        "greedy": _ask(rules.Greedy(CAP), cell, came, SLO_S),
        "deferred latest": _ask(rules.DeferredLatest(CAP, cell.curve), cell, came, SLO_S),
        "timer": _ask(timer(cell.curve, math.inf, SLO_S), cell, came, SLO_S),
    }
    best = None
    for count, delay_ms in SLO_GRID:
        run = rules.fixed_delay(came, cell.curve, CAP, count, delay_ms * 1e-3)
        figures = summarize(run, slo_s=SLO_S)
        if figures.p99_ms <= SLO_S * 1e3 and (best is None or figures.device_ms < best[1]):
            best = (f"{count},{delay_ms:g}", figures.device_ms, figures)
    if best:
        rows["fixed delay, best"] = {**_row(best[2], cell.price), "setting": best[0]}
    return {"rows": rows, "slo_ms": SLO_S * 1e3}


class _Noting(BatchTimer):
    """Notes the scale that it went by at each batch."""

    def started(self, now: float, waiting: Waiting, decision: Decision) -> None:
        """As ever."""
        super().started(now, waiting, decision)
        self.__dict__.setdefault("scales", []).append(self.phi)


def _contention(cell: Cell) -> dict[str, Any]:
    """Another process doubles every batch's time for a tenth of the run, five times."""
    came = models.poisson(cell.rate, cell.count, cell.seed)
    length = float(came.times[-1]) / 10
    steps = tuple((number * length, 1.0 + number % 2) for number in range(10))
    device = Device(cell.curve, steps, noise=0.05, seed=cell.seed)
    policies: dict[str, Policy] = {
        "greedy": rules.Greedy(CAP),
        "deferred latest": rules.DeferredLatest(CAP, cell.curve),
        "fixed 15 ms": rules.FixedDelay(CAP, 32, 0.015),
        "clipper, target 5 ms": rules.Clipper(CAP, 0.005),
        "cork": rules.Cork(CAP),
        "pick-up 5ms": rules.PickUp(CAP, 0.005),
        "timer": _Noting(cell.curve, CAP, price=cell.price, slack_s=SLACK_S, slo_s=SLO_S),
    }
    rows = {}
    for name, policy in policies.items():
        run = simulate(policy, came, device, _rules(policy, SLO_S))
        latencies, at = run.latencies(), came.times[run.served()]
        slow = (at // length) % 2 == 1
        rows[name] = {
            **_row(summarize(run, slo_s=SLO_S), cell.price),
            "contended": float((latencies[slow] <= SLO_S).mean()),
            "contended_mean_ms": float(latencies[slow].mean()) * 1e3,
            "contended_p99_ms": sorted(latencies[slow])[int(0.99 * slow.sum())] * 1e3,
        }
        if scales := policy.__dict__.get("scales"):
            rows[name]["settled"] = [
                settle_batches(run, scales, device, step) for step in range(1, len(steps))
            ]
    return {"rows": rows}


def _cameras(cell: Cell) -> dict[str, Any]:
    came = _arrivals(replace(cell, price=0))
    mean, device = clairvoyant(came.times.tolist()[: cell.count // 4], LINEAR, CAP, cell.price)
    best = {"mean_ms": mean * 1e3, "device_ms": device * 1e3}
    best["cost_ms"] = best["mean_ms"] + cell.price * best["device_ms"]
    rows = _others(cell)
    rows |= {"clairvoyant": best, "timer": _ask(timer(LINEAR, cell.price), cell, came)}
    rows["fixed 16, 2 ms"] = _ask(rules.FixedDelay(CAP, 16, 0.002), cell, came)
    return {"rows": rows}


def _steady(cell: Cell) -> dict[str, Any]:
    """The set-point M on steady input, at each round of tuning after the first three."""
    came = models.poisson(
        cell.rate, max(cell.count, int(cell.rate * 3 * _least_s(cell))), cell.seed
    )
    policy = timer(cell.curve, cell.price)
    watched = replace(_rules(policy), watch=lambda now: float(policy.limit(now)))
    run = simulate(policy, came, Device(cell.curve), watched)
    values = [value for _, value in run.set_points[3:]]
    return {"rows": {"timer": _row(summarize(run), cell.price)}, **asdict(stability(values))}


_FAMILIES: dict[str, Callable[[Cell], dict[str, Any]]] = {
    "poisson": _renewal,
    "stepped": _renewal,
    "measured": _renewal,
    "mmpp": _modulated,
    "bursts": _shaped,
    "pareto": _shaped,
    "diurnal": _shaped,
    "slo": _slo,
    "contention": _contention,
    "cameras": _cameras,
    "steady": _steady,
}


def all_cells(count: int) -> list[Cell]:
    """Every cell of the table."""
    cells = [
        Cell(family, load, price, count=count)
        for family in ("poisson", "stepped", "measured")
        for load in LOADS
        for price in PRICES
    ]
    modulated = (10, 20, 30, 40, 50, 60)
    cells += [Cell("mmpp", load, price, count=count) for load in modulated for price in PRICES]
    cells += [
        Cell(family, load, price, count=count)
        for family in ("bursts", "pareto", "diurnal")
        for load in (10, 30, 50)
        for price in PRICES
    ]
    cells += [Cell("slo", load, math.inf, count=count) for load in LOADS[:-1]]
    cells += [Cell("contention", 30, price, count=count) for price in (*PRICES, math.inf)]
    windows = (0.5, 1.0, 2.0, 5.0, 10.0, 0.0)
    cells += [
        Cell("cameras", price=price, window_ms=window, count=count)
        for window in windows
        for price in PRICES
    ]
    steady = (10, 30, 50, 70, 90)
    return cells + [Cell("steady", load, price, count=count) for load in steady for price in PRICES]
