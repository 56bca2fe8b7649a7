"""However requests were cut and whatever came back first: one outcome each, rows in order."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import EdgedError, EngineError, ExpiredError
from edged.serve.gather import Gatherer
from edged.serve.request import Part, Priority, Receipt, ReplyTo, Request, Timings

FAILURES = (EngineError("the engine failed"), ExpiredError("too late"))


@dataclass(frozen=True)
class Ending:
    """How one part ended."""

    part: Part
    error: EdgedError | None
    timings: Timings


def make_request(number: int, samples: int) -> Request:
    """A request whose samples can be told apart."""
    return Request(
        model="m",
        id=str(number),
        samples=samples,
        tensors={},
        deadline=1.0,
        priority=Priority.NORMAL,
        received=0.0,
        reply_to=ReplyTo("r", None, 1),
        receipt=Receipt(1, number + 1, number + 1, 1),
    )


@st.composite
def endings(draw: st.DrawFn) -> list[Ending]:
    """Every part of some requests, in any order."""
    found = []
    for number in range(draw(st.integers(1, 6))):
        request = make_request(number, draw(st.integers(1, 9)))
        cuts = draw(st.sets(st.integers(1, 8))) if request.samples > 1 else set()
        edges = sorted({0, request.samples, *(cut for cut in cuts if cut < request.samples)})
        for start, stop in itertools.pairwise(edges):
            error = draw(st.sampled_from([None, None, None, *FAILURES]))
            size = draw(st.integers(stop - start, 20))
            ran = not isinstance(error, ExpiredError)
            seconds = st.floats(0, 1)
            timings = Timings(draw(seconds), draw(seconds), size, "cap") if ran else Timings()
            found.append(Ending(Part(request, start, stop), error, timings))
    return draw(st.permutations(found))


def rows(part: Part) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
    """Two outputs that carry the number of their sample."""
    numbers = np.arange(part.start, part.stop, dtype=np.int64) + 100 * int(part.request.id)
    return {"y": numbers.reshape(-1, 1), "z": -numbers.astype(np.float32)}


@given(endings())
def test_every_request_has_one_outcome(ends: list[Ending]) -> None:
    """Each request ends with its last part, once, with all rows in order or with an error."""
    gatherer = Gatherer()
    left = {end.part.request.id: end.part.request.samples for end in ends}
    outcomes = {}

    for end in ends:
        outputs = {} if end.error else rows(end.part)
        outcome = gatherer.add(end.part, outputs, end.timings, end.error)
        left[end.part.request.id] -= end.part.samples
        assert (outcome is not None) == (left[end.part.request.id] == 0)
        if outcome is not None:
            assert outcome.id not in outcomes
            outcomes[outcome.id] = outcome

    assert len(gatherer) == 0
    assert set(outcomes) == set(left)
    for id_, outcome in outcomes.items():
        parts = [end for end in ends if end.part.request.id == id_]
        request = parts[0].part.request
        errors = [end.error for end in parts if end.error is not None]
        assert outcome.receipt is request.receipt
        assert outcome.samples == request.samples
        assert outcome.error is (errors[0] if errors else None)
        if errors:
            assert outcome.outputs == {}
        else:
            whole = rows(Part(request, 0, request.samples))
            assert set(outcome.outputs) == set(whole)
            for name, expected in whole.items():
                np.testing.assert_array_equal(outcome.outputs[name], expected)


@given(endings())
def test_timings_are_those_of_the_batches(ends: list[Ending]) -> None:
    """First start, slowest batch, largest batch, over the parts that ran."""
    gatherer = Gatherer()
    for end in ends:
        outputs = {} if end.error else rows(end.part)
        outcome = gatherer.add(end.part, outputs, end.timings, end.error)
        if outcome is None:
            continue
        all_timings = [other.timings for other in ends if other.part.request.id == outcome.id]
        ran = [timings for timings in all_timings if timings.batch_samples]
        assert outcome.timings.queue_s == min((t.queue_s for t in ran), default=0)
        assert outcome.timings.compute_s == max((t.compute_s for t in ran), default=0)
        assert outcome.timings.batch_samples == max((t.batch_samples for t in ran), default=0)
        assert outcome.timings.reason == ("cap" if ran else "")
