"""What SIGHUP may change: the list, the split of old and new, and what the document says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from edged.settings import LIVE, Settings

DOCUMENT = (Path(__file__).parents[2] / "docs/settings.md").read_text(encoding="utf-8")
OLD = Settings.model_validate({"broker": {"host": "a"}, "serve": {"models": ["digits"]}})
NEW = Settings.model_validate(
    {
        "broker": {"host": "b", "port": 8883},
        "serve": {"models": ["watch"], "devices": ["cpu:0"], "drain_s": 3, "queue_samples": 9},
        "report": {"results": "all", "telemetry_interval_s": 1},
        "log": {"level": "debug"},
    }
)


def value(settings: Settings, name: str) -> Any:
    """A field by its dotted name."""
    section, field = name.split(".")
    return getattr(getattr(settings, section), field)


def all_names() -> set[str]:
    """Of all fields."""
    return {f"{section}.{field}" for section, fields in Settings() for field, _ in fields}


def test_only_settings_that_exist_are_live() -> None:
    """A name that is misspelt in the list would never be taken over."""
    assert all_names() >= LIVE


@pytest.mark.parametrize("name", sorted(all_names()))
def test_a_reload_takes_over_what_is_live_and_nothing_else(name: str) -> None:
    """Each field is the new one's if it is live, else the old one's."""
    source = NEW if name in LIVE else OLD

    assert value(OLD.with_live(NEW), name) == value(source, name)


def test_what_needs_a_restart_is_named() -> None:
    """All fields that differ and are not live, in the order of the sections."""
    assert OLD.needs_restart(NEW) == [
        "broker.host", "broker.port", "serve.devices",
    ]  # fmt: skip


def test_a_reload_that_changes_nothing_needs_nothing() -> None:
    """Neither does one that was already taken over."""
    same = OLD.model_copy(deep=True)
    taken = OLD.with_live(NEW)

    assert OLD.needs_restart(same) == []
    assert OLD.with_live(same) == OLD
    assert taken.needs_restart(NEW) == OLD.needs_restart(NEW)


def test_the_document_names_what_is_live() -> None:
    """The list in docs/settings.md is the one that the code goes by."""
    section = DOCUMENT.split("## What a reload takes over")[1].split("Other settings")[0]

    assert set(re.findall(r"`(\w+\.\w+)`", section)) == LIVE
