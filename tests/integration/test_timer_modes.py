"""The `[timer]` section in a running daemon: prices, the tuner's choice, and a reload."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from tests.doubles import digits
from tests.doubles.broker import Mosquitto
from tests.doubles.cloud import Cloud
from tests.doubles.daemon import TOPICS, Daemon, wait_online
from tests.doubles.wire import Message, WireClient

REQUESTS = 160
"""More than the tuner needs to choose."""
MOST_LOOKS = 600
"""Telemetry documents until a price has to be there."""


def timers(message: Message) -> dict[str, dict[str, Any]]:
    """The state of the timers in a telemetry document, by model."""
    if message.topic != TOPICS.telemetry("metrics"):
        return {}
    return {model: devices["cpu"] for model, devices in message.json()["models"].items()}


def test_modes_become_prices_the_tuner_chooses_and_a_reload_changes_them(
    served_engines: Path, broker: Mosquitto, tmp_path: Path
) -> None:
    """Telemetry shows each price and, after enough requests, what the tuner makes of them."""
    file = tmp_path / "edged.toml"
    file.write_text('[timer]\nmode = 3\nmodels = ["picker=use-the-slo"]\n', encoding="utf-8")
    images = digits.images()[:1]
    with (
        WireClient(broker) as client,
        Daemon(
            tmp_path,
            served_engines,
            broker,
            config=str(file),
            report__telemetry_interval_s="0.1",
        ) as daemon,
    ):
        wait_online(client)
        first = timers(client.wait_for(lambda m: _price(m, "digits") == 3.0, "price 3"))
        assert first["picker"]["price"] is None
        for number in range(REQUESTS):
            client.publish(digits.binary_ask(TOPICS, images, b"%d" % number))
        for number in range(REQUESTS):
            assert client.wait_reply(b"%d" % number).status == "200"
        tuned = timers(
            client.wait_for(lambda m: _value(m, "predicted_ms") is not None, "a choice")
        )["digits"]
        assert tuned["greedy_ms"] > 0
        assert sum(value for name, value in tuned.items() if name.startswith("closed_")) > 0

        file.write_text('[timer]\nmode = "latency"\ntune = false\n', encoding="utf-8")
        daemon.signal(signal.SIGHUP)
        client.wait_for(
            lambda m: _price(m, "digits") == 0 and _price(m, "picker") == 0, "the new prices"
        )
        assert daemon.stop() == 0


def _price(message: Message, model: str) -> float | None:
    value: float | None = timers(message).get(model, {}).get("price", -1.0)
    return value


def _value(message: Message, name: str) -> float | None:
    value: float | None = timers(message).get("digits", {}).get(name)
    return value


def test_the_control_plane_sets_prices_and_deadlines(
    served_engines: Path, broker: Mosquitto, tmp_path: Path
) -> None:
    """Each desired mode is `applied` at once, telemetry has its price, and a deadline counts.

    1. ``eco`` for all; then a number, and another mode for one model.
    2. A deadline that nothing can meet: requests that name none expire.
    3. A mode that there is not: refused whole, the prices stay. An empty document gives all back.
    """
    settings = {
        "uplink__enabled": "true",
        "outbox__path": str(tmp_path / "outbox"),
        "paths__desired": str(tmp_path / "desired.json"),
        "report__telemetry_interval_s": "0.1",
        "timer__adapt": "false",
    }
    images = digits.images()[:1]
    with (
        WireClient(broker) as client,
        Cloud(broker, TOPICS) as cloud,
        Daemon(tmp_path, served_engines, broker, **settings) as daemon,
    ):

        def desire(version: int, **sections: dict[str, Any]) -> dict[str, Any]:
            cloud.desire(version, **sections)
            return cloud.wait_reported(lambda each: each["desired_version"] == version)

        def wait_prices(*prices: float) -> None:
            """Waits for a telemetry from now on with these prices of digits and picker."""
            topic = TOPICS.telemetry("metrics")
            seen = len(client.messages(topic))
            for count in range(seen + 1, seen + MOST_LOOKS):
                message = client.wait_messages(topic, count)[-1]
                if (_price(message, "digits"), _price(message, "picker")) == prices:
                    return
            raise AssertionError(f"no prices {prices}")

        def ask(name: bytes) -> str:
            client.publish(digits.binary_ask(TOPICS, images, name))
            return client.wait_reply(name).status

        wait_online(client)
        wait_prices(0.0, 0.0)
        documents = [desire(1, timer={"mode": "eco"})]
        wait_prices(10.0, 10.0)
        documents.append(desire(2, timer={"mode": 4.5, "models": ["picker=balanced"]}))
        wait_prices(4.5, 2.0)
        assert ask(b"before") == "200"
        documents.append(
            desire(3, timer={"mode": 4.5, "tune": False}, serve={"slo_ms": {"digits": 0.001}})
        )
        wait_prices(4.5, 4.5)
        assert ask(b"too short") == "408"
        refused = desire(4, timer={"mode": "turbo"})
        documents.append(desire(5))
        wait_prices(0.0, 0.0)
        assert ask(b"after") == "200"
        assert daemon.stop() == 0

    assert {document["status"] for document in documents} == {"applied"}
    assert {key["status"] for document in documents for key in document["keys"]} == {"applied"}
    assert documents[1]["config"]["timer"]["mode"] == "4.5"
    assert (refused["status"], refused["applied_version"]) == ("rejected", 3)
    assert "timer.mode" in {key["path"] for key in refused["keys"]}
