"""The load of the warm-up is what a device's utilisation is tested with."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from edged.gpu_load import GpuLoad
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
    """A GPU of which others use 40 %, and the warm-up all.

    Attributes:
        warming: whether an engine is being warmed.
    """

    def __init__(self) -> None:
        self.warming = True
        self._looks = threading.Semaphore(0)

    def read(self) -> GpuLoad:
        """One look."""
        if self.warming:
            return GpuLoad(utilisation=1.0)
        self._looks.release()
        return GpuLoad(utilisation=0.4)

    def wait_looks(self) -> None:
        """Until the tuner has looked so often."""
        for _ in range(LOOKS):
            assert self._looks.acquire(timeout=PATIENCE_S)


def test_the_warm_up_shows_that_a_utilisation_moves(tmp_path: Path) -> None:
    """Then the share of others is believed at the first idle second, and makes it dearer."""
    install(tmp_path)
    room = WaitingRoom({}, Admission(100).refusal)
    gpu = Neighbour()
    notice = Notice(lambda _event: None, lambda: None, lambda _where, _done, _total: None)
    host = ScriptedHost(tmp_path, ("cpu:0",))
    devices = Devices(host, room, Metrics(), notice, RETRY_S, lambda: {"cpu:0": gpu})
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
