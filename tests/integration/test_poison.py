"""What ends the process, or holds it up: with real processes, a real broker, and restarts."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from edged import protocol
from tests.doubles.broker import Mosquitto
from tests.doubles.daemon import TOPICS, Daemon, wait_online
from tests.doubles.mortal_edged import DEADLY
from tests.doubles.wire import WAIT_S, Ask, WireClient

REPLY = TOPICS.reply("wire")
INNOCENT = 40
ROOMY = {"serve__models": '["picker"]', "serve__queue_samples": "100000"}


def ask(index: int, name: bytes) -> Ask:
    """A request for one entry of the table, with time enough for some restarts."""
    header = b'{"inputs":[{"name":"x","datatype":"INT64","shape":[1,1],"data":[%d]}]}' % index
    patient = [(protocol.DEADLINE_MS, "100000")]
    return Ask(TOPICS.infer("picker"), header, REPLY, name, protocol.JSON, patient)


def mortal(folder: Path, engines: Path, broker: Mosquitto, **more: str) -> Daemon:
    """A daemon that dies of certain requests."""
    daemon = Daemon(folder, engines, broker, **ROOMY, **more)
    daemon.module = "tests.doubles.mortal_edged"
    return daemon


@pytest.mark.parametrize(("model", "word"), [("hang", "has made no progress"), ("die", "died")])
def test_a_network_thread_that_hangs_or_is_gone_is_noticed(
    served_engines: Path, broker: Mosquitto, tmp_path: Path, model: str, word: str
) -> None:
    """If it hangs, the watchdog is not fed; if it is gone, the process ends with 70."""
    with (
        WireClient(broker) as client,
        mortal(tmp_path, served_engines, broker, serve__stuck_s="0.5") as daemon,
    ):
        wait_online(client)
        client.publish(Ask(TOPICS.infer(model), b"{}", REPLY, b"x", qos=0))
        daemon.wait_said(f"thread mqtt-net {word}")
        if model == "die":
            assert daemon.process.wait(WAIT_S) == os.EX_SOFTWARE


def test_a_request_of_which_the_service_dies_is_answered_and_so_is_everybody_else(
    served_engines: Path, broker: Mosquitto, tmp_path: Path
) -> None:
    """It dies of a batch, and twice of the one request alone; then it answers `poison`.

    1. Innocent requests and the poisoned one among them reach the service at once.
    2. It dies; the next runs try them one by one, and die of the poisoned one alone.
    3. The run after that refuses it, names it on the dead topic, and answers the others.
    4. Sent once more, it is refused at once.
    """
    with WireClient(broker) as client, mortal(tmp_path, served_engines, broker) as daemon:
        wait_online(client)
        daemon.signal(signal.SIGSTOP)
        mids = [client.publish(ask(n % 3, b"%d" % n)) for n in range(INNOCENT)]
        mids.insert(0, client.publish(ask(DEADLY, b"poison")))
        mids += [client.publish(ask(n % 3, b"%d" % n)) for n in range(INNOCENT, 2 * INNOCENT)]
        client.wait_acknowledged(mids)
        daemon.signal(signal.SIGCONT)
        for _ in range(3):
            assert daemon.process.wait(WAIT_S) == -signal.SIGKILL
            daemon.start()
        refusal = client.wait_reply(b"poison")
        assert refusal.status == "500"
        assert refusal.json()["code"] == "poison"
        assert refusal.json()["retryable"] is False
        for n in range(2 * INNOCENT):
            assert client.wait_reply(b"%d" % n).status == "200"
        assert client.wait_message(TOPICS.dead).json()["code"] == "poison"
        client.publish(ask(DEADLY, b"poison"))
        client.wait_for(
            lambda _: sum(m.correlation == b"poison" for m in client.messages(REPLY)) == 2,
            "a second refusal",
        )
        assert daemon.stop() == 0
        assert daemon.said("Traceback") == 0, daemon.log()


def test_a_death_without_blame_costs_nobody_an_answer(
    served_engines: Path, broker: Mosquitto, tmp_path: Path
) -> None:
    """Killed by somebody else with requests on the device, again and again: all are answered 200.

    Those that were on the device are tried one by one and cleared, so that no number of kills
    makes them poison.
    """
    with WireClient(broker) as client, Daemon(tmp_path, served_engines, broker, **ROOMY) as daemon:
        wait_online(client)
        for boot in range(2, 5):
            names = [b"%d-%d" % (boot, n) for n in range(INNOCENT)]
            daemon.signal(signal.SIGSTOP)
            client.wait_acknowledged([client.publish(ask(1, name)) for name in names])
            daemon.signal(signal.SIGCONT)
            client.wait_reply(names[0])
            daemon.kill()
            daemon.start()
            wait_online(client, boots=boot)
            for name in names:
                assert client.wait_reply(name).status == "200"
        assert daemon.stop() == 0
