"""What this device is: processor, memory, board, L4T release, NVIDIA driver, GPUs.

Everything is read from files of the running system, the GPUs from NVML where its Python binding is
installed. What cannot be found out is None, never 0 or "".
"""

from __future__ import annotations

import importlib
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")


def dla_core(device: str) -> int | None:
    """Number of the deep learning accelerator that a device's name means; None: it is none.

    Args:
        device: ``cuda:N``, ``dla:N`` or ``cpu``.
    """
    return int(device.removeprefix("dla:")) if device.startswith("dla:") else None


def cuda_number(device: str) -> int:
    """Number of the CUDA device behind ``cuda:N`` or ``dla:N``.

    A DLA is driven through the GPU of its chip, and a Jetson has one GPU.
    """
    return 0 if dla_core(device) is not None else int(device.removeprefix("cuda:"))


@dataclass(frozen=True)
class DeviceInfo:
    """One device.

    Attributes:
        arch: machine type, e.g. ``aarch64``.
        os: name and version of the operating system.
        cpus: number of logical processors.
        memory_bytes: physical memory; on a Jetson the GPU shares it.
        board: model from the device tree, e.g. ``NVIDIA Jetson Orin Nano Developer Kit``.
        l4t: Jetson Linux release, e.g. ``36.4.0``.
        driver: version of the NVIDIA kernel driver.
        gpus: names of the GPUs as NVML lists them; None where NVML cannot be asked.
    """

    arch: str | None
    os: str | None
    cpus: int | None
    memory_bytes: int | None
    board: str | None
    l4t: str | None
    driver: str | None
    gpus: tuple[str, ...] | None

    @property
    def is_jetson(self) -> bool:
        """Whether this is a board of NVIDIA's Jetson family."""
        return self.l4t is not None or "jetson" in (self.board or "").lower()


def read_device(root: Path = ROOT) -> DeviceInfo:
    """Reads what this device is; never raises.

    Args:
        root: root of the file system to read from.
    """
    return DeviceInfo(
        arch=platform.machine() or None,
        os=_match(root / "etc/os-release", r'^PRETTY_NAME="?([^"\n]+)"?$'),
        cpus=os.cpu_count(),
        memory_bytes=_memory_bytes(root),
        board=_match(root / "proc/device-tree/model", r"\A([^\0]+)"),
        l4t=_l4t(root),
        driver=_match(root / "proc/driver/nvidia/version", r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s"),
        gpus=nvml_gpus(),
    )


def nvml_gpus() -> tuple[str, ...] | None:
    """Names of the GPUs from NVML; None without its binding, its library or its driver."""
    try:
        nvml = importlib.import_module("pynvml")  # optional; the package nvidia-ml-py
        nvml.nvmlInit()
    except Exception:  # each binding and driver fails with a class of its own
        return None
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(n) for n in range(nvml.nvmlDeviceGetCount())]
        names = [nvml.nvmlDeviceGetName(handle) for handle in handles]
        return tuple(n.decode() if isinstance(n, bytes) else str(n) for n in names)
    except Exception:  # a GPU that fell off the bus; unknown is not none
        return None
    finally:
        nvml.nvmlShutdown()


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _match(path: Path, pattern: str) -> str | None:
    found = re.search(pattern, _read(path) or "", re.MULTILINE)
    return found.group(1).strip() or None if found else None


def _memory_bytes(root: Path) -> int | None:
    kibibytes = _match(root / "proc/meminfo", r"^MemTotal:\s+(\d+) kB")
    return int(kibibytes) * 1024 if kibibytes else None


def _l4t(root: Path) -> str | None:
    """``# R36 (release), REVISION: 4.0, ...`` -> ``36.4.0``."""
    text = _read(root / "etc/nv_tegra_release") or ""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return f"{found.group(1)}.{found.group(2)}" if found else None
