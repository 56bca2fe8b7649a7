"""How loaded, hot and throttled a GPU is: NVML on discrete GPUs, sysfs on a Jetson.

Both stand behind `LoadSource`. What cannot be read is None, never 0: a Jetson Orin's NVML answers
that utilisation is not supported, or with zeros; a Thor may lack the node that older boards have.
A utilisation is believed only once it has moved under a load of our own (`Believed`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

ROOT = Path("/")
MOVES = 0.1
"""A utilisation under load that exceeds the idle one by so much is taken to be a real one."""
LOAD_PATHS = (
    "sys/devices/platform/gpu.0/load",  # Orin, JetPack 5 and 6
    "sys/devices/platform/bus@0/17000000.gpu/load",  # Orin, newer kernels
    "sys/devices/platform/17000000.gpu/load",
    "sys/devices/gpu.0/load",  # Xavier
    "sys/devices/17000000.gv11b/load",
)
"""Utilisation in per mille; Thor has none of them."""
DEVFREQ = ("17000000.gpu", "17000000.ga10b", "17000000.gv11b", "gpu-gpc-0")
"""Names of the GPU's clock under ``/sys/class/devfreq``: Orin, Xavier, Thor."""
THERMAL = ("gpu-thermal", "gpu-therm")
"""Types of the GPU's thermal zone, in lower case."""
SLOWDOWN = 0x8 | 0x20 | 0x40 | 0x80
"""NVML's clock event reasons of a throttled GPU: hardware slowdown, software and hardware thermal
slowdown, power brake (``nvmlClocksEventReason...``)."""


@dataclass(frozen=True, slots=True)
class DeviceLoad:
    """One look at a GPU; None: not known.

    Attributes:
        utilisation: share of the last sampling period in which anybody's work ran, 0 to 1.
        temperature_c: of the GPU.
        trip_c: temperature at which it slows down or shuts off.
        throttled: whether its clocks are held back by heat or current.
        low_power: whether the power mode holds it below what the device can.
    """

    utilisation: float | None = None
    temperature_c: float | None = None
    trip_c: float | None = None
    throttled: bool | None = None
    low_power: bool | None = None


UNKNOWN = DeviceLoad()


class LoadSource(Protocol):
    """Something that can look at one GPU."""

    def read(self) -> DeviceLoad:
        """One look; takes milliseconds at most, and never raises."""


class NoSource:
    """For devices of which nothing can be known, such as the CPU."""

    def read(self) -> DeviceLoad:
        """Nothing."""
        return UNKNOWN


