"""What device and control plane say to each other: batches up, acknowledgements and settings down.

Topics and property names are in `edged.protocol`; docs/protocol.md is tested against both. The
control plane uses this module too: `unpack` reads what `pack` wrote.
"""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edged.errors import BatchError
from edged.protocol import PROTOCOL_VERSION, ZSTD

MAX_UNPACKED_BYTES = 16 * 1024 * 1024
"""A batch that would unpack to more is refused; devices send far smaller ones."""
_LEVEL = 3
"""zstd's default: on batches of results its ratio is near that of higher levels."""

_own = threading.local()

# ------------------------------------------------------------------ batches


@dataclass(frozen=True)
class Record:
    """One reported thing on its way up.

    Attributes:
        seq: its number in its stream and epoch; a device never gives one twice.
        time: Unix seconds when it happened, by the device's clock.
        kind: what it is, e.g. ``model_loaded``.
        body: JSON: a CloudEvent, or for ``telemetry`` a plain document.
    """

    seq: int
    time: float
    kind: str
    body: bytes


@dataclass(frozen=True)
class BatchHead:
    """What a batch says of itself.

    Attributes:
        stream: one of `edged.protocol.STREAMS`.
        epoch: its sequence numbers count within this; 16 hexadecimal digits.
        boot_id: identifies the run of the daemon that sends it.
        number: of the batch in that run; the acknowledgement names it.
        mode: ``live``, or ``replayed`` for what waited for the connection.
    """

    stream: str
    epoch: str
    boot_id: str
    number: int
    mode: str


def pack(head: BatchHead, records: Sequence[Record], *, compress: bool = True) -> tuple[bytes, str]:
    """A batch as bytes, and its content encoding: ``zstd`` or "".

    It is sent as it is where zstd is not installed, or would not make it smaller.
    """
    plain = batch_json(head, records)
    compressor = _compressor() if compress else None
    if compressor is not None:
        packed = bytes(compressor.compress(plain))
        if len(packed) < len(plain):
            return packed, ZSTD
    return plain, ""


def _compressor() -> Any:
    """This thread's, None without zstandard: a new one for each batch costs more than the batch."""
    if not hasattr(_own, "compressor"):
        zstandard = find_zstd()
        _own.compressor = zstandard and zstandard.ZstdCompressor(level=_LEVEL)
    return _own.compressor


def batch_json(head: BatchHead, records: Sequence[Record]) -> bytes:
    """A batch before compression; the records' bodies are put in as they are."""
    opening = json.dumps(
        {
            "protocol": PROTOCOL_VERSION,
            "stream": head.stream,
            "epoch": head.epoch,
            "boot_id": head.boot_id,
            "batch": head.number,
            "mode": head.mode,
            "first_seq": records[0].seq,
            "records": [],
        },
        separators=(",", ":"),
    ).encode()
    rows = b",".join(
        b'{"seq":%d,"time":%.6f,"kind":%s,"body":%s}'
        % (each.seq, each.time, json.dumps(each.kind).encode(), each.body)
        for each in records
    )
    return opening[:-2] + rows + b"]}"


RECORD_OVERHEAD = 160
"""Bytes that a record adds to its body, at most."""
HEAD_OVERHEAD = 512
"""Bytes that a batch adds to its records, its topic and properties, at most, for short names."""


def unpack(payload: bytes, encoding: str = "") -> dict[str, Any]:
    """A batch as the control plane reads it: ``records`` holds seq, time and body of each.

    Args:
        payload: body of the message.
        encoding: its user property ``content-encoding``, "" without one.

    Raises:
        BatchError: it is not what `pack` writes, or would be larger than `MAX_UNPACKED_BYTES`.
    """
    try:
        document = json.loads(_unpacked(payload, encoding))
    except ValueError as err:
        raise BatchError(f"a batch is not JSON: {err}") from err
    except RecursionError as err:
        raise BatchError("a batch is nested too deeply") from err
    if not isinstance(document, dict) or not isinstance(document.get("records"), list):
        raise BatchError("a batch must be an object with a list of records")
    return document


