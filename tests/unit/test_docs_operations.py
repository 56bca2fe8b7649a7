"""What docs/operations.md quotes is what the program says and what the unit sets."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
UNIT = (ROOT / "systemd/edged.service").read_text(encoding="utf-8")

# Said by pydantic, not by us; tests/unit/test_settings.py sees it in a real message.
FOREIGN = {"Extra inputs are not permitted"}
QUOTED = [
    quote
    for quote in re.findall(
        r"^\| `([^`]+)` \|", DOCUMENT.partition("## It says X")[2], re.MULTILINE
    )
    if quote not in FOREIGN
]


def _text(node: ast.expr) -> str:
    """A string as it is written, with a line break where a value goes."""
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else "\n" for part in node.values
        )
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


SPOKEN = [
    re.sub(r"%[sdgr]", "\n", _text(node))
    for path in (ROOT / "edged").rglob("*.py")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if isinstance(node, ast.expr) and _text(node)
]


def test_the_table_of_messages_is_found() -> None:
    """The parametrised test below is not empty by mistake."""
    assert len(QUOTED) > 8


@pytest.mark.parametrize("quote", QUOTED)
def test_a_quoted_message_is_one_that_the_program_says(quote: str) -> None:
    """All pieces between the dots stand in one string of the source."""
    pieces = [piece.strip() for piece in quote.split("…")]

    assert any(all(piece in text for piece in pieces) for text in SPOKEN), quote


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("WatchdogSec=30", "has not heard of it for 30 seconds"),
        ("StartLimitBurst=5", "After five starts in five minutes"),
        ("StartLimitIntervalSec=300", "After five starts in five minutes"),
        ("RestartPreventExitStatus=78", "| 78 | the settings are wrong | no |"),
    ],
)
def test_the_document_says_what_the_unit_says(line: str, said: str) -> None:
    """Whoever changes the unit changes the sentence with it."""
    assert line in UNIT.splitlines()
    assert said in DOCUMENT
