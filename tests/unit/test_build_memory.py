"""How much memory a build takes, on a Jetson and elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edged.build.memory import available_bytes, child_memory_bytes, workspace_bytes
from edged.device import DeviceInfo

GIB = 1 << 30
DESKTOP = DeviceInfo("x86_64", None, 8, 32 * GIB, None, None, None, ("RTX",))
ORIN_NANO = replace(DESKTOP, arch="aarch64", memory_bytes=7 * GIB, l4t="36.4.0")
AGX = replace(ORIN_NANO, memory_bytes=61 * GIB)


def test_available_memory_is_the_kernels_estimate(tmp_path: Path) -> None:
    """From /proc/meminfo; what cannot be read is unknown."""
    file = tmp_path / "meminfo"
    file.write_text("MemTotal: 8000 kB\nMemFree: 10 kB\nMemAvailable:    4000 kB\n")
    assert available_bytes(file) == 4000 * 1024
    file.write_text("MemTotal: 8000 kB\n")
    assert available_bytes(file) is None
    assert available_bytes(tmp_path / "none") is None
    assert (available_bytes() or 0) > 0


def test_workspace_on_a_jetson_comes_from_the_free_memory() -> None:
    """A quarter, and at most 1 GiB on small boards; the service needs memory too."""
    assert workspace_bytes(None, ORIN_NANO, 2 * GIB) == GIB // 2
    assert workspace_bytes(None, ORIN_NANO, 6 * GIB) == GIB
    assert workspace_bytes(None, AGX, 40 * GIB) == 10 * GIB


def test_workspace_elsewhere_is_the_builders_own_or_the_recipes() -> None:
    """A GPU with memory of its own takes none of ours."""
    assert workspace_bytes(None, DESKTOP, 2 * GIB) is None
    assert workspace_bytes(None, ORIN_NANO, None) is None
    assert workspace_bytes(64, AGX, 40 * GIB) == 64 << 20


def test_child_may_take_most_of_what_is_free() -> None:
    """It is ended before the kernel has to choose whom."""
    assert child_memory_bytes(10 * GIB) == 8 * GIB
    assert child_memory_bytes(None) is None
