"""The uplink after trouble that is not the broker's: a disk, a reason, a document, a late start."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from edged.report import outbox, uplink
from edged.report.outbox_reader import read_quarantine
from tests.doubles.broker import Mosquitto
from tests.doubles.cloud import Behaviour, Cloud
from tests.doubles.reporting import TOPICS, Line, numbers


def test_a_backlog_that_comes_back_with_its_disk_is_sent(tmp_path: Path) -> None:
    """What waited on a disk that could not be used is sent once it can be, on the same connection.

    1. A run without a broker leaves 300 events on the disk.
    2. The next one is connected, and cannot use the disk: a live event comes from memory.
    3. The disk is back: all of them come, although nothing new is reported and no connection lost.
    """
    folder, away = tmp_path / "outbox", tmp_path / "away"
    with Mosquitto(tmp_path / "broker") as broker:
        broker.stop()
        with Line(tmp_path, broker) as line:
            line.emit(*range(300))
            line.wait_stats(lambda s: s["event"]["rows"] == 300, "300 events in the outbox")
        folder.rename(away)
        folder.write_text("no folder")
        broker.start()
        with Cloud(broker, TOPICS) as cloud, Line(tmp_path, broker) as line:
            line.emit(1000)
            cloud.wait(lambda: 1000 in numbers(cloud.records("event", "stopping")), "it")
            folder.unlink()
            away.rename(folder)
            cloud.wait_records("event", "stopping", 301)
            line.wait_stats(lambda s: s["event"]["rows"] == 0, "an empty outbox")
            assert line.line.numbers()["connections"] == 1


def test_a_disk_that_is_slow_strands_no_backlog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outbox that does not answer in time is asked again; what it took late is sent as well."""
    with Mosquitto(tmp_path / "broker") as broker:
        broker.stop()
        with Line(tmp_path, broker, uplink={"replay_rate": 100}) as line:
            line.emit(*range(200))
            line.wait_stats(lambda s: s["event"]["rows"] == 200, "200 events in the outbox")
            monkeypatch.setattr(outbox, "ANSWER_S", 0.05)
            broker.start()
            with Cloud(broker, TOPICS) as cloud:
                cloud.wait_records("event", "stopping", 1)
                assert line.line._outbox is not None
                line.line._outbox._order(lambda: time.sleep(0.5))  # a transaction on a slow disk
                cloud.wait_records("event", "stopping", 200)


def test_a_reason_that_cannot_be_stored_ends_nothing(broker: Mosquitto, tmp_path: Path) -> None:
    """Half a character in an acknowledgement: the record is put aside, and the next one arrives."""
    with Cloud(broker, TOPICS) as cloud:
        cloud.behaviour = Behaviour(acknowledges=False)
        with Line(tmp_path, broker, outbox={"application_ack": ["event"]}) as line:
            line.emit(1)
            record = cloud.wait_records("event", "stopping", 1)[0]
            refused = [{"seq": record.seq, "reason": "bad \ud800 text"}]
            answer = {"boot_id": record.boot_id, "batch": 1, "refused": refused}
            cloud.acknowledge_bytes(json.dumps(answer).encode())
            line.wait_stats(lambda s: s["event"]["quarantined"] == 1, "a record put aside")
            cloud.behaviour = Behaviour()
            line.emit(2)
            line.wait_stats(lambda s: s["event"]["rows"] == 0, "an empty outbox")
            assert line.line.dead() is None

    (found,) = read_quarantine(tmp_path / "outbox")
    assert found.reason.endswith("bad ? text")


def test_a_document_of_thousands_of_keys_costs_no_connection(tmp_path: Path) -> None:
    """Its refusal fits into what the broker takes; reports go on, and a good document is taken."""
    config: dict[str, object] = {f"a{number}": {} for number in range(16_000)}
    with (
        Mosquitto(tmp_path / "broker", ["max_packet_size 230000"]) as broker,
        Cloud(broker, TOPICS) as cloud,
        Line(tmp_path, broker) as line,
    ):
        cloud.wait_reported(lambda each: each["status"] == "none")
        cloud.desire_bytes(json.dumps({"version": 1, "config": config}).encode())
        cloud.wait_reported(lambda each: each["status"] == "rejected")
        line.emit(1)
        cloud.wait_records("event", "stopping")
        cloud.desire(2, serve={"drain_s": 2})
        cloud.wait_reported(lambda each: each["applied_version"] == 2)

        assert line.line.numbers()["connections"] == 1


def test_a_reported_document_fits_into_what_the_broker_takes(tmp_path: Path) -> None:
    """All settings together are too large for it: they are left out, what became of it is said."""
    with (
        Mosquitto(tmp_path / "broker", ["max_packet_size 2048"]) as broker,
        Cloud(broker, TOPICS) as cloud,
        Line(tmp_path, broker) as line,
    ):
        cloud.desire(1, serve={"drain_s": 2})
        found = cloud.wait_reported(lambda each: each["applied_version"] == 1)
        status, told = cloud.ask("get-config")

        assert (found["config"], found["left_out"]) == ({}, ["config"])
        assert found["keys"] == [{"path": "serve.drain_s", "status": "applied", "reason": ""}]
        assert (status, told["result"]["left_out"]) == ("200", ["config"])
        assert line.line.numbers()["connections"] == 1


def test_a_start_without_a_connection_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first connection says for how long there was none, where that was longer than usual."""
    monkeypatch.setattr(uplink, "TOLD_S", 0.0)
    with Mosquitto(tmp_path / "broker") as broker:
        broker.stop()
        with Line(tmp_path, broker) as line:
            line.emit(1, 2)
            line.wait_stats(lambda s: s["event"]["rows"] == 2, "2 events in the outbox")
            broker.start()
            with Cloud(broker, TOPICS) as cloud:
                told = cloud.wait_records("event", "uplink_restored")

    assert told[0].body["data"]["waiting"] == 2
    assert told[0].body["data"]["seconds"] > 0
