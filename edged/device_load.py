"""How loaded, hot and throttled this device is now, and what it draws.

Read from /proc and sysfs, GPUs from NVML where its Python binding is installed (nvidia-ml-py), the
GPU of a Jetson from sysfs. What cannot be read is None, never 0.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path("/")
T = TypeVar("T")

JETSON_LOAD = (
    "sys/devices/gpu.0/load",
    "sys/devices/platform/gpu.0/load",
    "sys/devices/platform/bus@0/17000000.gpu/load",
    "sys/devices/platform/17000000.gpu/load",
)
"""Thousandths; which of them is there depends on the board and on JetPack's version."""
THROTTLE_REASONS = {
    0x04: "power_cap",
    0x08: "hardware_slowdown",
    0x20: "heat_software",
    0x40: "heat_hardware",
    0x80: "power_brake",
}
"""Bits of NVML's clocks event (throttle) reasons that slow a busy GPU down against its wish."""


@dataclass(frozen=True)
class GpuLoad:
    """One GPU. Each value is None where it cannot be read.

    Attributes:
        name: as NVML or the board calls it.
        load: share of the time in which it computed, 0 to 1.
        memory_used_bytes: of its own memory.
        memory_total_bytes: of its own memory; None on a Jetson, which shares the system's.
        temperature_c: degrees Celsius.
        power_w: watts.
        energy_j: joules since the driver was loaded.
        throttled: why it is slowed down; empty: it is not.
    """

    name: str
    load: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    energy_j: float | None = None
    throttled: tuple[str, ...] | None = None


@dataclass(frozen=True)
class DeviceLoad:
    """The device at one moment. Each value is None where it cannot be read.

    Attributes:
        cpu_load: processes that ran or waited for a processor, mean of a minute.
        memory_used_bytes: of the system's memory, caches not counted.
        memory_total_bytes: of the system's memory.
        process_bytes: resident memory of this process.
        temperature_c: name of a thermal zone -> degrees Celsius.
        power_w: watts of the whole board, where it has a sensor for that (Jetson).
        gpus: one entry a GPU; None where none can be asked.
    """

    cpu_load: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    process_bytes: int | None
    temperature_c: dict[str, float] | None
    power_w: float | None
    gpus: tuple[GpuLoad, ...] | None = None


def read_load(root: Path = ROOT) -> DeviceLoad:
    """Reads it; never raises.

    Args:
        root: root of the file system to read from.
    """
    memory = _memory(root)
    total, free = memory.get("MemTotal"), memory.get("MemAvailable")
    return DeviceLoad(
        cpu_load=_try(lambda: round(os.getloadavg()[0], 2)),
        memory_used_bytes=total - free if total is not None and free is not None else None,
        memory_total_bytes=total,
        process_bytes=_process_bytes(root),
        temperature_c=_temperatures(root),
        power_w=_board_power_w(root),
        gpus=_nvml_loads() or _jetson_loads(root),
    )


def joules(load: DeviceLoad) -> float | None:
    """Joules that the GPUs have used so far; None where not all of them count."""
    counts = [gpu.energy_j for gpu in load.gpus or ()]
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None


@dataclass
class EnergyMeter:
    """Joules for each sample that was answered, between two readings.

    From the GPUs' own counters where they have them, else from the board's power at both readings.
    It is what the device used meanwhile, idling included. Not thread-safe.
    """

    _last: tuple[float, int, DeviceLoad] | None = field(default=None)

    def read(self, now: float, samples: int, load: DeviceLoad) -> float | None:
        """Joules a sample since the last reading; None where unknown, or nothing was answered.

        Args:
            now: monotonic seconds.
            samples: answered so far.
            load: of this moment.
        """
        last, self._last = self._last, (now, samples, load)
        if last is None or samples <= last[1]:
            return None
        answered = samples - last[1]
        before, after = joules(last[2]), joules(load)
        if before is not None and after is not None:
            return round((after - before) / answered, 6)
        if last[2].power_w is not None and load.power_w is not None:
            mean_w = (last[2].power_w + load.power_w) / 2
            return round(mean_w * (now - last[0]) / answered, 6)
        return None


