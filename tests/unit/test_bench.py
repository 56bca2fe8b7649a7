"""`edged bench` without a broker: options, schedules, payloads, books, figures and charts."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged import protocol, v2
from edged.bench.connection import Template
from edged.bench.options import BenchOptions, Share, read_mix
from edged.bench.payloads import RANDOM_REQUESTS, messages_of, random_inputs, request_messages
from edged.bench.plots import charts
from edged.bench.schedule import classes, send_times
from edged.bench.summary import Rows, summarize
from edged.bench.table import lines
from edged.bench.tally import NEVER, Tally
from edged.bench.usage import Usage, UsageMeter, from_telemetry
from edged.client import Endpoint
from edged.client.endpoint import Publication
from edged.errors import BadParameterError, InputFileError
from edged.mqtt import codec, properties
from edged.preprocess import decode_image
from edged.sample_file import SampleFile

HERE = Endpoint("edge")
OPTIONS = BenchOptions(HERE, "m", "x.npy")
OK = {protocol.STATUS: "200"}


# ------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"file": ""}, "give a file, or --random"),
        ({"random": "x=FP32[1]"}, "one of them"),
        ({"rate_hz": -1}, "rate -1 must be from 0 to 1e\\+06"),
        ({"rate_hz": float("nan")}, "rate nan"),
        ({"seconds": 0}, "seconds 0"),
        ({"connections": 0}, "connections 0 must be from 1 to 1000"),
        ({"samples": 0}, "samples 0"),
        ({"outstanding": 0}, "outstanding requests 0"),
        ({"qos": 2}, "QoS 2"),
        ({"slo_ms": 0}, "SLO in ms 0"),
        ({"mix": ()}, "at least one class"),
        ({"rate_hz": 1e6, "seconds": 60}, "60000000 requests are too many"),
    ],
)
def test_a_run_that_is_impossible_is_refused_with_what_is_allowed(
    change: dict[str, Any], why: str
) -> None:
    """Before anything is connected, in one sentence."""
    with pytest.raises(BadParameterError, match=why):
        replace(OPTIONS, **change)


def test_a_mix_is_read_as_it_is_written() -> None:
    """Class, weight, and a deadline where there is one."""
    assert read_mix("urgent=1:50, normal=9,background=.5:2000") == (
        Share("urgent", 1.0, 50.0),
        Share("normal", 9.0),
        Share("background", 0.5, 2000.0),
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("urgent", "class=weight"),
        ("urgent=x", "class=weight"),
        ("hasty=1", "must be one of urgent, normal, background"),
        ("urgent=0", "must be above 0"),
        ("urgent=1:0", "from 0.001"),
    ],
)
def test_a_mix_that_makes_no_sense_is_refused(text: str, why: str) -> None:
    """The message names the piece and how it is written."""
    with pytest.raises(BadParameterError, match=why):
        read_mix(text)


# ------------------------------------------------------------------ schedule


@pytest.mark.parametrize("arrivals", ["poisson", "uniform", "bursts", "phases"])
def test_every_kind_of_arrivals_has_its_rate_and_is_seeded(arrivals: Any) -> None:
    """Times ascend from 0; the same seed gives the same times; the mean rate is what was asked."""
    options = replace(OPTIONS, arrivals=arrivals, rate_hz=500, seconds=40, seed=3)
    times = send_times(options)
    assert times[0] == 0
    assert (np.diff(times) >= 0).all()
    assert np.array_equal(times, send_times(options))
    assert (len(times) - 1) / times[-1] == pytest.approx(500, rel=0.15)


def test_bursts_come_at_one_instant() -> None:
    """With a mean size of 4 most requests have company."""
    times = send_times(replace(OPTIONS, arrivals="bursts", rate_hz=500, seconds=20))
    assert 0.6 < (np.diff(times) == 0).mean() < 0.9


def test_a_capture_is_sent_as_it_came(tmp_path: Path) -> None:
    """Its times count, from the first one; what is no capture is refused."""
    trace = tmp_path / "times.csv"
    trace.write_text("ts,what\n12.5,a\n12.0,b\n13.25,c\n", encoding="utf-8")
    assert send_times(replace(OPTIONS, trace=trace)).tolist() == [0.0, 0.5, 1.25]
    trace.write_text("no,capture\n1,2\n", encoding="utf-8")
    with pytest.raises(InputFileError, match="no capture"):
        send_times(replace(OPTIONS, trace=trace))


def test_a_closed_loop_has_no_times() -> None:
    """Answers send the next request."""
    assert len(send_times(replace(OPTIONS, rate_hz=0))) == 0


def test_classes_are_drawn_by_weight() -> None:
    """One in ten is urgent; one class alone needs no chance."""
    drawn = classes(replace(OPTIONS, mix=read_mix("urgent=1,normal=9")), 20_000)
    assert (drawn == 0).mean() == pytest.approx(0.1, abs=0.01)
    assert not classes(OPTIONS, 5).any()


# ------------------------------------------------------------------ payloads


IMAGES = np.arange(3 * 8 * 8, dtype=np.uint8).reshape(3, 8, 8, 1)


def test_arrays_become_binary_or_json_requests() -> None:
    """Both are read back as what was in the file, row by row."""
    sample = SampleFile(arrays={"image": IMAGES})
    for kind in ("binary", "json"):
        messages = request_messages(sample, 1, kind)
        assert len(messages) == 3
        for row, message in enumerate(messages):
            body = v2.parse_request(message.payload, message.header_length)
            assert np.array_equal(body.inputs[0].data, IMAGES[row : row + 1])
    assert request_messages(sample, 1, "json")[0].content_type == protocol.JSON


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_arrays_become_encoded_images(kind: Any) -> None:
    """PNG is exact, JPEG is near; one sample each."""
    message = request_messages(SampleFile(arrays={"image": IMAGES}), 1, kind)[2]
    decoded = decode_image(message.payload, mode="L", height=8, width=8)
    assert np.abs(decoded.astype(int).ravel() - IMAGES[2].astype(int).ravel()).max() <= (
        0 if kind == "png" else 8
    )


def test_what_is_no_picture_is_not_sent_as_one() -> None:
    """Floats, several samples in one request, and several inputs have no PNG."""
    floats = SampleFile(arrays={"x": np.zeros((2, 8, 8, 1), np.float32)})
    for sample, samples in ((floats, 1), (SampleFile(arrays={"image": IMAGES}), 2)):
        with pytest.raises(BadParameterError, match="png needs one input of uint8"):
            request_messages(sample, samples, "png")
    png = SampleFile(image=b"\x89PNG\r\n\x1a\n", content_type=protocol.PNG)
    assert len(request_messages(png, 1, "binary")) == 1
    with pytest.raises(BadParameterError, match="one png image"):
        request_messages(png, 1, "json")


def test_random_inputs_have_the_shapes_that_were_asked_for() -> None:
    """Several inputs, a scalar one, each datatype; as many rows as requests need."""
    inputs = random_inputs("a=FP32[2,3];b=UINT8[];c=BOOL[4];d=INT8[1]", 2, 0)
    rows = 2 * RANDOM_REQUESTS
    assert {name: (str(data.dtype), data.shape) for name, data in inputs.items()} == {
        "a": ("float32", (rows, 2, 3)),
        "b": ("uint8", (rows,)),
        "c": ("bool", (rows, 4)),
        "d": ("int8", (rows, 1)),
    }
    options = replace(OPTIONS, file="", random="a=FP32[2,3]", samples=2)
    assert len(messages_of(options, SampleFile())) == RANDOM_REQUESTS
    for wrong in ("a", "a=FP32", "a=STRING[1]", "a=BYTES[1]", "a=FP32[1,]", ""):
        with pytest.raises(BadParameterError, match="name=DATATYPE"):
            random_inputs(wrong, 1, 0)


@pytest.mark.parametrize("qos", [0, 1])
def test_a_template_differs_in_identifier_and_correlation_alone(qos: int) -> None:
    """What is sent is a PUBLISH that the codec reads back, as the client would write it."""
    user = ((protocol.PRIORITY, "urgent"),)
    publication = Publication("a/infer/m", b"body", "a/reply/me", b"", "application/json", user)
    template = Template(publication, qos)
    head = template.head(77 if qos else 0, b"12345678")
    whole = replace(publication, correlation=b"12345678")
    assert head == whole.head(77 if qos else 0)
    length, at = properties.read_variable(head + b"body", 1)
    message = codec.decode_publish(head[0], memoryview(head + b"body")[at:])
    assert length == len(head) + 4 - at
    assert (message.topic, message.mid, message.correlation) == (
        "a/infer/m", 77 if qos else 0, b"12345678",
    )  # fmt: skip


# ------------------------------------------------------------------ books and figures


def header(size: int = 4, reason: str = "count") -> memoryview:
    """A reply's V2 header from a batch of that size."""
    parameters = {
        "queue_us": 500, "compute_us": 250, "batch_size": size, "batch_reason": reason,
    }  # fmt: skip
    return memoryview(json.dumps({"parameters": parameters}).encode())


