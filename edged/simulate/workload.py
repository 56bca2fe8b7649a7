"""From a question to a device and to arrivals that can be scaled up and down."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from edged.errors import BadParameterError
from edged.latency import LatencyCurve
from edged.manifest import Manifest
from edged.simulate import arrivals as models
from edged.simulate.arrivals import Arrivals, Cameras
from edged.simulate.device import Device
from edged.simulate.options import SimulateOptions
from edged.simulate.recorded import read_recorded

TRACE = "times the trace's speed"
"""Unit of a recorded load."""
_LARGEST = 1024  # batch size of any engine
DEFAULT_CAP = 32
"""Largest batch of a line that names none."""
MOST_REQUESTS, MOST_OF_PERIODS = 50_000, 200_000
"""No run is made longer than this for the sake of seconds alone, or for a whole period."""
_PERIODS = {
    # Twenty turns of quiet and busy phases; one day.
    "mmpp": (20 * sum(models.Modulation().sojourns_s), 1.0),
    "diurnal": (models.DAY_S, 1 + models.SWING),
}


@dataclass(frozen=True)
class Workload:
    """Arrivals by their amount.

    Attributes:
        load: the amount that was asked for: requests/s, cameras, or 1 time a trace's own speed.
        unit: what it counts.
        whole: whether it is a whole number.
        make: arrivals of another amount, of at least so many requests over so many seconds; a
            trace comes whole.
        each: requests a second that one unit makes on average.
        period_s: seconds in which it shows all that it can; a trace has none.
        peak: rate of its busiest stretch, if that is long, as a multiple of the mean.
    """

    load: float
    unit: str
    whole: bool
    make: Callable[[float, int, float], Arrivals]
    each: float = 1.0
    period_s: float = 0.0
    peak: float = 1.0

    @property
    def recorded(self) -> bool:
        """Whether it is a trace."""
        return self.unit == TRACE


@dataclass(frozen=True)
class Plant:
    """What serves: a simulated device and its limits.

    Attributes:
        name: model or curve.
        device: of the simulation.
        curve: as measured; the timer knows it.
        cap: most samples in a batch.
        slo_s: latency to keep; infinity: none.
    """

    name: str
    device: Device
    curve: LatencyCurve
    cap: int
    slo_s: float

    @property
    def most_rate(self) -> float:
        """Requests a second that it can do at most, at the best batch size up to the cap."""
        return max(size / self.curve(size) for size in range(1, min(self.cap, _LARGEST) + 1))


def plant(options: SimulateOptions, manifest: Manifest | None) -> Plant:
    """The device of a question.

    Args:
        options: the question.
        manifest: of the model that it names, if it names one.

    Raises:
        BadParameterError: something in it makes no sense.
    """
    if (manifest is None) == (options.curve is None):
        raise BadParameterError("give either --model or --curve, for what a batch takes")
    if manifest is not None:
        curve, cap, slo_ms = _measured(options, manifest), manifest.max_batch, manifest.slo_ms
        # The TensorRT runner pads a batch up to the next size that it has a graph for.
        curve = LatencyCurve(curve.sizes, curve.seconds, stepped=manifest.runner == "tensorrt")
    else:
        curve = parse_curve(options.curve or "", stepped=options.stepped)
        cap, slo_ms = curve.sizes[-1], math.inf
    cap = cap if options.cap is None else options.cap
    slo_ms = slo_ms if options.slo_ms is None else options.slo_ms
    if not 1 <= cap <= _LARGEST or not slo_ms > 0 or not 0 <= options.noise <= 1:
        raise BadParameterError(
            f"cap {cap}, SLO {slo_ms:g} ms, noise {options.noise:g}: the cap must be within 1 and "
            f"{_LARGEST}, the SLO above 0, and the noise within 0 and 1"
        )
    device = Device(curve, _steps(options.slow), options.noise, options.seed)
    return Plant(options.model or options.curve or "", device, curve, cap, slo_ms / 1e3)


def _measured(options: SimulateOptions, manifest: Manifest) -> LatencyCurve:
    """Of the model, or with ``model@length`` at a length of its inputs."""
    length = (options.model or "").partition("@")[2]
    longest = str(max((spec.max_length for spec in manifest.input), default=0))
    if length in {"", longest}:
        return manifest.curve
    times = manifest.shorter_latency_ms.get(length)
    if times is None:
        known = ", ".join([*manifest.shorter_latency_ms, longest])
        raise BadParameterError(
            f"model {options.model!r}: no times of length {length!r} are known, only of {known}"
        )
    return LatencyCurve.measured((int(size), ms / 1e3) for size, ms in times.items())


def parse_curve(text: str, *, stepped: bool = False) -> LatencyCurve:
    """``2+0.25b``, a line in ms, or ``1:2.25,8:4``, a table of size:ms.

    Raises:
        BadParameterError: it is neither.
    """
    number = r"(\d+(?:\.\d*)?|\.\d+)"
    if line := re.fullmatch(rf"\s*{number}\s*\+\s*{number}\s*b\s*", text):
        alpha, beta = float(line[1]) / 1e3, float(line[2]) / 1e3
        if not alpha + beta > 0:
            raise BadParameterError(f"curve {text!r} takes no time at all; give milliseconds")
        sizes = tuple(2**n for n in range(DEFAULT_CAP.bit_length()))
        return LatencyCurve(sizes, tuple(alpha + beta * size for size in sizes), stepped)
    try:
        points = [(int(a), float(b) / 1e3) for a, b in (p.split(":") for p in text.split(","))]
        return LatencyCurve.measured(points, stepped=stepped)
    except ValueError as err:
        raise BadParameterError(
            f"curve {text!r} must be a line such as 2+0.25b, or sizes with their times such as "
            "1:2.25,8:4,32:10, in milliseconds"
        ) from err


def _steps(texts: tuple[str, ...]) -> tuple[tuple[float, float], ...]:
    steps: list[tuple[float, float]] = []
    for text in texts:
        try:
            begin, end, factor = (float(part) for part in text.split(":"))
        except ValueError as err:
            raise BadParameterError(
                f"slow {text!r} must be FROM:TO:FACTOR, such as 10:20:2 for twice as slow from "
                "second 10 to 20"
            ) from err
        if not (0 <= begin < end and 0 < factor < math.inf):
            raise BadParameterError(
                f"slow {text!r}: FROM must be before TO, and FACTOR above 0 and finite"
            )
        steps += [(begin, factor), (end, 1.0)]
    return tuple(sorted(steps))


def workload(options: SimulateOptions) -> Workload:
    """The arrivals of a question.

    Raises:
        BadParameterError: too little is said, or an amount is not positive.
        InputFileError: the trace cannot be read.
    """
    said = {
        "--rate": options.rate, "--cameras": options.cameras, "--trace": options.trace,
    }  # fmt: skip
    given = [name for name, value in said.items() if value is not None]
    if len(given) > 1:
        raise BadParameterError(f"{' and '.join(given)} are different loads; give one of them")
    if not given and options.arrivals is None:
        raise BadParameterError(
            "no load is given: one of --rate (requests a second), --cameras (with --fps) and "
            "--trace (a file) is needed"
        )
    kind = options.arrivals or (
        "cameras" if options.cameras is not None else "trace" if options.trace else "poisson"
    )
    if options.requests < 100:
        raise BadParameterError(f"{options.requests} requests say nothing; simulate at least 100")
    if kind == "cameras":
        return _cameras(options)
    if kind == "trace":
        return _trace(options)
    if options.rate is None or not (options.rate > 0 and math.isfinite(options.rate)):
        raise BadParameterError(f"{kind} arrivals need --rate, requests a second above 0")
    model = {
        "poisson": models.poisson, "mmpp": models.mmpp, "diurnal": models.diurnal,
        "pareto": models.pareto, "bursts": models.bursts,
    }[kind]  # fmt: skip

    def make(rate: float, requests: int, seconds: float) -> Arrivals:
        count = max(requests, min(math.ceil(rate * seconds), most))
        return model(rate, count, options.seed)

    period_s, peak = _PERIODS.get(kind, (0.0, 1.0))
    most = MOST_OF_PERIODS if period_s else MOST_REQUESTS
    return Workload(
        options.rate, "requests/s", whole=False, make=make, period_s=period_s, peak=peak
    )


def _cameras(options: SimulateOptions) -> Workload:
    if options.cameras is None:
        raise BadParameterError("camera arrivals need --cameras, their number")

    def make(count: float, requests: int, seconds: float) -> Arrivals:
        setup = Cameras(
            int(count),
            options.fps,
            window_s=None if options.window_ms is None else options.window_ms / 1e3,
            jitter_s=options.jitter_ms / 1e3,
            drift_ppm=options.drift_ppm,
            dropout=options.dropout,
        )
        rate = max(1e-9, count * options.fps)
        seconds = max(requests / rate, min(seconds, MOST_REQUESTS / rate))
        return models.cameras(setup, seconds, options.seed)

    each = options.fps * (1 - options.dropout)
    return Workload(options.cameras, "cameras", whole=True, make=make, each=each)


def _trace(options: SimulateOptions) -> Workload:
    if options.trace is None:
        raise BadParameterError("recorded arrivals need --trace, a file of arrival times")
    recorded = read_recorded(options.trace)

    def make(speed: float, _requests: int, _seconds: float) -> Arrivals:
        return Arrivals(recorded.times / speed, recorded.sources)

    each = recorded.rate if len(recorded.times) > 1 else 0.0
    return Workload(1.0, TRACE, whole=False, make=make, each=each)
