"""How much memory a build may take on this device."""

from __future__ import annotations

from pathlib import Path

from edged.device import DeviceInfo

_MEMINFO = Path("/proc/meminfo")
_SMALL = 8 << 30
_SMALL_WORKSPACE = 1 << 30
_CHILD_SHARE = 0.8


def available_bytes(meminfo: Path = _MEMINFO) -> int | None:
    """Memory that new programs can have without swapping, as the kernel estimates it.

    On a Jetson CUDA's own figure leaves out what the page cache would give back, so this one is
    taken there too. None where it cannot be read.
    """
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    found = [line.split() for line in lines if line.startswith("MemAvailable:")]
    return int(found[0][1]) * 1024 if found and found[0][1].isdigit() else None


def workspace_bytes(
    wanted_mib: int | None, device: DeviceInfo, available: int | None
) -> int | None:
    """Scratch memory for the layers of an engine.

    A Jetson's GPU shares the memory with the processor and with the service: a quarter of what is
    free, and at most 1 GiB on boards of up to 8 GB. A GPU with memory of its own has no limit but
    that.

    Args:
        wanted_mib: the recipe's ``workspace_mib``.
        device: this one.
        available: from `available_bytes`.

    Returns:
        Bytes; None: TensorRT's own limit, all memory of the device.
    """
    if wanted_mib is not None:
        return wanted_mib << 20
    if not device.is_jetson or available is None:
        return None
    quarter = available // 4
    small = device.memory_bytes is not None and device.memory_bytes <= _SMALL
    return min(quarter, _SMALL_WORKSPACE) if small else quarter


def child_memory_bytes(available: int | None) -> int | None:
    """Resident memory at which the builder is ended, before the kernel has to choose: 80 %."""
    return None if available is None else int(available * _CHILD_SHARE)
