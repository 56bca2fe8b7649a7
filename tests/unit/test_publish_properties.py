"""Our bytes of PUBLISH properties, read back by paho."""

from __future__ import annotations

from typing import Any

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edged.serve.publish_properties import PublishProperties, variable_length
from edged.serve.request import Reply


def test_paho_reads_what_was_written() -> None:
    """All four properties, in order, with text beyond ASCII and a length of two bytes."""
    reply = Reply(
        "t", b"", 1, b"\x00\xff", "application/json", 7, (("a", "b"), ("ü", "c" * 300), ("a", "d"))
    )
    read: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho has no types

    read.unpack(PublishProperties(reply).pack())

    assert read.CorrelationData == b"\x00\xff"
    assert read.ContentType == "application/json"
    assert read.MessageExpiryInterval == 7
    assert read.UserProperty == [("a", "b"), ("ü", "c" * 300), ("a", "d")]


def test_no_property_is_one_zero() -> None:
    """The length is there all the same."""
    assert PublishProperties(Reply("t", b"")).pack() == b"\x00"


def test_a_property_that_is_too_long_is_refused() -> None:
    """A field's length has two bytes."""
    with pytest.raises(ValueError, match="65535"):
        PublishProperties(Reply("t", b"", correlation=b"x" * 65536))


@pytest.mark.parametrize(
    ("value", "encoded"), [(0, "00"), (127, "7f"), (128, "8001"), (16384, "808001")]
)
def test_lengths_are_variable_byte_integers(value: int, encoded: str) -> None:
    """The examples of MQTT 5, table 1-1."""
    assert variable_length(value).hex() == encoded
