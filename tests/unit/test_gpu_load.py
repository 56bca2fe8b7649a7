"""How loaded a GPU is: sysfs trees of each SoC, NVML, and whether a utilisation is believed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edged.gpu_load import (
    UNKNOWN,
    Believed,
    DeviceLoad,
    JetsonSource,
    NoSource,
    NvmlSource,
    nvml_source,
    source_of,
)
from tests.doubles.jetson_tree import SOCS, JetsonTree


@pytest.mark.parametrize("soc", SOCS)
def test_every_soc_is_read(tmp_path: Path, soc: str) -> None:
    """Load where the SoC tells it; heat, its trip point, throttling and power mode on each."""
    tree = JetsonTree(tmp_path, soc)
    tree.set_load(375)
    tree.set_temperature(61.5)

    source = source_of("cuda:0", tmp_path)

    load = 0.375 if tree.soc.load else None
    assert source.read() == DeviceLoad(load, 61.5, 103.0, throttled=False, low_power=False)


@pytest.mark.parametrize("soc", SOCS)
def test_throttling_and_a_low_power_mode_are_seen(tmp_path: Path, soc: str) -> None:
    """A cooling device of the GPU that acts, and a clock limit below the highest clock."""
    tree = JetsonTree(tmp_path, soc)
    source = JetsonSource(tmp_path)
    tree.set_throttled(1)
    tree.set_clock_limit(tree.soc.clocks[1])

    seen = source.read()

    assert (seen.throttled, seen.low_power) == (True, True)


def test_what_is_not_there_or_nonsense_is_unknown(tmp_path: Path) -> None:
    """Neither an empty tree nor a garbled one gives a number."""
    assert not JetsonSource(tmp_path).found
    assert JetsonSource(tmp_path).read() == UNKNOWN
    tree = JetsonTree(tmp_path, "orin")
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.name != "type":
            path.write_bytes(b"\xff nonsense")

    assert JetsonSource(tree.root).read() == UNKNOWN


def test_a_cpu_has_no_source(tmp_path: Path) -> None:
    """Even on a Jetson: the load of its GPU says nothing about it."""
    JetsonTree(tmp_path, "orin")

    assert isinstance(source_of("cpu", tmp_path), NoSource)
    assert source_of("cpu", tmp_path).read() == UNKNOWN


def nvml(**replaced: Any) -> Any:
    """A driver's answers; a value that is an exception is raised."""
    answers = {
        "nvmlInit": None,
        "nvmlDeviceGetHandleByIndex": "gpu",
        "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=42),
        "nvmlDeviceGetTemperature": 66,
        "nvmlDeviceGetTemperatureThreshold": 92,
        "nvmlDeviceGetCurrentClocksThrottleReasons": 0x1,
        "nvmlDeviceGetEnforcedPowerLimit": 700000,
        "nvmlDeviceGetPowerManagementDefaultLimit": 700000,
    } | replaced

    def asked(value: Any) -> Any:
        def answer(*_arguments: Any) -> Any:
            if isinstance(value, Exception):
                raise value
            return value

        return answer

    functions = {name: asked(value) for name, value in answers.items()}
    return SimpleNamespace(
        **functions, NVML_TEMPERATURE_THRESHOLD_SLOWDOWN=1, NVML_TEMPERATURE_GPU=0
    )


def test_nvml_is_read() -> None:
    """Utilisation, heat, and clocks that are low for want of work are not throttled."""
    expected = DeviceLoad(0.42, 66, 92, throttled=False, low_power=False)

    assert NvmlSource(nvml(), "gpu").read() == expected


def test_nvml_sees_throttling_and_a_power_limit() -> None:
    """Thermal slowdown, and a limit below the default one."""
    hot = nvml(
        nvmlDeviceGetCurrentClocksThrottleReasons=0x20, nvmlDeviceGetEnforcedPowerLimit=350000
    )

    seen = NvmlSource(hot, "gpu").read()

    assert (seen.throttled, seen.low_power) == (True, True)


def test_what_nvml_does_not_support_is_unknown() -> None:
    """As on a Jetson Orin, whose driver answers so to most questions."""
    error = RuntimeError("Not Supported")
    mute = {name: error for name in vars(nvml()) if name.startswith("nvmlDeviceGet")}

    assert NvmlSource(nvml(**mute), "gpu").read() == UNKNOWN


def test_without_a_driver_or_that_gpu_there_is_no_nvml() -> None:
    """Whichever step fails."""
    assert nvml_source(0, lambda _name: nvml()) is not None
    assert nvml_source(0, lambda _name: nvml(nvmlInit=RuntimeError("no driver"))) is None
    missing = nvml(nvmlDeviceGetHandleByIndex=RuntimeError("no such GPU"))
    assert nvml_source(9, lambda _name: missing) is None


def test_a_utilisation_is_believed_once_it_moved_under_our_load() -> None:
    """One that shows zeros, or the same number whatever runs, never is."""
    for idle, busy, moved in ((0.0, 0.0, False), (1.0, 1.0, False), (0.02, 0.97, True)):
        believed = Believed()
        believed.sample(idle, busy=False)
        assert not believed.moved
        believed.sample(None, busy=True)
        believed.sample(busy, busy=True)
        assert believed.moved is moved
