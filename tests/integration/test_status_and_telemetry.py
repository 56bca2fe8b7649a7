"""What a device says of itself: birth, will and farewell, telemetry, events."""

from __future__ import annotations

import io
import itertools
import signal
from pathlib import Path
from typing import Any

import pytest

from edged import __version__, protocol, top
from edged.client import Endpoint
from edged.errors import BrokerError
from tests.doubles import digits
from tests.doubles.broker import Mosquitto
from tests.doubles.daemon import TOPICS, Daemon, wait_online
from tests.doubles.wire import Ask, Message, WireClient

IMAGES = digits.images()[:4]
QUICK = {"report__telemetry_interval_s": "0.1"}


def states(client: WireClient) -> list[dict[str, Any]]:
    """All status documents so far."""
    return [message.json() for message in client.messages(TOPICS.status)]


def wait_state(client: WireClient, state: str, session: int = 1) -> dict[str, Any]:
    """The first status document with this state and session."""

    def fits(message: Message) -> bool:
        if message.topic != TOPICS.status:
            return False
        document = message.json()
        return bool(document["state"] == state and document["session"] >= session)

    found: dict[str, Any] = client.wait_for(fits, f"{state} {session}").json()
    return found


def test_birth_draining_and_farewell(
    served_engines: Path, broker: Mosquitto, tmp_path: Path
) -> None:
    """Warming, online with the models, draining, offline; retained; one boot, one session."""
    with WireClient(broker) as client, Daemon(tmp_path, served_engines, broker) as daemon:
        birth = wait_online(client).json()
        assert daemon.stop() == 0
        client.flush()
        documents = states(client)
        with WireClient(broker) as late:
            last = late.wait_message(TOPICS.status)
    assert birth["models"] == ["digits", "picker", "strict"]
    assert birth["version"] == __version__
    assert birth["protocol"] == protocol.PROTOCOL_VERSION
    assert birth["session"] == 1
    order = [state for state, _ in itertools.groupby(document["state"] for document in documents)]
    assert order[-3:] == ["online", "draining", "offline"]
    assert set(order[:-3]) <= {"warming"}  # none if the models were ready before the connection
    assert {document["boot_id"] for document in documents} == {birth["boot_id"]}
    assert documents[-1]["models"] == []
    assert last.retained
    assert last.json() == documents[-1]


def test_the_will_belongs_to_the_birth(
    served_engines: Path, broker: Mosquitto, tmp_path: Path
) -> None:
    """Killed: the broker says offline with the boot and session of that birth, retained."""
    with (
        WireClient(broker) as client,
        Daemon(tmp_path, served_engines, broker, broker__will_delay_s="0") as daemon,
    ):
        birth = wait_online(client).json()
        daemon.kill()
        will = wait_state(client, "offline")
        assert (will["boot_id"], will["session"]) == (birth["boot_id"], birth["session"])
        daemon.start()
        again = wait_online(client, boots=2).json()
        assert again["boot_id"] != birth["boot_id"]
        assert daemon.stop() == 0


def test_a_new_connection_is_a_new_session_of_the_same_boot(
    served_engines: Path, tmp_path: Path
) -> None:
    """The broker goes and comes: the birth is said again with a higher session number.

    The daemon is held by SIGSTOP until the client is back, so that it hears the QoS 0 event too.
    """
    with (
        Mosquitto(tmp_path / "broker", persistent=True) as broker,
        WireClient(broker) as client,
        Daemon(tmp_path, served_engines, broker, serve__models='["digits"]') as daemon,
    ):
        birth = wait_online(client).json()
        daemon.signal(signal.SIGSTOP)
        broker.stop()
        broker.start()
        client.wait_connections(2)
        daemon.signal(signal.SIGCONT)
        again = wait_state(client, "online", 2)
        assert again["boot_id"] == birth["boot_id"]
        event = client.wait_message(TOPICS.event("disconnected")).json()
        assert event["data"]["session_kept"] is True
        assert event["data"]["seconds"] > 0
        assert daemon.stop() == 0


def test_events_of_a_start_and_an_end(
    served_engines: Path, broker: Mosquitto, tmp_path: Path
) -> None:
    """Loaded, refused, started, stopping: each a CloudEvent of this device."""
    with WireClient(broker) as client, Daemon(tmp_path, served_engines, broker) as daemon:
        started = client.wait_message(TOPICS.event("started")).json()
        loaded = client.wait_messages(TOPICS.event("model_loaded"), 3)
        refused = client.wait_messages(TOPICS.event("model_refused"), 2)
        assert daemon.stop() == 0
        client.wait_message(TOPICS.event("stopping"))
    assert started["specversion"] == "1.0"
    assert started["type"] == "edged.started"
    assert started["source"] == f"/{TOPICS.base}"
    assert started["data"]["models"] == ["digits", "picker", "strict"]
    assert started["data"]["offline"] is False
    assert [message.json()["data"]["model"] for message in loaded] == ["digits", "picker", "strict"]
    assert loaded[0].json()["data"]["precision"] == "int8"
    reasons = {m.json()["data"]["model"]: m.json()["data"]["reason"] for m in refused}
    assert "did not pass" in reasons["unproven"]
    assert "another device" in reasons["foreign"]


