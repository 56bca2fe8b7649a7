"""W3C Trace Context in user properties: what of it is sound and may be passed on. Pure.

Sources: W3C Trace Context, Level 2 (traceparent 3.2, tracestate 3.3), and its protocol binding for
MQTT, whose user properties have the same names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from edged.protocol import TRACEPARENT, TRACESTATE
from edged.value import value

MAX_TRACESTATE_CHARS = 512
"""As much as has to be passed on (3.3.1.5); a longer one is left out."""
_MAX_MEMBERS = 32
_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_KEY = re.compile(r"[a-z0-9][a-z0-9_\-*/@]{0,255}")
_VALUE = re.compile(r"[ -+\--<>-~]{0,255}[!-+\--<>-~]")
_MAX_PARENT_CHARS = 512
_NONE: Mapping[str, str] = {}


@value
class TraceParent:
    """Whose child a request's spans are.

    Attributes:
        trace_id: 128 bits, not 0.
        span_id: 64 bits, not 0.
        sampled: the caller records its own span.
        random: the trace id's last 56 bits are random (Level 2).
    """

    trace_id: int
    span_id: int
    sampled: bool
    random: bool = False


def parse_traceparent(text: str) -> TraceParent | None:
    """Reads a ``traceparent``; None if it is not valid, and then it counts as absent.

    A version that is not known yet is read as far as version 00 reaches (3.2.4).
    """
    found = _PARENT.fullmatch(text) if len(text) <= _MAX_PARENT_CHARS else None
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more is not None):
        return None
    trace, span, bits = int(trace_id, 16), int(span_id, 16), int(flags, 16)
    if not trace or not span:
        return None
    return TraceParent(trace, span, bool(bits & 1), version == "00" and bool(bits & 2))


def is_tracestate(text: str) -> bool:
    """Whether a ``tracestate`` is valid: up to 32 members, each key once."""
    if len(text) > MAX_TRACESTATE_CHARS:
        return False
    members = [member for part in text.split(",") if (member := part.strip(" \t"))]
    keys = set()
    for member in members:
        key, equals, state = member.partition("=")
        if not equals or not _KEY.fullmatch(key) or not _VALUE.fullmatch(state) or key in keys:
            return False
        keys.add(key)
    return 0 < len(members) <= _MAX_MEMBERS


def passed_on(user: Mapping[str, str]) -> Mapping[str, str]:
    """Of a request's user properties those of its trace, as they came, if they are valid.

    Without a valid ``traceparent`` a ``tracestate`` means nothing (3.3).
    """
    parent = user.get(TRACEPARENT)
    if parent is None or parse_traceparent(parent) is None:
        return _NONE
    state = user.get(TRACESTATE)
    if state is None or not is_tracestate(state):
        return {TRACEPARENT: parent}
    return {TRACEPARENT: parent, TRACESTATE: state}
