"""The report page and its plots: complete, escaped, without anything from outside."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.build import plots
from edged.build.report_page import page
from edged.build.svg import Axis, Plot, Series, bars, round_ticks

EVIL = "<script>alert('x')</script>&\"'"

TIMES = {"1": 0.5, "8": 2.0}
RATES = {"1": 2000.0, "8": 4000.0}


def document(name: str = "layer") -> dict[str, Any]:
    """A report with everything in it; ``name`` is what the model's author called things."""
    layer = {"node": name, "operator": "Conv", "activation": name, "threshold": 1.5,
             "clipped": 0.001, "sqnr_db": 38.0}  # fmt: skip
    inner = {"name": name, "kind": "conv", "inputs": ["Int8"], "outputs": ["Half"], "nodes": [name]}
    return {
        "edged": "0", "model": "m", "key": "k" * 64, "created": "now", "runner": "tensorrt",
        "fingerprint": {"gpu": name}, "precision": "int8", "asked": "auto", "slo_ms": 10.0,
        "slo_batch": 8, "sources": {"model": "a" * 64}, "stages": {"engine": "b" * 64},
        "verdict": {"passed": True, "samples": 9, "metrics": {}, "reasons": []},
        "latency_ms": TIMES, "notes": [f"{name} was not taken"], "variant": "INT8",
        "kept_fp32": {}, "warnings": [name], "seconds": {"build": 1.0},
        "candidates": [
            {"variant": "INT8", "installed": True, "reason": "the fastest", "gain": 1.5,
             "latency_ms": TIMES, "samples_s": RATES},
            {"variant": "FP32", "installed": False, "reason": name, "gain": 1.0,
             "latency_ms": {"1": 1.0, "8": 3.0}, "samples_s": {"1": 1000.0, "8": 2600.0}},
            {"variant": "FP16", "installed": False, "reason": f"not had: {name}"},
        ],
        "accuracy": [{"what": "FP32 model", "top1": 0.9}, {"what": "INT8 engine", "top1": 0.899,
                      "agreement": 0.99, "sqnr_db": 30.1, "cosine": 0.9999}],
        "histograms": {name: {"upper": 2.0, "counts": [9, 5, 0, 1], "zeros": 3, "threshold": 1.5}},
        "int8": [layer], "float": {name: "first linear layer"}, "sensitivity": [],
        "plan": {"fell_back": {name: f"layer {name} reads Half"}},
        "graph": {"model": {"Conv": 2, name: 1}, "built": {"Conv": 2, "QuantizeLinear": 2},
                  "fused": {"conv": 2}, "fused_by": "TensorRT's layers", "layers": [inner]},
        "roofline": {
            "peaks": {"operations_s": 1e11, "bytes_s": 1e10}, "measured": "FP32, by this runner",
            "points": [{"variant": "INT8", "batch": 8, "intensity": 4.0, "operations_s": 2e10}],
            "layers": [{"node": name, "operator": "Conv", "operations": 1000, "values": 5,
                        "weights": 10, "intensity": 3.0, "bound_by": "memory"}],
        },
    }  # fmt: skip


class Tags(HTMLParser):
    """Elements and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Takes note of it."""
        self.seen.append(tag)
        self.links += [value or "" for name, value in attrs if name in {"src", "href", "action"}]
        if tag not in {"meta", "line", "rect", "circle", "polyline", "path"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Whatever was opened is closed in order."""
        if self.open and self.open[-1] == tag:
            self.open.pop()


def tags(text: str) -> Tags:
    """The page, read."""
    found = Tags()
    found.feed(text)
    return found


def test_page_has_a_part_for_everything() -> None:
    """Choice, accuracy, ranges, layers, graph, roofline, origin; plots are drawn."""
    text = page(document())
    for heading in ("Which precision", "Accuracy", "Ranges", "Layers", "Graph", "Roofline",
                    "Where it comes from"):  # fmt: skip
        assert f"<h2>{heading}" in text
    assert text.count("<svg") == 5
    assert "layer layer reads Half" in text


def test_page_needs_nothing_from_outside() -> None:
    """No link, no picture, no script of another place; the page itself forbids them."""
    text = page(document())
    assert tags(text).links == []
    assert "default-src 'none'" in text
    assert "http" not in text.replace("http-equiv", "")


def test_names_are_escaped_wherever_they_appear() -> None:
    """A node may be called anything; the one script is the page's own."""
    text = page(document(EVIL))
    found = tags(text)
    assert found.seen.count("script") == 1
    assert found.open == []
    assert EVIL not in text
    assert "&lt;script&gt;" in text


def test_report_without_extras_is_a_page_too() -> None:
    """FP32 on a runtime that tells nothing: no ranges, no layers, no roofline."""
    small = document() | {"roofline": None, "histograms": {}, "int8": [], "plan": {}}
    small["graph"] |= {"layers": []}
    text = page(small)
    assert "Roofline" not in text
    assert tags(text).open == []


def test_a_scan_is_shown_instead_of_the_input_noise() -> None:
    """What each layer costs the output is worth more than what its input loses."""
    costs = [{"node": "conv1", "loss": 0.1, "sqnr_db": 20.0}]
    assert "one layer alone in INT8" in plots.sensitivity(costs, [], "m")
    assert "10 %" in plots.sensitivity(costs, [], "m")
    assert "edged build m --sensitivity" in plots.sensitivity([], document()["int8"], "m")


def test_plot_places_points_in_the_right_order() -> None:
    """Larger x is further right, larger y further up, and labels are there."""
    plot = Plot(Axis("x"), Axis("y"), (0, 10, 0, 10))
    plot.lines([Series("a", [(1, 2), (9, 8)]), Series("b", [(5, 5)])])
    root = ET.fromstring(plot.svg("two series"))  # noqa: S314  # our own text
    circles = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in root.iter("circle")]
    assert circles[0][0] < circles[2][0] < circles[1][0]
    assert circles[0][1] > circles[2][1] > circles[1][1]
    assert {text.text for text in root.iter("text")} >= {"x", "y", "a", "b", "0", "10"}


@settings(max_examples=60, deadline=None)
@given(low=st.floats(1e-6, 1e6), factor=st.floats(1.001, 1e6), log=st.booleans())
def test_ticks_are_few_round_and_inside(low: float, factor: float, *, log: bool) -> None:
    """Between the ends, ascending, and not so many that they overlap."""
    high = low * factor
    ticks = round_ticks(low, high, log=log)
    assert len(ticks) <= 13
    assert ticks == sorted(ticks)
    assert all(low * 0.999 <= tick <= high * 1.001 for tick in ticks)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=60), st.floats(0, 1e9)), max_size=8))
def test_bars_are_well_formed_whatever_their_names(rows: list[tuple[str, float]]) -> None:
    """Control characters apart, which XML cannot hold."""
    clean = [(re.sub(r"[^\x20-\ud7ff]", "?", name), value, "") for name, value in rows]
    text = bars(clean, "%")
    assert bool(text) == bool(rows)
    if text:
        root = ET.fromstring(text)  # noqa: S314  # our own text
        assert len(list(root.iter("rect"))) == len(rows)


@pytest.mark.parametrize("counts", [[1], [0, 0, 7], [10**9, 1]])
def test_histogram_is_drawn_for_any_counts(counts: list[int]) -> None:
    """One bin, empty bins, counts over nine decades."""
    text = plots.histogram("t", {"upper": 3.0, "counts": counts, "zeros": 0, "threshold": 2.0})
    assert "127 = 2" in text
    assert "NaN" not in text
