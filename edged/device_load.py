"""How loaded, hot and throttled this device is now, and what it draws.

Read from /proc and sysfs; GPUs are looked at by `edged.gpu_load`. What cannot be read is None,
never 0.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from edged.gpu_load import GpuLoad

ROOT = Path("/")
T = TypeVar("T")


@dataclass(frozen=True)
class DeviceLoad:
    """The device at one moment. Each value is None where it cannot be read.

    Attributes:
        cpu_load: processes that ran or waited for a processor, mean of a minute.
        memory_used_bytes: of the system's memory, caches not counted.
        memory_total_bytes: of the system's memory.
        process_bytes: resident memory of this process.
        process_cpu_s: processor seconds that this process has used, user and system mode.
        temperature_c: name of a thermal zone -> degrees Celsius.
        power_w: watts of the whole board, where it has a sensor for that (Jetson).
        gpus: one entry a GPU; None where none can be asked.
    """

    cpu_load: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    process_bytes: int | None
    process_cpu_s: float | None
    temperature_c: dict[str, float] | None
    power_w: float | None
    gpus: tuple[GpuLoad, ...] | None = None


def read_load(root: Path = ROOT, gpus: Sequence[GpuLoad] = ()) -> DeviceLoad:
    """Reads it; never raises.

    Args:
        root: root of the file system to read from.
        gpus: looks at the GPUs, of this moment.
    """
    memory = _memory(root)
    total, free = memory.get("MemTotal"), memory.get("MemAvailable")
    return DeviceLoad(
        cpu_load=_try(lambda: round(os.getloadavg()[0], 2)),
        memory_used_bytes=total - free if total is not None and free is not None else None,
        memory_total_bytes=total,
        process_bytes=_process_bytes(root),
        process_cpu_s=_try(lambda: round(time.process_time(), 3)),
        temperature_c=_temperatures(root),
        power_w=_board_power_w(root),
        gpus=tuple(gpus) or None,
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
