"""The service on a GPU: TensorRT engines behind a real broker, swapped, killed, verified."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edged.build.pipeline import build_model
from edged.build_options import Precision
from tests.doubles import digits
from tests.doubles.broker import Mosquitto
from tests.doubles.daemon import TOPICS, Daemon, wait_online
from tests.doubles.rounds import Rounds
from tests.doubles.service import copy_model
from tests.doubles.wire import WireClient

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

IMAGES = digits.images()
NEAR = 0.05
"""Of the largest logit: FP16 sums and TF32 products differ between batch sizes."""


class Store:
    """``digits`` built with TensorRT, once for each precision; the last one is current."""

    def __init__(self, home: Path) -> None:
        self.engines, self.calib = copy_model("digits", home)
        self._references: dict[str, digits.Logits] = {}

    def build(self, precision: Precision) -> str:
        """Builds and installs; the version."""
        result = build_model(
            "digits", engines=self.engines, calib=self.calib, runner="tensorrt", precision=precision
        )
        version = result.engine.manifest.key[:12]
        self._references[version] = digits.logits(self.engines, IMAGES)
        return version

    def is_right(self, version: str, image: int, logits: digits.Logits) -> bool:
        """Whether this is what that version computes, alone, of the image."""
        wanted = self._references[version][image]
        return float(np.abs(wanted - logits).max()) <= NEAR * float(np.abs(wanted).max())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """With an FP32 engine."""
    made = Store(tmp_path_factory.mktemp("gpu-service"))
    made.build("fp32")
    return made


def test_it_serves_swaps_and_survives(store: Store, broker: Mosquitto, tmp_path: Path) -> None:
    """Warming is told, answers are right, and each request gets exactly one.

    SIGHUP takes over an FP16 engine between two batches; after kill -9 a new process goes on.
    """
    with WireClient(broker) as client, Daemon(tmp_path, store.engines, broker) as daemon:
        wait_online(client)
        states = [m.json() for m in client.messages(TOPICS.status) if m.payload]
        assert any(each["state"] == "warming" for each in states)
        rounds = Rounds(client, store.is_right)
        versions = rounds.ask()
        old = versions[0]
        new = store.build("fp16")
        daemon.signal(signal.SIGHUP)
        while versions[-1] == old:
            versions += rounds.ask()
        assert versions == sorted(versions, key=[old, new].index)

        daemon.kill()
        daemon.start()
        wait_online(client, boots=2)
        assert rounds.ask() == [new] * 8
        client.flush()
        assert rounds.answered_once()
        assert daemon.stop() == 0
        assert daemon.said("Traceback") == 0, daemon.log()


def test_verify_prints_the_table(store: Store) -> None:
    """``edged verify MODEL --device`` compares on this GPU and ends with 0."""
    ended = subprocess.run(
        [
            sys.executable, "-m", "edged", "verify", "digits", "--device", "cuda:0",
            "--engines", str(store.engines), "--calib", str(store.calib),
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "sqnr" in ended.stdout.lower()
    assert "passed" in ended.stdout.lower()