def error(code: str) -> memoryview:
    """The body of an error reply."""
    return memoryview(json.dumps({"code": code}).encode())


def test_every_request_ends_once_in_the_books() -> None:
    """Answered, refused by code, lost and unsent; a second answer and a foreign one are told."""
    tally = Tally()
    for number in range(5):
        tally.send(float(number), NEVER if number == 4 else number + 0.001, 0)
    assert tally.answer(0, 0.010, OK, header(), (0, 0))
    assert tally.answer(1, 1.005, {protocol.STATUS: "503"}, error("queue_full"), (0, 0))
    assert tally.answer(2, 2.050, OK | {protocol.DEVICE: "b"}, header(8, "full"), (0, 0))
    assert not tally.answer(2, 2.060, OK, header(), (0, 0))
    for stranger in (-1, 4, 5, 2**32 - 1):
        assert not tally.answer(stranger, 3.0, OK, header(), (0, 0))
    summary = summarize(tally, Rows.of(tally, 0.0), (Share(),), offered_hz=1.0, slo_ms=20.0)
    assert (summary.sent, summary.answered, summary.lost, summary.unsent) == (4, 2, 1, 1)
    assert summary.refused == {"queue_full": 1}
    assert (summary.duplicates, summary.foreign, summary.out_of_order) == (1, 4, 0)
    assert summary.latency_ms["max"] == pytest.approx(50.0)
    assert summary.lag_ms["p50"] == pytest.approx(1.0)
    assert summary.good_share == pytest.approx(1 / 5)
    assert summary.goodput_hz == pytest.approx(1 / 2.05)
    assert summary.batches == {"4 count": 1, "8 full": 1}
    assert (summary.queue_ms, summary.compute_ms) == (0.5, 0.25)
    assert summary.devices == {"b": 1}
    json.dumps(summary.refused)


