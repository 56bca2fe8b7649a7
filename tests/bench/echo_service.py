"""The daemon's request path around an echo in the place of an engine, for tests/bench/link.py.

``python -m tests.bench.echo_service PORT [leak]`` serves model ``echo`` of device ``bench`` through
the broker on that loopback port. It prints a line when it is connected, and for each line on its
standard input the CPU seconds that it has used so far. With ``leak`` it keeps 1 KiB of each answer:
a check of memory has to notice (tests/bench/soak.py).
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from edged.daemon import SWITCH_INTERVAL_S
from edged.latency import LatencyCurve
from edged.metrics import Metrics
from edged.postprocess import Postprocessor
from edged.protocol import Topics
from edged.recipe import InputSpec, OutputSpec
from edged.serve.admit import Admission
from edged.serve.batch import WaitingRoom
from edged.serve.crash_journal import CrashJournal, open_journal
from edged.serve.decode import Decoder
from edged.serve.gpu import Device, DevicePorts, Served
from edged.serve.link_handlers import LinkHandlers
from edged.serve.mqtt import BrokerLink
from edged.serve.pipeline import Pipeline
from edged.serve.pipeline_ports import Sender, Watchers
from edged.serve.request import Outcome, ReplyFormat
from edged.serve.timer import BatchTimer
from edged.settings import BrokerSettings
from tests.bench.echo_runner import EchoRunner

TOPICS = Topics("edged/v1", "bench")
ENTRIES = 216
"""float32 entries of a sample: with its V2 header a body of 1 KB."""


class EchoModel:
    """What the decoder asks of a model."""

    input = (InputSpec(name="x", datatype="FP32", shape=(ENTRIES,)),)
    output = (OutputSpec(name="y", datatype="FP32", shape=(ENTRIES,)),)
    slo_ms = 60_000.0
    freshness: Literal["all", "latest"] = "all"
    postprocessor: Postprocessor | None = None


def service(port: int, journal: CrashJournal, *, leak: bool = False) -> BrokerLink:
    """Everything that `edged.daemon` wires around a model, started."""
    metrics = Metrics()
    leaked: list[bytes] = []

    def answered(_outcome: Outcome, _status: int) -> None:
        if leak:
            leaked.append(bytes(1024))

    runner = EchoRunner(ENTRIES)
    curve = LatencyCurve((1, runner.max_batch), (0.0001, 0.0002))
    room = WaitingRoom({"echo": BatchTimer(curve, runner.max_batch)}, Admission(65536).refusal)
    pipeline = Pipeline(
        Decoder(TOPICS, {"echo": EchoModel()}.get),
        {"echo": ReplyFormat("bench")},
        room,
        metrics,
        Watchers(answered, lambda _change: None),
        dead_topic=TOPICS.dead,
        journal=journal,
    )
    ports = DevicePorts(
        take=room.take,
        take_now=room.take_now,
        hand=room.hand,
        call=room.call,
        completed=partial(room.completed, call=False),
        done=pipeline.done,
        put_back=room.put_back,
        failed=_unexpected,
        renew=_unexpected,
        began=journal.began,
        ended=journal.ended,
    )
    device = Device("echo", {"echo": Served(runner, EchoModel.input)}, ports)
    room.add_device(device.name, device.lanes)
    link = BrokerLink(
        BrokerSettings(port=port),
        "edged-bench",
        TOPICS.status,
        TOPICS.subscriptions,
        LinkHandlers(
            pipeline.arrived,
            pipeline.delivered,
            pipeline.link_changed,
            lambda state, _: state.encode(),
            pipeline.turn,
            pipeline.settled,
        ),
        metrics,
    )
    pipeline.start(Sender(link.publish, link.acknowledge, link.wake), [device])
    link.start()
    return link


def _unexpected(*about: Any) -> None:
    raise AssertionError(f"the echo failed: {about}")


def main() -> None:
    """Serves until the input ends."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with tempfile.TemporaryDirectory(prefix="echo-") as folder:
        journal = open_journal(Path(folder) / "crash.journal", time.time())
        link = service(int(sys.argv[1]), journal, leak="leak" in sys.argv)
        link.connected.wait(30)
    gc.collect()
    gc.freeze()
    sys.stdout.write("listening\n")
    sys.stdout.flush()
    profile: Callable[[], None] | None = None
    for _ in sys.stdin:
        sys.stdout.write(f"{time.process_time()}\n")
        sys.stdout.flush()
    if profile:
        profile()


if __name__ == "__main__":
    main()
