"""What `edged bench` is asked for: the options, their limits, and the command line's arguments."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edged.client import Endpoint
from edged.errors import BadParameterError
from edged.protocol import PRIORITIES

Arrivals = Literal["poisson", "uniform", "bursts", "phases"]
PayloadKind = Literal["binary", "json", "png", "jpeg"]
ARRIVALS: tuple[Arrivals, ...] = ("poisson", "uniform", "bursts", "phases")
PAYLOADS: tuple[PayloadKind, ...] = ("binary", "json", "png", "jpeg")
MOST_REQUESTS = 20_000_000
MOST_CONNECTIONS = 1000
MOST_SECONDS = 86_400.0


@dataclass(frozen=True)
class Share:
    """One class of requests.

    Attributes:
        priority: one of `edged.protocol.PRIORITIES`; "": not said, which is normal.
        weight: its share of the requests, beside the others' weights.
        deadline_ms: each request's own deadline; None: the model's.
    """

    priority: str = ""
    weight: float = 1.0
    deadline_ms: float | None = None

    def __post_init__(self) -> None:
        if self.priority not in ("", *PRIORITIES):
            raise BadParameterError(
                f"priority {self.priority!r} must be one of {', '.join(PRIORITIES)}"
            )
        if not (self.weight > 0 and math.isfinite(self.weight)):
            raise BadParameterError(
                f"weight {self.weight:g} of {self.priority or 'a class'} must be above 0"
            )
        if self.deadline_ms is not None and not 0.001 <= self.deadline_ms < 1e9:
            raise BadParameterError(
                f"deadline {self.deadline_ms:g} ms must be from 0.001 to 999999999"
            )


def read_mix(text: str) -> tuple[Share, ...]:
    """Reads ``urgent=1:50,normal=9,background=3:2000``: class, weight, and a deadline in ms.

    Raises:
        BadParameterError: it is written differently, or a value is out of range.
    """
    shares = []
    for part in text.split(","):
        name, equals, rest = part.strip().partition("=")
        weight, colon, deadline = rest.partition(":")
        try:
            shares.append(Share(name, float(weight), float(deadline) if colon else None))
        except ValueError as err:
            raise BadParameterError(
                f"mix {part.strip()!r} must be class=weight or class=weight:deadline in ms, for "
                "example urgent=1:50,normal=9"
            ) from err
        if not equals:
            raise BadParameterError(f"mix {part.strip()!r} has no weight; write {name}=1")
    return tuple(shares)


@dataclass(frozen=True)
class BenchOptions:
    """What `edged bench` is asked for.

    Attributes:
        endpoint: broker, and device or pool.
        model: a model's name.
        file: .npy, .npz, PNG or JPEG; rows of arrays are sent in turn. Empty: see ``random``.
        input_name: input that the array of a .npy file is for.
        random: inputs of random numbers instead of a file, e.g. ``image=UINT8[8,8,1]``; several
            with ";".
        payload: form of the requests.
        rate_hz: requests a second over all connections; 0: a closed loop.
        outstanding: in a closed loop, requests without an answer over all connections.
        seconds: length of the run, without ``warmup_s``.
        warmup_s: load that comes before and is not counted.
        grace_s: wait for answers after the last request; what is missing then is lost.
        arrivals: ``poisson``; ``uniform``; ``bursts``: several at once; ``phases``: quiet and busy.
        burst: mean size of a burst.
        trace: a capture of arrival times, instead of ``rate_hz`` and ``arrivals``.
        seed: of everything that is random.
        connections: MQTT connections; requests take them in turn.
        qos: of the requests, 0 or 1.
        samples: rows in each request.
        mix: classes of requests, by weight.
        slo_ms: an answer within it counts as good; None: not looked at.
        pid: process of a daemon on this machine, whose CPU time is read.
        json: print one JSON document instead of a table.
        plot: SVG file that gets the charts.
    """

    endpoint: Endpoint
    model: str
    file: str = ""
    input_name: str = "input"
    random: str = ""
    payload: PayloadKind = "binary"
    rate_hz: float = 100.0
    outstanding: int = 1
    seconds: float = 10.0
    warmup_s: float = 0.0
    grace_s: float = 5.0
    arrivals: Arrivals = "poisson"
    burst: float = 4.0
    trace: Path | None = None
    seed: int = 0
    connections: int = 1
    qos: int = 1
    samples: int = 1
    mix: tuple[Share, ...] = (Share(),)
    slo_ms: float | None = None
    pid: int | None = None
    json: bool = False
    plot: Path | None = None

    def __post_init__(self) -> None:
        if bool(self.file) == bool(self.random):
            raise BadParameterError("give a file, or --random with the model's inputs, one of them")
        _within("rate", self.rate_hz, 0, 1e6)
        _within("seconds", self.seconds, 1e-3, MOST_SECONDS)
        _within("warm-up seconds", self.warmup_s, 0, MOST_SECONDS)
        _within("grace seconds", self.grace_s, 0, MOST_SECONDS)
        _within("mean burst size", self.burst, 1, 1e6)
        _within("connections", self.connections, 1, MOST_CONNECTIONS)
        _within("samples", self.samples, 1, 65536)
        _within("outstanding requests", self.outstanding, 1, 1e6)
        _within("QoS", self.qos, 0, 1)
        if self.slo_ms is not None:
            _within("SLO in ms", self.slo_ms, 1e-3, 1e9)
        if not self.mix:
            raise BadParameterError("the mix must have at least one class")
        count = self.rate_hz * (self.seconds + self.warmup_s)
        if count > MOST_REQUESTS:
            raise BadParameterError(
                f"{count:.0f} requests are too many for one run, at most {MOST_REQUESTS}; shorten "
                "it or lower the rate"
            )


def _within(what: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise BadParameterError(f"{what} {value:g} must be from {low:g} to {high:g}")


# ------------------------------------------------------------------ the command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what only `edged bench` has; model, broker and device are added by the command line."""
    what = parser.add_argument_group("requests")
    what.add_argument("--random", default="", metavar="SPEC", help="no file: image=UINT8[8,8,1]")
    what.add_argument("--payload", choices=PAYLOADS, default="binary")
    what.add_argument("--samples", type=int, default=1, help="in each request")
    what.add_argument("--mix", metavar="MIX", help="urgent=1:50,normal=9: weights, deadlines in ms")
    what.add_argument("--qos", type=int, choices=(0, 1), default=1)
    when = parser.add_argument_group("load")
    when.add_argument("--rate", type=float, default=100.0, help="requests/s; 0: a closed loop")
    when.add_argument("--outstanding", type=int, default=1, help="at rate 0: without an answer")
    when.add_argument("--seconds", type=float, default=10.0)
    when.add_argument("--warmup", type=float, default=0.0, help="seconds before, not counted")
    when.add_argument("--grace", type=float, default=5.0, help="seconds to wait for the last ones")
    when.add_argument("--arrivals", choices=ARRIVALS, default="poisson")
    when.add_argument("--burst", type=float, default=4.0, help="mean size, with bursts")
    when.add_argument("--trace", type=Path, help="file of arrival times, instead of --rate")
    when.add_argument("--seed", type=int, default=0)
    when.add_argument("--connections", type=int, default=1)
    out = parser.add_argument_group("outcome")
    out.add_argument("--slo-ms", type=float, help="answers within it are good")
    out.add_argument("--pid", type=int, help="of a daemon on this machine, for its CPU time")
    out.add_argument("--plot", type=Path, metavar="SVG", help="file that gets the charts")


def from_arguments(arguments: argparse.Namespace, endpoint: Endpoint) -> BenchOptions:
    """The options of a command line.

    Raises:
        BadParameterError: a value is out of range.
    """
    one = Share(arguments.priority or "", 1.0, arguments.deadline_ms)
    if arguments.mix and one != Share():
        raise BadParameterError("--mix says priorities and deadlines itself; leave the others out")
    return BenchOptions(
        endpoint=endpoint,
        model=arguments.model,
        file=arguments.file or "",
        input_name=arguments.input,
        random=arguments.random,
        payload=arguments.payload,
        rate_hz=arguments.rate,
        outstanding=arguments.outstanding,
        seconds=arguments.seconds,
        warmup_s=arguments.warmup,
        grace_s=arguments.grace,
        arrivals=arguments.arrivals,
        burst=arguments.burst,
        trace=arguments.trace,
        seed=arguments.seed,
        connections=arguments.connections,
        qos=arguments.qos,
        samples=arguments.samples,
        mix=read_mix(arguments.mix) if arguments.mix else (one,),
        slo_ms=arguments.slo_ms,
        pid=arguments.pid,
        json=arguments.json,
        plot=arguments.plot,
    )
