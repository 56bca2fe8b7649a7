"""`edged serve` from the wheel: ready, answering, draining, and an exit code that says why."""

from __future__ import annotations

import json
import queue
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edged.protocol import Topics
from tests.doubles.broker import Mosquitto
from tests.e2e.installed import Installed, folder_settings

TOPICS = Topics("edged/v1", "bench-7")
REPLY = TOPICS.reply("tester")
WAIT_S = 30.0


@dataclass(frozen=True)
class Reply:
    """One reply, as far as these tests look at it."""

    correlation: bytes
    status: str
    payload: bytes

    @classmethod
    def of(cls, message: mqtt.MQTTMessage) -> Reply:
        """Reads the MQTT 5 properties; one that is missing is an error."""
        properties: Any = message.properties
        status = dict(properties.UserProperty)["status"]
        return cls(properties.CorrelationData, status, bytes(message.payload))


@dataclass
class Client:
    """An independent MQTT 5 client: paho alone, none of edged's own client code."""

    link: mqtt.Client
    status: queue.Queue[dict[str, object]]
    replies: queue.Queue[Reply]

    def ask(self, body: bytes, correlation: bytes) -> None:
        """Publishes one JSON request for the digits model at QoS 1."""
        properties: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ResponseTopic = REPLY
        properties.CorrelationData = correlation
        properties.ContentType = "application/json"
        self.link.publish(TOPICS.infer("digits"), body, qos=1, properties=properties)

    def wait_state(self, state: str) -> dict[str, object]:
        """Waits until the device's retained status says this."""
        until = time.monotonic() + WAIT_S
        while True:
            document = self.status.get(timeout=max(0.01, until - time.monotonic()))
            if document["state"] == state:
                return document


@contextmanager
def connected(broker: Mosquitto) -> Iterator[Client]:
    """A client that has subscribed the device's status and its own reply topic."""
    link = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client = Client(link, queue.Queue(), queue.Queue())
    subscribed: queue.Queue[None] = queue.Queue()
    link.message_callback_add(
        TOPICS.status, lambda _, __, m: client.status.put(json.loads(m.payload))
    )
    link.message_callback_add(REPLY, lambda _, __, m: client.replies.put(Reply.of(m)))
    link.on_subscribe = lambda *_: subscribed.put(None)
    link.connect(broker.host, broker.port)
    link.loop_start()
    link.subscribe([(TOPICS.status, 1), (REPLY, 1)])
    subscribed.get(timeout=WAIT_S)
    try:
        yield client
    finally:
        link.disconnect()
        link.loop_stop()


@contextmanager
def serving(
    installed: Installed, models: Path, broker: Mosquitto, cwd: Path, **more: str
) -> Iterator[subprocess.Popen[str]]:
    """A running `edged serve`; killed at the end if the test has not ended it."""
    env = folder_settings(models) | {
        "EDGED_DEVICE__NAME": TOPICS.device,
        "EDGED_BROKER__HOST": broker.host,
        "EDGED_BROKER__PORT": str(broker.port),
        **more,
    }
    process = installed.start("serve", cwd=cwd, env=env)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class NotifySocket:
    """The service manager's end of the notification socket."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._socket.settimeout(WAIT_S)

    def wait_for(self, line: str) -> list[str]:
        """Waits for a notification that holds this line; all lines up to and with it."""
        lines: list[str] = []
        while line not in lines:
            lines += self._socket.recv(4096).decode().splitlines()
        return lines

    def close(self) -> None:
        """Closes it."""
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[NotifySocket]:
    """A service manager that listens."""
    listening = NotifySocket(tmp_path)
    yield listening
    listening.close()


def request_body(models: Path, samples: int = 1) -> bytes:
    """Held-out digits as plain Open Inference Protocol V2 JSON."""
    (name, images) = heldout_images(models)
    rows = images[:samples]
    tensor = {"name": name, "datatype": "UINT8", "shape": list(rows.shape), "data": rows.tolist()}
    return json.dumps({"inputs": [tensor]}).encode()


def heldout_images(models: Path) -> tuple[str, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    """Input name and images of the digits model's held-out split."""
    (path,) = (models / "calib" / "digits").rglob("heldout*.npz")
    with np.load(path, allow_pickle=False) as arrays:
        name = next(n for n in arrays.files if n != "labels")
        return name, arrays[name]


def log(cwd: Path) -> str:
    """What the service has written."""
    return (cwd / "stderr.log").read_text(encoding="utf-8")


