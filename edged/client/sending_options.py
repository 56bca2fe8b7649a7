"""What may be said beside a request's body, the same for both clients."""

from __future__ import annotations

from typing import TypedDict

from edged import protocol
from edged.client.messages import Message
from edged.errors import BadParameterError


class SendingOptions(TypedDict, total=False):
    """Keyword arguments of every method that sends; all may be left out or None.

    ``traceparent`` and ``tracestate`` are named as in W3C Trace Context, so what OpenTelemetry's
    ``inject`` put into a dictionary can be passed on with ``**``.
    """

    priority: str | None
    """One of `edged.protocol.PRIORITIES`."""
    deadline_ms: float | None
    """The device starts nothing later than this after its arrival."""
    expiry_s: int | None
    """The broker drops the request when it could not deliver it for so many seconds."""
    source: str | None
    """Camera or sensor: of models that serve the latest, a newer request of it replaces this."""
    traceparent: str | None
    tracestate: str | None


def user_properties(message: Message, options: SendingOptions) -> list[tuple[str, str]]:
    """The user properties of a request.

    Raises:
        BadParameterError: no such priority, or a deadline that is not above 0.
    """
    user: list[tuple[str, str]] = []
    if message.header_length is not None:
        user.append((protocol.HEADER_LENGTH, str(message.header_length)))
    if message.classes:
        user.append((protocol.CLASSIFICATION, str(message.classes)))
    if (priority := options.get("priority")) is not None:
        if priority not in protocol.PRIORITIES:
            raise BadParameterError(
                f"priority {priority!r} must be one of {', '.join(protocol.PRIORITIES)}"
            )
        user.append((protocol.PRIORITY, priority))
    if (deadline_ms := options.get("deadline_ms")) is not None:
        if not 0.001 <= deadline_ms < 1e9:
            raise BadParameterError(
                f"deadline_ms must be from 0.001 to 999999999, not {deadline_ms:g}"
            )
        user.append((protocol.DEADLINE_MS, f"{deadline_ms:.6f}".rstrip("0").rstrip(".")))
    plain = (
        (protocol.SOURCE, options.get("source")),
        (protocol.TRACEPARENT, options.get("traceparent")),
        (protocol.TRACESTATE, options.get("tracestate")),
    )
    return user + [(name, value) for name, value in plain if value]
