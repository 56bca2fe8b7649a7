"""The uplink on a real broker: a control plane that is there, slow, refuses, dies, and returns."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged import protocol
from tests.doubles.broker import Mosquitto
from tests.doubles.cloud import Behaviour, Cloud
from tests.doubles.reporting import TOPICS, Line, numbers

ACKNOWLEDGED = {"application_ack": ["rollout", "event", "result"]}


def test_what_is_reported_arrives_once_and_in_order(broker: Mosquitto, tmp_path: Path) -> None:
    """Every event comes once, live, numbered without a gap, and leaves the outbox."""
    with Cloud(broker, TOPICS) as cloud, Line(tmp_path, broker) as line:
        line.emit(*range(200))
        cloud.wait_records("event", "stopping", 200)
        line.wait_stats(lambda s: s["event"]["rows"] == 0, "an empty outbox")

    assert numbers(cloud.records("event", "stopping")) == list(range(200))
    assert cloud.gaps("event") == []
    assert cloud.duplicates("event") == 0
    assert {record.mode for record in cloud.records("event")} == {"live"}
    assert cloud.wrong() == []


def test_a_batch_says_what_it_is(broker: Mosquitto, tmp_path: Path) -> None:
    """User properties and body agree; records keep the time at which they happened."""
    with Cloud(broker, TOPICS) as cloud, Line(tmp_path, broker) as line:
        line.emit(*range(50))
        records = cloud.wait_records("event", "stopping", 50)

    stream, size, user = cloud.messages()[0]
    assert stream == user[protocol.STREAM] == "event"
    assert user[protocol.FIRST_SEQ] == "1"
    assert user[protocol.BATCH] == "1"
    assert user[protocol.MODE] == "live"
    assert user[protocol.BOOT_ID] == records[0].boot_id
    assert user[protocol.CONTENT_ENCODING] == protocol.ZSTD
    assert size < 128_000
    assert records == sorted(records, key=lambda record: record.time)


def test_offline_then_drained_with_live_data_between(tmp_path: Path) -> None:
    """What waited comes replayed and at the limited rate; what happens meanwhile comes before it.

    1. 400 events while there is no broker.
    2. The broker comes; replay at 200 a second takes two seconds.
    3. A live event is there before the backlog is through; nothing is lost or doubled.
    """
    with Mosquitto(tmp_path / "broker") as broker:
        broker.stop()
        with Line(tmp_path, broker, uplink={"replay_rate": 200}) as line:
            line.emit(*range(400))
            line.wait_stats(lambda s: s["event"]["rows"] == 400, "400 events in the outbox")
            broker.start()
            with Cloud(broker, TOPICS) as cloud:
                cloud.wait_records("event", "stopping", 1)
                line.emit(1000)
                cloud.wait(
                    lambda: 1000 in numbers(cloud.records("event", "stopping")), "the live event"
                )
                came = numbers(cloud.records("event", "stopping"))
                cloud.wait(lambda: cloud.count("event") >= 401, "the backlog")
                line.wait_stats(lambda s: s["event"]["rows"] == 0, "an empty outbox")
                records = cloud.records("event", "stopping")

    assert len(came) < 401
    assert sorted(set(numbers(records))) == [*range(400), 1000]
    assert cloud.gaps("event") == []
    modes = {number: record.mode for record, number in zip(records, numbers(records), strict=True)}
    assert modes[1000] == "live"
    assert modes[0] == modes[399] == "replayed"


def test_nobody_listens_nothing_is_lost(broker: Mosquitto, tmp_path: Path) -> None:
    """The broker takes everything, but no control plane subscribes: it waits, and comes later."""
    with Line(tmp_path, broker) as line:
        line.emit(1, 2, 3)
        line.wait_stats(lambda s: s["event"]["rows"] == 3, "3 events in the outbox")
        with Cloud(broker, TOPICS) as cloud:
            cloud.wait_records("event", "stopping", 3)
            line.wait_stats(lambda s: s["event"]["rows"] == 0, "an empty outbox")
            assert sorted(set(numbers(cloud.records("event", "stopping")))) == [1, 2, 3]


def test_a_consumer_that_is_dead_loses_nothing(broker: Mosquitto, tmp_path: Path) -> None:
    """It subscribes and never acknowledges: sent again until it does; streams without one go on."""
    with Cloud(broker, TOPICS) as cloud:
        cloud.behaviour = Behaviour(acknowledges=False)
        with Line(tmp_path, broker, outbox=ACKNOWLEDGED, uplink={"ack_timeout_s": 0.2}) as line:
            line.emit(1, 2, 3)
            cloud.wait_records("event", "stopping", 6)
            assert line.stats()["event"]["rows"] >= 3
            assert line.metrics.total("uplink_resent_total") >= 3
            cloud.behaviour = Behaviour()
            line.wait_stats(lambda s: s["event"]["rows"] == 0, "an empty outbox")

    assert set(numbers(cloud.records("event", "stopping"))) == {1, 2, 3}
    assert "replayed" in {record.mode for record in cloud.records("event", "stopping")}


def test_one_record_that_is_refused_for_ever_holds_up_no_other(
    broker: Mosquitto, tmp_path: Path
) -> None:
    """It goes into quarantine with the reason; all others arrive and leave the outbox."""
    with Cloud(broker, TOPICS) as cloud:
        cloud.behaviour = Behaviour(
            refuses=lambda record: "odd" if numbers([record]) == [7] else ""
        )
        with Line(tmp_path, broker, outbox=ACKNOWLEDGED) as line:
            line.emit(*range(20))
            cloud.wait_records("event", "stopping", 19)
            found = line.wait_stats(
                lambda s: s["event"]["rows"] == 0 and s["event"]["quarantined"] == 1,
                "one event in quarantine and none beside it",
            )

    assert found["event"]["quarantined"] == 1
    assert numbers(cloud.records("event", "stopping")) == [n for n in range(20) if n != 7]
    assert line.metrics.total("uplink_refused_total") == 1


def test_a_stream_that_the_broker_forbids_goes_into_quarantine(tmp_path: Path) -> None:
    """Access rules refuse one topic: its records are put aside, the other streams arrive."""
    rules = tmp_path / "rules"
    rules.write_text(
        "topic read edged/v1/#\n"
        f"topic write {TOPICS.report('telemetry')}\n"
        f"topic write {TOPICS.config_reported}\ntopic write {TOPICS.uplink}\n"
        f"topic write {TOPICS.ack}\n",
        encoding="utf-8",
    )
    lines = [f"acl_file {rules}"]
    with (
        Mosquitto(tmp_path / "broker", lines) as broker,
        Cloud(broker, TOPICS) as cloud,
        Line(tmp_path, broker, report={"telemetry_interval_s": 0.1}) as line,
    ):
        line.emit(1)
        line.wait_stats(lambda s: s["event"]["quarantined"] == 1, "one event in quarantine")
        assert cloud.wait_records("telemetry", count=2)
        assert cloud.records("event") == []


def test_a_broker_that_goes_and_comes_loses_nothing(tmp_path: Path) -> None:
    """Five times away and back under a stream of events: all are there, at least once."""
    with (
        Mosquitto(tmp_path / "broker") as broker,
        Line(tmp_path, broker) as line,
        Cloud(broker, TOPICS) as cloud,
    ):
        for number in range(5):
            line.emit(*range(number * 20, number * 20 + 10))
            broker.kill()
            line.emit(*range(number * 20 + 10, number * 20 + 20))
            broker.start()
        cloud.wait(
            lambda: len(set(numbers(cloud.records("event", "stopping")))) == 100,
            "100 different events",
        )
        line.wait_stats(lambda s: s["event"]["rows"] == 0, "an empty outbox")
        assert cloud.gaps("event") == []
        assert cloud.wrong() == []


@pytest.mark.parametrize(
    "payload", [b"", b"garbage", b"[]", b'{"boot_id":1,"batch":"x"}', b'{"batch":9,"boot_id":""}']
)
def test_garbage_for_an_acknowledgement_changes_nothing(
    broker: Mosquitto, tmp_path: Path, payload: bytes
) -> None:
    """It is passed over; a right one that comes later is taken."""
    with Cloud(broker, TOPICS) as cloud, Line(tmp_path, broker, outbox=ACKNOWLEDGED) as line:
        line.emit(1)
        cloud.wait_records("event", "stopping", 1)
        cloud.acknowledge_bytes(payload)
        line.emit(2)
        cloud.wait_records("event", "stopping", 2)
        line.wait_stats(lambda s: s["event"]["rows"] == 0, "an empty outbox")


def test_what_was_not_sent_is_sent_by_the_next_run(tmp_path: Path) -> None:
    """The service ends while the broker is away; its successor sends what waited, in order."""
    with Mosquitto(tmp_path / "broker") as broker:
        broker.stop()
        with Line(tmp_path, broker) as line:
            line.emit(1, 2, 3)
        broker.start()
        with Cloud(broker, TOPICS) as cloud, Line(tmp_path, broker):
            cloud.wait_records("event", "stopping", 3)
            assert numbers(cloud.records("event", "stopping")) == [1, 2, 3]
            assert cloud.gaps("event") == []
