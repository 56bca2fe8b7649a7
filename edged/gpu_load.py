"""How loaded, hot and throttled a GPU is: NVML on discrete GPUs, sysfs on a Jetson.

Both stand behind `LoadSource`, and nothing else in the package reads them. What cannot be read is
None, never 0: a Jetson Orin's NVML answers that utilisation is not supported, or with zeros; a Thor
may lack the node that older boards have. So on a Jetson sysfs is asked first, and NVML for each
value that it does not know. A utilisation is unknown until its source has moved under a load of our
own (`ProvenSource`).
"""

from __future__ import annotations

import errno
import functools
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

ROOT = Path("/")
MOVES = 0.1
"""A utilisation under load that exceeds the idle one by so much is taken to be a real one."""
LOAD_PATHS = (
    "sys/devices/platform/gpu.0/load",  # Orin, JetPack 6 and 7
    "sys/devices/platform/bus@0/17000000.gpu/load",
    "sys/devices/platform/17000000.gpu/load",
    "sys/devices/gpu.0/load",  # Xavier and Orin, JetPack 5
    "sys/devices/17000000.gv11b/load",
    "sys/devices/17000000.ga10b/load",
)
"""Utilisation in per mille; Thor has none of them."""
CHIPS = ("gpu", "gv11b", "ga10b", "gb10b")
"""One of them is in the name of the GPU's clock under ``/sys/class/devfreq``, as it is or as the
device tree has it: Xavier's, Orin's, Thor's."""
NO_GPU = "gpu-nvd"
"""Thor's video engines, whose clock stands beside that of the graphics engines."""
THERMAL = ("gpu-thermal", "gpu-therm")
"""Types of the GPU's thermal zone, in lower case."""
THROTTLE_REASONS = {
    0x04: "power_cap",
    0x08: "hardware_slowdown",
    0x20: "heat_software",
    0x40: "heat_hardware",
    0x80: "power_brake",
}
"""Bits of NVML's clock event (throttle) reasons that slow a busy GPU down against its wish
(``nvmlClocksEventReason...``)."""
POWER_CAP = 0x04
"""The one of them that is no throttling: a busy GPU that is sound runs into its power limit."""


@dataclass(frozen=True, slots=True)
class GpuLoad:
    """One look at a GPU; None: not known.

    Attributes:
        name: as NVML or the board calls it.
        utilisation: share of the last sampling period in which anybody's work ran, 0 to 1.
        temperature_c: of the GPU.
        trip_c: temperature at which it slows down or shuts off.
        throttled: whether its clocks are held back by heat or current.
        low_power: whether the power mode holds it below what the device can.
        memory_used_bytes: of its own memory.
        memory_total_bytes: of its own memory; None on a Jetson, which shares the system's.
        power_w: watts.
        energy_j: joules since the driver was loaded.
        reasons: words of `THROTTLE_REASONS`, the power limit among them; empty: not slowed down.
    """

    name: str | None = None
    utilisation: float | None = None
    temperature_c: float | None = None
    trip_c: float | None = None
    throttled: bool | None = None
    low_power: bool | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    power_w: float | None = None
    energy_j: float | None = None
    reasons: tuple[str, ...] | None = None


UNKNOWN = GpuLoad()


class LoadSource(Protocol):
    """Something that can look at one GPU."""

    def read(self) -> GpuLoad:
        """One look; takes milliseconds at most, and never raises."""