def test_a_warm_up_is_not_counted() -> None:
    """Its requests were sent, and leave no trace in the figures."""
    tally = Tally()
    for number in range(4):
        tally.send(float(number), float(number), 0)
        tally.answer(number, number + (9.0 if number < 2 else 0.010), OK, header(), (0, 0))
    summary = summarize(tally, Rows.of(tally, 2.0), (Share(),))
    assert summary.sent == 2
    assert summary.latency_ms["max"] == pytest.approx(10.0)


@given(st.lists(st.integers(0, 9), max_size=40), st.integers(1, 3))
def test_answers_that_overtake_are_counted(order: list[int], connections: int) -> None:
    """Against a plain count: first answers behind that of a later request of their connection."""
    tally = Tally()
    for number in range(10):
        tally.send(0.0, 0.0, 0)
        assert number == len(tally) - 1
    seen: dict[int, int] = {}
    expected, answered = 0, set[int]()
    for index in order:
        place = index % connections
        tally.answer(index, 1.0, OK, header(), (place, 0))
        if index in answered:
            continue
        answered.add(index)
        expected += index < seen.get(place, -1)
        seen[place] = max(index, seen.get(place, -1))
    assert tally.out_of_order == expected
    assert tally.duplicates == len(order) - len(answered)
    assert tally.ended == len(answered)


def test_headers_of_a_long_run_are_a_sample() -> None:
    """Memory is bounded, and what is kept lies evenly in the run."""
    tally = Tally()
    for number in range(50_000):
        tally.send(0.0, 0.0, 0)
        tally.answer(number, 1.0, OK, header(), (0, 0))
    assert 10_000 <= len(tally.headers) <= 20_000
    assert set(np.diff(sorted(tally.headers))) == {4}


def served(mix: Sequence[Share], count: int = 200) -> tuple[Tally, Rows]:
    """A run in which the second class is slower."""
    tally = Tally()
    for number in range(count):
        class_ = number % len(mix)
        index = tally.send(number / 100, number / 100, class_)
        tally.answer(index, number / 100 + 0.01 * (1 + class_), OK, header(number % 40 + 1), (0, 0))
    return tally, Rows.of(tally, 0.0)


