"""A daemon with two devices, and what a reload changes while it serves."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np

from tests.doubles import digits
from tests.doubles.broker import Mosquitto
from tests.doubles.daemon import TOPICS, Daemon, wait_online
from tests.doubles.wire import Message, WireClient

IMAGES = digits.images()
TWO = {
    "serve__devices": '["cpu:0", "cpu:1"]',
    "serve__onnx_threads": "1",
    "serve__models": '["digits"]',
    "report__telemetry_interval_s": "0.1",
}


def ask(client: WireClient, name: str, count: int) -> list[Message]:
    """Sends so many requests at once; their answers in order."""
    for n in range(count):
        image = IMAGES[n % len(IMAGES)][None]
        client.publish(digits.binary_ask(TOPICS, image, f"{name} {n}".encode()))
    return [client.wait_reply(f"{name} {n}".encode()) for n in range(count)]


def test_two_devices_of_one_daemon_answer_alike(
    served_engines: Path, broker: Mosquitto, tmp_path: Path
) -> None:
    """Both are loaded, both appear in telemetry, both work, and every answer is right."""
    wanted = digits.logits(served_engines, IMAGES)
    with WireClient(broker) as client, Daemon(tmp_path, served_engines, broker, **TWO) as daemon:
        wait_online(client)
        loaded = client.wait_messages(TOPICS.event("model_loaded"), 2)
        answers = ask(client, "two", 300)

        def both_have_worked(message: Message) -> bool:
            if message.topic != TOPICS.telemetry("metrics"):
                return False
            states = message.json()["models"].get("digits", {})  # nothing yet while it warms
            phis = [states.get(device, {"phi": 1.0})["phi"] for device in ("cpu:0", "cpu:1")]
            return all(phi != 1.0 for phi in phis)

        while not any(map(both_have_worked, client.messages(TOPICS.telemetry("metrics")))):
            answers += ask(client, f"more {len(answers)}", 100)
            client.wait_messages(
                TOPICS.telemetry("metrics"), len(client.messages(TOPICS.telemetry("metrics"))) + 1
            )
        assert daemon.stop() == 0

    assert [message.json()["data"]["device"] for message in loaded] == ["cpu:0", "cpu:1"]
    for n, answer in enumerate(answers[:300]):
        assert answer.status == "200"
        found = digits.binary_logits(answer)[0]
        np.testing.assert_allclose(found, wanted[n % len(IMAGES)], atol=1e-3)
    assert {answer.status for answer in answers} == {"200"}


def test_a_reload_takes_over_what_it_can(
    served_engines: Path, broker: Mosquitto, tmp_path: Path
) -> None:
    """Live settings apply at once, others are named, a broken file changes nothing.

    The last reload raises the log level and the limit again: the farewell is not logged then.
    """
    file = tmp_path / "edged.toml"
    file.write_text('[report]\nresults = "none"\n')
    with (
        WireClient(broker) as client,
        Daemon(tmp_path, served_engines, broker, config=str(file)) as daemon,
    ):
        wait_online(client)
        ask(client, "before", 1)

        file.write_text('[report]\nresults = "some"\n')
        daemon.signal(signal.SIGHUP)
        daemon.wait_said("settings not reloaded, the old ones stay")
        ask(client, "broken", 1)
        client.flush()
        assert client.messages(TOPICS.event("result")) == []

        file.write_text(
            '[report]\nresults = "all"\ntelemetry_interval_s = 3\n'
            "[broker]\nkeepalive_s = 7\n[serve]\nqueue_samples = 5\n"
        )
        daemon.signal(signal.SIGHUP)
        daemon.wait_said("settings reloaded")
        ask(client, "after", 1)
        result = client.wait_message(TOPICS.event("result")).json()
        client.publish(digits.binary_ask(TOPICS, IMAGES[:6], b"full"))
        refused = client.wait_reply(b"full").json()

        file.write_text('[log]\nlevel = "error"\n[serve]\nqueue_samples = 50\n')
        daemon.signal(signal.SIGHUP)
        number = 0
        while client.wait_reply(b"full %d" % number if number else b"full").status != "200":
            number += 1
            client.publish(digits.binary_ask(TOPICS, IMAGES[:6], b"full %d" % number))
        assert daemon.stop() == 0

    (reloaded,) = (line for line in daemon.log() if line.get("message") == "settings reloaded")
    assert reloaded["need_a_restart"] == ["broker.keepalive_s"]
    assert (result["data"]["model"], result["data"]["status"]) == ("digits", 200)
    assert refused["code"] in {"queue_full", "payload_too_large"}
    assert "serve.queue_samples" in refused["error"]
    assert daemon.said("stopped") == 0  # it says so at the level info
    assert daemon.said("Traceback") == 0