@pytest.mark.timeout(180)
def test_it_gets_ready_answers_and_stops_cleanly(
    installed: Installed, model_folders: Path, broker: Mosquitto, tmp_path: Path
) -> None:
    """Birth status, one request and its reply, SIGTERM, farewell status, exit code 0."""
    with (
        connected(broker) as client,
        serving(installed, model_folders, broker, tmp_path) as service,
    ):
        birth = client.wait_state("online")
        client.ask(request_body(model_folders), b"one")
        reply = client.replies.get(timeout=WAIT_S)
        service.send_signal(signal.SIGTERM)
        client.wait_state("offline")

        assert birth["models"] == ["digits"]
        assert reply.correlation == b"one"
        assert reply.status == "200"
        assert json.loads(reply.payload)["outputs"][0]["shape"] == [1, 10]
        assert service.wait(WAIT_S) == 0, log(tmp_path)


@pytest.mark.timeout(180)
def test_sigterm_drains_what_was_accepted(
    installed: Installed, model_folders: Path, broker: Mosquitto, tmp_path: Path
) -> None:
    """Requests sent before SIGTERM are each answered exactly once, by this run or by the next.

    1. 200 requests go out; SIGTERM follows as soon as the first answer is back.
    2. What was accepted is answered, with a result or with `draining`, and the code is 0.
    3. What came too late was left to the broker, and the next run answers it.
    """
    wanted = {b"%d" % n for n in range(200)}
    body = request_body(model_folders, samples=4)  # all of them fit into the queue
    with connected(broker) as client:
        with serving(installed, model_folders, broker, tmp_path) as service:
            client.wait_state("online")
            for correlation in sorted(wanted):
                client.ask(body, correlation)
            answers = [client.replies.get(timeout=WAIT_S)]
            service.send_signal(signal.SIGTERM)
            assert service.wait(WAIT_S) == 0, log(tmp_path)
        client.wait_state("offline")
        with serving(installed, model_folders, broker, tmp_path) as service:
            client.wait_state("online")  # a signal before that ends it at once
            answers += [client.replies.get(timeout=WAIT_S) for _ in range(len(wanted) - 1)]
            service.send_signal(signal.SIGTERM)
            assert service.wait(WAIT_S) == 0, log(tmp_path)

        assert {answer.correlation for answer in answers} == wanted
        assert {answer.status for answer in answers} <= {"200", "503"}
        assert client.replies.empty()


@pytest.mark.timeout(180)
def test_a_broker_that_comes_late_is_picked_up(
    installed: Installed,
    model_folders: Path,
    broker: Mosquitto,
    manager: NotifySocket,
    tmp_path: Path,
) -> None:
    """Ready as offline without a broker; once there is one, requests are answered; a clean end.

    1. The broker is taken away before the service starts.
    2. The service manager is told READY, with a status that says offline.
    3. The broker comes, the status online with it, and a request is answered.
    4. SIGTERM: STOPPING is told, and the code is 0.
    """
    broker.stop()
    quick = {"EDGED_BROKER__OFFLINE_AFTER_S": "0.2", "EDGED_BROKER__BACKOFF_MAX_S": "1"}
    with serving(
        installed, model_folders, broker, tmp_path, NOTIFY_SOCKET=manager.path, **quick
    ) as service:
        told = manager.wait_for("READY=1")
        broker.start()
        with connected(broker) as client:
            client.wait_state("online")
            client.ask(request_body(model_folders), b"late")
            reply = client.replies.get(timeout=WAIT_S)
            service.send_signal(signal.SIGTERM)
            manager.wait_for("STOPPING=1")

        assert any(line.startswith("STATUS=") and "offline" in line for line in told)
        assert (reply.correlation, reply.status) == (b"late", "200")
        assert service.wait(WAIT_S) == 0, log(tmp_path)
        assert log(tmp_path).count("no broker at") == 1


def test_wrong_settings_end_with_78(installed: Installed, tmp_path: Path) -> None:
    """A setting out of its limits is named in one line and the code is 78 (EX_CONFIG)."""
    ended = installed.run("serve", cwd=tmp_path, env={"EDGED_BROKER__PORT": "70000"})

    assert ended.returncode == 78
    assert "broker.port" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_named_settings_file_that_is_missing_ends_with_78(
    installed: Installed, tmp_path: Path
) -> None:
    """A typo in --config is no reason to serve with defaults."""
    ended = installed.run("--config", str(tmp_path / "edgd.toml"), "serve", cwd=tmp_path)

    assert ended.returncode == 78
    assert "edgd.toml" in ended.stderr


def test_nothing_to_serve_ends_with_69(
    installed: Installed, broker: Mosquitto, tmp_path: Path
) -> None:
    """No engine: one line says what to do, and the code is 69 (EX_UNAVAILABLE)."""
    env = folder_settings(tmp_path) | {"EDGED_BROKER__PORT": str(broker.port)}

    ended = installed.run("serve", cwd=tmp_path, env=env)

    assert ended.returncode == 69
    assert "edged build" in ended.stderr
    assert "Traceback" not in ended.stderr
