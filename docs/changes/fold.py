# ruff: noqa: INP001  a script beside the fragments, no package
"""Moves the fragments of this folder into CHANGELOG.md, under "Unreleased": `make changelog`."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

SECTIONS = ("Security", "Removed", "Deprecated", "Added", "Changed", "Fixed")
_HEADING = "## [Unreleased]"


def fold(changelog: str, fragments: Mapping[str, str]) -> str:
    """The change log with all fragments in it.

    Args:
        changelog: text of CHANGELOG.md.
        fragments: file name, ``<words>.<section>.md``, to list entries.

    Raises:
        ValueError: there is no "Unreleased" heading, or a name or a text is not as it should be.
    """
    before, found, rest = changelog.partition(_HEADING)
    if not found:
        raise ValueError(f"CHANGELOG.md has no line {_HEADING!r}; put it above the newest release")
    unreleased, release, older = rest.partition("\n## ")
    introduction, entries = _read_sections(unreleased)
    for name in sorted(fragments):
        entries.setdefault(_section_of(name), []).append(_checked(name, fragments[name]))
    # Sections of one's own making stay, below those that have an order.
    order = [*SECTIONS, *(section for section in entries if section not in SECTIONS)]
    body = [f"\n### {s}\n\n" + "\n".join(entries[s]) + "\n" for s in order if s in entries]
    return f"{before}{_HEADING}\n{introduction}{''.join(body)}{release}{older}"


def _read_sections(text: str) -> tuple[str, dict[str, list[str]]]:
    """What stands before the first section, and the sections by name."""
    first, *parts = re.split(r"^### (.+)$", text, flags=re.MULTILINE)
    introduction = f"\n{first.strip()}\n" if first.strip() else ""
    sections = zip(parts[::2], parts[1::2], strict=True)
    return introduction, {name: [body.strip()] for name, body in sections}


def _section_of(name: str) -> str:
    parts = name.split(".")
    section = parts[1].capitalize() if len(parts) == 3 else ""
    if section not in SECTIONS:
        allowed = ", ".join(s.lower() for s in SECTIONS)
        raise ValueError(f"{name}: name it <words>.<section>.md, the section one of {allowed}")
    return section


def _checked(name: str, text: str) -> str:
    if not text.startswith("- "):
        raise ValueError(f"{name}: begin with a list entry ('- '), not {text[:40]!r}")
    return text.strip()


def main(root: Path) -> str:
    """Folds and removes what lies in ``docs/changes`` under root; returns what was done."""
    paths = [p for p in sorted((root / "docs" / "changes").glob("*.md")) if p.name != "README.md"]
    log = root / "CHANGELOG.md"
    fragments = {path.name: path.read_text(encoding="utf-8") for path in paths}
    log.write_text(fold(log.read_text(encoding="utf-8"), fragments), encoding="utf-8")
    for path in paths:
        path.unlink()
    return f"{len(paths)} change fragments folded into CHANGELOG.md\n"


if __name__ == "__main__":
    sys.stdout.write(main(Path(__file__).resolve().parents[2]))
