"""Which engine runs on which device: taking over, refusing, taking out, trying again."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edged.engine_store import Engine
from edged.errors import DeviceFaultError, DeviceLostError, EngineRefusedError
from edged.events import DeviceFailed, DeviceRecovered, ModelLoaded, ModelRefused
from edged.recipe import OutputSpec
from edged.settings import ServeSettings
from tests.doubles import site
from tests.doubles.runner import ScriptedRunner
from tests.doubles.serving import MODEL, Sent, body
from tests.doubles.site import ScriptedHost, Site, install

FAULT = DeviceFaultError("an illegal memory access was encountered")
PATIENCE_S = 30.0


@dataclass
class Script:
    """Decides what each load gives.

    Attributes:
        refused: devices that refuse to load, with the reason.
        faulty: devices whose runners fail on every batch, as long as they are in here.
    """

    refused: dict[str, EngineRefusedError | DeviceLostError]
    faulty: set[str]

    def make(self, engine: Engine, device: str) -> ScriptedRunner:
        """A new runner."""
        if device in self.refused:
            raise self.refused[device]
        return ScriptedRunner(
            engine.manifest.max_batch,
            device=device,
            fault=lambda _number, _inputs: FAULT if device in self.faulty else None,
        )


def version_of(answer: Sent) -> str:
    """Of the engine that answered; "" with an error."""
    return str(answer.json().get("model_version", ""))


# ------------------------------------------------------------------ start


def test_a_model_is_loaded_on_all_its_devices(tmp_path: Path) -> None:
    """One runner each, told one by one; the store's engine is what is served."""
    version = install(tmp_path)
    host = ScriptedHost(tmp_path)
    with Site(host) as running:
        loaded = running.wait_events(ModelLoaded, 2)
        answers = running.ask(20)

    assert host.devices() == list(site.TWO)
    assert [event.device for event in loaded] == list(site.TWO)
    assert {event.engine for event in loaded} == {version}
    assert {version_of(answer) for answer in answers} == {version}
    assert repr(running.devices) == "<Devices ['cpu:0', 'cpu:1'], models ['m']>"


def test_a_device_that_refuses_is_left_out(tmp_path: Path) -> None:
    """At the start, as long as another one takes the engine."""
    install(tmp_path)
    script = Script({"cpu:0": EngineRefusedError("no memory")}, set())
    host = ScriptedHost(tmp_path, make=script.make)
    with Site(host) as running:
        assert host.devices() == ["cpu:1"]
        assert running.ask()[0].status == "200"


def test_a_model_that_no_device_takes_is_refused(tmp_path: Path) -> None:
    """It is told why, and the other model is served."""
    install(tmp_path, "bad")
    install(tmp_path)

    def make(engine: Engine, device: str) -> ScriptedRunner:
        if engine.manifest.model == "bad":
            raise EngineRefusedError("no memory")
        return site.plain(engine, device)

    host = ScriptedHost(tmp_path, make=make)
    with Site(host) as running:
        (refused,) = running.wait_events(ModelRefused)
        assert (refused.model, refused.reason) == ("bad", "no memory")
        running.arrive(body([[1, 0, 1]]), model="bad")
        assert running.link.wait_sent(1)[0].code == "model_unavailable"
        assert running.ask()[0].status == "200"
    assert host.refused == {"bad": "no memory"}


def test_loading_stops_when_it_is_told_to(tmp_path: Path) -> None:
    """A signal ends the start between two models."""
    install(tmp_path, "a")
    install(tmp_path, "b")
    host = ScriptedHost(tmp_path)
    running = Site(host)

    events = running.devices.load(lambda: bool(host.models))

    assert {event.model for event in events if isinstance(event, ModelLoaded)} == {"a"}
    host.models["a"].close()


# ------------------------------------------------------------------ taking over


def test_a_new_engine_takes_over(tmp_path: Path) -> None:
    """From the next batch on, on all devices; the old runners are closed, and once is enough."""
    first = install(tmp_path)
    host = ScriptedHost(tmp_path)
    with Site(host) as running:
        assert version_of(running.ask()[0]) == first
        second = install(tmp_path, build="2")
        events = running.devices.load()
        again = running.devices.load()
        answers = running.ask(20)
        old = [host.made[device][0] for device in site.TWO]

        assert [type(event) for event in events] == [ModelLoaded, ModelLoaded]
        assert again == []
        assert {version_of(answer) for answer in answers} == {second}
        for runner in old:
            with pytest.raises(ValueError, match="closed"):
                runner.submit(0, 1, lambda _completion: None)


