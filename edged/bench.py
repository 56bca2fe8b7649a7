"""`edged bench`: puts load on a running device, and prints a table of the outcome."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import BinaryIO, Literal, TextIO

from edged.client import Endpoint, InferClient, Message, Result, image_message, tensor_message
from edged.client.infer_client import MOST_OUTSTANDING
from edged.errors import BadParameterError, EdgedError, InputFileError
from edged.load_generator import Load, Summary, one_at_a_time, open_loop, print_table, summarize
from edged.sample_file import SampleFile, read_sample_file


@dataclass(frozen=True)
class BenchOptions:
    """What `edged bench` is asked for.

    Attributes:
        endpoint: broker and device.
        model: a model's name.
        file: .npy, .npz, PNG or JPEG; rows of arrays are sent in turn.
        input_name: input that the array of a .npy file is for.
        rate_hz: requests a second; 0: one at a time.
        seconds: length of the run.
        arrivals: ``poisson`` or ``uniform``.
        seed: of the Poisson process.
        samples: rows in each request.
        deadline_ms: each request's own deadline; None: the model's.
        priority: one of `edged.protocol.PRIORITIES`; None: normal.
        json: print one JSON document instead of a table.
    """

    endpoint: Endpoint
    model: str
    file: str
    input_name: str = "input"
    rate_hz: float = 100.0
    seconds: float = 10.0
    arrivals: Literal["poisson", "uniform"] = "poisson"
    seed: int = 0
    samples: int = 1
    deadline_ms: int | None = None
    priority: str | None = None
    json: bool = False

    def __post_init__(self) -> None:
        if self.samples < 1 or self.rate_hz < 0 or self.seconds <= 0:
            raise BadParameterError(
                f"samples {self.samples}, rate {self.rate_hz:g}, seconds {self.seconds:g}: samples "
                "must be at least 1, the rate 0 or more, and seconds above 0"
            )


_ONE_AT_A_TIME_HZ = 200
"""One at a time the rate is the outcome: ``seconds`` then stands for so many requests a second."""


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
        sample = read_sample_file(
            options.file, stdin or sys.stdin.buffer, input_name=options.input_name
        )
        messages = request_messages(sample, options.samples)
        with InferClient(options.endpoint, max_outstanding=MOST_OUTSTANDING) as client:
            summary = _measure(client, options, messages, err)
    except (EdgedError, ValueError) as error:
        print(f"edged bench: {error}", file=err)
        return 1
    if options.json:
        print(json.dumps(asdict(summary)), file=out)
    else:
        print_table(summary, out)
    return 1 if summary.lost else 0


def request_messages(sample: SampleFile, samples: int) -> list[Message]:
    """Cuts a file's arrays into requests of ``samples`` rows; an image is one request.

    Raises:
        InputFileError: the arrays differ in their number of rows, or have fewer than ``samples``.
    """
    if sample.image:
        return [image_message(sample.image, sample.content_type)]
    rows = {name: len(data) if data.ndim else 0 for name, data in sample.arrays.items()}
    count = min(rows.values(), default=0)
    if count < samples or len(set(rows.values())) > 1:
        raise InputFileError(
            f"the file's arrays have {rows} rows; every input needs the same number, and at least "
            f"the {samples} of one request"
        )
    return [
        tensor_message({name: data[at : at + samples] for name, data in sample.arrays.items()})
        for at in range(0, count - samples + 1, samples)
    ]


def _measure(
    client: InferClient, options: BenchOptions, messages: Sequence[Message], err: TextIO
) -> Summary:
    def submit(index: int) -> Future[Result]:
        return client.submit(
            options.model,
            messages[index % len(messages)],
            priority=options.priority,
            deadline_ms=options.deadline_ms,
        )

    if not options.rate_hz:
        answers = one_at_a_time(submit, max(1, int(options.seconds * _ONE_AT_A_TIME_HZ)))
        waited = sum(answer.latency_s or 0.0 for answer in answers)
        return summarize(answers, wall_s=waited, duplicates=client.unmatched)
    count = max(1, int(options.rate_hz * options.seconds))
    load = Load(options.rate_hz, count, options.arrivals, options.seed)

    def progress(sent: int, total: int) -> None:
        print(f"\r{sent}/{total} requests sent", end="\n" if sent == total else "", file=err)

    answers, wall_s = open_loop(submit, load.schedule(), progress=progress)
    return summarize(
        answers, wall_s=wall_s, duplicates=client.unmatched, offered_hz=options.rate_hz
    )
