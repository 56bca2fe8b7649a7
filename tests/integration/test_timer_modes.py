"""The `[timer]` section in a running daemon: prices, the tuner's choice, and a reload."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from tests.doubles import digits
from tests.doubles.broker import Mosquitto
from tests.doubles.daemon import TOPICS, Daemon, wait_online
from tests.doubles.wire import Message, WireClient

REQUESTS = 160
"""More than the tuner needs to choose."""


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
