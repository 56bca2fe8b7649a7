"""A pool: two real daemons share the requests of one queue on a real mosquitto."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from edged import protocol
from edged.client import Endpoint, InferClient
from tests.doubles import digits
from tests.doubles.broker import Mosquitto
from tests.doubles.daemon import Daemon
from tests.doubles.wire import Ask, Message, WireClient

POOL = protocol.PoolTopics("edged/v1", "line-3")
REPLY = POOL.reply("wire")
NAMES = ("press-1", "press-2")
COUNT = 24
IMAGES = digits.images()[:2]


class Plant:
    """A broker, two devices of one pool by name, and a requester."""

    def __init__(self, stack: ExitStack, folder: Path, engines: Path) -> None:
        self.broker = stack.enter_context(Mosquitto(folder / "broker", persistent=True))
        self.client = stack.enter_context(WireClient(self.broker))
        self.devices: dict[str, Daemon] = {}
        self._sent = 0
        for name in NAMES:
            (folder / name).mkdir()
            self.devices[name] = stack.enter_context(
                Daemon(folder / name, engines, self.broker, device__name=name,
                       serve__pool=POOL.pool, serve__models='["digits"]')
            )  # fmt: skip
        for name in NAMES:
            self.wait_births(name, 1)

    def wait_births(self, name: str, count: int) -> None:
        """Waits until a device has been online in so many runs."""
        topic = protocol.Topics(POOL.root, name).status

        def births() -> set[str]:
            documents = [message.json() for message in self.client.messages(topic)]
            return {each["boot_id"] for each in documents if each["state"] == "online"}

        self.client.wait_for(lambda _: len(births()) >= count, f"birth {count} of {name}")

    def ask(self, count: int = COUNT) -> list[bytes]:
        """Sends requests to the pool, and waits until the broker has them all."""
        payload, length = digits.binary(IMAGES)
        correlations = [b"%d" % (self._sent + n) for n in range(count)]
        self._sent += count
        user = [(protocol.HEADER_LENGTH, str(length)), (protocol.DEADLINE_MS, "100000")]
        self.client.wait_acknowledged(
            [
                self.client.publish(
                    Ask(POOL.infer("digits"), payload, REPLY, each, protocol.OCTET_STREAM, user)
                )
                for each in correlations
            ]
        )
        return correlations

    def answers(self) -> dict[bytes, Message]:
        """The first good answer to each request so far."""
        found: dict[bytes, Message] = {}
        for message in self.client.messages(REPLY):
            if message.status == "200":
                found.setdefault(message.correlation or b"", message)
        return found

    def wait_answers(self, correlations: list[bytes]) -> Counter[str]:
        """Waits until all are answered; how many each device answered."""
        wanted = set(correlations)
        self.client.wait_for(lambda _: wanted <= set(self.answers()), "all answers")
        found = self.answers()
        return Counter(dict(found[each].user)[protocol.DEVICE] for each in correlations)


@pytest.fixture
def plant(tmp_path: Path, served_engines: Path) -> Iterator[Plant]:
    """Two devices that are online."""
    with ExitStack() as stack:
        yield Plant(stack, tmp_path, served_engines)


def test_both_devices_take_work_and_replies_name_them(plant: Plant) -> None:
    """The broker gives each every second request; a device's own topics work beside the pool's.

    A reply to the device's own topic does not name it: who asked knows.
    """
    assert plant.wait_answers(plant.ask()) == dict.fromkeys(NAMES, COUNT // 2)
    own = protocol.Topics(POOL.root, NAMES[0])
    reply = own.reply("wire")
    payload, length = digits.binary(IMAGES)
    user = [(protocol.HEADER_LENGTH, str(length))]
    plant.client.publish(Ask(own.infer("digits"), payload, reply, b"own", user=user))
    answer = plant.client.wait_message(reply)
    assert answer.status == "200"
    assert protocol.DEVICE not in dict(answer.user)
    pool = Endpoint(host=plant.broker.host, port=plant.broker.port, pool=POOL.pool)
    with InferClient(pool) as client:
        results = [client.infer("digits", {"image": IMAGES}) for _ in NAMES]
        assert {result.device for result in results} == set(NAMES)


def test_a_killed_device_loses_nothing_once_it_is_back(plant: Plant) -> None:
    """What a killed device had, and what mosquitto gives it meanwhile, waits in its session.

    mosquitto gives none of it to the other device; the one that comes back answers it.
    """
    dead, alive = NAMES
    plant.devices[dead].signal(signal.SIGSTOP)  # so that it surely has some in hand
    before = plant.ask()
    plant.devices[dead].kill()
    after = plant.ask()
    half = COUNT // 2
    plant.client.wait_for(lambda _: len(plant.answers()) >= 2 * half, "the other's answers")
    assert {dict(each.user)[protocol.DEVICE] for each in plant.answers().values()} == {alive}
    plant.devices[dead].start()
    assert plant.wait_answers(before + after) == {dead: 2 * half, alive: 2 * half}


def test_a_device_that_stops_leaves_its_pool_first(plant: Plant) -> None:
    """SIGTERM: what it was given is answered before it ends, and all that follows by the other."""
    leaving, staying = NAMES
    plant.devices[leaving].signal(signal.SIGSTOP)
    before = plant.ask()
    plant.devices[leaving].signal(signal.SIGTERM)
    plant.devices[leaving].signal(signal.SIGCONT)
    assert plant.devices[leaving].process.wait(30) == 0
    after = plant.ask()
    assert plant.wait_answers(before) == dict.fromkeys(NAMES, COUNT // 2)
    assert plant.wait_answers(after) == {staying: COUNT}


def test_more_than_a_device_may_have_outstanding_is_answered_before_it_ends(
    tmp_path: Path, served_engines: Path
) -> None:
    """More than a receive maximum: the queue at the broker is emptied before the device ends."""
    with ExitStack() as stack:
        broker = stack.enter_context(Mosquitto(tmp_path / "broker", persistent=True))
        client = stack.enter_context(WireClient(broker))
        daemon = stack.enter_context(
            Daemon(tmp_path, served_engines, broker, broker__receive_maximum="8",
                   serve__pool=POOL.pool, serve__models='["digits"]')
        )  # fmt: skip
        status = protocol.Topics(POOL.root, "edge").status
        client.wait_for(
            lambda message: message.topic == status and message.json()["state"] == "online",
            "the birth",
        )
        daemon.signal(signal.SIGSTOP)
        payload, length = digits.binary(IMAGES)
        user = [(protocol.HEADER_LENGTH, str(length)), (protocol.DEADLINE_MS, "100000")]
        topic = POOL.infer_class("digits", "background")
        asks = [Ask(topic, payload, REPLY, b"%d" % n, user=user) for n in range(100)]
        client.wait_acknowledged([client.publish(ask) for ask in asks])
        daemon.signal(signal.SIGTERM)
        daemon.signal(signal.SIGCONT)
        assert daemon.process.wait(30) == 0
        client.flush()
        answered = {each.correlation for each in client.messages(REPLY) if each.status == "200"}
        assert answered == {ask.correlation for ask in asks}
