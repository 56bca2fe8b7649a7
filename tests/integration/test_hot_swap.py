"""A new engine takes over while requests come: real engines on ONNX Runtime."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edged.engine_store import GOLDEN_FILE, EngineStore
from edged.events import ModelRefused
from edged.serve.models import ModelHost
from edged.serve.request import Outcome
from edged.settings import ServeSettings
from tests.doubles import digits, engines
from tests.doubles.broker import Mosquitto
from tests.doubles.daemon import TOPICS, Daemon, wait_online
from tests.doubles.rebuilt import METHODS, Rebuilt
from tests.doubles.rounds import Rounds
from tests.doubles.site import Site
from tests.doubles.steady_load import SteadyLoad
from tests.doubles.wire import WireClient

IMAGES = digits.images()


@pytest.fixture
def rebuilt(tmp_path: Path) -> Rebuilt:
    """A store with the first engine of ``digits``."""
    made = Rebuilt(tmp_path)
    made.build(METHODS[0])
    return made


def serving(rebuilt: Rebuilt, *devices: str) -> Site:
    """The request path on these devices."""
    settings = ServeSettings(devices=devices, onnx_threads=1)
    return Site(ModelHost(EngineStore(rebuilt.engines), settings))


def assert_right(rebuilt: Rebuilt, outcomes: list[tuple[Outcome, int]]) -> None:
    """Each has the logits of the version that it names."""
    for outcome, status in outcomes:
        assert status == 200, outcome.error
        logits = np.asarray(outcome.outputs["logits"], np.float32)
        assert rebuilt.is_right(outcome.version, int(outcome.id) % len(IMAGES), logits[0])


def started(outcome: Outcome) -> float:
    """When the device took up its batch."""
    return outcome.received + outcome.timings.queue_s


@pytest.mark.parametrize("devices", [("cpu",), ("cpu:0", "cpu:1")], ids=["one", "two"])
def test_no_request_is_lost_when_engines_take_over(
    rebuilt: Rebuilt, devices: tuple[str, ...]
) -> None:
    """Under steady load four times: all answered, each right for the version that it names.

    What is sent once the new engine has taken over is its own, and the old runners are closed.
    """
    with serving(rebuilt, *devices) as running:
        changes: list[tuple[int, str]] = []
        closed: list[Any] = []
        with SteadyLoad(running) as load:
            for method in (METHODS[1], METHODS[0]) * 2:
                load.wait_more(100)
                closed += running.host.models["digits"].runners.values()
                version = rebuilt.build(method)
                running.devices.load()
                changes.append((load.sent + 1, version))
            load.wait_more(100)
        outcomes = [(outcome, status) for outcome, status in running.outcomes]

    assert sorted(int(outcome.id) for outcome, _ in outcomes) == list(range(load.sent))
    assert_right(rebuilt, outcomes)
    for (first, version), (last, _) in zip(changes, [*changes[1:], (load.sent, "")], strict=True):
        assert version in {o.version for o, _ in outcomes if first <= int(o.id) < last}
    since, version = changes[-1]
    assert {outcome.version for outcome, _ in outcomes if int(outcome.id) >= since} == {version}
    for runner in closed:
        with pytest.raises(ValueError, match="closed"):
            runner.submit(0, 1, lambda _completion: None)


def test_it_never_goes_back(rebuilt: Rebuilt) -> None:
    """On one device no batch of the old engine begins after one of the new."""
    with serving(rebuilt, "cpu") as running:
        with SteadyLoad(running) as load:
            load.wait_more(100)
            old = running.host.models["digits"].version
            new = rebuilt.build(METHODS[1])
            running.devices.load()
            load.wait_more(100)
        times = {
            version: [
                started(outcome) for outcome, _ in running.outcomes if outcome.version == version
            ]
            for version in (old, new)
        }

    assert len(times[old]) + len(times[new]) == load.sent
    assert max(times[old]) <= min(times[new])


def damage_engine(rebuilt: Rebuilt) -> None:
    """One byte of the file is another one."""
    path = rebuilt.built() / "engine.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def damage_golden(rebuilt: Rebuilt) -> None:
    """What was verified is not what it computes."""
    path = rebuilt.built() / GOLDEN_FILE
    with np.load(path) as arrays:
        named = {
            name: arrays[name] * (2 if name.startswith("out:") else 1) for name in arrays.files
        }
    np.savez(path, **named)


def other_tensors(rebuilt: Rebuilt) -> None:
    """An engine of that name that takes and gives something else."""
    engines.install_picker(rebuilt.engines, "digits", max_batch=32)


FLAWS: dict[str, tuple[Callable[[Rebuilt], None], str]] = {
    "damaged": (damage_engine, "changed or damaged"),
    "golden samples fail": (damage_golden, "computes something else"),
    "other tensors": (other_tensors, "takes or gives other tensors"),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_an_engine_that_cannot_take_over_is_refused(rebuilt: Rebuilt, flaw: str) -> None:
    """The reason is reported, the old engine goes on under load, and a sound one takes over."""
    spoil, reason = FLAWS[flaw]
    old = rebuilt.built().name
    with serving(rebuilt, "cpu:0", "cpu:1") as running:
        with SteadyLoad(running) as load:
            load.wait_more(50)
            rebuilt.build(METHODS[1])
            spoil(rebuilt)
            (refused,) = running.devices.load()
            load.wait_more(100)
        assert isinstance(refused, ModelRefused)
        assert reason in refused.reason
        assert {outcome.version for outcome, _ in running.outcomes} == {old}
        assert_right(rebuilt, running.outcomes)

        new = rebuilt.build("percentile")
        running.devices.load()
        assert running.host.models["digits"].version == new


# ------------------------------------------------------------------ as a process


def test_sighup_takes_over_what_was_built(
    rebuilt: Rebuilt, broker: Mosquitto, tmp_path: Path
) -> None:
    """Build, SIGHUP, go on asking: no answer is missing, and the version changes once.

    A damaged engine after that is refused with an event, and changes nothing.
    """
    old = rebuilt.built().name
    with WireClient(broker) as client, Daemon(tmp_path, rebuilt.engines, broker) as daemon:
        wait_online(client)
        rounds = Rounds(client, rebuilt.is_right)
        versions = rounds.ask()
        new = rebuilt.build(METHODS[1])
        versions += rounds.ask()
        daemon.signal(signal.SIGHUP)
        while versions[-1] == old:
            versions += rounds.ask()
        versions += rounds.ask()
        loaded = client.wait_messages(TOPICS.event("model_loaded"), 2)

        rebuilt.build(METHODS[0])
        damage_engine(rebuilt)
        daemon.signal(signal.SIGHUP)
        refused = client.wait_message(TOPICS.event("model_refused")).json()
        last = rounds.ask()
        client.flush()

        assert versions[:16] == [old] * 16
        assert versions == sorted(versions, key=[old, new].index)
        assert [message.json()["data"]["engine"] for message in loaded] == [old, new]
        assert "changed or damaged" in refused["data"]["reason"]
        assert last == [new] * 8
        assert rounds.answered_once()
        assert daemon.stop() == 0
        assert daemon.said("Traceback") == 0, daemon.log()