class NvmlSource:
    """One GPU through NVML's Python binding (the package nvidia-ml-py).

    Args:
        nvml: the binding, initialised.
        handle: NVML's handle of the GPU.
    """

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle

    def read(self) -> GpuLoad:
        """One look; what the driver does not support is None."""
        nvml, handle = self._nvml, self._handle
        bits = _ask(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        limit = _ask(nvml, "nvmlDeviceGetEnforcedPowerLimit", handle)
        usual = _ask(nvml, "nvmlDeviceGetPowerManagementDefaultLimit", handle)
        busy = _ask(nvml, "nvmlDeviceGetUtilizationRates", handle)
        slowdown = nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
        memory = _ask(nvml, "nvmlDeviceGetMemoryInfo", handle)
        name = _ask(nvml, "nvmlDeviceGetName", handle)
        return GpuLoad(
            name=name.decode() if isinstance(name, bytes) else name,
            utilisation=None if busy is None else busy.gpu / 100,
            temperature_c=_ask(nvml, "nvmlDeviceGetTemperature", handle, nvml.NVML_TEMPERATURE_GPU),
            trip_c=_ask(nvml, "nvmlDeviceGetTemperatureThreshold", handle, slowdown),
            throttled=None if bits is None else bool(throttle_reasons(bits & ~POWER_CAP)),
            low_power=None if limit is None or usual is None else limit < usual,
            memory_used_bytes=getattr(memory, "used", None),
            memory_total_bytes=getattr(memory, "total", None),
            power_w=_thousandth(_ask(nvml, "nvmlDeviceGetPowerUsage", handle)),
            energy_j=_thousandth(_ask(nvml, "nvmlDeviceGetTotalEnergyConsumption", handle)),
            reasons=None if bits is None else throttle_reasons(bits),
        )


def throttle_reasons(bits: int) -> tuple[str, ...]:
    """NVML's bits as words."""
    return tuple(word for bit, word in THROTTLE_REASONS.items() if bits & bit)


def _thousandth(value: int | None) -> float | None:
    """Of milliwatts or millijoules; a GPU that runs draws some, so 0 is a sensor that is none."""
    return value / 1000 if value else None


class JetsonSource:
    """The integrated GPU of a Jetson through sysfs; the paths differ by SoC and JetPack.

    Args:
        root: root of the file system to read from.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._load: Path | None = None
        self._zone: Path | None = None
        self._clock: Path | None = None
        self._alarms: list[Path] = []
        self._probe()

    def _probe(self) -> None:
        """Looks for what is not found yet: a service may start before the GPU's driver."""
        root = self._root
        clocks = sorted(root.glob("sys/class/devfreq/*")) if self._clock is None else ()
        self._clock = self._clock or next((p for p in clocks if _is_gpu(p)), None)
        beside = [self._clock / "device/load"] if self._clock else []
        paths = [*(root / path for path in LOAD_PATHS), *beside]
        self._load = self._load or next((p for p in paths if p.is_file()), None)
        zones = sorted(root.glob("sys/class/thermal/thermal_zone*")) if not self._zone else ()
        self._zone = self._zone or next((z for z in zones if _kind(z / "type") in THERMAL), None)
        if not self._alarms:
            cooling = sorted(root.glob("sys/class/thermal/cooling_device*"))
            self._alarms = [p / "cur_state" for p in cooling if "gpu" in _kind(p / "type")]
            for sensor in sorted(root.glob("sys/class/hwmon/hwmon*")):
                if _kind(sensor / "name") == "ina3221":
                    self._alarms += sorted(sensor.glob("curr*_alarm"))

    @property
    def found(self) -> bool:
        """Whether this is a Jetson: there is something to read, or will be."""
        known = any((self._load, self._zone, self._clock))
        return known or (self._root / "etc/nv_tegra_release").is_file()

    def read(self) -> GpuLoad:
        """One look."""
        if not (self._load and self._zone and self._clock and self._alarms):
            self._probe()
        heat = _number(self._zone / "temp") if self._zone else None
        states = [_number(alarm) for alarm in self._alarms]
        known = [state for state in states if state is not None]
        return GpuLoad(
            name="gpu.0",
            utilisation=self._utilisation(),
            temperature_c=None if heat is None else heat / 1000,
            trip_c=self._trip_c(),
            throttled=any(state > 0 for state in known) if known else None,
            low_power=self._held_back(),
        )

    def _utilisation(self) -> float | None:
        try:
            text = self._load.read_text(encoding="utf-8", errors="replace") if self._load else ""
            return min(float(text) / 1000, 1.0)
        except ValueError:
            return None
        except OSError as err:  # its power rail is off
            return 0.0 if err.errno in {errno.EAGAIN, errno.EINVAL} else None

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


class Proof:
    """Whether a utilisation is real: it has to be higher under a load of our own than without."""

    def __init__(self) -> None:
        self.idle: float | None = None
        self.busy: float | None = None

    def sample(self, utilisation: float | None, *, busy: bool) -> None:
        """A look, taken while our own work ran all the time, or not at all."""
        if utilisation is None or not math.isfinite(utilisation):
            return
        if busy:
            self.busy = utilisation if self.busy is None else max(self.busy, utilisation)
        else:
            self.idle = utilisation if self.idle is None else min(self.idle, utilisation)

    @property
    def moved(self) -> bool:
        """Whether it moved with our load."""
        known = self.idle is not None and self.busy is not None
        return known and (self.busy or 0.0) - (self.idle or 0.0) >= MOVES


class ProvenSource:
    """The sources of one GPU: each value is that of the first that knows it.

    A utilisation is unknown until its source has moved between an idle device and a load of our
    own: drivers answer with zeros, or with one number whatever runs, where they cannot tell.

    Args:
        sources: the one that is trusted most comes first; none: nothing can be known.
    """

    def __init__(self, sources: Sequence[LoadSource]) -> None:
        self._sources = tuple((source, Proof()) for source in sources)

    def read(self, *, busy: bool | None = None) -> GpuLoad:
        """One look at all of them.

        Args:
            busy: whether our own work kept the device busy for the sampling period; False: none of
                it ran; None: neither, so the look proves nothing.
        """
        looks = []
        for source, proof in self._sources:
            look = source.read()
            if busy is not None:
                proof.sample(look.utilisation, busy=busy)
            looks.append(look if proof.moved else replace(look, utilisation=None))
        found: dict[str, Any] = {}
        for field in fields(GpuLoad):
            values = (getattr(look, field.name) for look in looks)
            found[field.name] = next((value for value in values if value is not None), None)
        return GpuLoad(**found)

    @property
    def proven(self) -> bool:
        """Whether a utilisation has moved with our load."""
        return any(proof.moved for _, proof in self._sources)

    def doubt(self) -> str:
        """Why a utilisation that is told is not believed; "" if one is, or none is told at all."""
        told = [proof for _, proof in self._sources if proof.busy is not None]
        if self.proven or not told:
            return ""
        looks = (
            f"{'unknown' if proof.idle is None else f'{proof.idle:.2f}'} idle and "
            f"{proof.busy:.2f} under load"
            for proof in told
        )
        return f"it was {', '.join(looks)}"


@functools.cache
def all_sources(root: Path = ROOT) -> Mapping[str, ProvenSource]:
    """All GPUs that can be looked at, by device (``cuda:0``); opened once in a process.

    Args:
        root: root of the file system to read sysfs from.
    """
    return open_sources(root)


def open_sources(
    root: Path = ROOT, load: Callable[[str], Any] = importlib.import_module
) -> Mapping[str, ProvenSource]:
    """As `all_sources`, opened anew.

    Args:
        root: root of the file system to read sysfs from.
        load: imports a module; NVML's binding and pycuda are optional.
    """
    found: dict[str, LoadSource] = {
        f"cuda:{number}": NvmlSource(nvml, handle)
        for nvml, handles in [_nvml_handles(load)]
        for number, handle in enumerate(handles)
        if handle is not None
    }
    jetson = JetsonSource(root)
    if not jetson.found:
        return {device: ProvenSource([source]) for device, source in found.items()}
    return {"cuda:0": ProvenSource([jetson, *list(found.values())[:1]])}


def _nvml_handles(load: Callable[[str], Any]) -> tuple[Any, list[Any]]:
    """NVML's binding, initialised, and its handles of the GPUs in CUDA's order, as far as known.

    NVML counts all GPUs by their place on the bus; CUDA counts those that it may see, the fastest
    first or in the order of ``CUDA_VISIBLE_DEVICES``. Where CUDA cannot be asked, or names no GPU
    that NVML finds, as on a Jetson, NVML's order is taken.
    """
    try:
        nvml = load("pynvml")
        nvml.nvmlInit()
    except Exception:  # each binding and driver fails with a class of its own
        return None, []
    by_bus = [_ask(nvml, "nvmlDeviceGetHandleByPciBusId", bus) for bus in _cuda_buses(load)]
    if any(handle is not None for handle in by_bus):
        return nvml, by_bus
    count = _ask(nvml, "nvmlDeviceGetCount") or 0
    return nvml, [_ask(nvml, "nvmlDeviceGetHandleByIndex", number) for number in range(count)]


def _cuda_buses(load: Callable[[str], Any]) -> list[bytes]:
    """PCI bus ids of the GPUs that CUDA sees, in its order; empty without pycuda or a GPU."""
    try:
        driver = load("pycuda.driver")
        driver.init()
        count = driver.Device.count()
        return [driver.Device(number).pci_bus_id().encode() for number in range(count)]
    except Exception:  # no binding, no driver, no GPU: each fails with a class of its own
        return []


def _ask(nvml: Any, question: str, *arguments: Any) -> Any:
    """What NVML says, or None where it says that it cannot, or the binding has no such function."""
    try:
        return getattr(nvml, question)(*arguments)
    except Exception:  # NVMLError, in as many classes as there are codes
        return None


def _is_gpu(clock: Path) -> bool:
    names = f"{clock.name} {_kind(clock / 'device/of_node/name')}"
    return NO_GPU not in names and any(chip in names for chip in CHIPS)


def _kind(path: Path) -> str:
    return (_text(path) or "").rstrip("\0").lower()


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
