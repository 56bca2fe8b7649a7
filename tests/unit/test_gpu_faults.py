"""A device's thread whose runner fails: who is told, what runs again, how it is renewed."""

from __future__ import annotations

import queue
import threading

import pytest

from edged.errors import DeviceFaultError, EdgedError, EngineError, ExpiredError
from edged.serve.gpu import Device, Done, Served
from edged.serve.request import Work
from tests.doubles.around_device import (
    INPUT,
    MODEL,
    PATIENCE_S,
    Again,
    Completed,
    Failed,
    Renew,
    part,
    ports,
    running,
)
from tests.doubles.runner import ScriptedRunner


def failing(error: EdgedError) -> ScriptedRunner:
    """Fails on each batch."""
    return ScriptedRunner(4, fault=lambda _number, _inputs: error)


def test_an_engine_s_error_is_the_request_s_answer() -> None:
    """The device is sound: it is not taken out, and nothing runs again."""
    error = EngineError("it does not like this")
    with running(Served(failing(error), INPUT)) as around:
        around.give(part(1))

        assert around.told(Completed) == Completed(1, 0.0)
        done = around.told(Done)
        assert (done.error, dict(done.outputs)) == (error, {})
    assert around.silent()


def test_a_device_s_fault_takes_it_out_and_the_batch_runs_again() -> None:
    """In this order: out, lane free, back into the room; nobody is answered yet."""
    error = DeviceFaultError("an illegal memory access was encountered")
    parts = (part(1, 2), part(3))
    with running(Served(failing(error), INPUT)) as around:
        around.give(*parts)

        assert around.told(Failed).error is error
        assert around.told(Again).parts == parts
        assert around.told(Completed) == Completed(3, 0.0)
    assert around.silent()


def test_what_has_failed_twice_is_answered() -> None:
    """A part on its second attempt ends with the fault; its company runs once more."""
    error = DeviceFaultError("an illegal memory access was encountered")
    old, new = part(1, attempt=1), part(2)
    with running(Served(failing(error), INPUT)) as around:
        around.give(old, new)

        around.told(Failed)
        assert around.told(Again).parts == (new,)
        around.told(Completed)
        done = around.told(Done)

    assert (done.parts, done.error) == ((old,), error)


def test_a_retry_asks_to_be_renewed() -> None:
    """And the device goes on with the models that it is given."""
    runner = ScriptedRunner(4)
    with running(Served(runner, INPUT, version="old")) as around:
        around.give_work(Work(None, retry=True))
        around.told(Renew)
        around.device.renew({MODEL: Served(runner, INPUT, version="new")})
        around.give(part(1))
        around.told(Completed)

        assert around.told(Done).version == "new"


def test_while_it_is_renewed_the_device_goes_on() -> None:
    """What expires meanwhile is told of, and its thread ends only after the renewal."""
    renewing, go_on = threading.Event(), threading.Event()
    works: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
    told: queue.SimpleQueue[Done] = queue.SimpleQueue()

    def renew(_device: str) -> None:
        renewing.set()
        assert go_on.wait(PATIENCE_S)

    device = Device("cpu", {}, ports(works, told, renew))
    device.thread.start()
    works.put(Work(None, retry=True))
    assert renewing.wait(PATIENCE_S)
    works.put(Work(None, (part(1),)))

    assert isinstance(told.get(timeout=PATIENCE_S).error, ExpiredError)
    assert device.dead() is None
    works.put(None)
    go_on.set()
    device.thread.join(PATIENCE_S)
    assert device.dead() == "gpu-cpu"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_renewal_that_dies_is_noticed() -> None:
    """As a fault of ours in any other thread is; the device's own thread still lives."""
    works: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
    told: queue.SimpleQueue[Done] = queue.SimpleQueue()
    dying: list[threading.Thread] = []

    def renew(_device: str) -> None:
        dying.append(threading.current_thread())
        raise RuntimeError("a fault of ours")

    device = Device("cpu", {}, ports(works, told, renew))
    device.thread.start()
    works.put(Work(None, (part(1),), retry=True))
    told.get(timeout=PATIENCE_S)
    dying[0].join(PATIENCE_S)

    assert device.dead() == "renew-cpu"
    works.put(None)
    device.thread.join(PATIENCE_S)
