"""Rounds of requests to a daemon that serves ``digits``; each answer is checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, final

from edged import protocol
from tests.doubles import digits
from tests.doubles.daemon import TOPICS
from tests.doubles.steady_load import DEADLINE_S
from tests.doubles.wire import Message, WireClient

IMAGES = digits.images()


def header(reply: Message) -> dict[str, Any]:
    """The JSON before the binary tensors."""
    length = int(dict(reply.user)[protocol.HEADER_LENGTH])
    return dict(json.loads(reply.payload[:length]))


@final
class Rounds:
    """Asks a daemon in rounds of eight requests; all are answered, and right.

    Args:
        client: connected.
        is_right: whether these are the logits of this version for the image of this number.
    """

    def __init__(
        self, client: WireClient, is_right: Callable[[str, int, digits.Logits], bool]
    ) -> None:
        self._client = client
        self._is_right = is_right
        self._asked = 0

    def ask(self) -> list[str]:
        """One round; the versions that answered."""
        numbers = range(self._asked, self._asked + 8)
        self._asked += 8
        for n in numbers:
            image = IMAGES[n % len(IMAGES)][None]
            ask = digits.binary_ask(TOPICS, image, b"round %d" % n, expiry_s=DEADLINE_S)
            self._client.publish(ask)
        versions = []
        for n in numbers:
            reply = self._client.wait_reply(b"round %d" % n)
            assert reply.status == "200", reply
            version = str(header(reply)["model_version"])
            assert self._is_right(version, n % len(IMAGES), digits.binary_logits(reply)[0])
            versions.append(version)
        return versions

    def answered_once(self) -> bool:
        """Whether each request got exactly one answer."""
        replies = [m.correlation for m in self._client.messages(TOPICS.reply("wire"))]
        return sorted(replies, key=str) == sorted(
            (b"round %d" % n for n in range(self._asked)), key=str
        )
