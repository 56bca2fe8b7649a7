"""A batch as the message that carries it up. Pure."""

from __future__ import annotations

from edged import protocol
from edged.control_plane import pack
from edged.protocol import Topics
from edged.report.link_messages import Outgoing
from edged.report.sending import Batch


def batch_message(
    batch: Batch, number: int, topics: Topics, boot_id: str, *, compress: bool
) -> Outgoing:
    """The message; its user properties repeat what a router needs.

    Args:
        batch: what goes up.
        number: of the batch in this run.
        topics: of this device.
        boot_id: identifies this run.
        compress: whether to use zstd, where it is installed.
    """
    payload, encoding = pack(batch.head(boot_id, number), batch.records(), compress=compress)
    position = batch.rows[0].position
    user = [
        (protocol.STREAM, position.stream),
        (protocol.EPOCH, position.epoch),
        (protocol.FIRST_SEQ, str(position.seq)),
        (protocol.BOOT_ID, boot_id),
        (protocol.BATCH, str(number)),
        (protocol.MODE, batch.mode),
    ]
    if encoding:
        user.append((protocol.CONTENT_ENCODING, encoding))
    return Outgoing(topics.report(batch.stream), payload, user=tuple(user))


def encoding(message: Outgoing) -> str:
    """Its content encoding, ``none`` without one."""
    return dict(message.user).get(protocol.CONTENT_ENCODING, "none")
