"""The terminal view: what it makes of telemetry documents, whole and broken."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edged.client.endpoint import Delivery
from edged.metrics import Metrics
from edged.protocol import Topics
from edged.top import HEADINGS, Watch, closed_by, head, rows, shown, table

TOPICS = Topics("edged/v1", "dev")


def telemetry(uptime_s: float, batches: int, latencies: list[float], **more: Any) -> dict[str, Any]:
    """A document of a service that ran so many batches of 2."""
    metrics = Metrics()
    for seconds in latencies:
        metrics.observe("latency_seconds", seconds, "digits")
        metrics.count("replies_total", "digits", "200")
    for _ in range(batches):
        metrics.observe("batch_samples", 2, "digits")
    state = {
        "price": 2.0, "phi": 1.25, "rate": 100.5, "limit": 3, "hold_ms": None, "waiting": 4,
        "predicted_ms": 6.68, "achieved_ms": 6.7, "greedy_ms": 6.85,
        "closed_count": 3 * batches, "closed_cap": batches, "closed_gap": 0,
    }  # fmt: skip
    return {
        "time": 1000.0, "uptime_s": uptime_s, "outstanding": 5, "waiting_samples": 4,
        "models": {"digits": {"cuda:0": {**state, **more}}}, "metrics": metrics.snapshot(),
    }  # fmt: skip


def cells(line: tuple[str, ...]) -> dict[str, str]:
    """A line by its headings."""
    return dict(zip(HEADINGS, line, strict=True))


def test_a_line_says_what_a_timer_does() -> None:
    """All of it for one model on one device, since the start with one document alone."""
    (line,) = rows(None, telemetry(2.0, 3, [0.0015] * 6))

    assert cells(line) == {
        "MODEL": "digits", "DEVICE": "cuda:0", "REQ/S": "3.0", "P50 ms": "1.50", "P99 ms": "1.99",
        "BATCH": "2.00", "WAIT": "4", "RATE/S": "100", "M": "3", "T ms": "-", "PHI": "1.25",
        "C": "2", "J PRED": "6.68", "J NOW": "6.7", "J GREEDY": "6.85", "GPU %": "-",
        "TEMP C": "-", "CLOSED BY": "count 9 cap 3",
    }  # fmt: skip


def test_rates_are_those_between_two_documents() -> None:
    """What was before the first one does not count."""
    earlier = telemetry(10.0, 1, [1.0] * 100)
    later = telemetry(12.0, 4, [1.0] * 100 + [0.0015] * 6)

    line = cells(rows(earlier, later)[0])

    assert (line["REQ/S"], line["P50 ms"], line["CLOSED BY"]) == ("3.0", "1.50", "count 9 cap 3")


def test_a_restart_begins_anew() -> None:
    """Counters that went back are not subtracted."""
    line = cells(rows(telemetry(50.0, 9, [1.0] * 9), telemetry(2.0, 3, [0.0015] * 6))[0])

    assert (line["REQ/S"], line["CLOSED BY"]) == ("3.0", "count 9 cap 3")


def test_each_length_has_its_line() -> None:
    """The traffic is the model's, the timer the queue's; load and heat are the device's."""
    document = telemetry(2.0, 3, [0.0015] * 6)
    document["models"] = {f"digits@{n}": document["models"]["digits"] for n in (16, 8)}
    document["devices"] = {"cuda:0": {"load": 0.5, "temperature_c": 61.0}}

    lines = [cells(line) for line in rows(None, document)]

    assert [line["MODEL"] for line in lines] == ["digits@8", "digits@16"]
    assert {(line["REQ/S"], line["GPU %"], line["TEMP C"]) for line in lines} == {
        ("3.0", "50", "61")
    }


def test_what_is_not_known_is_a_dash() -> None:
    """Never a 0; an infinite price, which JSON has as null, is said."""
    document = telemetry(0.0, 0, [], price=None, phi=None, rate="much")
    line = cells(rows(None, document)[0])

    assert {line[name] for name in ("REQ/S", "P50 ms", "BATCH", "PHI", "RATE/S")} == {"-"}
    assert line["C"] == "inf"
    assert closed_by({}, {}) == "-"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0123456, "0.0123"), (12345.6, "12346"), (None, "-"), (True, "-"), ("x", "-")],
)
def test_numbers_are_short(value: object, text: str) -> None:
    """Three digits, or all of a large one."""
    assert shown(value) == text


def test_columns_stand_under_their_headings() -> None:
    """Names to the left, numbers to the right."""
    text = table(rows(None, telemetry(2.0, 3, [0.0015] * 6))).splitlines()

    assert len(text) == 2
    assert text[1].startswith("digits  cuda:0  ")
    for number in ("P50 ms", "BATCH", "J GREEDY", "TEMP C"):
        end = text[0].index(number) + len(number)
        assert text[1][end - 1] != " "
        assert text[1][end : end + 2].strip() == ""
    assert text[1].index("count") == text[0].index("CLOSED BY")


def test_a_watch_takes_documents_and_nothing_else() -> None:
    """Broken ones are left out; the head says how old the last one is."""
    watch = Watch(TOPICS)
    good = json.dumps(telemetry(2.0, 3, [0.0015] * 6)).encode()
    status = json.dumps({"state": "online", "version": "9"}).encode()
    for topic, payload in (
        (TOPICS.status, status), (TOPICS.telemetry("metrics"), b"\xff{"),
        (TOPICS.telemetry("metrics"), b"[1]"), (TOPICS.telemetry("metrics"), good),
    ):  # fmt: skip
        watch.take(Delivery(topic, payload, b"", "", {}, 0.0))

    assert watch.wait(0, 0.0)
    assert not watch.wait(1, 0.0)
    count, text = watch.shown()
    assert count == 1
    assert text.startswith("online, edged 9, up 2 s, 5 outstanding, 4 waiting; ")
    assert repr(watch) == "<Watch 1 telemetry documents>"


def test_a_device_that_says_little_is_shown() -> None:
    """An older one, or another program on that topic."""
    assert rows(None, {"models": {"m": {"cpu": {}}}, "metrics": {}})[0][:3] == ("m", "cpu", "-")
    assert rows(None, {"models": {"m": 3}}) == []
    assert head({}, {}, 5.0).startswith("state unknown, edged -, up 0 s")
