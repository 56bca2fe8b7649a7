"""``edged outbox``: what waits to be reported, was dropped or refused; sent again, exported."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from edged.errors import OutboxError
from edged.report.draft import StreamStats
from edged.report.outbox_reader import (
    Refused,
    export,
    read_quarantine,
    read_stats,
    requeue,
)

SHOWN = 20
"""Messages in quarantine that the table names."""


@dataclass(frozen=True)
class OutboxOptions:
    """What is asked for.

    Attributes:
        folder: ``outbox.path``.
        requeue: ids of messages in quarantine that are to be sent again, or ``all``.
        export: where everything is written to, as JSON lines; ``-``: standard output.
        json: one JSON document in place of the table.
    """

    folder: Path
    requeue: str | None = None
    export: str | None = None
    json: bool = False


def run(options: OutboxOptions) -> int:
    """Does what is asked for; the exit code.

    Raises:
        OutboxError: there is no outbox, it cannot be read, or an id is not there.
    """
    if options.requeue is not None:
        marked = requeue(options.folder, _ids(options.requeue))
        print(f"{marked} messages are sent again: at once if the service runs, else at its start")
        return 0
    if options.export is not None:
        return _export(options.folder, options.export)
    stats, refused = read_stats(options.folder), read_quarantine(options.folder)
    if options.json:
        document = {
            "streams": {name: _told(each) for name, each in stats.items()},
            "quarantine": [asdict(each) for each in refused],
        }
        print(json.dumps(document, indent=2))
    else:
        print("\n".join(_table(stats, refused)))
    return 0


def _ids(text: str) -> list[int] | None:
    if text == "all":
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise OutboxError(
            f"--requeue {text!r} must be all, or ids with commas between them: --requeue 17,18"
        ) from None


def _told(stats: StreamStats) -> dict[str, object]:
    told = asdict(stats)
    del told["in_flight"]  # known to the service alone
    return told


def _export(folder: Path, file: str) -> int:
    rows = 0
    try:
        if file == "-":
            for document in export(folder):
                sys.stdout.write(json.dumps(document) + "\n")
            return 0
        new = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(new, "w", encoding="ascii") as out:
            for document in export(folder):
                out.write(json.dumps(document) + "\n")
                rows += 1
    except OSError as err:
        raise OutboxError(f"{file} cannot be written: {err.strerror}") from err
    print(f"{rows} messages are in {file}")
    return 0


def _table(stats: dict[str, StreamStats], refused: list[Refused]) -> list[str]:
    lines = [f"{'stream':<12}{'waiting':>10}{'bytes':>14}{'oldest':>10}{'quarantine':>12}  dropped"]
    for name, each in stats.items():
        dropped = ", ".join(f"{count} {why}" for why, count in sorted(each.dropped.items())) or "0"
        lines.append(
            f"{name:<12}{each.rows:>10}{each.bytes:>14}{_age(each.oldest_age_s):>10}"
            f"{each.quarantined:>12}  {dropped}"
        )
    for one in refused[:SHOWN]:
        again = " (is sent again)" if one.requeued else ""
        lines.append(f"refused {one.id}: {one.stream} {one.kind}: {one.reason}{again}")
    if len(refused) > SHOWN:
        lines.append(f"and {len(refused) - SHOWN} more; --json lists all")
    return [_printable(line) for line in lines]


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _printable(line: str) -> str:
    """Reasons come from outside: they must not move a terminal's cursor."""
    return "".join(each if each.isprintable() else f"\\x{ord(each):02x}" for each in line)
