"""docs/settings.md and systemd/edged.toml say of every setting what edged/settings.py says."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from edged.settings import CREDENTIAL_PREFIX, Settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
EXAMPLE = ROOT / "systemd/edged.toml"

SCHEMA = Settings.model_json_schema()
SECTIONS: dict[str, dict[str, Any]] = {
    section: SCHEMA["$defs"][reference["$ref"].rpartition("/")[2]]["properties"]
    for section, reference in SCHEMA["properties"].items()
}
FIELDS = [(section, field) for section, fields in SECTIONS.items() for field in fields]

# Fields whose default is no value; the example file shows one that is made up.
MADE_UP = {
    "device.name", "broker.username", "broker.password", "broker.tls", "broker.ca_file",
    "broker.cert_file", "broker.key_file", "serve.models", "serve.reply_prefixes",
    "serve.slo_ms", "serve.versions", "report.models", "uplink.host", "uplink.username",
    "uplink.password", "uplink.ca_file", "uplink.cert_file", "uplink.key_file",
    "timer.models", "tracing.endpoint",
}  # fmt: skip


def _bounds(schema: dict[str, Any]) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high = schema.get("maximum")
    if low is not None and high is not None:
        return f", {low:g} to {high:.0f}"
    if above is not None and high is not None:
        return f", above {above:g}, at most {high:g}"
    return ""


def _text(schema: dict[str, Any]) -> str:
    word = {"path": "path", "password": "secret text"}.get(schema.get("format", ""), "text")
    pattern = schema.get("pattern", "").replace("|", "\\|")
    least = ", not empty" if schema.get("minLength") else ""
    return f"{word} matching `{pattern}`" if pattern else word + least


def _kind(schema: dict[str, Any]) -> str:  # noqa: PLR0911  # one answer for each kind
    """Type and limits in words, from a field's JSON schema."""
    if "anyOf" in schema:
        chosen = next(each for each in schema["anyOf"] if each.get("type") != "null")
        return f"{_kind(chosen)}, or not set"
    if "enum" in schema:
        return " or ".join(f'`"{each}"`' for each in schema["enum"])
    if "$ref" in schema:
        return "table"
    if schema["type"] in {"array", "object"}:
        inner = schema.get("items") or schema["additionalProperties"]
        return f"{'list of' if 'items' in schema else 'table of model to'} {_kind(inner)}"
    if schema["type"] == "string":
        return _text(schema)
    if schema["type"] == "boolean":
        return "`true` or `false`"
    return f"{schema['type']}{_bounds(schema)}"


def _default(section: str, field: str) -> str:
    """The default as TOML writes it."""
    if (section, field) == ("device", "name"):
        return "the host's name"
    value = SECTIONS[section][field]["default"]
    return "not set" if value is None else f"`{json.dumps(value)}`"


def expected_cells(section: str, field: str) -> list[str]:
    """What the row of one setting must say, before its meaning."""
    schema = SECTIONS[section][field]
    is_list = schema.get("type") in {"array", "object"}
    return [
        f"`{field}`",
        _kind(schema),
        _default(section, field),
        f"`EDGED_{section.upper()}__{field.upper()}`",
        "none" if is_list else f"`{CREDENTIAL_PREFIX}{section}.{field}`",
    ]


def _documented() -> dict[tuple[str, str], list[str]]:
    rows = {}
    for part in re.split(r"^## ", DOCUMENT, flags=re.MULTILINE)[1:]:
        if not (title := re.match(r"`\[(\w+)\]`", part)):
            continue
        for line in re.findall(r"^\| (`.*) \|$", part, re.MULTILINE):
            cells = re.split(r" (?<!\\)\| ", line)
            rows[title.group(1), cells[0].strip("`")] = cells
    return rows


DOCUMENTED = _documented()


def test_the_document_has_a_row_for_every_setting_and_no_other() -> None:
    """Sections and fields stand in the order of the code, so that a new one is not forgotten."""
    assert list(DOCUMENTED) == FIELDS


@pytest.mark.parametrize(("section", "field"), FIELDS)
def test_a_row_says_type_limits_default_and_names(section: str, field: str) -> None:
    """Each cell before the meaning is what the code says; the meaning is a sentence."""
    *cells, meaning = DOCUMENTED[section, field]

    assert cells == expected_cells(section, field)
    assert re.fullmatch(r"[A-Z`].{10,}\.", meaning)


def test_the_example_file_shows_every_setting_with_its_default() -> None:
    """Uncommented, it is a valid file that changes nothing but what is made up."""
    text = re.sub(r"^#(\w+ = )", r"\1", EXAMPLE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    example = tomllib.loads(text)

    assert [(section, field) for section in example for field in example[section]] == FIELDS
    Settings.model_validate(example)
    for section, field in FIELDS:
        if f"{section}.{field}" not in MADE_UP:
            assert example[section][field] == SECTIONS[section][field]["default"], (section, field)


def test_the_example_file_as_installed_sets_nothing() -> None:
    """Installing it changes no setting: everything in it is commented out."""
    shown = tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))

    assert shown == {section: {} for section in SECTIONS}
