"""Load, heat and power from a made-up file system; what is not there is None."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.device_load import DeviceLoad, EnergyMeter, read_load
from edged.gpu_load import GpuLoad


def put(root: Path, name: str, text: str) -> None:
    """Writes a file of the made-up system."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="ascii")


def test_nothing_to_read_is_none_and_not_zero(tmp_path: Path) -> None:
    """An empty file system has no memory, no heat and no power that could be told."""
    load = read_load(tmp_path)

    assert load.memory_used_bytes is None
    assert load.process_bytes is None
    assert load.temperature_c is None
    assert load.power_w is None


def test_garbage_is_none(tmp_path: Path) -> None:
    """Files that hold something else, as drivers may give them."""
    put(tmp_path, "proc/meminfo", "MemTotal\nMemAvailable: lots kB\n")
    put(tmp_path, "proc/self/statm", "x")
    put(tmp_path, "sys/class/thermal/thermal_zone0/type", "gpu-thermal\n")
    put(tmp_path, "sys/class/thermal/thermal_zone0/temp", "-256000\n")

    load = read_load(tmp_path)

    assert (load.memory_total_bytes, load.process_bytes, load.temperature_c) == (None, None, None)


def test_a_jetson(tmp_path: Path) -> None:
    """The board's rail in millivolts and milliamperes; its GPU as it was looked at."""
    put(tmp_path, "proc/meminfo", "MemTotal: 1000 kB\nMemAvailable: 400 kB\n")
    put(tmp_path, "sys/class/thermal/thermal_zone0/type", "gpu-thermal\n")
    put(tmp_path, "sys/class/thermal/thermal_zone0/temp", "48500\n")
    put(tmp_path, "sys/class/hwmon/hwmon3/in1_label", "VDD_IN\n")
    put(tmp_path, "sys/class/hwmon/hwmon3/in1_input", "5000\n")
    put(tmp_path, "sys/class/hwmon/hwmon3/curr1_input", "1500\n")
    gpu = GpuLoad("gpu.0", 0.437)

    load = read_load(tmp_path, [gpu])

    assert load.memory_used_bytes == 600 * 1024
    assert load.temperature_c == {"gpu-thermal": 48.5}
    assert load.power_w == 7.5
    assert load.gpus == (gpu,)
    assert read_load(tmp_path).gpus is None


def test_this_machine() -> None:
    """A real Linux has memory, and this process uses some of it."""
    load = read_load()

    assert load.memory_total_bytes is not None
    assert load.process_bytes is not None
    assert 0 < load.process_bytes < load.memory_total_bytes


def loaded(power_w: float | None, *energy_j: float | None) -> DeviceLoad:
    """A device with these readings."""
    gpus = tuple(GpuLoad("gpu", energy_j=each) for each in energy_j)
    return DeviceLoad(None, None, None, None, None, None, power_w, gpus or None)


@pytest.mark.parametrize(
    ("before", "after", "samples", "expected"),
    [
        (loaded(None, 10.0, 1.0), loaded(None, 30.0, 2.0), 7, 3.0),
        (loaded(4.0), loaded(6.0), 10, 1.0),
        (loaded(None, 10.0, None), loaded(None, 30.0, None), 7, None),
        (loaded(None), loaded(6.0), 10, None),
        (loaded(4.0), loaded(6.0), 0, None),
    ],
)
def test_joules_for_a_sample(
    before: DeviceLoad, after: DeviceLoad, samples: int, expected: float | None
) -> None:
    """Counters of all GPUs, else the board's power; unknown, or nothing answered, is None."""
    meter = EnergyMeter()

    assert meter.read(0.0, 100, before) is None
    assert meter.read(2.0, 100 + samples, after) == expected