# ------------------------------------------------------------------ /proc and sysfs


def _try(read: Callable[[], T]) -> T | None:
    """What is read, or None: each file, binding and driver fails in a way of its own."""
    try:
        return read()
    except Exception:
        return None


def _number(path: Path) -> float | None:
    return _try(lambda: float(path.read_text(encoding="ascii")))


def _memory(root: Path) -> dict[str, int]:
    lines = _try(lambda: (root / "proc/meminfo").read_text(encoding="ascii").splitlines()) or []
    found = {}
    for line in lines:
        name, _, rest = line.partition(":")
        with contextlib.suppress(ValueError, IndexError):
            found[name] = int(rest.split()[0]) * 1024
    return found


def _process_bytes(root: Path) -> int | None:
    text = _try(lambda: (root / "proc/self/statm").read_text(encoding="ascii"))
    return _try(lambda: int((text or "").split()[1]) * os.sysconf("SC_PAGE_SIZE"))


def _temperatures(root: Path) -> dict[str, float] | None:
    found: dict[str, float] = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        name = _try((zone / "type").read_text)
        millidegrees = _number(zone / "temp")
        if name and millidegrees is not None and millidegrees > -100_000:  # a sensor that is off
            found[name.strip()] = round(millidegrees / 1000, 1)
    return found or None


def _board_power_w(root: Path) -> float | None:
    """Of the rail VDD_IN, which feeds a Jetson module whole (sensor INA3221)."""
    for label in sorted((root / "sys/class/hwmon").glob("hwmon*/in*_label")):
        if (_try(label.read_text) or "").strip() != "VDD_IN":
            continue
        number = label.name.removeprefix("in").removesuffix("_label")
        millivolts = _number(label.with_name(f"in{number}_input"))
        milliamperes = _number(label.with_name(f"curr{number}_input"))
        if millivolts is not None and milliamperes is not None:
            return round(millivolts * milliamperes / 1e6, 3)
    return None


def _jetson_loads(root: Path) -> tuple[GpuLoad, ...] | None:
    for name in JETSON_LOAD:
        thousandths = _number(root / name)
        if thousandths is not None:
            return (GpuLoad("gpu.0", load=round(thousandths / 1000, 3)),)
    return None


# ------------------------------------------------------------------ NVML


def _nvml_loads() -> tuple[GpuLoad, ...] | None:
    """All GPUs from NVML; None without its binding, its library, its driver, or a GPU."""
    nvml = _try(lambda: importlib.import_module("pynvml"))  # optional; the package nvidia-ml-py
    if nvml is None or _try(lambda: nvml.nvmlInit() or True) is None:
        return None
    try:
        count = _try(nvml.nvmlDeviceGetCount) or 0
        loads = [_try(lambda n=n: _nvml_load(nvml, n)) for n in range(count)]  # type: ignore[misc]  # a lambda's default
        return tuple(load for load in loads if load is not None) or None
    finally:
        _try(nvml.nvmlShutdown)


def _nvml_load(nvml: Any, number: int) -> GpuLoad:
    handle = nvml.nvmlDeviceGetHandleByIndex(number)
    name = nvml.nvmlDeviceGetName(handle)
    memory = _try(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    busy = _try(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    milliwatts = _try(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
    millijoules = _try(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    reasons = _try(lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
    return GpuLoad(
        name=name.decode() if isinstance(name, bytes) else str(name),
        load=None if busy is None else busy / 100,
        memory_used_bytes=getattr(memory, "used", None),
        memory_total_bytes=getattr(memory, "total", None),
        temperature_c=_try(lambda: float(nvml.nvmlDeviceGetTemperature(handle, 0))),
        power_w=None if milliwatts is None else milliwatts / 1000,
        energy_j=None if millijoules is None else millijoules / 1000,
        throttled=None if reasons is None else throttle_reasons(reasons),
    )


def throttle_reasons(bits: int) -> tuple[str, ...]:
    """NVML's bits as words."""
    return tuple(word for bit, word in THROTTLE_REASONS.items() if bits & bit)