def test_classes_are_told_apart() -> None:
    """Each has its own counts and percentiles, under its name and deadline."""
    mix = read_mix("urgent=1:50,normal=1")
    tally, rows = served(mix)
    found = summarize(tally, rows, mix).classes
    assert list(found) == ["urgent 50 ms", "normal"]
    assert found["urgent 50 ms"].latency_ms["p50"] == pytest.approx(10.0)
    assert found["normal"].latency_ms["p50"] == pytest.approx(20.0)
    assert {each.answered for each in found.values()} == {100}


def test_the_table_says_everything() -> None:
    """Counts, rates, goodput, percentiles, cost, classes, and batches in ranges of sizes."""
    mix = read_mix("urgent=1:50,normal=1")
    tally, rows = served(mix)
    summary = summarize(tally, rows, mix, offered_hz=100.0, slo_ms=15.0)
    summary = replace(summary, usage=Usage(0.123, 0.5, "process"), generator_cpu_us=20.0)
    text = "\n".join(lines(summary))
    for said in (
        "200 sent: 200 answered, 0 refused, 0 lost",
        "0 duplicates, 0 out of order",
        "offered 100/s",
        "within 15 ms, 50.00% of the requests",
        "p50 15.00",
        "0.123 ms of the daemon's CPU (its process), 0.5000 J",
        "urgent 50 ms",
        "20 us of CPU each",
        "33-64",
    ):
        assert said in text
    empty = Tally()
    assert "0 sent" in "\n".join(lines(summarize(empty, Rows.of(empty, 0.0), (Share(),))))


def test_charts_are_svg_with_all_their_lines() -> None:
    """Three panels: two percentiles, a line for each class, offered and answered; the SLO twice."""
    mix = read_mix("urgent=1,normal=1")
    tally, rows = served(mix)
    document = ET.fromstring(charts(rows, mix, 15.0))  # noqa: S314  # our own text
    tags = [each.tag.rpartition("}")[2] for each in document.iter()]
    assert tags.count("polyline") == 6
    assert charts(rows, mix, 15.0).count("SLO 15 ms") == 2
    empty = Tally()
    ET.fromstring(charts(Rows.of(empty, 0.0), (Share(),), None))  # noqa: S314
    assert len(tally) == 200


# ------------------------------------------------------------------ what it costs


def telemetry(cpu_s: float | None, answered: int, joules: float | None) -> dict[str, Any]:
    """A document as the device publishes it."""
    return {
        "metrics": {
            "replies_total": [{"value": answered}, {"value": 10}],
            "samples_total": [{"value": 2 * answered}],
        },
        "device": {"process_cpu_s": cpu_s, "joules_per_sample": joules},
    }


def test_telemetry_tells_what_a_request_costs() -> None:
    """Between the first and the last document; what one of them does not know stays unknown."""
    told = from_telemetry(
        [telemetry(1.0, 100, None), telemetry(1.1, 150, 0.5), telemetry(1.3, 200, 1.0)]
    )
    assert told.cpu_ms == pytest.approx(3.0)
    assert told.joules == pytest.approx(1.5)
    assert told.source == "telemetry"
    assert from_telemetry([telemetry(1.0, 100, None)]) == Usage()
    assert from_telemetry([telemetry(1.0, 100, None), telemetry(1.0, 100, None)]) == Usage()
    assert from_telemetry([telemetry(None, 1, None), telemetry(2.0, 2, None)]) == Usage()


def test_a_local_process_is_read_from_proc(tmp_path: Path) -> None:
    """Fields utime and stime of proc(5), whatever its name holds; no process is said."""
    stat = tmp_path / "7/stat"
    stat.parent.mkdir()

    def write(ticks: int) -> None:
        stat.write_text(f"7 (edged) (x)) S {'0 ' * 10}{ticks} 50 0 0", encoding="ascii")

    write(50)
    meter = UsageMeter(7, tmp_path)
    meter.begin()
    write(150)
    usage = meter.end(10)
    assert usage.cpu_ms == pytest.approx(100.0)
    assert (usage.joules, usage.source) == (None, "process")
    stat.unlink()
    assert meter.end(10) == Usage()
    with pytest.raises(BadParameterError, match="no process 7"):
        UsageMeter(7, tmp_path).begin()
