"""What every test gets: a clean environment, a private mosquitto on demand, the `gpu` marker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.doubles.broker import Mosquitto

# No deadline and no complaint about slow data: a loaded two-core machine must not fail a property.
settings.register_profile(
    "edged", max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("edged")

# What a service manager, a shell or the Makefile may have set; a test sets what it needs itself.
_FOREIGN_NAMES = ("CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_GPU_NODES = ("/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/nvgpu/igpu0")


@pytest.fixture(scope="session", autouse=True)
def _clean_environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name in _FOREIGN_NAMES or (
                name.startswith("EDGED_") and name != "EDGED_REQUIRE_GPU"
            ):
                patch.delenv(name)
        yield


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    """A running mosquitto on a free loopback port; a missing one fails the test."""
    with Mosquitto(tmp_path / "mosquitto") as running:
        yield running


def _why_no_gpu() -> str:
    if not any(Path(node).exists() for node in _GPU_NODES):
        return f"no NVIDIA GPU: none of {', '.join(_GPU_NODES)} exists"
    if not any(find_spec(name) for name in ("tensorrt", "tensorrt_rtx")):
        return "neither tensorrt nor tensorrt_rtx can be imported"
    return ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips `gpu` tests where there is none; with EDGED_REQUIRE_GPU=1 fails them instead."""
    if item.get_closest_marker("gpu") is None:
        return
    reason = _why_no_gpu()
    if reason and os.environ.get("EDGED_REQUIRE_GPU") == "1":
        pytest.fail(f"EDGED_REQUIRE_GPU=1, but {reason}", pytrace=False)
    if reason:
        pytest.skip(reason)
