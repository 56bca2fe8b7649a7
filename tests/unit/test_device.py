"""What a device is, read from trees of files as real machines have them."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from edged.device import nvml_gpus, read_device


def _tree(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return root


def test_a_jetson_is_recognised(tmp_path: Path) -> None:
    """Board from the device tree (ends in NUL), L4T from its release file, memory in bytes."""
    root = _tree(
        tmp_path,
        {
            "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 22.04.5 LTS"\n',
            "etc/nv_tegra_release": "# R36 (release), REVISION: 4.0, GCID: 37537400",
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Kit\0",
            "proc/meminfo": "MemTotal:        7802192 kB\nMemFree:  1 kB\n",
        },
    )

    device = read_device(root)

    assert device.is_jetson
    assert device.board == "NVIDIA Jetson Orin Nano Engineering Reference Kit"
    assert device.l4t == "36.4.0"
    assert device.os == "Ubuntu 22.04.5 LTS"
    assert device.memory_bytes == 7802192 * 1024
    assert device.driver is None


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19", "535.104.05"),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build",
            "570.86.15",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.00  Release", "580.00"),
    ],
)
def test_the_driver_version_is_read(version: str, expected: str, tmp_path: Path) -> None:
    """Both kernel modules of NVIDIA, the closed one and the open one, are understood."""
    root = _tree(tmp_path, {"proc/driver/nvidia/version": f"{version}\nGCC version: 12.2\n"})

    assert read_device(root).driver == expected


def test_other_boards_with_a_device_tree_are_no_jetson(tmp_path: Path) -> None:
    """A Raspberry Pi has a board name too."""
    root = _tree(tmp_path, {"proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0"})

    assert read_device(root).board == "Raspberry Pi 5 Model B Rev 1.0"
    assert not read_device(root).is_jetson


def test_what_cannot_be_found_out_is_none(tmp_path: Path) -> None:
    """Neither missing files nor unreadable ones become 0, an empty text, or an exception."""
    (tmp_path / "etc/os-release").mkdir(parents=True)
    device = read_device(_tree(tmp_path, {"proc/meminfo": "\x00\xff nonsense"}))

    assert (device.os, device.memory_bytes, device.board) == (None, None, None)
    assert (device.l4t, device.driver, device.is_jetson) == (None, None, False)


def test_this_machine_has_an_architecture_processors_and_memory() -> None:
    """On the real root the general fields are known."""
    device = read_device()

    assert device.arch == platform.machine()
    assert device.cpus == os.cpu_count()
    assert device.memory_bytes is not None
    assert device.memory_bytes > 2**20


def test_gpus_are_none_where_nvml_cannot_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A binding whose library is missing fails at nvmlInit; that is unknown, not zero GPUs."""
    (tmp_path / "pynvml.py").write_text("def nvmlInit():\n    raise OSError('no libnvidia-ml')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "pynvml", raising=False)

    assert nvml_gpus() is None
