"""How loaded a GPU is: sysfs trees of each SoC, NVML, and whether a utilisation is believed."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edged.gpu_load import (
    UNKNOWN,
    GpuLoad,
    JetsonSource,
    NvmlSource,
    Proof,
    ProvenSource,
    all_sources,
    open_sources,
    throttle_reasons,
)
from tests.doubles.jetson_tree import SOCS, JetsonTree


@pytest.mark.parametrize("soc", SOCS)
def test_every_soc_is_read(tmp_path: Path, soc: str) -> None:
    """Load where the SoC tells it; heat, its trip point, throttling and power mode on each."""
    tree = JetsonTree(tmp_path, soc)
    tree.set_load(375)
    tree.set_temperature(61.5)

    source = JetsonSource(tmp_path)

    load = 0.375 if tree.soc.load else None
    assert source.read() == GpuLoad("gpu.0", load, 61.5, 103.0, throttled=False, low_power=False)


@pytest.mark.parametrize("soc", SOCS)
def test_throttling_and_a_low_power_mode_are_seen(tmp_path: Path, soc: str) -> None:
    """A cooling device of the GPU that acts, and a clock limit below the highest clock."""
    tree = JetsonTree(tmp_path, soc)
    source = JetsonSource(tmp_path)
    tree.set_throttled(1)
    tree.set_clock_limit(tree.soc.clocks[0])

    seen = source.read()

    assert (seen.throttled, seen.low_power) == (True, True)
    tree.set_throttled(0)
    assert not source.read().throttled
    tree.set_overcurrent(1)
    assert source.read().throttled


def test_what_appears_after_the_start_is_found(tmp_path: Path) -> None:
    """A service may start before the GPU's driver; a Jetson is known by its release file."""
    release = tmp_path / "etc/nv_tegra_release"
    release.parent.mkdir()
    release.write_text("# R36 (release), REVISION: 4.0")
    source = JetsonSource(tmp_path)
    assert source.found
    assert source.read() == GpuLoad("gpu.0")
    JetsonTree(tmp_path, "orin").set_load(375)

    seen = source.read()

    assert (seen.utilisation, seen.temperature_c, seen.low_power) == (0.375, 45.0, False)


def test_a_gpu_whose_power_rail_is_off_is_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its driver answers so by an error; any other error is not known."""
    JetsonTree(tmp_path, "orin")
    source = JetsonSource(tmp_path)
    read = Path.read_text
    for code, utilisation in ((errno.EAGAIN, 0.0), (errno.EINVAL, 0.0), (errno.EIO, None)):

        def refuse(path: Path, code: int = code, **options: Any) -> str:
            if path.name == "load":
                raise OSError(code, "no")
            return read(path, **options)

        monkeypatch.setattr(Path, "read_text", refuse)
        assert source.read().utilisation == utilisation


def test_what_is_not_there_or_nonsense_is_unknown(tmp_path: Path) -> None:
    """Neither an empty tree nor a garbled one gives a number."""
    assert not JetsonSource(tmp_path).found
    nothing = GpuLoad("gpu.0")
    assert JetsonSource(tmp_path).read() == nothing
    tree = JetsonTree(tmp_path, "orin")
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.name != "type":
            path.write_bytes(b"\xff nonsense")

    assert JetsonSource(tree.root).read() == nothing


def test_a_cpu_has_no_source(tmp_path: Path) -> None:
    """Even on a Jetson: the load of its GPU says nothing about it."""
    JetsonTree(tmp_path, "orin")

    assert "cpu" not in all_sources(tmp_path)
    assert ProvenSource(()).read(busy=True) == UNKNOWN
    assert ProvenSource(()).doubt() == ""


def nvml(**replaced: Any) -> Any:
    """A driver's answers; a value that is an exception is raised."""
    answers = {
        "nvmlInit": None,
        "nvmlDeviceGetCount": 1,
        "nvmlDeviceGetName": b"GPU",
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=3, total=8),
        "nvmlDeviceGetPowerUsage": 250_000,
        "nvmlDeviceGetTotalEnergyConsumption": 9_000,
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
    expected = GpuLoad(
        name="GPU",
        utilisation=0.42,
        temperature_c=66,
        trip_c=92,
        throttled=False,
        low_power=False,
        memory_used_bytes=3,
        memory_total_bytes=8,
        power_w=250.0,
        energy_j=9.0,
        reasons=(),
    )

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


def test_a_power_cap_is_a_reason_but_no_throttling() -> None:
    """A busy GPU that is sound runs into its power limit, which costs latency nothing new."""
    capped = NvmlSource(nvml(nvmlDeviceGetCurrentClocksThrottleReasons=0x4), "gpu").read()

    assert (capped.reasons, capped.throttled) == (("power_cap",), False)
    assert throttle_reasons(0x1) == ()
    assert throttle_reasons(0x4 | 0x40) == ("power_cap", "heat_hardware")


def modules(**known: Any) -> Callable[[str], Any]:
    """Imports these; any other is not installed. Dots are underscores."""

    def load(name: str) -> Any:
        try:
            return known[name.replace(".", "_")]
        except KeyError:
            raise ModuleNotFoundError(name) from None

    return load


