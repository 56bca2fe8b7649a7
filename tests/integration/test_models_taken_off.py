"""Models are taken off ``serve.models`` and put back while requests come."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edged import protocol
from edged.engine_store import Engine, EngineStore
from edged.errors import DeviceFaultError
from edged.events import ModelUnloaded
from edged.serve.models import ModelHost
from edged.settings import ServeSettings
from tests.doubles import digits, engines
from tests.doubles.broker import Mosquitto
from tests.doubles.cloud import Cloud
from tests.doubles.daemon import TOPICS, Daemon, wait_online
from tests.doubles.rebuilt import METHODS, Rebuilt
from tests.doubles.runner import ScriptedRunner
from tests.doubles.serving import MODEL, body
from tests.doubles.site import ScriptedHost, Site, install
from tests.doubles.steady_load import PATIENCE_S, SteadyLoad
from tests.doubles.wire import Ask, WireClient

IMAGES = digits.images()
MOST_LATE = 3000
BOTH = ("digits", "picker")


def test_nothing_is_lost_when_a_model_is_taken_off_and_put_back(tmp_path: Path) -> None:
    """Under steady load three times, on ONNX Runtime: each request has one right answer.

    1. Taken off: what waits is answered, what comes then is an unknown model; its runner is closed.
    2. Put back: it is loaded anew, and what comes is answered again.
    """
    rebuilt = Rebuilt(tmp_path)
    version = rebuilt.build(METHODS[0])
    engines.install_picker(rebuilt.engines, "picker")

    def listed(*models: str) -> ServeSettings:
        return ServeSettings(devices=("cpu:0", "cpu:1"), onnx_threads=1, models=models)

    host = ModelHost(EngineStore(rebuilt.engines), listed(*BOTH))
    with Site(host) as running:
        closed: list[Any] = []
        with SteadyLoad(running) as load:
            for _ in range(3):
                load.wait_more(100, "200")
                closed += host.models["digits"].runners.values()
                host.settings = listed("picker")
                events = running.devices.load()
                assert [type(event) for event in events] == [ModelUnloaded]
                assert list(host.models) == ["picker"]
                load.wait_more(20, "404")
                host.settings = listed(*BOTH)
                running.devices.load()
            load.wait_more(100, "200")
        answers = {sent.reply.correlation: sent for sent in running.link.sent}

    assert len(running.link.sent) == len(answers) == load.sent
    assert {sent.status for sent in answers.values()} == {"200", "404"}
    for outcome, status in running.outcomes:
        if status == 404:
            assert outcome.error is not None
            assert outcome.error.code == "unknown_model"
        else:
            logits = np.asarray(outcome.outputs["logits"], np.float32)
            assert rebuilt.is_right(version, int(outcome.id) % len(IMAGES), logits[0])
    for runner in closed:
        with pytest.raises(ValueError, match="closed"):
            runner.submit(0, 1, lambda _completion: None)


class Held:
    """Makes runners; the first one of ``m`` holds its batches, and may fail its first one."""

    def __init__(self, *, fails: bool) -> None:
        self._fails = fails
        self.first: ScriptedRunner | None = None

    def make(self, engine: Engine, device: str) -> ScriptedRunner:
        """A new runner."""
        first = self.first is None and engine.manifest.model == MODEL
        fault = DeviceFaultError("an illegal memory access was encountered")
        runner = ScriptedRunner(
            engine.manifest.max_batch,
            device=device,
            held=first,
            fault=lambda _number, _inputs: fault if first and self._fails else None,
        )
        if first:
            self.first = runner
        return runner


@pytest.mark.parametrize("fails", [False, True], ids=["sound", "device fails"])
def test_what_waits_is_answered_before_the_runner_is_closed(tmp_path: Path, *, fails: bool) -> None:
    """Also if the device fails meanwhile: it is renewed, and answers what waits.

    1. Ten requests wait behind a batch that does not end; the model is taken off.
    2. What comes from then on is answered as unknown.
    3. The batch ends: the ten are answered, then the model is gone; the other one serves.
    """
    install(tmp_path)
    install(tmp_path, "n")
    held = Held(fails=fails)
    host = ScriptedHost(tmp_path, ("cpu:0",), held.make)
    with Site(host) as running:
        for number in range(10):
            running.arrive(body([[number, 0, 1]]), correlation=b"wait %d" % number)
        assert held.first is not None
        held.first.wait_running(1)
        host.settings = ServeSettings(devices=("cpu:0",), models=("n",))
        taking_off = threading.Thread(target=running.devices.load, daemon=True)
        taking_off.start()
        late = 0
        while not running.link.sent:
            running.arrive(body([[0, 0, 1]]), correlation=b"late %d" % late)
            late += 1
            assert late < MOST_LATE
            threading.Event().wait(0.01)
        assert list(host.models) == [MODEL, "n"]
        held.first.release()
        taking_off.join(PATIENCE_S)
        assert not taking_off.is_alive()
        running.link.wait_sent(10 + late)
        (answer,) = running.ask(model="n")
        (unknown,) = running.ask()

    answers = {sent.reply.correlation or b"": sent.status for sent in running.link.sent}
    assert [answers[b"wait %d" % number] for number in range(10)] == ["200"] * 10
    assert "404" in {answers[b"late %d" % number] for number in range(late)}
    assert (answer.status, unknown.status) == ("200", "404")
    assert unknown.json()["code"] == "unknown_model"


def test_what_serves_goes_on_where_nothing_that_is_listed_can(tmp_path: Path) -> None:
    """A list of models that cannot be loaded does not leave the service without any."""
    install(tmp_path)
    install(tmp_path, "n", fingerprint={"runner": "onnx", "arch": "vax"})
    host = ScriptedHost(tmp_path, ("cpu:0",))
    host.settings = ServeSettings(devices=("cpu:0",), models=(MODEL,))
    with Site(host) as running:
        host.settings = ServeSettings(devices=("cpu:0",), models=("absent",))
        running.devices.load()
        assert list(host.models) == [MODEL]
        assert running.ask()[0].status == "200"
        assert "absent" in host.refused
        host.settings = ServeSettings(devices=("cpu:0",), models=(MODEL,))
        running.devices.load()
        assert host.refused == {}


def test_a_model_that_is_gone_from_the_store_is_taken_off(tmp_path: Path) -> None:
    """With an empty list; the last one goes on, and so does all where the store is away."""
    install(tmp_path)
    install(tmp_path, "n")
    host = ScriptedHost(tmp_path, ("cpu:0",))
    host.settings = ServeSettings(devices=("cpu:0",))
    with Site(host) as running:
        assert list(host.models) == [MODEL, "n"]
        away = tmp_path / "away"
        assert host.unwanted() == ()
        built = host.store.root / MODEL / "built"
        built.rename(away)
        (gone,) = running.devices.load()
        assert gone.kind == "model_unloaded"
        assert list(host.models) == ["n"]
        assert running.ask()[0].json()["code"] == "unknown_model"
        away.rename(built)
        running.devices.load()
        assert sorted(host.models) == [MODEL, "n"]
        for name in ("n", MODEL):
            (host.store.root / name / "built").rename(tmp_path / f"no-{name}")
        running.devices.load()
        assert sorted(host.models) == [MODEL, "n"]


# ------------------------------------------------------------------ as a process


PICK = {"inputs": [{"name": "x", "datatype": "INT64", "shape": [1, 1], "data": [1]}]}


class Service:
    """Asks a daemon for ``picker``, and reads its status."""

    def __init__(self, client: WireClient) -> None:
        self._client = client
        self._asked = 0

    def ask(self) -> str:
        """The status of one answer."""
        self._asked += 1
        name = b"pick %d" % self._asked
        topic, payload = TOPICS.infer("picker"), json.dumps(PICK).encode()
        self._client.publish(Ask(topic, payload, TOPICS.reply("wire"), name, protocol.JSON))
        return self._client.wait_reply(name).status

    def wait_models(self, *models: str) -> None:
        """Waits until the last status says that these serve."""
        self._client.wait_for(
            lambda _: self._client.messages(TOPICS.status)[-1].json()["models"] == list(models),
            f"a status with {models}",
        )


def test_sighup_takes_a_model_off_and_puts_it_back(
    served_engines: Path, broker: Mosquitto, tmp_path: Path
) -> None:
    """The answer, the status and the events follow `serve.models` in the file."""
    file = tmp_path / "edged.toml"
    file.write_text('[serve]\nmodels = ["digits", "picker"]\n', encoding="utf-8")
    with (
        WireClient(broker) as client,
        Daemon(tmp_path, served_engines, broker, config=str(file)) as daemon,
    ):
        wait_online(client)
        service = Service(client)
        assert service.ask() == "200"
        file.write_text('[serve]\nmodels = ["digits"]\n', encoding="utf-8")
        daemon.signal(signal.SIGHUP)
        gone = client.wait_message(TOPICS.event("model_unloaded")).json()["data"]
        service.wait_models("digits")
        assert service.ask() == "404"
        file.write_text('[serve]\nmodels = ["digits", "picker"]\n', encoding="utf-8")
        daemon.signal(signal.SIGHUP)
        service.wait_models("digits", "picker")
        assert service.ask() == "200"
        assert daemon.stop() == 0
        assert daemon.said("Traceback") == 0, daemon.log()

    assert gone["model"] == "picker"


def test_desired_models_are_taken_off_and_put_back(
    served_engines: Path, broker: Mosquitto, tmp_path: Path
) -> None:
    """The reported document says what is served, telemetry too."""
    settings = {
        "uplink__enabled": "true",
        "outbox__path": str(tmp_path / "outbox"),
        "paths__desired": str(tmp_path / "desired.json"),
        "report__telemetry_interval_s": "0.2",
        "serve__models": '["digits", "picker"]',
    }
    with (
        WireClient(broker) as client,
        Cloud(broker, TOPICS) as cloud,
        Daemon(tmp_path, served_engines, broker, **settings) as daemon,
    ):
        wait_online(client)
        service = Service(client)
        for version, models in enumerate((("digits",), BOTH, ("digits",)), start=1):
            cloud.desire(version, serve={"models": list(models)})
            document = cloud.wait_reported(
                lambda each, version=version, models=models: (  # type: ignore[misc]  # bound at once
                    each["applied_version"] == version and sorted(each["models"]) == list(models)
                )
            )
            assert document["status"] == "applied"
            service.wait_models(*models)
            assert service.ask() == ("200" if "picker" in models else "404")
        client.wait_for(
            lambda message: (
                message.topic == TOPICS.telemetry("metrics")
                and list(message.json()["models"]) == ["digits"]
            ),
            "telemetry without the model",
        )
        assert daemon.stop() == 0
        assert daemon.said("Traceback") == 0, daemon.log()