def test_results_are_reported_if_asked_for(
    served_engines: Path, broker: Mosquitto, tmp_path: Path
) -> None:
    """`report.results = all`: one event for each answer, errors too, with the values it had."""
    with (
        WireClient(broker) as client,
        Daemon(tmp_path, served_engines, broker, report__results="all") as daemon,
    ):
        wait_online(client)
        client.publish(
            Ask(TOPICS.infer("digits"), digits.json_body(IMAGES[:2], id="two"),
                TOPICS.reply("wire"), b"two", protocol.JSON)
        )  # fmt: skip
        answer = client.wait_reply(b"two")
        client.publish(
            Ask(TOPICS.infer("digits"), b"[]", TOPICS.reply("wire"), b"bad", protocol.JSON)
        )
        good, bad = (m.json()["data"] for m in client.wait_messages(TOPICS.event("result"), 2))
        assert daemon.stop() == 0
    assert (good["model"], good["id"], good["status"], good["samples"]) == ("digits", "two", 200, 2)
    assert good["latency_ms"] > 0
    logits = [number for row in good["outputs"]["logits"] for number in row]
    assert logits == answer.json()["outputs"][0]["data"]
    assert (bad["status"], bad["samples"], bad["outputs"]) == (400, 0, {})


def test_results_are_not_reported_by_default(
    served_engines: Path, broker: Mosquitto, tmp_path: Path
) -> None:
    """Samples and answers are nobody's business unless it was switched on."""
    with WireClient(broker) as client, Daemon(tmp_path, served_engines, broker) as daemon:
        wait_online(client)
        client.publish(digits.binary_ask(TOPICS, IMAGES, b"one"))
        client.wait_reply(b"one")
        assert daemon.stop() == 0
        client.wait_message(TOPICS.event("stopping"))
        assert client.messages(TOPICS.event("result")) == []


def counters(document: dict[str, Any], name: str) -> int:
    """A counter's sum over its labels."""
    return sum(series["value"] for series in document["metrics"].get(name, []))


@pytest.mark.parametrize("flood", [False, True], ids=["calm", "flood"])
def test_telemetry_adds_up(
    served_engines: Path, broker: Mosquitto, tmp_path: Path, *, flood: bool
) -> None:
    """Telemetry says what happened: arrivals are replies plus drops, to the last one.

    The flood is 4000 QoS 0 requests while the process stands still, more than its queue takes;
    whatever arrives then is answered or counted, and a QoS 1 request after it is answered.
    """
    bad = Ask(TOPICS.infer("digits"), b"[]", TOPICS.reply("x"), None, protocol.JSON, qos=0)
    with (
        WireClient(broker) as client,
        Daemon(tmp_path, served_engines, broker, **QUICK) as daemon,
    ):
        wait_online(client)
        if flood:
            daemon.signal(signal.SIGSTOP)
            for _ in range(4000):
                client.publish(bad)
            client.flush()
            daemon.signal(signal.SIGCONT)
        for n in range(3):
            client.publish(digits.binary_ask(TOPICS, IMAGES, b"good %d" % n))
        client.publish(Ask(TOPICS.infer("digits"), b"{}"))  # no response topic
        for n in range(3):
            assert client.wait_reply(b"good %d" % n).status == "200"

        def settled(message: Message) -> bool:
            if message.topic != TOPICS.telemetry("metrics"):
                return False
            document = message.json()
            ended = counters(document, "replies_total") >= 3 and document["outstanding"] == 0
            return ended and counters(document, "arrivals_dropped_total") >= 1

        document = client.wait_for(settled, "settled telemetry").json()
        assert daemon.stop() == 0
    arrivals = counters(document, "arrivals_total")
    dropped = counters(document, "arrivals_dropped_total")
    assert arrivals == counters(document, "replies_total") + dropped
    assert counters(document, "samples_total") == 12
    assert document["waiting_samples"] == 0
    assert set(document["models"]) == {"digits", "picker", "strict"}
    (latency,) = (
        series for series in document["metrics"]["latency_seconds"] if series["model"] == "digits"
    )
    assert latency["count"] == 3
    limits = {it["queue"]: it["value"] for it in document["metrics"]["timer_limit_samples"]}
    assert limits == {name: at["cpu"]["limit"] for name, at in document["models"].items()}
    if not flood:
        assert (arrivals, dropped) == (4, 1)


def test_top_prints_what_the_timers_do(
    served_engines: Path, broker: Mosquitto, tmp_path: Path
) -> None:
    """One table with a line for each model on each device, made from a real daemon's telemetry."""
    out = io.StringIO()
    endpoint = Endpoint(TOPICS.device, broker.host, broker.port)
    with WireClient(broker) as client, Daemon(tmp_path, served_engines, broker, **QUICK):
        wait_online(client)
        assert top.run(top.TopOptions(endpoint, once=True), out) == 0
    lines = out.getvalue().splitlines()
    assert lines[0].startswith(f"online, edged {__version__}, up ")
    assert lines[1].split()[:3] == ["MODEL", "DEVICE", "REQ/S"]
    assert [line.split()[:2] for line in lines[2:]] == [
        ["digits", "cpu"], ["picker", "cpu"], ["strict", "cpu"]
    ]  # fmt: skip


def test_top_says_that_nobody_reports(broker: Mosquitto) -> None:
    """A device that is off sends no telemetry."""
    endpoint = Endpoint("nobody", broker.host, broker.port)
    with pytest.raises(BrokerError, match=r"no telemetry of 'nobody' within 0\.1 s"):
        top.run(top.TopOptions(endpoint, once=True, timeout_s=0.1), io.StringIO())