def test_without_a_driver_or_a_gpu_there_is_no_nvml(tmp_path: Path) -> None:
    """Whichever step fails."""
    broken = nvml(nvmlInit=RuntimeError("no driver"))
    missing = nvml(nvmlDeviceGetHandleByIndex=RuntimeError("no such GPU"))
    for found in ({}, {"pynvml": broken}, {"pynvml": missing}):
        assert dict(open_sources(tmp_path, modules(**found))) == {}
    assert list(open_sources(tmp_path, modules(pynvml=nvml()))) == ["cuda:0"]


def cuda(*buses: str) -> Any:
    """The driver's binding: GPUs in CUDA's order, by their PCI bus ids."""

    class Device:
        def __init__(self, number: int) -> None:
            self.number = number

        @staticmethod
        def count() -> int:
            return len(buses)

        def pci_bus_id(self) -> str:
            return buses[self.number]

    return SimpleNamespace(init=lambda: None, Device=Device)


def test_a_device_is_the_gpu_that_cuda_calls_so(tmp_path: Path) -> None:
    """CUDA may see others than NVML, or in another order; unknown to NVML, the order counts."""
    driver = nvml(nvmlDeviceGetCount=2)
    driver.nvmlDeviceGetHandleByIndex = lambda number: f"index {number}"
    driver.nvmlDeviceGetHandleByPciBusId = {b"0000:3b:00.0": "second"}.__getitem__
    driver.nvmlDeviceGetName = str

    def names(*buses: str) -> dict[str, str | None]:
        load = modules(pynvml=driver, pycuda_driver=cuda(*buses))
        return {name: source.read().name for name, source in open_sources(tmp_path, load).items()}

    assert names("0000:3b:00.0") == {"cuda:0": "second"}
    assert names("?", "0000:3b:00.0") == {"cuda:1": "second"}
    assert names("?") == {"cuda:0": "index 0", "cuda:1": "index 1"}
    assert names() == {"cuda:0": "index 0", "cuda:1": "index 1"}


def prove(source: ProvenSource, tree: JetsonTree, driver: Any, *, busy: int, load: int) -> None:
    """An idle look, then one while an engine is warmed: NVML's percent, sysfs' per mille."""
    for working in (False, True):
        tree.set_load(load if working else 0)
        percent = SimpleNamespace(gpu=busy if working else 0)
        driver.nvmlDeviceGetUtilizationRates = lambda _handle, told=percent: told
        source.read(busy=working)


def test_on_a_jetson_nvml_fills_what_sysfs_does_not_know(tmp_path: Path) -> None:
    """Thor has no load in sysfs; an Orin's NVML says zero, and its sysfs is right."""
    for soc, busy, load in (("thor", 42, 0.42), ("orin", 0, 0.375)):
        tree = JetsonTree(tmp_path / soc, soc)
        driver = nvml(nvmlDeviceGetPowerUsage=0)

        found = open_sources(tmp_path / soc, modules(pynvml=driver))
        prove(found["cuda:0"], tree, driver, busy=busy, load=375)

        seen = found["cuda:0"].read()
        assert (list(found), seen.utilisation, seen.temperature_c) == (["cuda:0"], load, 45.0)
        assert (seen.energy_j, seen.power_w) == (9.0, None)


@pytest.mark.parametrize("soc", SOCS)
def test_each_source_is_taken_only_if_it_moves_under_our_load(tmp_path: Path, soc: str) -> None:
    """Of a stuck sysfs node and an NVML that moves the latter is, and the other way round.

    Where neither moves the utilisation is unknown, and it is said what was seen; heat, throttling
    and the power mode need no such test.
    """
    for busy, load in ((60, 0), (0, 600), (0, 0)):
        tree = JetsonTree(tmp_path / f"{busy}-{load}", soc)
        driver = nvml()
        source = open_sources(tree.root, modules(pynvml=driver))["cuda:0"]
        assert source.read().utilisation is None
        prove(source, tree, driver, busy=busy, load=load)

        seen, moved = source.read(), bool(busy or (load and tree.soc.load))
        assert seen.utilisation == (0.6 if moved else None)
        assert source.proven is moved
        assert (source.doubt() == "") is moved
        assert (seen.temperature_c, seen.throttled, seen.low_power) == (45.0, False, False)
    assert source.doubt().startswith("it was 0.00 idle and 0.00 under load")


def test_the_gpus_are_opened_once(tmp_path: Path) -> None:
    """Whoever asks looks through the same sources."""
    JetsonTree(tmp_path, "orin")

    assert all_sources(tmp_path) is all_sources(tmp_path)
    assert list(all_sources(tmp_path)) == ["cuda:0"]


def test_a_utilisation_is_real_once_it_moved_under_our_load() -> None:
    """One that shows zeros, or the same number whatever runs, or no number, never is."""
    cases = ((0.0, 0.0, False), (1.0, 1.0, False), (0.02, 0.97, True), (0.0, math.nan, False))
    for idle, busy, moved in cases:
        proof = Proof()
        proof.sample(idle, busy=False)
        assert not proof.moved
        proof.sample(None, busy=True)
        proof.sample(busy, busy=True)
        assert proof.moved is moved
