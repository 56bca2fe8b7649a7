"""A device that can serve nothing still reports why, and hears what would mend it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.doubles.broker import Mosquitto
from tests.doubles.cloud import Cloud
from tests.doubles.daemon import TOPICS, Daemon, wait_online
from tests.doubles.wire import WireClient


def daemon(folder: Path, engines: Path, broker: Mosquitto) -> Daemon:
    """A service with an uplink to the broker of requests."""
    return Daemon(
        folder,
        engines,
        broker,
        uplink__enabled="true",
        outbox__path=str(folder / "outbox"),
        paths__desired=str(folder / "desired.json"),
    )


@pytest.fixture
def damaged(served_engines: Path, tmp_path: Path) -> Path:
    """The store with the only engine damaged."""
    engines = tmp_path / "engines"
    shutil.copytree(served_engines, engines, symlinks=True)
    for path in engines.rglob("engine.onnx"):
        path.write_bytes(path.read_bytes()[:-1])
    return engines


def test_a_device_whose_only_engine_is_refused_says_so(
    damaged: Path, broker: Mosquitto, tmp_path: Path
) -> None:
    """Exit code 69, and the control plane has the reason, and the settings of the device."""
    with Cloud(broker, TOPICS) as cloud:
        cloud.desire(1, log={"level": "debug"})
        with daemon(tmp_path, damaged, broker) as service:
            refused, *_ = cloud.wait_records("event", "model_refused")
            cloud.wait_reported(lambda document: document["applied_version"] == 1)

            assert service.process.wait(30) == os.EX_UNAVAILABLE
    assert "damaged" in str(refused.body)


@pytest.mark.parametrize(
    "section",
    [{"serve": {"devices": ["cuda:7"]}}, {"timer": {"mode": "9" * 400}}],
    ids=["a device that is not there", "a price without end"],
)
def test_what_would_end_the_service_for_good_is_refused(
    section: dict[str, dict[str, object]], served_engines: Path, broker: Mosquitto, tmp_path: Path
) -> None:
    """The document is rejected, the service goes on, and so does its next start."""
    with Cloud(broker, TOPICS) as cloud, WireClient(broker) as client:
        cloud.desire(1, **section)
        with daemon(tmp_path, served_engines, broker) as service:
            wait_online(client)
            cloud.wait_reported(lambda document: document["status"] == "rejected")
            assert service.stop() == 0
            service.start()
            wait_online(client, 2)
            assert service.stop() == 0
