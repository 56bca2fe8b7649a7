"""Runs `edged bench`: connects, sends the load, and prints what became of it."""

from __future__ import annotations

import contextlib
import json
import secrets
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import BinaryIO, TextIO

from edged.atomic_files import replace_file
from edged.bench import plots, schedule, table
from edged.bench.connection import LoadConnection, Template
from edged.bench.generator import Generator, Progress, Requests
from edged.bench.options import BenchOptions
from edged.bench.payloads import messages_of
from edged.bench.summary import Rows, Summary, summarize
from edged.bench.tally import read_object
from edged.bench.usage import OwnUsage, UsageMeter
from edged.client import Message
from edged.client.endpoint import Publication
from edged.client.sending_options import user_properties
from edged.errors import BrokerError, EdgedError
from edged.mqtt.connection import Wake
from edged.protocol import Topics
from edged.sample_file import SampleFile, read_sample_file

_STATUS_S = 1.0
"""The retained status comes at once, if there is one."""


def run(
    options: BenchOptions,
    *,
    out: TextIO | None = None,
    err: TextIO | None = None,
    stdin: BinaryIO | None = None,
) -> int:
    """Sends the load and prints what became of it.

    Args:
        options: what to send where.
        out: for the table; None: standard output.
        err: for progress and for what went wrong; None: standard error.
        stdin: for the file ``-``; None: standard input.

    Returns:
        0; 1 if a request was lost, or nothing could be sent at all.
    """
    out, err = out or sys.stdout, err or sys.stderr
    try:
        sample = SampleFile()
        if options.file:
            sample = read_sample_file(
                options.file, stdin or sys.stdin.buffer, input_name=options.input_name
            )
        summary, rows = _measure(options, messages_of(options, sample), err)
        if options.plot is not None:
            replace_file(options.plot, plots.charts(rows, options.mix, options.slo_ms).encode())
    except (EdgedError, OSError, ValueError) as error:
        print(f"edged bench: {error}", file=err)
        return 1
    if options.json:
        print(json.dumps(asdict(summary)), file=out)
    else:
        print("\n".join(table.lines(summary)), file=out)
    return 1 if summary.lost or summary.unsent else 0


@dataclass
class _Heard:
    """What the device says of itself meanwhile."""

    topics: tuple[str, ...]
    meter: UsageMeter
    state: str = ""

    def __call__(self, topic: str, payload: bytes) -> None:
        document = read_object(payload)
        if topic == self.topics[0]:
            self.state = str(document.get("state", ""))
        else:
            self.meter.documents.append(document)


def _measure(
    options: BenchOptions, messages: Sequence[Message], err: TextIO
) -> tuple[Summary, Rows]:
    times = schedule.send_times(options)
    classes = schedule.classes(options, len(times) or 100_003)
    topics = options.endpoint.topics
    own = (topics.status, topics.telemetry("metrics")) if isinstance(topics, Topics) else ()
    meter = UsageMeter(options.pid)
    heard = _Heard(own, meter)
    with _connections(options, own) as connections:
        requests = _requests(options, messages, connections)
        generator = Generator(
            connections, requests, secrets.token_bytes(4), heard, _progress(options, err)
        )
        generator.connect()
        if own:
            generator.listen(_STATUS_S, lambda: bool(heard.state))
        if heard.state == "offline":
            raise BrokerError(f"{options.endpoint} says it is 'offline'; start `edged serve` there")
        for number in range(len(messages)):
            connections[0].check(requests.get(0, number, 0))
        meter.begin()
        cpu = OwnUsage()
        if len(times):
            began, _ = generator.open_loop(times.tolist(), classes.tolist(), options.grace_s)
        else:
            seconds = options.seconds + options.warmup_s
            began, _ = generator.closed_loop(
                options.outstanding, classes.tolist(), seconds, options.grace_s
            )
        tally = generator.tally
        usage, cpu_us = meter.end(tally.ended), cpu.cpu_us(len(tally))
    rows = Rows.of(tally, began + options.warmup_s)
    span = float(times[-1]) if len(times) > 1 else 0.0
    summary = summarize(
        tally,
        rows,
        options.mix,
        offered_hz=(len(times) - 1) / span if span else 0.0,
        slo_ms=options.slo_ms,
    )
    return replace(summary, usage=usage, generator_cpu_us=cpu_us), rows


@contextlib.contextmanager
def _connections(options: BenchOptions, own: tuple[str, ...]) -> Iterator[list[LoadConnection]]:
    """All connections of a run; the first one hears what the device says of itself, too."""
    topics, wake, name = options.endpoint.topics, Wake(), secrets.token_hex(6)
    made: list[LoadConnection] = []
    try:
        for number in range(options.connections):
            reply = topics.reply(f"edged-bench-{name}-{number}")
            extra = own if not number else ()
            made.append(LoadConnection(options.endpoint, reply, extra, wake))
        yield made
    finally:
        for each in made:
            each.close()


def _requests(
    options: BenchOptions, messages: Sequence[Message], connections: Sequence[LoadConnection]
) -> Requests:
    topic = options.endpoint.topics.infer(options.model)

    def template(connection: int, number: int, class_: int) -> Template:
        share, message = options.mix[class_], messages[number]
        user = user_properties(
            message, {"priority": share.priority or None, "deadline_ms": share.deadline_ms}
        )
        reply = connections[connection].reply_topic
        publication = Publication(topic, message.payload, reply, b"", message.content_type, user)
        return Template(publication, options.qos)

    return Requests(template, len(messages), str(options.endpoint), options.qos)


def _progress(options: BenchOptions, err: TextIO) -> Progress:
    seconds = options.seconds + options.warmup_s
    told = ""

    def tell(sent: int, count: int, passed: float) -> None:
        nonlocal told
        text = f"{sent}/{count} requests sent"
        if not count:
            text = f"{sent} requests sent, {passed:.0f} of {seconds:g} s"
        if text != told:
            told = text
            print(f"\r{text}", end="\n" if sent == count else "", file=err, flush=True)

    return tell
