"""docs/metrics.md and docs/events.md list what there is: all of it, and nothing else."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from edged.errors import BadResponseTopicError, InternalError, NoResponseTopicError
from edged.events import EVENTS, Event, Stopping, Telemetry, cloud_event, json_bytes
from edged.latency import LatencyCurve
from edged.metrics import LATENESS, METRICS, SAMPLES, SECONDS, Metrics, timer_gauges
from edged.protocol import TELEMETRY_KINDS, Topics
from edged.report.policy import RESULT_VALUES
from edged.report.reports import QUEUED_ANSWERS, QUEUED_EVENTS
from edged.report_settings import ReportSettings
from edged.serve.timer import BatchTimer, Reason

DOCS = Path(__file__).parents[2] / "docs"
METRICS_PAGE = (DOCS / "metrics.md").read_text(encoding="utf-8")
EVENTS_PAGE = (DOCS / "events.md").read_text(encoding="utf-8")
TOPICS = Topics("{root}", "{device}")
TYPES = {
    "str": "text",
    "tuple[str, ...]": "list of text",
    "bool": "boolean",
    "int": "integer",
    "float": "number",
    "dict[str, float]": "object",
    "dict[str, Any]": "object",
    "dict[str, int]": "object",
    "float | None": "number or null",
    "int | None": "integer or null",
}


def section(page: str, title: str) -> str:
    """The text under a heading, up to the next one of any level."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^##|\Z)", page, re.DOTALL | re.MULTILINE)
    assert found, f"no section {title!r}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """Cells of the table rows whose first cell is code."""
    lines = re.findall(r"^\| (`.*) \|$", text, re.MULTILINE)
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def example(page: str, title: str) -> dict[str, Any]:
    """The first JSON block of a section."""
    block = re.search(r"```json\n(.*?)```", section(page, title), re.DOTALL)
    assert block, f"no JSON in section {title!r}"
    return dict(json.loads(block[1]))


def test_every_metric_is_listed_as_it_is() -> None:
    """The table has each metric once, with its kind, labels and sentence, and no other."""
    told = rows(section(METRICS_PAGE, "All metrics"))
    made = [
        [f"`{name}`", metric.kind, ", ".join(f"`{label}`" for label in metric.labels), metric.help]
        for name, metric in METRICS.items()
    ]

    assert told == made


def test_every_label_is_explained() -> None:
    """The labels that metrics have, with the values that come from closed sets."""
    labels = {label for metric in METRICS.values() for label in metric.labels}
    table = section(METRICS_PAGE, "Labels").split("Why a request ended")[0]
    told = {row[0].strip("`"): row[1] for row in rows(table)}

    assert set(told) == labels
    reasons = told["reason"].removeprefix("of a batch: ").split(";")[0]
    assert re.findall(r"`(\w+)`", reasons) == [reason.value for reason in Reason]


def test_every_reason_for_a_drop_is_explained() -> None:
    """The request path counts with these reasons, and with no others."""
    table = section(METRICS_PAGE, "Labels").split("Why a request ended without a reply:")[1]
    folder = Path(__file__).parents[2] / "edged" / "serve"
    source = "".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py")))
    written = set(re.findall(r'Unanswerable\([^")]*"(\w+)"', source))
    written |= set(re.findall(r'(?:\.dropped|_not_taken)\("(\w+)"', source))

    told = {row[0].strip("`") for row in rows(table)}

    assert written == {"arrivals_full", "draining", "unsent"}
    named = {NoResponseTopicError.code, BadResponseTopicError.code, InternalError.code}
    assert told == written | named


def test_the_buckets_are_the_code_s() -> None:
    """Bounds on the page are those that the histograms have."""
    text = section(METRICS_PAGE, "Buckets")
    told = [
        (re.findall(r"`(\w+)`", line), line.rpartition(": ")[2].rstrip("."))
        for line in text.strip().splitlines()
        if line
    ]

    for names, bounds in told:
        for name in names:
            assert bounds == ", ".join(f"{bound:g}" for bound in METRICS[name].buckets)
    listed = [name for names, _ in told for name in names]
    assert listed == [name for name, metric in METRICS.items() if metric.buckets]
    assert {METRICS[name].buckets for name in listed} == {SAMPLES, SECONDS, LATENESS}


def test_the_example_is_what_the_service_publishes() -> None:
    """The document on the page is made by the code, number for number."""
    metrics = Metrics()
    metrics.count("arrivals_total", by=7)
    metrics.count("replies_total", "digits", "200", by=4)
    metrics.count("replies_total", "digits", "429")
    for samples in (1, 2, 1):
        metrics.observe("batch_samples", samples, "digits")
    timer: dict[str, Any] = {
        "price": 2.0, "phi": 1.04, "rate": 118.2, "limit": 2, "hold_ms": None, "tuned": 1,
        "fallback": 0, "predicted_ms": 6.68, "achieved_ms": 6.71, "greedy_ms": 6.85,
        "residual_p50": 0.002, "residual_p95": 0.061, "late_p99_ms": 0.12,
        "closed_count": 58102, "closed_cap": 0, "closed_urgent": 0, "closed_deadline": 0,
        "closed_gap": 26, "closed_budget": 6, "closed_tuner": 357, "closed_fallback": 0,
        "closed_drain": 0,
    }  # fmt: skip
    known = {"digits": {"cpu": timer | {"hold_ms": math.nan}}}
    models = {"digits": {"cpu": timer}}
    load = {"load": None, "temperature_c": None, "throttled": None, "low_power": None}
    devices = {"cpu": load}
    values = metrics.snapshot() | timer_gauges(known)
    made = Telemetry(1790000000.5, 60.0, 2, 1, models, devices, values)

    assert example(METRICS_PAGE, "The document") == json.loads(json_bytes(asdict(made)))


def test_topics_and_limits_are_the_code_s() -> None:
    """Where to subscribe, how often, and how many events may wait."""
    (kind,) = TELEMETRY_KINDS
    interval = ReportSettings().telemetry_interval_s
    assert f"`{TOPICS.telemetry(kind)}`" in section(METRICS_PAGE, "Where to read them")
    assert f"`report.telemetry_interval_s`, {interval:g} seconds unless" in METRICS_PAGE
    sent = section(EVENTS_PAGE, "How they are sent")
    assert f"`{TOPICS.event('{kind}')}`" in sent
    assert f"`{TOPICS.telemetry(kind)}`" in sent
    assert (
        f"At most {QUEUED_EVENTS:,} events wait to be sent, and {QUEUED_ANSWERS:,} answers" in sent
    )
    assert f"more than {RESULT_VALUES};" in section(EVENTS_PAGE, "`result`")


def test_the_envelope_is_the_code_s() -> None:
    """The example and the table have the members that `cloud_event` writes."""
    made = json.loads(cloud_event(Stopping(1790000000.5, 3), "/edged/v1/cam-7"))
    told = example(EVENTS_PAGE, "The envelope")

    assert list(told) == list(made)
    assert {**told, "id": ""} == {**made, "id": ""}
    assert len(told["id"]) == len(made["id"])
    assert [row[0] for row in rows(section(EVENTS_PAGE, "The envelope"))] == [
        f"`{name}`" for name in made
    ]


def test_every_event_is_listed() -> None:
    """Each kind has a section, in the order of the code, and there is no other."""
    told = re.findall(r"^### `(\w+)`$", EVENTS_PAGE, re.MULTILINE)

    assert told == [event.kind for event in EVENTS]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.kind)
def test_every_member_of_an_event_is_listed(event: type[Event]) -> None:
    """Each member stands there with its type; the time of an event is in the envelope."""
    table = section(EVENTS_PAGE, f"`{event.kind}`").split("The state of a batch timer")[0]
    made = [
        [f"`{field.name}`", TYPES[str(field.type)]]
        for field in fields(event)
        if event is Telemetry or field.name != "time"
    ]

    assert [row[:2] for row in rows(table)] == made
    assert all(row[2] for row in rows(table))


def test_the_timer_s_state_is_listed() -> None:
    """What the service tells of each batch timer is explained, and nothing else."""
    table = section(EVENTS_PAGE, "`telemetry`").split("The state of a batch timer")[1]
    shown = example(METRICS_PAGE, "The document")["models"]["digits"]["cpu"]
    made = BatchTimer(LatencyCurve((1,), (0.001,)), 1).state(0.0)

    told = [row[0].strip("`") for row in rows(table)]
    assert told == list(shown) == list(made)
