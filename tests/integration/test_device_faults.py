"""Devices fail under load, through the whole request path: who answers, who waits, who is told."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from edged.engine_store import Engine
from edged.errors import DeviceFaultError, EngineRefusedError
from edged.events import DeviceFailed, DeviceRecovered
from edged.runners import Array
from tests.doubles.runner import ScriptedRunner, expected
from tests.doubles.serving import Sent, body
from tests.doubles.site import ScriptedHost, Site, install

FAULT = DeviceFaultError("an illegal memory access was encountered")
PATIENCE_S = 30.0
POISON = 666.0


def assert_right(answer: Sent, first: float) -> None:
    """It is what the engine makes of the sample that begins with this number."""
    assert answer.status == "200", answer.json()
    (row,) = expected([[first, 0, 1]])["y"]  # type: ignore[arg-type]  # it makes an array of it
    assert answer.output("y") == row.tolist()


class Gate:
    """Makes runners; may keep those of a device from being made anew until it is opened.

    Attributes:
        open: set it to let them be made.
        renewing: set once one is to be made anew.

    Args:
        fails_at: number of the batch at which the first runner of ``cpu:0`` fails.
    """

    def __init__(self, fails_at: int) -> None:
        self.fails_at = fails_at
        self.open = threading.Event()
        self.renewing = threading.Event()
        self._first = True

    def make(self, engine: Engine, device: str) -> ScriptedRunner:
        """A new runner; those of ``cpu:1`` hold their batches."""
        if device != "cpu:0":
            return ScriptedRunner(engine.manifest.max_batch, device=device, held=True)
        first, self._first = self._first, False
        if not first:
            self.renewing.set()
            assert self.open.wait(PATIENCE_S)
        return ScriptedRunner(
            engine.manifest.max_batch,
            device=device,
            fault=lambda number, _inputs: FAULT if first and number == self.fails_at else None,
        )


@pytest.mark.parametrize("fails_at", [0, 2])
def test_another_device_answers_what_a_failed_one_had(tmp_path: Path, fails_at: int) -> None:
    """No request notices; the device is taken out, renewed, and takes work again."""
    install(tmp_path)
    gate = Gate(fails_at)
    host = ScriptedHost(tmp_path, make=gate.make)
    with Site(host) as running:
        (other,) = host.made["cpu:1"]
        for number in range(30):
            running.arrive(body([[number, 0, 1]]), correlation=b"%d" % number)
        (failed,) = running.wait_events(DeviceFailed)
        other.release()
        for answer in running.link.wait_sent(30):
            assert_right(answer, float(answer.reply.correlation or b"-1"))
        assert list(running.devices.faults) == ["cpu:0"]
        assert failed.device == "cpu:0"

        gate.open.set()
        (back,) = running.wait_events(DeviceRecovered)
        other.hold()
        for number in range(10):
            running.arrive(body([[number, 0, 1]]))
        running.link.wait_sent(31)  # nobody else can have answered
        other.release()
        running.link.wait_sent(40)

        assert (back.device, back.attempts) == ("cpu:0", 1)
        assert host.made["cpu:0"][1].batches
    assert len(running.link.sent) == 40


def test_requests_wait_for_the_only_device(tmp_path: Path) -> None:
    """What it had and what comes meanwhile is answered once it is back."""
    install(tmp_path)
    gate = Gate(fails_at=1)
    with Site(ScriptedHost(tmp_path, ("cpu:0",), gate.make)) as running:
        assert_right(running.ask()[0], 0)
        running.arrive(body([[1, 0, 1]]))
        running.wait_events(DeviceFailed)
        running.arrive(body([[2, 0, 1]]))
        assert len(running.link.sent) == 1
        gate.open.set()

        answers = running.link.wait_sent(3)

    assert Counter(answer.status for answer in answers) == {"200": 3}


def test_requests_expire_while_the_only_device_is_out(tmp_path: Path) -> None:
    """They are told so in time, between two attempts to bring it back."""
    install(tmp_path)
    broken = threading.Event()

    def make(engine: Engine, device: str) -> ScriptedRunner:
        if broken.is_set():
            raise EngineRefusedError("the device does not answer")
        return ScriptedRunner(engine.manifest.max_batch, device=device, fault=fault)

    def fault(_number: int, inputs: Mapping[str, Array]) -> DeviceFaultError | None:
        if not (inputs["x"][:, 0] == POISON).any():
            return None
        broken.set()
        return FAULT

    with Site(ScriptedHost(tmp_path, ("cpu:0",), make)) as running:
        running.arrive(body([[POISON, 0, 1]]), user={"deadline-ms": "1500"})
        running.wait_events(DeviceFailed)
        running.arrive(body([[1, 0, 1]]), user={"deadline-ms": "50"})

        answers = running.link.wait_sent(2)

        assert [answer.code for answer in answers] == ["expired", "expired"]
        broken.clear()
        running.wait_events(DeviceRecovered)
        assert_right(running.ask()[0], 0)


def test_requests_expire_while_the_only_device_is_loaded_again(tmp_path: Path) -> None:
    """Loading may take long; who waits is told in time all the same."""
    install(tmp_path)
    gate = Gate(fails_at=0)
    with Site(ScriptedHost(tmp_path, ("cpu:0",), gate.make)) as running:
        running.arrive(body([[1, 0, 1]]))
        running.wait_events(DeviceFailed)
        assert gate.renewing.wait(PATIENCE_S)
        running.arrive(body([[2, 0, 1]]), user={"deadline-ms": "50"})

        (late,) = running.link.wait_sent(1)

        assert late.code == "expired"
        gate.open.set()
        running.wait_events(DeviceRecovered)
        assert_right(running.link.wait_sent(2)[1], 1)


@pytest.mark.parametrize("devices", [("cpu:0",), ("cpu:0", "cpu:1"), ("cpu:0", "cpu:1", "cpu:2")])
def test_what_makes_devices_fail_is_answered_and_not_tried_for_ever(
    tmp_path: Path, devices: tuple[str, ...]
) -> None:
    """A poisoned request costs two faults and gets its error; the others get their answers."""
    install(tmp_path, max_batch=1, warm_sizes=(1,))

    def fault(_number: int, inputs: Mapping[str, Array]) -> DeviceFaultError | None:
        return FAULT if (inputs["x"][:, 0] == POISON).any() else None

    def make(_engine: Engine, device: str) -> ScriptedRunner:
        return ScriptedRunner(1, device=device, fault=fault)

    with Site(ScriptedHost(tmp_path, devices, make)) as running:
        values = [POISON if number in {3, 8} else float(number) for number in range(20)]
        for number, value in enumerate(values):
            running.arrive(body([[value, 0, 1]]), correlation=b"%d" % number)
        answers = running.link.wait_sent(20)
        running.wait(lambda: not running.devices.faults)

        for answer in answers:
            value = values[int(answer.reply.correlation or b"-1")]
            if value == POISON:
                assert (answer.code, answer.status) == ("device_fault", "503")
                assert answer.json()["retryable"] is True
            else:
                assert_right(answer, value)
        assert running.metrics.total("device_faults_total") == 4
        assert running.metrics.value("errors_total", "device_fault") == 2
        assert_right(running.ask()[0], 0)


def test_every_request_ends_once_whatever_fails(tmp_path: Path) -> None:
    """Batches and renewals fail at random; each request gets one answer, and it is right."""
    install(tmp_path)
    chance = random.Random(5)
    guard = threading.Lock()

    def unlucky(share: float) -> bool:
        with guard:
            return chance.random() < share

    def make(engine: Engine, device: str) -> ScriptedRunner:
        if host.made.get(device) and unlucky(0.3):
            raise EngineRefusedError("not yet")
        return ScriptedRunner(
            engine.manifest.max_batch,
            lanes=2,
            device=device,
            fault=lambda _number, _inputs: FAULT if unlucky(0.04) else None,
        )

    host = ScriptedHost(tmp_path, ("cpu:0", "cpu:1", "cpu:2"), make)
    with Site(host) as running:
        for number in range(400):
            running.arrive(body([[number, 0, 1]]), correlation=b"%d" % number)
        answers = running.link.wait_sent(400)

        assert len({answer.reply.correlation for answer in answers}) == 400
        for answer in answers:
            if answer.status != "503":
                assert_right(answer, float(answer.reply.correlation or b"-1"))
        running.wait(lambda: not running.devices.faults)
        assert running.wait_events(DeviceFailed)
        running.ask(20)
        assert running.pipeline.outstanding == 0
    assert len(running.link.sent) == 420
