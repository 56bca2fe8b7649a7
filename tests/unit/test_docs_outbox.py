"""docs/outbox.md and its part of docs/metrics.md say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from edged.cli import _parser
from edged.report.draft import ROW_OVERHEAD
from edged.report.fallback import NOT_SAVED, RETRY_S
from edged.report.hand_over import HANDOVER_FULL
from edged.report.outbox import GROUP_ROWS, GROUP_S, MAX_GROUP_ROWS, STOPPED
from edged.report.outbox_store import FULL, OLD
from edged.report.outbox_tables import DAMAGED, QUARANTINE_FULL
from edged.report.streams import Durability, Overflow, streams_from
from edged.report.writer import NOT_MADE, TOO_LARGE
from edged.settings import OutboxSettings

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "outbox.md").read_text(encoding="utf-8")


def test_every_reason_of_a_drop_is_explained() -> None:
    """The outbox counts with these reasons, and with no others."""
    page = (DOCS / "metrics.md").read_text(encoding="utf-8")
    part = page.split("## Why the outbox dropped a report")[1].split("\n## ")[0]

    assert set(re.findall(r"^\| `(\w+)`", part, re.MULTILINE)) == {
        HANDOVER_FULL, TOO_LARGE, NOT_MADE, FULL, OLD, QUARANTINE_FULL, DAMAGED, NOT_SAVED, STOPPED,
    }  # fmt: skip


def test_the_table_of_streams_is_right() -> None:
    """Order, durability, policy and limits are those of the defaults."""
    words = {Overflow.REJECT_NEW: "rejects what comes", Overflow.DROP_OLDEST: "drops the oldest"}
    told = re.findall(r"^\| `(\w+)` \| .* \| (.*) \| (.*) \| (.*) \|$", PAGE, re.MULTILINE)

    assert told == [
        (
            name,
            "the loss of power"
            if stream.durability is Durability.POWER_CUT
            else "the end of the process",
            words[stream.overflow],
            f"{stream.max_bytes >> 20} MiB, {stream.max_age_s / 86_400:.0f} days",
        )
        for name, stream in streams_from(OutboxSettings()).items()
    ]


def test_numbers_in_the_text_are_those_of_the_code() -> None:
    """Group, overhead and pauses."""
    decision = (DOCS / "decisions/0007-one-database-for-the-outbox.md").read_text(encoding="utf-8")

    assert f"usually {GROUP_S * 1e3:.0f} ms and one write" in PAGE
    assert f"and {ROW_OVERHEAD} for each report" in PAGE
    assert f"after {RETRY_S[0]:.0f} s, then with growing pauses up to {RETRY_S[1]:.0f} s" in PAGE
    assert f"{GROUP_ROWS} reports, or those of {GROUP_S * 1e3:.0f} ms" in decision
    assert f"up to {MAX_GROUP_ROWS} when they have piled up" in decision


def test_every_option_of_the_command_is_explained() -> None:
    """`edged outbox --help` and the page have the same options."""
    commands = next(action for action in _parser()._actions if action.dest == "==SUPPRESS==")
    parser = commands.choices["outbox"]  # type: ignore[index]  # a mapping here
    options = {
        name for each in parser._actions for name in each.option_strings if name.startswith("--")
    }

    assert set(re.findall(r"`(--\w+)", PAGE)) == options - {"--help", "--config"}
