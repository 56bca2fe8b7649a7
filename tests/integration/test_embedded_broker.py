"""The embedded broker as a real child process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from edged.client import Endpoint, InferClient
from edged.embedded_broker import EmbeddedBroker
from edged.errors import BrokerError
from tests.doubles.responder import Responder


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """One embedded broker for all tests of this module that do not take it away."""
    with EmbeddedBroker(tmp_path_factory.mktemp("broker")) as running:
        yield running


def test_requests_and_replies_pass(broker: EmbeddedBroker) -> None:
    """A request with all its MQTT 5 properties reaches a device, and its answer comes back."""
    with (
        Responder(broker.host, broker.port),
        InferClient(Endpoint("double", broker.host, broker.port)) as client,
    ):
        result = client.infer("double", {"x": np.arange(3, dtype=np.int16)[np.newaxis]})
    assert result.outputs["x"].tolist() == [[0, 2, 4]]


def test_payload_of_12_megabytes_passes(broker: EmbeddedBroker) -> None:
    """Payloads far above rumqttd's default of 20 kB pass whole."""
    with (
        Responder(broker.host, broker.port),
        InferClient(Endpoint("double", broker.host, broker.port)) as client,
    ):
        big = np.arange(3_000_000, dtype=np.int32)[np.newaxis]
        result = client.infer("double", {"x": big}, timeout_s=60)
    np.testing.assert_array_equal(result.outputs["x"], big * 2)


def test_both_versions_share_one_broker(broker: EmbeddedBroker) -> None:
    """What is published with MQTT 5 is read with MQTT 3.1.1 on the other port."""
    common = ["-h", broker.host, "-t", "versions/test"]
    said = ["-p", str(broker.port), "-m", "hello", "-r", "-q", "1", *common]
    subprocess.run(["mosquitto_pub", "-V", "5", *said], check=True, timeout=20)
    read = subprocess.run(
        ["mosquitto_sub", "-V", "311", "-p", str(broker.port_v3), "-C", "1", "-W", "20", *common],
        check=True,
        capture_output=True,
        timeout=30,
    )
    assert read.stdout == b"hello\n"


def test_only_loopback_is_listened_on(broker: EmbeddedBroker) -> None:
    """Every listening socket of the broker is on 127.0.0.1."""
    assert broker.pid is not None
    listening = [
        connection.laddr.ip
        for connection in psutil.Process(broker.pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert sorted(listening) == ["127.0.0.1", "127.0.0.1"]


def test_stopping_frees_the_port_and_leaves_files_in_its_folder_only(tmp_path: Path) -> None:
    """After the block the process is gone, the port is free, and repr says so."""
    with EmbeddedBroker(tmp_path) as broker:
        pid = broker.pid
        assert "volatile" in repr(broker)
    assert pid is not None
    assert not psutil.pid_exists(pid)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((broker.host, broker.port))
    assert {path.name for path in tmp_path.iterdir()} == {"broker.toml", "broker.log"}
    assert "stopped" in repr(broker)
    broker.stop()


def test_taken_port_is_refused(tmp_path: Path) -> None:
    """A port that another program listens on is named, and nothing is left running."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        broker = EmbeddedBroker(tmp_path, port=port)
        with pytest.raises(BrokerError, match=f"port {port} .* is taken"):
            broker.start()
    assert broker.pid is None


_PARENT = """
import sys, time
from pathlib import Path
from edged.embedded_broker import EmbeddedBroker
broker = EmbeddedBroker(Path(sys.argv[1]))
broker.start()
print(broker.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_broker_dies_with_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    """However the parent ends, kill -9 included, the broker is gone soon after."""
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        os.kill(parent.pid, number)
        gone, alive = psutil.wait_procs([child], timeout=20)
        for process in alive:
            process.kill()
        assert gone
        parent.wait(20)


def test_ctrl_c_is_left_to_the_parent(broker: EmbeddedBroker) -> None:
    """SIGINT, which a terminal sends to every process, does not take the broker away."""
    assert broker.pid is not None
    os.kill(broker.pid, signal.SIGINT)
    with InferClient(Endpoint("double", broker.host, broker.port)) as client:
        assert client.status is None
    assert broker.pid is not None
