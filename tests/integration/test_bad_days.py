"""Bad days: processes that die in the middle, two devices of one name, hostile requests."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import psutil

from edged import protocol
from tests.doubles import digits
from tests.doubles.broker import Mosquitto
from tests.doubles.daemon import TOPICS, Daemon, wait_online
from tests.doubles.wire import Ask, Message, WireClient

IMAGES = digits.images()[:16]
REPLY = TOPICS.reply("wire")
COUNT = 150
ROOMY = {"serve__models": '["digits"]', "serve__queue_samples": "100000"}
"""Room for all: mosquitto 2.0.11 sends more than our receive maximum once acknowledgements flow."""


def publish_all(client: WireClient) -> list[int]:
    """COUNT requests of 16 samples each, with time enough; their packet identifiers."""
    mids = []
    for n in range(COUNT):
        ask = digits.binary_ask(TOPICS, IMAGES, b"%d" % n)
        patient = [*ask.user, (protocol.DEADLINE_MS, "100000")]
        mids.append(client.publish(digits.binary_ask(TOPICS, IMAGES, b"%d" % n, user=patient)))
    return mids


def answered(client: WireClient) -> set[bytes]:
    """Correlation data of all successful answers so far."""
    return {m.correlation or b"" for m in client.messages(REPLY) if m.status == "200"}


def wait_all(client: WireClient) -> None:
    """Waits until each of the requests has a successful answer."""
    wanted = {b"%d" % n for n in range(COUNT)}
    client.wait_for(lambda _: answered(client) >= wanted, "answer to every request")


def wait_more(client: WireClient) -> None:
    """Waits until one more answer comes."""
    before = len(client.messages(REPLY))
    client.wait_for(lambda _: len(client.messages(REPLY)) > before, "further answer")


def test_a_broker_killed_with_requests_in_flight_loses_none(
    served_engines: Path, tmp_path: Path
) -> None:
    """Kill -9 of a broker with persistence, twice: every QoS 1 request is answered in the end.

    The daemon is stopped meanwhile (SIGSTOP), so that requests surely are in flight: sent to it,
    not acknowledged. Answers may come twice.
    """
    with (
        Mosquitto(tmp_path / "broker", persistent=True) as broker,
        WireClient(broker, session_s=300) as client,
        Daemon(tmp_path, served_engines, broker, **ROOMY) as daemon,
    ):
        wait_online(client)
        daemon.signal(signal.SIGSTOP)
        client.wait_acknowledged(publish_all(client))
        client.flush()  # the broker has stored what came before this
        for _ in range(2):
            broker.kill()
            broker.start()
            daemon.signal(signal.SIGCONT)
            wait_more(client)
            daemon.signal(signal.SIGSTOP)
        daemon.signal(signal.SIGCONT)
        wait_all(client)
        assert daemon.stop() == 0
        assert daemon.said("Traceback") == 0, daemon.log()


def test_a_daemon_killed_in_mid_load_loses_none(
    served_engines: Path, broker: Mosquitto, tmp_path: Path
) -> None:
    """Kill -9 of the daemon, twice, and a restart: every QoS 1 request is answered in the end."""
    with (
        WireClient(broker) as client,
        Daemon(tmp_path, served_engines, broker, **ROOMY) as daemon,
    ):
        wait_online(client)
        daemon.signal(signal.SIGSTOP)
        client.wait_acknowledged(publish_all(client))
        for boot in (2, 3):
            daemon.signal(signal.SIGCONT)
            wait_more(client)
            daemon.kill()
            daemon.start()
            wait_online(client, boots=boot)
            daemon.signal(signal.SIGSTOP)
        daemon.signal(signal.SIGCONT)
        wait_all(client)
        assert daemon.stop() == 0


def test_a_broker_that_cannot_write_is_served_and_what_it_forgets_is_said(
    served_engines: Path, tmp_path: Path
) -> None:
    """Its disk is full, so to speak: requests are answered; killed, it comes back without sessions.

    The daemon says that requests may be lost, subscribes anew, and answers what comes then.
    """
    folder = tmp_path / "broker"
    (folder / "mosquitto.db.new").mkdir(parents=True)  # where it would write: no file can be made
    with (
        Mosquitto(folder, persistent=True) as broker,
        WireClient(broker) as client,
        Daemon(tmp_path, served_engines, broker, **ROOMY) as daemon,
    ):
        wait_online(client)
        publish_all(client)
        wait_all(client)
        assert "Error saving in-memory database" in broker.log
        broker.kill()
        broker.start()
        daemon.wait_said("the broker did not keep the session")
        client.wait_connections(2)
        client.flush()
        client.wait_for(lambda _: _online(client) >= 2, "a second birth")
        client.publish(digits.binary_ask(TOPICS, IMAGES, b"after"))
        assert client.wait_reply(b"after").status == "200"
        assert daemon.stop() == 0
        assert daemon.said("Traceback") == 0


def _online(client: WireClient) -> int:
    """Births that the client has seen."""
    statuses = [m.json() for m in client.messages(TOPICS.status) if m.payload]
    return len({s["session"] for s in statuses if s["state"] == "online"})


def test_two_daemons_of_one_name_answer_all_and_recover(
    served_engines: Path, broker: Mosquitto, tmp_path: Path
) -> None:
    """They take the session from each other; nothing is lost, and one alone is well again."""
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    with (
        WireClient(broker) as client,
        Daemon(folders[0], served_engines, broker, **ROOMY) as one,
        Daemon(folders[1], served_engines, broker, **ROOMY) as two,
    ):
        wait_online(client, boots=2)
        one.wait_said('"connection": 3')
        publish_all(client)
        wait_all(client)
        two.kill()
        two.process.wait()
        one.wait_said("connected to the broker")
        client.publish(digits.binary_ask(TOPICS, IMAGES, b"after"))
        assert client.wait_reply(b"after").status == "200"
        assert one.stop() == 0


def test_a_wildcard_as_response_topic_does_no_harm(
    served_engines: Path, broker: Mosquitto, tmp_path: Path
) -> None:
    """A plain paho service dies of it. Here it is counted and named, or refused by the broker.

    mosquitto before 2.0.20 passes it on; later ones end the sender's connection, so it has a
    connection of its own.
    """
    with (
        WireClient(broker) as client,
        WireClient(broker, filters=["none"]) as hostile,
        Daemon(tmp_path, served_engines, broker) as daemon,
    ):
        wait_online(client)
        for topic in ("#", f"{TOPICS.base}/reply/+", f"{TOPICS.base}/#"):
            hostile.publish(Ask(TOPICS.infer("digits"), b"{}", topic, b"wild", qos=0))
        client.publish(digits.binary_ask(TOPICS, IMAGES, b"sound"))
        assert client.wait_reply(b"sound").status == "200"
        hostile.publish(digits.binary_ask(TOPICS, IMAGES, b"its own"))
        assert client.wait_reply(b"its own").status == "200"
        letters = [message.json() for message in client.messages(TOPICS.dead)]
        assert {letter["code"] for letter in letters} <= {"bad_response_topic"}
        assert not [m for m in client.messages() if m.correlation == b"wild" and m.status]
        assert daemon.stop() == 0
        assert daemon.said("Traceback") == 0


def test_hostile_properties_are_survived(
    served_engines: Path, broker: Mosquitto, tmp_path: Path
) -> None:
    """200 user properties, 33 KB of them, odd characters, the largest correlation data."""
    many = [(f"name {n}", "x" * 150) for n in range(200)]
    odd = [("priority ", "urgent"), ("tracestate", "ü" * 600), ('"}', "%s {0} \\n"), ("", "")]
    with WireClient(broker) as client, Daemon(tmp_path, served_engines, broker) as daemon:
        wait_online(client)
        sound = digits.binary_ask(TOPICS, IMAGES, b"many")
        client.publish(digits.binary_ask(TOPICS, IMAGES, b"many", user=[*sound.user, *many, *odd]))
        reply = client.wait_reply(b"many")
        assert reply.status == "200"
        assert {name for name, _ in reply.user} == {"status", protocol.HEADER_LENGTH}
        client.publish(Ask(TOPICS.infer("digits"), b"{}", "", bytes(65_000), user=[*many, *odd]))
        letter = client.wait_message(TOPICS.dead)
        assert len(letter.payload) < 20_000
        assert letter.json()["correlation_hex"] == "00" * 128
        client.publish(
            Ask(TOPICS.infer("digits"), b"{}", TOPICS.reply("long"), bytes(65_000), user=many)
        )
        assert client.wait_message(TOPICS.reply("long")).json()["code"] == "bad_parameter"
        client.publish(digits.binary_ask(TOPICS, IMAGES, b"after"))
        assert client.wait_reply(b"after").status == "200"
        assert daemon.stop() == 0
        assert daemon.said("Traceback") == 0
        assert all("raw" not in line for line in daemon.log()), daemon.log()


def test_a_flood_of_names_leaves_no_trace_in_the_metrics(
    served_engines: Path, broker: Mosquitto, tmp_path: Path
) -> None:
    """500 models that do not exist make one series of replies, not 500."""
    with (
        WireClient(broker) as client,
        Daemon(tmp_path, served_engines, broker, report__telemetry_interval_s="0.1") as daemon,
    ):
        wait_online(client)
        for n in range(500):
            client.publish(Ask(TOPICS.infer(f"model-{n}"), b"{}", REPLY, b"%d" % n))
        client.wait_messages(REPLY, 500)

        def all_counted(message: Message) -> bool:
            if message.topic != TOPICS.telemetry("metrics"):
                return False
            replies = message.json()["metrics"].get("replies_total", [])
            return bool(sum(series["value"] for series in replies) == 500)

        document = client.wait_for(all_counted, "telemetry").json()
        assert document["metrics"]["replies_total"] == [
            {"model": "none", "status": "404", "value": 500}
        ]
        assert daemon.stop() == 0


def test_a_number_that_is_none_is_answered_and_harms_nobody(
    served_engines: Path, broker: Mosquitto, tmp_path: Path
) -> None:
    """The picker's index 99 fails its batch; requests for the other model go on meanwhile."""
    header = b'{"inputs":[{"name":"x","datatype":"INT64","shape":[1,1],"data":[%d]}]}'
    with WireClient(broker) as client, Daemon(tmp_path, served_engines, broker) as daemon:
        wait_online(client)
        for n in range(20):
            client.publish(
                Ask(TOPICS.infer("picker"), header % 99, REPLY, b"bad %d" % n, protocol.JSON)
            )
            client.publish(digits.binary_ask(TOPICS, IMAGES, b"good %d" % n))
        wanted = digits.logits(served_engines, IMAGES)
        for n in range(20):
            assert client.wait_reply(b"bad %d" % n).json()["code"] == "engine_failed"
            reply = client.wait_reply(b"good %d" % n)
            np.testing.assert_allclose(digits.binary_logits(reply), wanted, rtol=1e-4, atol=1e-4)
        assert daemon.stop() == 0


def test_large_requests_do_not_grow_the_process(
    served_engines: Path, broker: Mosquitto, tmp_path: Path
) -> None:
    """600 MB of refused requests, 2 MB each, go through; afterwards not 100 MB of them are left."""
    body = b"{" + bytes(2_000_000)
    with (
        WireClient(broker) as client,
        Daemon(
            tmp_path, served_engines, broker,
            serve__max_request_bytes="1000", broker__receive_maximum="5",
        ) as daemon,
    ):  # fmt: skip
        wait_online(client)
        process = psutil.Process(daemon.process.pid)
        before = process.memory_info().rss
        for n in range(300):
            client.publish(Ask(TOPICS.infer("digits"), body, REPLY, b"%d" % n))
            if n % 10 == 9:
                client.wait_messages(REPLY, n + 1)
        assert {m.json()["code"] for m in client.messages(REPLY)} == {"payload_too_large"}
        assert process.memory_info().rss - before < 100e6
        assert daemon.stop() == 0
