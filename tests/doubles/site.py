"""The request path with its devices and engines, as the daemon wires them, on a scripted link.

Engines lie in a real store. `ScriptedHost` loads a `ScriptedRunner` for each; with a real
`ModelHost` they are run by ONNX Runtime.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, final

from edged import protocol
from edged.engine_store import Engine, EngineStore
from edged.events import Event
from edged.latency import LatencyCurve
from edged.manifest import Manifest, Verdict
from edged.metrics import Metrics
from edged.recipe import InputSpec, OutputSpec
from edged.runners import fingerprint
from edged.serve.admit import Admission
from edged.serve.batch import WaitingRoom
from edged.serve.decode import Decoder
from edged.serve.devices import Devices, Notice
from edged.serve.models import Loaded, ModelHost, Progress
from edged.serve.pipeline import Pipeline
from edged.serve.pipeline_ports import Sender, Watchers
from edged.serve.request import Arrival, Outcome
from edged.settings import ServeSettings
from tests.doubles.runner import WAIT_S, ScriptedRunner
from tests.doubles.serving import MODEL, REPLY, TOPICS, ScriptedLink, Sent, body, ignore

CURVE = LatencyCurve((1, 4), (0.001, 0.002))
TWO = ("cpu:0", "cpu:1")
RETRY_S = (0.01, 0.05)
Kind = TypeVar("Kind", bound=Event)

Make = Callable[[Engine, str], ScriptedRunner]
"""(engine, device) -> a new runner; may raise `EdgedError`."""


def install(root: Path, name: str = MODEL, *, build: str = "1", **changes: Any) -> str:
    """Installs an engine that takes and gives what `ScriptedRunner` does.

    Args:
        root: folder of the store.
        name: the model's.
        build: another one has another key.
        changes: fields of the manifest.

    Returns:
        Its version.
    """
    data = f"{name} {build}".encode()
    digest = hashlib.sha256(data).hexdigest()
    fields: dict[str, Any] = {
        "model": name,
        "key": digest,
        "created": "2026-01-01T00:00:00+00:00",
        "runner": "onnx",
        "fingerprint": fingerprint("onnx"),
        "file": "engine.onnx",
        "sha256": digest,
        "precision": "fp32",
        "sources": {},
        "input": (InputSpec(name="x", datatype="FP32", shape=(3,)),),
        "output": (
            OutputSpec(name="y", shape=(2,)),
            OutputSpec(name="z", datatype="INT64", shape=()),
        ),
        "max_batch": 4,
        "warm_sizes": (1, 4),
        "slo_ms": 60_000.0,
        "latency_ms": {"1": 1.0},
        "quantized": (),
        "verdict": Verdict(passed=True, samples=1, metrics={}),
    }
    store = EngineStore(root)
    with store.building(name):
        store.install(Manifest(**(fields | changes)), {"engine.onnx": data})
    return digest[:12]


def plain(engine: Engine, device: str) -> ScriptedRunner:
    """A runner without faults."""
    return ScriptedRunner(engine.manifest.max_batch, device=device)


class ScriptedHost(ModelHost):
    """Loads scripted runners; everything else is the real one's.

    Attributes:
        made: all runners by device, in order.
        versions: of the engines that were loaded, by device, in order.
    """

    def __init__(self, root: Path, devices: tuple[str, ...] = TWO, make: Make = plain) -> None:
        super().__init__(EngineStore(root), ServeSettings(devices=devices))
        self.make = make
        self.made: dict[str, list[ScriptedRunner]] = {}
        self.versions: dict[str, list[str]] = {}

    def _load_on(self, engine: Engine, device: str, progress: Progress) -> Loaded:
        runner = self.make(engine, device)
        progress(f"{engine.manifest.model} on {device}", 1, 1)
        self.made.setdefault(device, []).append(runner)
        self.versions.setdefault(device, []).append(engine.manifest.key[:12])
        return Loaded(runner, CURVE)


@final
class Site:
    """All stages and threads from the link to the link; a context manager that starts them.

    Attributes:
        outcomes: all that were answered, with their status.
        events: all that were reported.

    Args:
        host: its engines are loaded at the start.
    """

    def __init__(self, host: ModelHost) -> None:
        self.host = host
        self.link = ScriptedLink()
        self.metrics = Metrics()
        self.room = WaitingRoom({}, Admission(100_000).refusal)
        self.outcomes: list[tuple[Outcome, int]] = []
        self.events: list[Event] = []
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        notice = Notice(self._event, self._note, lambda _where, _done, _total: None)
        self.devices = Devices(host, self.room, self.metrics, notice, RETRY_S)
        self.pipeline = Pipeline(
            Decoder(TOPICS, host.manifest, unavailable=host.refused),
            self.devices.formats,
            self.room,
            self.metrics,
            Watchers(lambda outcome, status: self.outcomes.append((outcome, status)), ignore),
            dead_topic=TOPICS.dead,
        )
        self.link.pipeline = self.pipeline

    def __enter__(self) -> Site:
        for event in self.devices.load():
            self._event(event)
        running = self.devices.start(self.pipeline.done)
        self.link.start()
        sender = Sender(self.link.publish, self.link.acknowledge, self.link.wake)
        self.pipeline.start(sender, running)
        self.link.up(window=10_000)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        runners = [r for model in self.host.models.values() for r in model.runners.values()]
        for runner in runners:
            if isinstance(runner, ScriptedRunner):
                runner.release()
        self.link.stop()
        self.pipeline.stop()
        for runner in runners:
            runner.close()

    def ask(self, count: int = 1, *, model: str = MODEL) -> list[Sent]:
        """Sends so many requests of one sample, and waits for their answers; in their order."""
        names = [b"ask %d" % next(self._numbers) for _ in range(count)]
        for number, name in enumerate(names):
            self.arrive(body([[number, 0, 1]]), model=model, correlation=name)

        def answers() -> dict[bytes, Sent]:
            found = {sent.reply.correlation or b"": sent for sent in self.link.sent}
            return {name: found[name] for name in names if name in found}

        self.link.wait(lambda: len(answers()) == count)
        return list(answers().values())

    def arrive(self, payload: bytes, *, model: str = MODEL, **properties: Any) -> None:
        """A request of QoS 0 comes in; properties are fields of `Arrival`."""
        fields: dict[str, Any] = {"response_topic": REPLY, "content_type": protocol.JSON}
        self.pipeline.arrived(
            Arrival(
                topic=TOPICS.infer(model),
                payload=payload,
                receipt=self.link.receipt(0),
                received=time.monotonic(),
                **(fields | properties),
            )
        )
        self.link.wake()

    def _event(self, event: Event) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def _note(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def wait(self, condition: Callable[[], bool]) -> None:
        """Waits until a device's failure or return makes a condition true.

        Raises:
            TimeoutError: none does in time.
        """
        with self._changed:
            if not self._changed.wait_for(condition, WAIT_S):
                raise TimeoutError(f"{self.devices!r}, events: {self.events}")

    def wait_events(self, kind: type[Kind], count: int = 1) -> list[Kind]:
        """The events of a kind, once there are so many.

        Raises:
            TimeoutError: there are not in time.
        """

        def found() -> list[Kind]:
            return [event for event in self.events if isinstance(event, kind)]

        with self._changed:
            if not self._changed.wait_for(lambda: len(found()) >= count, WAIT_S):
                raise TimeoutError(f"no {count} events {kind.kind}, but: {self.events}")
            return found()
