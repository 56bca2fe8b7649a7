"""Parts of batches become outcomes: the cases by name."""

from __future__ import annotations

import numpy as np

from edged.errors import EngineError
from edged.serve.gather import Gatherer
from edged.serve.request import (
    OutputChoice,
    Part,
    Priority,
    Receipt,
    ReplyTo,
    Request,
    Timings,
)

REQUEST = Request(
    model="digits",
    id="a-1",
    samples=4,
    tensors={},
    deadline=9.0,
    priority=Priority.NORMAL,
    received=1.0,
    reply_to=ReplyTo("edged/v1/d/reply/c", b"k", 1),
    receipt=Receipt(2, 5, 17, 1),
    outputs=(OutputChoice("y"),),
)


def test_a_request_in_one_batch_passes_through() -> None:
    """Its outputs are not copied, and everything that the reply needs goes along."""
    gatherer = Gatherer()
    outputs = {"y": np.arange(4)}
    timings = Timings(0.1, 0.2, 8, "cap")

    outcome = gatherer.add(Part(REQUEST, 0, 4), outputs, timings)

    assert outcome is not None
    assert outcome.outputs is outputs
    assert (outcome.receipt, outcome.reply_to) == (REQUEST.receipt, REQUEST.reply_to)
    assert (outcome.model, outcome.id, outcome.samples) == ("digits", "a-1", 4)
    assert (outcome.choices, outcome.timings) == (REQUEST.outputs, timings)
    assert (outcome.received, outcome.deadline, outcome.error) == (1.0, 9.0, None)


def test_a_failed_part_fails_the_request_at_its_end() -> None:
    """The error waits for the other parts, so that a request ends once."""
    gatherer = Gatherer()
    error = EngineError("the engine failed")

    early = gatherer.add(Part(REQUEST, 0, 3), {}, Timings(0.1, 0.2, 8, "cap"), error)
    outcome = gatherer.add(Part(REQUEST, 3, 4), {"y": np.arange(1)}, Timings(0.3, 0.1, 2, "count"))

    assert early is None
    assert outcome is not None
    assert outcome.error is error
    assert outcome.outputs == {}
    assert outcome.timings == Timings(0.1, 0.2, 8, "cap")


def test_repr_counts_what_is_out() -> None:
    """The log shows how many requests and samples are still on their way."""
    gatherer = Gatherer()
    gatherer.add(Part(REQUEST, 0, 3), {"y": np.arange(3)}, Timings())

    assert repr(gatherer) == "<Gatherer 1 requests, 1 samples out>"
    assert len(gatherer) == 1