def test_a_new_model_is_served_after_a_reload(tmp_path: Path) -> None:
    """Requests for it are taken from then on."""
    install(tmp_path)
    with Site(ScriptedHost(tmp_path)) as running:
        running.arrive(body([[1, 0, 1]]), model="n")
        assert running.link.wait_sent(1)[0].code == "unknown_model"
        install(tmp_path, "n")
        running.devices.load()
        running.arrive(body([[1, 0, 1]]), model="n")

        assert running.link.wait_sent(2)[1].status == "200"


CHANGES: dict[str, dict[str, Any]] = {
    "other outputs": {"output": (OutputSpec(name="y", shape=(2,)),)},
    "other labels": {
        "output": (
            OutputSpec(name="y", shape=(2,), labels=("a", "b")),
            OutputSpec(name="z", datatype="INT64", shape=()),
        )
    },
    "smaller batches": {"max_batch": 2, "warm_sizes": (1, 2)},
    "a GPU's": {"runner": "tensorrt"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_new_engine_that_cannot_take_over_is_refused(tmp_path: Path, change: str) -> None:
    """The old one goes on on all devices, and what was loaded of the new one is closed."""
    first = install(tmp_path)
    host = ScriptedHost(tmp_path)
    with Site(host) as running:
        install(tmp_path, build="2", **CHANGES[change])
        (refused,) = running.devices.load()
        answers = running.ask(10)

        assert isinstance(refused, ModelRefused)
        assert len(refused.reason) > 20
        assert {version_of(answer) for answer in answers} == {first}
        for runners in host.made.values():
            for runner in runners[1:]:
                with pytest.raises(ValueError, match="closed"):
                    runner.submit(0, 1, lambda _completion: None)
    assert host.refused == {}


def test_a_new_engine_is_refused_unless_each_device_takes_it(tmp_path: Path) -> None:
    """Else one device would go on with the old engine for good."""
    first = install(tmp_path)
    script = Script({}, set())
    host = ScriptedHost(tmp_path, make=script.make)
    with Site(host) as running:
        second = install(tmp_path, build="2")
        script.refused["cpu:1"] = EngineRefusedError("no memory")
        (refused,) = running.devices.load()
        before = version_of(running.ask()[0])
        script.refused.clear()
        running.devices.load()

        assert isinstance(refused, ModelRefused)
        assert "cannot be loaded on cpu:1, where the old one serves" in refused.reason
        assert before == first
        assert version_of(running.ask()[0]) == second


def test_a_device_without_a_thread_needs_a_restart(tmp_path: Path) -> None:
    """A model for a device that served nothing at the start is refused, not half served."""
    install(tmp_path)
    script = Script({"cpu:1": EngineRefusedError("no memory")}, set())
    host = ScriptedHost(tmp_path, make=script.make)
    with Site(host) as running:
        script.refused.clear()
        install(tmp_path, "n")
        (refused,) = running.devices.load()

        assert isinstance(refused, ModelRefused)
        assert "cpu:1" in refused.reason
        assert "restart the service" in refused.reason
        assert running.ask()[0].status == "200"


def test_only_listed_models_are_wanted(tmp_path: Path) -> None:
    """`serve.models` may change: what is taken off the list is served no more, and closed."""
    install(tmp_path)
    install(tmp_path, "n")
    host = ScriptedHost(tmp_path)
    host.settings = ServeSettings(devices=site.TWO, models=(MODEL,))
    with Site(host) as running:
        assert list(host.models) == [MODEL]
        host.settings = ServeSettings(devices=site.TWO, models=("n",))
        running.devices.load()

        assert sorted(host.models) == ["n"]
        assert running.ask()[0].status == "404"
        assert running.ask(model="n")[0].status == "200"
        with pytest.raises(ValueError, match="closed"):
            host.made["cpu:0"][0].submit(0, 1, lambda _completion: None)


# ------------------------------------------------------------------ out and back


def test_a_failed_device_is_renewed_and_used_again(tmp_path: Path) -> None:
    """It is loaded anew, says so, and takes work."""
    install(tmp_path)
    script = Script({}, {"cpu:0"})
    host = ScriptedHost(tmp_path, ("cpu:0",), script.make)
    with Site(host) as running:
        running.arrive(body([[1, 0, 1]]))
        (failed,) = running.wait_events(DeviceFailed)
        script.faulty.clear()
        running.wait_events(DeviceRecovered)

        assert running.ask()[-1].status == "200"
        assert (failed.device, failed.reason) == ("cpu:0", FAULT.message)
        assert running.devices.faults == {}
        assert len(host.made["cpu:0"]) > 1


def test_a_device_that_cannot_be_renewed_is_tried_until_it_can(tmp_path: Path) -> None:
    """One event when it goes, one when it is back, with the attempts that it took."""
    install(tmp_path)
    script = Script({}, {"cpu:0"})
    tried = threading.Semaphore(0)

    def make(engine: Engine, device: str) -> ScriptedRunner:
        tried.release()
        return script.make(engine, device)

    host = ScriptedHost(tmp_path, ("cpu:0",), make)
    with Site(host) as running:
        assert tried.acquire(timeout=PATIENCE_S)  # the start
        script.refused["cpu:0"] = EngineRefusedError("still broken")
        running.arrive(body([[1, 0, 1]]))
        for _ in range(4):
            assert tried.acquire(timeout=PATIENCE_S)
        assert set(running.devices.faults) == {"cpu:0"}
        assert "out: ['cpu:0']" in repr(running.devices)
        script.faulty.clear()
        script.refused.clear()
        (back,) = running.wait_events(DeviceRecovered)

        assert running.link.wait_sent(1)[0].status == "200"
        assert len(running.wait_events(DeviceFailed)) == 1
        assert back.attempts >= 4  # the fault, and failed attempts to bring it back
        assert running.metrics.value("device_faults_total", "cpu:0") == back.attempts


def test_all_lanes_that_fail_at_once_are_one_fault(tmp_path: Path) -> None:
    """A device with three batches on it goes out once, and its first pause is the shortest."""
    install(tmp_path, max_batch=1, warm_sizes=(1,))
    made: list[ScriptedRunner] = []

    def make(_engine: Engine, device: str) -> ScriptedRunner:
        first = not made
        made.append(
            ScriptedRunner(
                1, lanes=3, device=device, held=first,
                fault=lambda _number, _inputs: FAULT if first else None,
            )
        )  # fmt: skip
        return made[-1]

    with Site(ScriptedHost(tmp_path, ("cpu:0",), make)) as running:
        for number in range(3):
            running.arrive(body([[number, 0, 1]]))
        made[0].wait_running(3)
        made[0].release()
        answers = running.link.wait_sent(3)
        (back,) = running.wait_events(DeviceRecovered)

    assert back.attempts == 1
    assert [answer.status for answer in answers] == ["200"] * 3
    assert running.metrics.value("device_faults_total", "cpu:0") == 3


def test_a_device_is_renewed_with_the_engine_that_serves(tmp_path: Path) -> None:
    """An engine that was built meanwhile waits for its reload, and is checked then."""
    first = install(tmp_path)
    script = Script({}, {"cpu:0"})
    host = ScriptedHost(tmp_path, ("cpu:0",), script.make)
    with Site(host) as running:
        second = install(tmp_path, build="2")
        running.arrive(body([[1, 0, 1]]))
        running.wait_events(DeviceFailed)
        script.faulty.clear()
        running.wait_events(DeviceRecovered)
        renewed = version_of(running.ask()[-1])
        running.devices.load()

        assert set(host.versions["cpu:0"][:-1]) == {first}
        assert renewed == first
        assert version_of(running.ask()[-1]) == second


def test_a_reload_and_a_renewal_do_not_cross(tmp_path: Path) -> None:
    """A device fails while a new engine is being loaded: both end up with the new engine."""
    install(tmp_path)
    script = Script({}, set())
    loading, go_on = threading.Event(), threading.Event()

    def make(engine: Engine, device: str) -> ScriptedRunner:
        if threading.current_thread().name == "reload":
            loading.set()
            assert go_on.wait(PATIENCE_S)
        return script.make(engine, device)

    host = ScriptedHost(tmp_path, make=make)
    with Site(host) as running:
        second = install(tmp_path, build="2")
        reload = threading.Thread(target=running.devices.load, name="reload")
        reload.start()
        assert loading.wait(PATIENCE_S)
        script.faulty.update(site.TWO)
        running.arrive(body([[1, 0, 1]]))
        running.wait_events(DeviceFailed)
        script.faulty.clear()
        go_on.set()
        reload.join(PATIENCE_S)
        running.wait_events(DeviceRecovered, len(running.wait_events(DeviceFailed)))
        answers = running.ask(20)

        assert {version_of(answer) for answer in answers} == {second}
        assert {model.version for model in host.models.values()} == {second}
        running.wait(lambda: not running.devices.faults)


def test_a_lost_device_asks_for_a_new_process(tmp_path: Path) -> None:
    """What cannot be mended in this process is said, for the main thread to end it."""
    install(tmp_path)
    script = Script({}, {"cpu:0"})
    host = ScriptedHost(tmp_path, ("cpu:0",), script.make)
    with Site(host) as running:
        script.refused["cpu:0"] = DeviceLostError("the context is gone")
        running.arrive(body([[1, 0, 1]]))
        running.wait(lambda: bool(running.devices.lost))

        assert running.devices.lost == "the context is gone"
        script.faulty.clear()
        script.refused.clear()
