"""What `edged simulate` is asked for. Imports nothing that takes time to load."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

ARRIVALS = ("poisson", "mmpp", "diurnal", "pareto", "bursts", "cameras", "trace")


@dataclass(frozen=True)
class SimulateOptions:
    """One question to the simulator. Exactly one of ``model`` and ``curve`` is given.

    Attributes:
        model: a built model, for its latency curve, largest batch and SLO.
        curve: ``2+0.25b`` or ``1:2.25,8:4,32:10``, milliseconds by batch size.
        stepped: a batch is padded up to the next size of the curve.
        cap: most samples in a batch; None: the model's, or the curve's last size.
        arrivals: one of `ARRIVALS`; None: cameras or trace if one is given, else poisson.
        rate: requests a second.
        cameras: number of cameras.
        fps: frames a second of each.
        window_ms: they share a trigger and come within so long; None: each has its own phase.
        jitter_ms: standard deviation of a frame's time.
        drift_ppm: standard deviation of the cameras' clock errors, in parts per million.
        dropout: share of frames that never come.
        trace: a file of recorded arrivals.
        slo_ms: latency to keep; None: the model's.
        mode: of the timer, or its price as a number.
        slow: ``FROM:TO:FACTOR``, seconds in which the device is so many times slower.
        noise: standard deviation of the logarithm of a batch's time.
        requests: how many to simulate.
        seed: of everything random.
        json: print one JSON document.
        plot: SVG file to write.
    """

    model: str | None = None
    curve: str | None = None
    stepped: bool = False
    cap: int | None = None
    arrivals: str | None = None
    rate: float | None = None
    cameras: int | None = None
    fps: float = 15.0
    window_ms: float | None = None
    jitter_ms: float = 0.0
    drift_ppm: float = 0.0
    dropout: float = 0.0
    trace: Path | None = None
    slo_ms: float | None = None
    mode: str = "latency"
    slow: tuple[str, ...] = ()
    noise: float = 0.02
    requests: int = 50_000
    seed: int = 0
    json: bool = False
    plot: Path | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command; their names are the fields of `SimulateOptions`."""
    device = parser.add_argument_group("device")
    device.add_argument("--model", help="a built model: its latency curve, largest batch and SLO")
    device.add_argument("--engines", type=Path, help="folder of models (paths.engines)")
    device.add_argument("--curve", help="instead: 2+0.25b, or 1:2.25,8:4,32:10, in ms by batch")
    device.add_argument("--stepped", action="store_true", help="pads up to the curve's next size")
    device.add_argument("--cap", type=int, help="largest batch")
    device.add_argument(
        "--slow", action="append", metavar="FROM:TO:FACTOR", help="seconds, and how much slower"
    )
    device.add_argument("--noise", type=float, help="spread of a batch's time, 0.02: 2 %%")
    load = parser.add_argument_group("load")
    load.add_argument("--arrivals", choices=ARRIVALS, help="default: as the others suggest")
    load.add_argument("--rate", type=float, help="mean requests/s")
    load.add_argument("--cameras", type=int, help="number of cameras")
    load.add_argument("--fps", type=float, help="frames/s of each camera; default 15")
    load.add_argument("--window-ms", type=float, help="one trigger; frames come within so long")
    load.add_argument("--jitter-ms", type=float, help="spread of a frame's time")
    load.add_argument("--drift-ppm", type=float, help="spread of the cameras' clocks")
    load.add_argument("--dropout", type=float, help="share of frames that never come")
    load.add_argument("--trace", type=Path, help="recorded arrival times: text, CSV or JSON")
    load.add_argument("--requests", type=int, help="how many to simulate; default 50000")
    load.add_argument("--seed", type=int)
    wanted = parser.add_argument_group("question")
    wanted.add_argument("--slo", dest="slo_ms", type=float, metavar="MS", help="latency to keep")
    wanted.add_argument(
        "--mode", help="latency, balanced, eco, use-the-slo, or a price; default latency"
    )
    wanted.add_argument("--plot", type=Path, metavar="FILE.svg", help="write charts")
    wanted.add_argument("--json", action="store_true", help="print one JSON document")


def from_arguments(arguments: argparse.Namespace) -> SimulateOptions:
    """The question; what was not said keeps its default."""
    said: dict[str, Any] = {}
    for field in fields(SimulateOptions):
        value = getattr(arguments, field.name)
        if value is not None:
            said[field.name] = tuple(value) if field.name == "slow" else value
    return SimulateOptions(**said)
