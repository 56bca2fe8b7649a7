"""W3C Trace Context: what is valid, and what counts as absent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from edged.trace_context import TraceParent, is_tracestate, parse_traceparent, passed_on

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


def test_a_traceparent_is_read() -> None:
    """Both numbers and both flags; other bits are for later and mean nothing."""
    read = TraceParent(int(TRACE, 16), int(SPAN, 16), sampled=True)
    assert parse_traceparent(PARENT) == read
    assert parse_traceparent(f"00-{TRACE}-{SPAN}-00") == TraceParent(
        read.trace_id, read.span_id, sampled=False
    )
    assert parse_traceparent(f"00-{TRACE}-{SPAN}-ff") == TraceParent(
        read.trace_id, read.span_id, sampled=True, random=True
    )


@pytest.mark.parametrize("text", [f"cc-{TRACE}-{SPAN}-01", f"cc-{TRACE}-{SPAN}-03-what.ever"])
def test_a_later_version_is_read_as_far_as_it_is_known(text: str) -> None:
    """Its beginning is that of version 00, and its sampled flag counts."""
    parent = parse_traceparent(text)
    assert parent == TraceParent(int(TRACE, 16), int(SPAN, 16), sampled=True)


@pytest.mark.parametrize(
    "text",
    [
        "", "00", PARENT[:-1], PARENT + "-", PARENT + "-x", PARENT + "0", f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", PARENT.upper(), f" {PARENT}",
        f"00_{TRACE}_{SPAN}_01", f"cc-{TRACE}-{SPAN}-01x", f"00-{TRACE[:-1]}g-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01-{'x' * 500}", PARENT.replace("0af", "\uff10af"), PARENT + "\n",
    ],
)  # fmt: skip
def test_an_invalid_traceparent_counts_as_absent(text: str) -> None:
    """It is not passed on, and neither is the tracestate beside it."""
    assert parse_traceparent(text) is None
    assert passed_on({"traceparent": text, "tracestate": "a=1"}) == {}


@pytest.mark.parametrize(
    "text",
    [
        "a=1", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE", "a=1 , b=2", "a=1,,b=2", "0a@b/c=x y!",
        "a= x", ",".join(f"k{number}=v" for number in range(32)), "a=" + "v" * 256,
    ],
)  # fmt: skip
def test_a_valid_tracestate_is_passed_on_as_it_came(text: str) -> None:
    """White space around members and empty members are allowed."""
    assert is_tracestate(text)
    properties = {"traceparent": PARENT, "tracestate": text}
    assert passed_on(properties | {"other": "x"}) == properties


@pytest.mark.parametrize(
    "text",
    [
        "", ",", "a", "a=", "=1", "A=1", "a=1,a=2", "a=b=c", "_a=1", "a=\u00fc", "a=1\n", "a =1",
        ",".join(f"k{number}=v" for number in range(33)), "a=" + "v" * 257, "a=" + "v" * 600,
        "k" * 257 + "=1", "a=\x7f",
    ],
)  # fmt: skip
def test_an_invalid_tracestate_is_left_out_alone(text: str) -> None:
    """The traceparent goes on without it."""
    assert not is_tracestate(text)
    assert passed_on({"traceparent": PARENT, "tracestate": text}) == {"traceparent": PARENT}


def test_without_a_traceparent_nothing_is_passed_on() -> None:
    """A tracestate alone belongs to no trace."""
    assert passed_on({"tracestate": "a=1", "x": "y"}) == {}


@given(
    st.one_of(
        st.text(max_size=70),
        st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", fullmatch=True),
    )
)
def test_what_opentelemetry_takes_is_taken_and_nothing_else(text: str) -> None:
    """Read as OpenTelemetry's own propagator reads it."""
    context = TraceContextTextMapPropagator().extract({"traceparent": text})
    theirs = get_current_span(context).get_span_context()
    ours = parse_traceparent(text)
    assert (ours is not None) == theirs.is_valid
    if ours is not None:
        assert (ours.trace_id, ours.span_id) == (theirs.trace_id, theirs.span_id)
        assert ours.sampled == bool(theirs.trace_flags & 1)
