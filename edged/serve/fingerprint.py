"""A request's fingerprint: the same in every run of the service, for one that comes again. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol
from zlib import crc32

WHOLE_BYTES = 8192
"""Bodies up to this size are read whole, of larger ones the beginning and `SAMPLES` bytes."""
SAMPLES = 1024


class Message(Protocol):
    """A PUBLISH, as the codec reads it or as it travels."""

    @property
    def topic(self) -> str:
        """Where it came."""

    @property
    def response_topic(self) -> str:
        """Where its answer goes."""

    @property
    def correlation(self) -> bytes | None:
        """What the answer carries back."""

    @property
    def content_type(self) -> str:
        """What the body is."""

    @property
    def user(self) -> Mapping[str, str] | None:
        """User properties."""

    @property
    def payload(self) -> bytes | memoryview:
        """The body."""


def fingerprint(message: Message) -> int:
    """64 bits: of the head, and of the body with its size.

    Two different requests of one topic, response topic and correlation have the same one in one of
    four billion cases, or where bodies of the same size differ only in places that are not
    sampled: every ``size // SAMPLES``-th byte is, which costs the same for an image of any size.
    """
    user = message.user or {}
    head = "\0".join(
        (message.topic, message.response_topic, message.content_type, *user, *user.values())
    )
    high = crc32(message.correlation or b"", crc32(head.encode()))
    body = message.payload
    size = len(body)
    if size <= WHOLE_BYTES:
        low = crc32(body, size)
    else:
        low = crc32(bytes(body[:: size // SAMPLES]), crc32(body[:WHOLE_BYTES], size & 0xFFFFFFFF))
    return high << 32 | low
