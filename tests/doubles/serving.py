"""The whole request path around a `ScriptedRunner`, on a scripted link instead of a broker."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Any, Literal, final

import numpy as np

from edged import protocol
from edged.latency import LatencyCurve
from edged.metrics import Metrics
from edged.postprocess import Postprocessor
from edged.recipe import InputSpec, OutputSpec
from edged.serve.admit import Admission
from edged.serve.batch import WaitingRoom
from edged.serve.decode import Decoder
from edged.serve.fingerprint import fingerprint
from edged.serve.gpu import Device, DevicePorts, Served
from edged.serve.pipeline import Pipeline
from edged.serve.pipeline_ports import Sender, Watchers
from edged.serve.request import (
    Arrival,
    LinkDown,
    LinkUp,
    Outcome,
    Receipt,
    Reply,
    ReplyFormat,
)
from edged.serve.timer import BatchTimer
from tests.doubles.runner import WAIT_S, ScriptedRunner
from tests.doubles.turns import Turns

TOPICS = protocol.Topics("edged/v1", "dev")
REPLY = TOPICS.reply("me")
MODEL = "m"


@dataclass(frozen=True)
class ScriptedModel:
    """What `ScriptedRunner` takes and gives, as a recipe would say it."""

    input: tuple[InputSpec, ...] = (InputSpec(name="x", datatype="FP32", shape=(3,)),)
    output: tuple[OutputSpec, ...] = (
        OutputSpec(name="y", shape=(2,)),
        OutputSpec(name="z", datatype="INT64", shape=()),
    )
    slo_ms: float = 60_000.0
    freshness: Literal["all", "latest"] = "all"
    postprocessor: Postprocessor | None = None


def body(rows: object, **more: object) -> bytes:
    """A V2 request in JSON for `ScriptedModel`, ``[n, 3]``."""
    data = np.asarray(rows, np.float32)
    tensor = {"name": "x", "datatype": "FP32", "shape": list(data.shape), "data": data.tolist()}
    return json.dumps({"inputs": [tensor], **more}).encode()


@dataclass(frozen=True)
class Sent:
    """One PUBLISH that the pipeline handed over."""

    mid: int
    reply: Reply

    @property
    def status(self) -> str:
        """Its status property; "" for a dead letter."""
        return dict(self.reply.user).get(protocol.STATUS, "")

    @property
    def code(self) -> str:
        """The error code; "" with outputs."""
        return str(self.json().get("code", ""))

    def json(self) -> dict[str, Any]:
        """The body."""
        return dict(json.loads(self.reply.payload))

    def output(self, name: str) -> list[Any]:
        """An output's entries, flat."""
        outputs = {each["name"]: each["data"] for each in self.json()["outputs"]}
        return list(outputs[name])


@final
class ScriptedLink:
    """Stands for `BrokerLink`: keeps what is published, and acknowledges it when it is told to.

    Args:
        automatic: whether the broker acknowledges each PUBLISH at once.
    """

    def __init__(self, *, automatic: bool = True) -> None:
        self.automatic = automatic
        self.pipeline: Pipeline | None = None
        self.sent: list[Sent] = []
        self.acknowledged: list[Receipt] = []
        self.epoch = 0
        self.is_up = False
        self._order = 0
        self._undelivered: list[int] = []
        self._mids = itertools.count(1)
        self._changed = threading.Condition()
        self._turns = Turns()
        self.one_thread = self._turns.one_thread

    # -------------------------------------------------------------- the pipeline's side

    def wake(self) -> None:
        """Has the pipeline take its turn, on a thread of the link's own as with the real one."""
        self._turns.wake()

    def start(self) -> None:
        """Starts the thread."""
        assert self.pipeline is not None  # wired by `Serving`
        self._turns.start(self.pipeline)

    def stop(self) -> None:
        """Ends the thread after its last turn."""
        self._turns.stop()

    def publish(self, reply: Reply) -> int | None:
        """Takes QoS 1 always, QoS 0 with a connection."""
        with self._changed:
            if not self.is_up and not reply.qos:
                return None
            mid = next(self._mids)
            self.sent.append(Sent(mid, reply))
            if reply.qos:
                self._undelivered.append(mid)
            self._changed.notify_all()
            if self.automatic and self.is_up:
                self._deliver_all()
            return mid

    def acknowledge(self, receipt: Receipt) -> bool:
        """Keeps it, if its connection still stands."""
        with self._changed:
            if not self.is_up or receipt.epoch != self.epoch:
                return False
            self.acknowledged.append(receipt)
            self._changed.notify_all()
            return True

    def _deliver_all(self) -> None:
        assert self.pipeline is not None  # wired by `Serving`
        while self._undelivered:
            self.pipeline.delivered(self._undelivered.pop(0))
        self.wake()

    # -------------------------------------------------------------- the test's side

    def deliver(self, count: int) -> None:
        """The broker acknowledges the next PUBLISHes of ours, in order."""
        assert self.pipeline is not None  # wired by `Serving`
        with self._changed:
            for _ in range(count):
                self.pipeline.delivered(self._undelivered.pop(0))
            self.wake()

    def up(self, window: int = 100) -> None:
        """A connection stands; an automatic broker acknowledges what was sent meanwhile."""
        assert self.pipeline is not None  # wired by `Serving`
        with self._changed:
            self.epoch += 1
            self._order = 0
            self.is_up = True
            self.pipeline.link_changed(LinkUp(self.epoch, True, window, 0))  # noqa: FBT003  # a field
            self.wake()
            if self.automatic:
                self._deliver_all()

    def down(self) -> None:
        """The connection is gone."""
        assert self.pipeline is not None  # wired by `Serving`
        with self._changed:
            self.is_up = False
            self.pipeline.link_changed(LinkDown(self.epoch, "scripted"))
            self.wake()

    def receipt(self, qos: int) -> Receipt:
        """Of the next arrival; `taken` gives it its number."""
        with self._changed:
            order = self._order + 1 if qos else 0
            return Receipt(self.epoch, order, order, qos)

    def taken(self, receipt: Receipt) -> None:
        """An arrival was taken over: the next one has the next number."""
        with self._changed:
            self._order = receipt.order or self._order

    def wait(self, condition: Callable[[], bool]) -> None:
        """Waits until something that was sent or acknowledged makes the condition true."""
        with self._changed:
            if not self._changed.wait_for(condition, WAIT_S):
                raise TimeoutError(f"sent: {self.sent[-5:]}, acknowledged: {self.acknowledged}")

    def wait_sent(self, count: int) -> list[Sent]:
        """What was published, once there is so much."""
        self.wait(lambda: len(self.sent) >= count)
        return list(self.sent)