def _unpacked(payload: bytes, encoding: str) -> bytes:
    if not encoding:
        return payload
    zstandard = find_zstd()
    if encoding != ZSTD or zstandard is None:
        raise BatchError(f"content encoding {encoding!r} cannot be read; install edged[uplink]")
    try:
        reader = zstandard.ZstdDecompressor().stream_reader(payload)
        plain = bytes(reader.read(MAX_UNPACKED_BYTES + 1))
    except zstandard.ZstdError as err:
        raise BatchError(f"a batch cannot be decompressed: {err}") from err
    if len(plain) > MAX_UNPACKED_BYTES:
        raise BatchError(f"a batch unpacks to more than {MAX_UNPACKED_BYTES} bytes")
    return plain


def find_zstd() -> Any:
    """The module zstandard, or None where it is not installed (extra ``uplink``)."""
    try:
        return importlib.import_module("zstandard")
    except ImportError:
        return None


# ------------------------------------------------------------------ documents


TWIN_STATUSES = ("applied", "pending_restart", "rejected", "none")
KEY_STATUSES = ("applied", "pending", "rejected")


@dataclass(frozen=True)
class KeyReport:
    """What became of one desired setting.

    Attributes:
        path: ``section.field``, or "" for the document as a whole.
        status: one of `KEY_STATUSES`.
        reason: why, unless it was applied.
    """

    path: str
    status: str
    reason: str = ""


def desired_document(version: int, config: Mapping[str, object]) -> dict[str, object]:
    """What the control plane retains on ``config/desired``.

    Args:
        version: of the document: a larger one replaces a smaller one.
        config: section -> field -> value: all that differs from the device's own settings.
    """
    return {"protocol": PROTOCOL_VERSION, "version": version, "config": dict(config)}


@dataclass(frozen=True)
class Twin:
    """What the device says on ``config/reported``.

    Attributes:
        desired_version: of the last desired document that was read; None: none, or it had none.
        applied_version: of the one whose settings are in effect; None: the device's own settings.
        digest: first 16 digits of the SHA-256 of its ``config`` as canonical JSON; "" without one.
        status: one of `TWIN_STATUSES`, of the last desired document.
        keys: what became of each of its settings.
        config: all settings in effect, secrets masked.
        models: model -> version that is served.
    """

    desired_version: int | None
    applied_version: int | None
    digest: str
    status: str
    keys: Sequence[KeyReport]
    config: Mapping[str, object]
    models: Mapping[str, str]


def reported_document(twin: Twin, boot_id: str, ts: float) -> dict[str, object]:
    """What the device retains on ``config/reported``.

    Args:
        twin: what is in effect.
        boot_id: identifies this run of the daemon.
        ts: Unix seconds.
    """
    return {
        "protocol": PROTOCOL_VERSION,
        "boot_id": boot_id,
        "ts": round(ts, 3),
        "desired_version": twin.desired_version,
        "applied_version": twin.applied_version,
        "digest": twin.digest,
        "status": twin.status,
        "keys": [
            {"path": key.path, "status": key.status, "reason": key.reason} for key in twin.keys
        ],
        "config": dict(twin.config),
        "models": dict(twin.models),
    }


def ack_document(
    boot_id: str, batch: int, refused: Mapping[int, str] | None = None
) -> dict[str, object]:
    """What the control plane publishes on ``ack`` for one batch.

    Args:
        boot_id: as in the batch.
        batch: its number: its records are stored, except for those refused.
        refused: sequence number -> why it will never be stored.
    """
    return {
        "protocol": PROTOCOL_VERSION,
        "boot_id": boot_id,
        "batch": batch,
        "refused": [{"seq": number, "reason": why} for number, why in (refused or {}).items()],
    }


def command_document(name: str, result: Mapping[str, object]) -> dict[str, object]:
    """Body of the answer to a command that was carried out."""
    return {"command": name, "result": dict(result)}
