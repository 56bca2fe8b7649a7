"""Desired settings and commands on a real broker: none missed, none twice, garbage answered."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from edged.control_plane import desired_document
from edged.protocol import COMMANDS
from edged.settings import Settings
from tests.doubles.broker import Mosquitto
from tests.doubles.cloud import Cloud
from tests.doubles.daemon import Daemon, wait_online
from tests.doubles.reporting import TOPICS, Line
from tests.doubles.wire import WireClient


def applied(version: int) -> Any:
    """Whether a reported document says that this version is in effect."""
    return lambda document: document["applied_version"] == version


def test_a_desired_change_is_applied_and_reported(broker: Mosquitto, tmp_path: Path) -> None:
    """The service gets the setting, the control plane hears of it, with all settings masked."""
    with Cloud(broker, TOPICS) as cloud, Line(tmp_path, broker) as line:
        cloud.wait_reported(lambda document: document["status"] == "none")
        cloud.desire(1, log={"level": "debug"})
        document = cloud.wait_reported(applied(1))
        cloud.wait_records("event", "settings_changed")

    assert document["status"] == "applied"
    assert document["keys"] == [{"path": "log.level", "status": "applied", "reason": ""}]
    assert document["config"]["log"]["level"] == "debug"
    assert document["models"] == {"digits": "0" * 12}
    assert [settings.log.level for settings in line.applied] == ["debug"]


def test_what_was_desired_while_the_device_was_away_is_applied(
    broker: Mosquitto, tmp_path: Path
) -> None:
    """Retained before the first start, and again while it is down: each is taken over, once."""
    with Cloud(broker, TOPICS) as cloud:
        cloud.desire(1, serve={"drain_s": 1})
        with Line(tmp_path, broker) as line:
            cloud.wait_reported(applied(1))
            assert [settings.serve.drain_s for settings in line.applied] == [1]
        cloud.desire(2, serve={"drain_s": 2})
        with Line(tmp_path, broker) as line:
            assert line.line.configuration.effective.serve.drain_s == 1
            cloud.wait_reported(applied(2))
            assert [settings.serve.drain_s for settings in line.applied] == [2]
    with Line(tmp_path, broker) as line:
        assert line.line.configuration.effective.serve.drain_s == 2
        assert line.applied == []


def test_a_hundred_reconnects_under_a_stream_of_changes(tmp_path: Path) -> None:
    """The broker is lost 100 times while versions come; in the end desired and effective agree."""
    with (
        Mosquitto(tmp_path / "broker", persistent=True) as broker,
        Line(tmp_path, broker, uplink={"backoff_min_s": 0.01, "backoff_max_s": 0.02}) as line,
    ):
        for number in range(1, 101):
            with Cloud(broker, TOPICS) as cloud:
                cloud.desire(number, serve={"drain_s": number})
            broker.stop()
            broker.start()
        with Cloud(broker, TOPICS) as cloud:
            cloud.wait_reported(applied(100))

    assert line.line.configuration.effective.serve.drain_s == 100
    seen = [settings.serve.drain_s for settings in line.applied]
    assert seen == sorted(set(seen)), "a version was applied twice, or after a later one"


def test_racing_writers_end_in_the_largest_version(broker: Mosquitto, tmp_path: Path) -> None:
    """Two control planes write at once; the device ends with the largest version, and says so."""
    with (
        Cloud(broker, TOPICS) as one,
        Cloud(broker, TOPICS) as other,
        Line(tmp_path, broker) as line,
    ):
        one.wait_reported(lambda document: document["status"] == "none")
        for version in range(1, 21):
            one.desire(2 * version, serve={"drain_s": 2 * version})
            other.desire(2 * version - 1, serve={"drain_s": 2 * version - 1})
        one.wait_reported(applied(40))

    assert line.line.configuration.effective.serve.drain_s == 40
    last = one.reported()[-1]
    assert (last["desired_version"], last["status"]) == (39, "rejected")
    assert "older than 40" in last["keys"][0]["reason"]


@pytest.mark.parametrize(
    "payload",
    [
        b"garbage",
        json.dumps(desired_document(7, {"x": {"y": "z" * 300_000}})).encode(),
        json.dumps(desired_document(7, {"broker": {"host": "elsewhere"}})).encode(),
    ],
    ids=["garbage", "large", "reserved"],
)
def test_what_is_refused_changes_nothing(broker: Mosquitto, tmp_path: Path, payload: bytes) -> None:
    """It is reported with a reason, the settings stay, and the next good one is taken over."""
    with Cloud(broker, TOPICS) as cloud, Line(tmp_path, broker) as line:
        cloud.desire(1, serve={"drain_s": 1})
        cloud.wait_reported(applied(1))
        cloud.desire_bytes(payload)
        document = cloud.wait_reported(lambda each: each["status"] == "rejected")
        cloud.desire(8, serve={"drain_s": 8})
        cloud.wait_reported(applied(8))

    assert document["applied_version"] == 1
    assert document["keys"][0]["reason"]
    assert [settings.serve.drain_s for settings in line.applied] == [1, 8]


def test_a_megabyte_does_not_cut_the_device_off(broker: Mosquitto, tmp_path: Path) -> None:
    """It is refused unread with its size as the reason; the connection stays, all else goes on."""
    with Cloud(broker, TOPICS) as cloud, Line(tmp_path, broker) as line:
        cloud.desire(1, serve={"drain_s": 1})
        cloud.wait_reported(applied(1))
        cloud.desire_bytes(b"x" * 1_048_576)
        document = cloud.wait_reported(lambda each: each["status"] == "rejected")
        cloud.desire(2, serve={"drain_s": 2})
        cloud.wait_reported(applied(2))
        line.emit(1)
        cloud.wait_records("event", "stopping")

    assert "1048576 bytes" in document["keys"][0]["reason"]
    assert line.metrics.total("uplink_losses_total") == 0


def test_a_fault_of_ours_in_a_desired_document_ends_nothing(
    broker: Mosquitto, tmp_path: Path
) -> None:
    """It is counted; the uplink goes on, so that one document cannot cause a loop of restarts."""

    def fail(_settings: Settings) -> dict[str, str]:
        raise RuntimeError("a fault of ours")

    with Cloud(broker, TOPICS) as cloud, Line(tmp_path, broker) as line:
        line.check = fail
        cloud.desire(1, serve={"drain_s": 1})
        line.emit(1)
        cloud.wait_records("event", "stopping")
        cloud.ask("get-config")
        assert line.line.dead() is None

    assert line.metrics.total("callback_failures_total") == 1


def test_commands_are_answered(broker: Mosquitto, tmp_path: Path) -> None:
    """Status, result and correlation; `get-config` has what is reported."""
    with Cloud(broker, TOPICS) as cloud, Line(tmp_path, broker) as line:
        cloud.wait_reported(lambda _document: True)
        status, document = cloud.ask("drain")
        _, config = cloud.ask("get-config", b"{}")

    assert (status, document) == ("200", {"command": "drain", "result": {"name": "drain"}})
    assert line.commands == ["drain"]
    assert config["result"]["config"]["device"]["name"] == TOPICS.device


@pytest.mark.parametrize(
    ("name", "payload", "status", "code"),
    [
        ("reboot", b"", "404", "unknown_command"),
        ("drain", b"garbage", "400", "bad_parameter"),
        ("drain", b'{"force": true}', "400", "bad_parameter"),
        ("drain", b"x" * 5000, "400", "bad_parameter"),
        ("drain", b"[" * 4000, "400", "bad_parameter"),
    ],
)
def test_unknown_and_garbage_is_answered_with_an_error(
    broker: Mosquitto, tmp_path: Path, name: str, payload: bytes, status: str, code: str
) -> None:
    """Nothing is carried out."""
    with Cloud(broker, TOPICS) as cloud, Line(tmp_path, broker) as line:
        cloud.wait_reported(lambda _document: True)
        got, document = cloud.ask(name, payload)

    assert (got, document["code"]) == (status, code)
    assert line.commands == []


def test_a_command_that_may_not_be_answered_is_not_carried_out(
    broker: Mosquitto, tmp_path: Path
) -> None:
    """A response topic outside ``reply/`` is refused, and counted."""
    with Cloud(broker, TOPICS) as cloud, Line(tmp_path, broker) as line:
        cloud.wait_reported(lambda _document: True)
        cloud.command("drain", answer_to=TOPICS.infer("digits"))
        cloud.command("drain", answer_to="elsewhere/reply/x")
        cloud.ask("get-config")

    assert line.commands == []
    assert line.metrics.total("commands_dropped_total") == 2


def test_a_retained_command_is_not_carried_out(broker: Mosquitto, tmp_path: Path) -> None:
    """It would run at each connection: it is answered with an error."""
    with Cloud(broker, TOPICS) as cloud:
        cloud.command("drain", b"{}", retain=True)
        with Line(tmp_path, broker) as line:
            cloud.wait(lambda: bool(cloud._answers), "an answer")
            assert cloud._answers[0][1] == "400"
            assert line.commands == []


def test_the_service_does_what_it_is_told(
    served_engines: Path, broker: Mosquitto, tmp_path: Path
) -> None:
    """`edged serve` with an uplink: started, telemetry, every command, a pinned model."""
    settings = {
        "uplink__enabled": "true",
        "outbox__path": str(tmp_path / "outbox"),
        "paths__desired": str(tmp_path / "desired.json"),
        "report__telemetry_interval_s": "0.2",
    }
    with (
        WireClient(broker) as client,
        Cloud(broker, TOPICS) as cloud,
        Daemon(tmp_path, served_engines, broker, **settings) as daemon,
    ):
        wait_online(client)
        cloud.wait_records("event", "started")
        telemetry = cloud.wait_records("telemetry")[0].body
        answers = {name: cloud.ask(name) for name in COMMANDS}
        version = answers["get-config"][1]["result"]["models"]["digits"]
        cloud.desire(1, serve={"versions": {"digits": "0" * 12}})
        refused = cloud.wait_reported(lambda document: document["status"] == "rejected")
        cloud.desire(2, serve={"versions": {"digits": version}}, log={"level": "debug"})
        cloud.wait_reported(applied(2))
        assert daemon.stop() == 0
        cloud.wait_records("event", "stopping")

    assert {status for status, _ in answers.values()} == {"200"}
    assert answers["diagnose"][1]["result"]["uplink"]["connected"]
    assert telemetry["device"]["memory_total_bytes"] > 0
    assert version in refused["keys"][1]["reason"]
    assert cloud.gaps("event") == []
    assert cloud.wrong() == []


def test_drained_by_command_requests_are_refused_until_it_is_resumed(
    served_engines: Path, broker: Mosquitto, tmp_path: Path
) -> None:
    """The status says draining, then online again."""
    settings = {"uplink__enabled": "true", "outbox__path": str(tmp_path / "outbox"),
                "paths__desired": str(tmp_path / "desired.json")}  # fmt: skip
    with (
        WireClient(broker) as client,
        Cloud(broker, TOPICS) as cloud,
        Daemon(tmp_path, served_engines, broker, **settings),
    ):
        wait_online(client)
        cloud.wait_reported(lambda _document: True)

        def states() -> list[str]:
            return [message.json()["state"] for message in client.messages(TOPICS.status)]

        cloud.ask("drain")
        client.wait_for(lambda _: states()[-1] == "draining", "the state draining")
        cloud.ask("resume")
        client.wait_for(lambda _: states()[-1] == "online", "the state online")


def test_a_clock_that_is_set_changes_nothing(broker: Mosquitto, tmp_path: Path) -> None:
    """Records keep the times of their moments, also where those go back; numbers go on."""
    with Cloud(broker, TOPICS) as cloud, Line(tmp_path, broker) as line:
        outbox = line.line._outbox
        assert outbox is not None
        moments = [time.time(), 0.0, 4_000_000_000.0, time.time()]
        for moment in moments:
            outbox.emit("event", b"{}", kind="moment", time=moment)
        records = cloud.wait_records("event", "moment", 4)

    assert [record.time for record in records] == [round(moment, 6) for moment in moments]
    assert cloud.gaps("event") == []
