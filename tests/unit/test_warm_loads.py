"""The load of the warm-up is what a device's utilisation is tested with."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from edged.gpu_load import GpuLoad, ProvenSource
from edged.metrics import Metrics
from edged.serve.admit import Admission
from edged.serve.batch import WaitingRoom
from edged.serve.devices import Devices, Notice
from edged.settings import TimerSettings
from tests.doubles.serving import MODEL
from tests.doubles.site import RETRY_S, ScriptedHost, install

PATIENCE_S = 30.0
LOOKS = 9
"""The fifth and later ones see a device that has been idle for a second."""


class Neighbour:
    """A GPU of which others use 40 %, and the warm-up all, unless its driver says otherwise.

    Attributes:
        warming: whether an engine is being warmed.

    Args:
        warm: utilisation while it is warmed.
        idle: at other times.
    """

    def __init__(self, warm: float = 1.0, idle: float = 0.4) -> None:
        self.warming = True
        self._warm, self._idle = warm, idle
        self._looks = threading.Semaphore(0)

    def read(self) -> GpuLoad:
        """One look."""
        if self.warming:
            return GpuLoad(utilisation=self._warm)
        self._looks.release()
        return GpuLoad(utilisation=self._idle, temperature_c=50.0)

    def wait_looks(self) -> None:
        """Until the tuner has looked so often."""
        for _ in range(LOOKS):
            assert self._looks.acquire(timeout=PATIENCE_S)


def test_the_warm_up_shows_that_a_utilisation_moves(tmp_path: Path) -> None:
    """Then the share of others is believed at the first idle second, and makes it dearer."""
    install(tmp_path)
    room = WaitingRoom({}, Admission(100).refusal)
    gpu = Neighbour()
    source = ProvenSource([gpu])
    notice = Notice(lambda _event: None, lambda: None, lambda _where, _done, _total: None)
    host = ScriptedHost(tmp_path, ("cpu:0",))
    devices = Devices(host, room, Metrics(), notice, RETRY_S, lambda: {"cpu:0": source})
    devices.load()
    gpu.warming = False
    devices.start(lambda _done: None)
    devices.start_tuning(TimerSettings(mode="balanced", tune=False))
    try:
        gpu.wait_looks()
    finally:
        devices.stop_tuning()

    assert room.timer_states(time.monotonic())[MODEL]["cpu:0"]["price"] > 2.0
    assert devices.loads()["cpu:0"]["load"] == 0.4


def test_a_utilisation_that_the_warm_up_does_not_move_is_unknown_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Telemetry has null for it, not 0; what else the source tells is taken."""
    install(tmp_path)
    room = WaitingRoom({}, Admission(100).refusal)
    notice = Notice(lambda _event: None, lambda: None, lambda _where, _done, _total: None)
    host = ScriptedHost(tmp_path, ("cpu:0",))
    gpu = Neighbour(warm=0.0, idle=0.0)
    sources = {"cpu:0": ProvenSource([gpu])}
    devices = Devices(host, room, Metrics(), notice, RETRY_S, lambda: sources)
    devices.load()
    gpu.warming = False
    devices.start(lambda _done: None)
    devices.start_tuning(TimerSettings(mode="balanced", tune=False))
    try:
        gpu.wait_looks()
    finally:
        devices.stop_tuning()

    load = devices.loads()["cpu:0"]
    assert (load["load"], load["temperature_c"]) == (None, 50.0)
    (said,) = (text for text in caplog.messages if "counts as unknown" in text)
    assert said == (
        "the utilisation of cpu:0 counts as unknown until it moves with a load: it was 0.00 idle "
        "and 0.00 under load"
    )