@dataclass
class Load:
    """What the room and the pipeline are built with."""

    queue_samples: int = 1024
    started: bool = True
    watcher: Callable[[Outcome, int], None] = lambda _outcome, _status: None
    decoder_models: Mapping[str, ScriptedModel] = field(
        default_factory=lambda: {MODEL: ScriptedModel()}
    )


@final
class Serving:
    """The stages and threads of `edged.serve`, as the daemon wires them; a context manager.

    Args:
        runner: closed at the end.
        link: scripted; None: an automatic one.
        load: limits.
    """

    def __init__(
        self, runner: ScriptedRunner, link: ScriptedLink | None = None, load: Load | None = None
    ) -> None:
        load = load or Load()
        self.runner = runner
        self.link = link or ScriptedLink()
        self.metrics = Metrics()
        self.answered: list[tuple[Outcome, int]] = []
        timer = BatchTimer(LatencyCurve((1, 4), (0.001, 0.002)), runner.max_batch)
        self.room = WaitingRoom({MODEL: timer}, Admission(load.queue_samples).refusal)
        self.pipeline = Pipeline(
            Decoder(TOPICS, load.decoder_models.get),
            {MODEL: ReplyFormat("0123456789ab")},
            self.room,
            self.metrics,
            Watchers(self._watch, ignore),
            dead_topic=TOPICS.dead,
        )
        self.link.pipeline = self.pipeline
        self._started = load.started
        self._watcher = load.watcher

    def __enter__(self) -> Serving:
        if self._started:
            self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.runner.release()
        self.link.stop()
        self.pipeline.stop()
        self.runner.close()

    def _watch(self, outcome: Outcome, status: int) -> None:
        self.answered.append((outcome, status))
        self._watcher(outcome, status)

    def start(self, sender: Sender | None = None) -> None:
        """Starts the threads; with the scripted link, it connects."""
        served = {MODEL: Served(self.runner, ScriptedModel().input)}
        ports = DevicePorts(
            take=self.room.take,
            take_now=self.room.take_now,
            hand=self.room.hand,
            call=self.room.call,
            completed=partial(self.room.completed, call=False),
            done=self.pipeline.done,
            put_back=self.room.put_back,
            failed=unexpected,
            renew=unexpected,
        )
        device = Device("scripted", served, ports)
        self.room.add_device(device.name, device.lanes)
        if sender is None:
            self.link.start()
            sender = Sender(self.link.publish, self.link.acknowledge, self.link.wake)
            self.pipeline.start(sender, [device])
            self.link.up()
        else:
            self.pipeline.start(sender, [device])

    def arrive(self, payload: bytes, *, qos: int = 1, **properties: Any) -> bool:
        """A request comes in; properties are fields of `Arrival`."""
        fields: dict[str, Any] = {
            "topic": TOPICS.infer(MODEL),
            "response_topic": REPLY,
            "content_type": protocol.JSON,
        }
        with self.link.one_thread:
            arrival = Arrival(
                payload=payload,
                receipt=self.link.receipt(qos),
                received=time.monotonic(),
                **(fields | properties),
            )
            arrival = replace(arrival, receipt=marked(arrival))
            taken = self.pipeline.arrived(arrival)
            if taken:
                self.link.taken(arrival.receipt)
        self.link.wake()
        return taken


def marked(arrival: Arrival) -> Receipt:
    """Its receipt with the fingerprint that the link gives it."""
    receipt = arrival.receipt
    return replace(receipt, fingerprint=fingerprint(arrival)) if receipt.qos else receipt


def unexpected(*about: object) -> None:
    """No device fails here."""
    raise AssertionError(f"a device failed: {about}")


def ignore(_change: LinkUp | LinkDown) -> None:
    """Nobody wants to know."""
