"""Desired settings: read, judged against the device's own, laid over them. Pure.

A desired document is taken over whole or not at all. Its version decides: a larger one replaces a
smaller one, the same one again changes nothing. Desired settings go before the environment,
credentials and the file; what a document does not name is as the device itself has it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from pydantic import BaseModel, SecretStr, ValidationError

from edged.control_plane import KeyReport
from edged.errors import DesiredError
from edged.protocol import MAX_DESIRED_BYTES
from edged.settings import LIVE, LOCAL_SECTIONS, LOCAL_SETTINGS, Settings

MASK = "***"
MOST_KEYS = 512
"""Settings that one document may name; there are far fewer."""


@dataclass(frozen=True)
class Desired:
    """A desired document that could be read.

    Attributes:
        version: a larger one replaces a smaller one.
        config: section -> field -> value, as sent.
    """

    version: int
    config: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """First 16 digits of the SHA-256 of the settings as canonical JSON."""
        text = json.dumps(self.config, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    @property
    def paths(self) -> list[str]:
        """Names of its settings, ``section.field``."""
        return [f"{section}.{name}" for section, values in self.config.items() for name in values]


class Step(Enum):
    """What to do with a document that could be read."""

    APPLY = "apply"
    KNOWN = "known"
    """It is the one that is in effect."""
    OLD = "old"
    """A newer one is in effect."""
    RIVAL = "rival"
    """Another document of the same version is in effect."""


def parse_desired(payload: bytes, limit: int = MAX_DESIRED_BYTES) -> Desired:
    """Reads a desired document.

    Args:
        payload: as it came, or as it was kept.
        limit: bytes; what is longer is refused unread.

    Raises:
        DesiredError: it is none; the message says why, and it has the version where there is one.
    """
    if len(payload) > limit:
        raise DesiredError(f"the document has {len(payload)} bytes, at most {limit} are read")
    try:
        document = json.loads(payload, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as err:
        raise DesiredError(f"the document is not JSON: {str(err)[:200]}") from err
    if not isinstance(document, dict):
        raise DesiredError("the document must be an object with version and config")
    version = document.get("version")
    if isinstance(version, bool) or not isinstance(version, int) or not 0 <= version < 2**63:
        raise DesiredError("version must be an integer from 0 to 2^63 - 1")
    return Desired(version, _config(document.get("config"), version))


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


def _config(config: object, version: int) -> dict[str, dict[str, Any]]:
    if not isinstance(config, dict):
        raise DesiredError("config must be an object of sections", version=version)
    wrong = {name: "a section must be an object" for name, v in config.items()
             if not isinstance(v, dict)}  # fmt: skip
    if wrong:
        raise DesiredError("a section is no object", version=version, keys=wrong)
    if sum(len(values) for values in config.values()) > MOST_KEYS:
        raise DesiredError(f"more than {MOST_KEYS} settings in one document", version=version)
    return config


def step(desired: Desired, applied: Desired | None) -> Step:
    """What to do with a document, given the one that is in effect."""
    if applied is None or desired.version > applied.version:
        return Step.APPLY
    if desired.version < applied.version:
        return Step.OLD
    return Step.KNOWN if desired.digest == applied.digest else Step.RIVAL


def overlay(own: Settings, desired: Desired) -> Settings:
    """The device's own settings with the desired ones over them.

    Raises:
        DesiredError: a setting is unknown, not to be changed from afar, or has a wrong value. All
            that are wrong are named.
    """
    keys: dict[str, str] = {}
    sections: dict[str, BaseModel] = {}
    for name, values in desired.config.items():
        section = getattr(own, name, None) if name in Settings.model_fields else None
        if not isinstance(section, BaseModel):
            keys[_cut(name)] = "there is no such section"
        elif local := _local(name, values):
            keys |= local
        else:
            try:
                sections[name] = type(section).model_validate({**dict(section), **values})
            except ValidationError as err:
                keys |= _reasons(name, err)
    if keys:
        raise DesiredError(
            f"{len(keys)} of its settings cannot be taken over, so none is",
            version=desired.version,
            keys=keys,
        )
    return own.model_copy(update=sections)


def _local(section: str, values: Mapping[str, Any]) -> dict[str, str]:
    names = (f"{section}.{name}" for name in values)
    local = (n for n in names if section in LOCAL_SECTIONS or n in LOCAL_SETTINGS)
    return {_cut(name): "this is set on the device alone" for name in local}


def _reasons(section: str, err: ValidationError) -> dict[str, str]:
    reasons: dict[str, str] = {}
    for item in err.errors(include_url=False, include_input=False, include_context=False):
        path = ".".join([section, *(str(part) for part in item["loc"])])
        reasons.setdefault(_cut(path), item["msg"])
    return reasons


def _cut(text: str) -> str:
    return text if len(text) <= 128 else f"{text[:128]}..."


def key_reports(desired: Desired, own: Settings, started: Settings) -> list[KeyReport]:
    """What became of each setting of a document that was taken over.

    Args:
        desired: the document.
        own: the device's own settings.
        started: the settings that are in effect; they differ where a restart is needed.
    """
    wanted = overlay(own, desired)
    waiting = set(started.needs_restart(wanted))
    return [
        KeyReport(path, "pending", "takes effect at the next start")
        if path in waiting and path not in LIVE
        else KeyReport(path, "applied")
        for path in sorted(desired.paths)
    ]


def refused_reports(error: DesiredError) -> list[KeyReport]:
    """Why a document was refused: as a whole, and setting by setting."""
    whole = KeyReport("", "rejected", error.message)
    return [whole, *(KeyReport(path, "rejected", why) for path, why in sorted(error.keys.items()))]


def masked(settings: Settings) -> dict[str, Any]:
    """All settings as JSON values; of a secret only whether there is one."""
    return {name: _plain(section) for name, section in settings}


def _plain(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return MASK
    if isinstance(value, BaseModel):
        return {name: _plain(item) for name, item in value}
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