class NvmlSource:
    """One GPU through NVML's Python binding (the package nvidia-ml-py).

    Args:
        nvml: the binding, initialised.
        handle: NVML's handle of the GPU.
    """

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle

    def read(self) -> DeviceLoad:
        """One look; what the driver does not support is None."""
        nvml, handle = self._nvml, self._handle
        reasons = _ask(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        limit = _ask(nvml, "nvmlDeviceGetEnforcedPowerLimit", handle)
        usual = _ask(nvml, "nvmlDeviceGetPowerManagementDefaultLimit", handle)
        busy = _ask(nvml, "nvmlDeviceGetUtilizationRates", handle)
        slowdown = nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
        return DeviceLoad(
            utilisation=None if busy is None else busy.gpu / 100,
            temperature_c=_ask(nvml, "nvmlDeviceGetTemperature", handle, nvml.NVML_TEMPERATURE_GPU),
            trip_c=_ask(nvml, "nvmlDeviceGetTemperatureThreshold", handle, slowdown),
            throttled=None if reasons is None else bool(reasons & SLOWDOWN),
            low_power=None if limit is None or usual is None else limit < usual,
        )


class JetsonSource:
    """The integrated GPU of a Jetson through sysfs; the paths differ by SoC and JetPack.

    Args:
        root: root of the file system to read from.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self._load = next((p for path in LOAD_PATHS if (p := root / path).is_file()), None)
        self._zone = next(
            (
                zone
                for zone in sorted(root.glob("sys/class/thermal/thermal_zone*"))
                if (_text(zone / "type") or "").lower() in THERMAL
            ),
            None,
        )
        self._clock = next(
            (p for name in DEVFREQ if (p := root / "sys/class/devfreq" / name).is_dir()), None
        )
        self._cooling = [
            device
            for device in sorted(root.glob("sys/class/thermal/cooling_device*"))
            if "gpu" in (_text(device / "type") or "").lower()
        ]

    @property
    def found(self) -> bool:
        """Whether there is anything to read."""
        return any((self._load, self._zone, self._clock, self._cooling))

    def read(self) -> DeviceLoad:
        """One look."""
        load = _number(self._load)
        heat = _number(self._zone / "temp") if self._zone else None
        states = [_number(device / "cur_state") for device in self._cooling]
        known = [state for state in states if state is not None]
        return DeviceLoad(
            utilisation=None if load is None else min(load / 1000, 1.0),
            temperature_c=None if heat is None else heat / 1000,
            trip_c=self._trip_c(),
            throttled=any(state > 0 for state in known) if known else None,
            low_power=self._held_back(),
        )

    def _trip_c(self) -> float | None:
        """The lowest trip point at which something hard happens."""
        trips = []
        for kind in sorted(self._zone.glob("trip_point_*_type")) if self._zone else ():
            degrees = _number(kind.with_name(kind.name.replace("_type", "_temp")))
            if _text(kind) in {"hot", "critical"} and degrees is not None:
                trips.append(degrees / 1000)
        return min(trips, default=None)

    def _held_back(self) -> bool | None:
        """Whether the power mode's highest clock is below the device's."""
        if self._clock is None:
            return None
        steps = (_text(self._clock / "available_frequencies") or "").split()
        allowed = _number(self._clock / "max_freq")
        clocks = [int(step) for step in steps if step.isdigit()]
        return None if not clocks or allowed is None else allowed < max(clocks)


def source_of(device: str, root: Path = ROOT) -> LoadSource:
    """The best source for a device; one that knows nothing where there is none.

    Args:
        device: as ``serve.devices`` names it: ``cuda:0``, ``cpu``.
        root: root of the file system to read sysfs from.
    """
    if not device.startswith("cuda:"):
        return NoSource()
    jetson = JetsonSource(root)
    if jetson.found:
        return jetson
    return nvml_source(int(device.partition(":")[2])) or NoSource()


def nvml_source(
    index: int, load: Callable[[str], Any] = importlib.import_module
) -> NvmlSource | None:
    """NVML's source of a GPU; None without its binding, its driver or that GPU."""
    try:
        nvml = load("pynvml")
        nvml.nvmlInit()
        return NvmlSource(nvml, nvml.nvmlDeviceGetHandleByIndex(index))
    except Exception:  # each binding and driver fails with a class of its own
        return None


class Believed:
    """Whether a utilisation is real: it has to be higher under a load of our own than without."""

    def __init__(self) -> None:
        self._idle: float | None = None
        self._busy: float | None = None

    def sample(self, utilisation: float | None, *, busy: bool) -> None:
        """A look, taken while our own work ran all the time, or not at all."""
        if utilisation is None:
            return
        if busy:
            self._busy = utilisation if self._busy is None else max(self._busy, utilisation)
        else:
            self._idle = utilisation if self._idle is None else min(self._idle, utilisation)

    @property
    def moved(self) -> bool:
        """Whether it moved with our load."""
        known = self._idle is not None and self._busy is not None
        return known and (self._busy or 0.0) - (self._idle or 0.0) >= MOVES


def _ask(nvml: Any, question: str, *arguments: Any) -> Any:
    """What NVML says, or None where it says that it cannot, or the binding has no such function."""
    try:
        return getattr(nvml, question)(*arguments)
    except Exception:  # NVMLError, in as many classes as there are codes
        return None


def _text(path: Path | None) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() if path else None
    except OSError:
        return None


def _number(path: Path | None) -> float | None:
    try:
        return float(_text(path) or "")
    except ValueError:
        return None
