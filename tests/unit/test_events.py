"""Events as CloudEvents 1.0: required attributes, time, JSON."""

from __future__ import annotations

import datetime as dt
import json
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.events import (
    EVENTS,
    Degraded,
    DeviceFailed,
    DeviceRecovered,
    Disconnected,
    Event,
    ModelLoaded,
    ModelRefused,
    OutboxDamaged,
    OutboxDegraded,
    OutboxRecovered,
    Result,
    SettingsChanged,
    Started,
    Stopping,
    Summary,
    Telemetry,
    Throttled,
    UplinkRestored,
    cloud_event,
)

MOMENT = 1_790_000_000.1234
EXAMPLES: tuple[Event, ...] = (
    Started(MOMENT, "0.1.0", ("digits", "watch"), offline=False, seconds=1.2),
    ModelLoaded(MOMENT, "digits", "0123456789ab", "int8", "cpu", {"1": 0.2, "8": 0.9}),
    ModelRefused(MOMENT, "watch", "no engine is installed"),
    DeviceFailed(MOMENT, "cuda:1", "an illegal memory access was encountered"),
    DeviceRecovered(MOMENT, "cuda:1", 3),
    Disconnected(MOMENT, 12.5, session_kept=True),
    Stopping(MOMENT, 3),
    Degraded(MOMENT, ("cuda:1",)),
    Throttled(MOMENT, "cuda:0", ("power_cap",)),
    UplinkRestored(MOMENT, 12.5, 40),
    SettingsChanged(MOMENT, 3, "rejected", "serve.drain_s: too large"),
    OutboxDamaged(MOMENT, "its file was damaged", "outbox.damaged"),
    OutboxDegraded(MOMENT, "no space left on device"),
    OutboxRecovered(MOMENT, 3.5, 7),
    Summary(MOMENT, "digits", 10.0, 3, 1, 5, {"3": 5}, 0.9, None),
    Result(MOMENT, "digits", "a-1", 200, 1, 2.5, {"logits": [[0.1, 0.9]], "large": None}),
    Telemetry(
        MOMENT,
        60.0,
        0,
        0,
        {"digits": {"cpu": {"phi": 1.0}}},
        {"cpu": {"load": None}},
        {"arrivals_total": [{"value": 1}]},
    ),
)

# RFC 3339, section 5.6, in UTC.
RFC_3339 = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?Z")


def strict_json(payload: bytes) -> dict[str, Any]:
    """Reads JSON as RFC 8259 has it: without NaN and infinities."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON")

    return dict(json.loads(payload, parse_constant=refuse))


def test_there_is_an_example_of_every_event() -> None:
    """The tests below look at all of them; no two share a kind."""
    kinds = [event.kind for event in EVENTS]

    assert {type(event) for event in EXAMPLES} == set(EVENTS)
    assert len(set(kinds)) == len(kinds)
    # The kind is the last level of a topic, and part of a CloudEvents type.
    assert all(re.fullmatch(r"[a-z_]+", kind) for kind in kinds)
    assert set(Event.__subclasses__()) == set(EVENTS)


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: event.kind)
def test_an_event_is_a_cloud_event(event: Event) -> None:
    """The attributes that the specification requires are there, non-empty, and of its forms."""
    document = strict_json(cloud_event(event, "/edged/v1/cam-7"))

    assert document["specversion"] == "1.0"
    assert document["source"] == "/edged/v1/cam-7"
    assert document["type"] == f"edged.{event.kind}"
    assert document["id"]
    assert document["datacontenttype"] == "application/json"
    assert RFC_3339.fullmatch(document["time"])
    told = dt.datetime.fromisoformat(document["time"].replace("Z", "+00:00"))
    assert told.timestamp() == pytest.approx(MOMENT, abs=1e-3)
    # Names of attributes are lower-case letters and digits.
    assert all(re.fullmatch(r"[a-z0-9]+", name) for name in document)


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: event.kind)
def test_its_data_are_the_fields(event: Event) -> None:
    """Every field but the time stands in `data` with its value."""
    data = strict_json(cloud_event(event, "/s"))["data"]

    fields = {name: value for name, value in vars(event).items() if name != "time"}
    assert data == json.loads(json.dumps(fields))


def test_two_events_have_two_ids() -> None:
    """Source and id together are unique, so that a receiver can drop repeats."""
    ids = {strict_json(cloud_event(EXAMPLES[4], "/s"))["id"] for _ in range(100)}

    assert len(ids) == 100


def test_numbers_that_json_does_not_have_become_null() -> None:
    """A model may put out NaN or infinity; the event stays readable for any JSON parser."""
    outputs = {"y": [[math.nan, 1.0], [math.inf, -math.inf]]}
    event = Result(MOMENT, "m", "", 200, 2, 1.0, outputs)

    data = strict_json(cloud_event(event, "/s"))["data"]

    assert data["outputs"] == {"y": [[None, 1.0], [None, None]]}


@given(st.text(), st.text(), st.lists(st.floats()))
def test_any_text_and_number_can_be_told(id_: str, model: str, values: list[float]) -> None:
    """What a requester chose comes through as it was, as JSON in UTF-8."""
    event = Result(MOMENT, model, id_, 404, 0, 0.1, {"y": values})

    data = strict_json(cloud_event(event, "/s"))["data"]

    assert (data["id"], data["model"]) == (id_, model)
    expected = [value if math.isfinite(value) else None for value in values]
    assert data["outputs"]["y"] == expected
