"""The settings in effect: the device's own, with the control plane's desired ones over them.

A desired document is kept on disk before anything of it takes effect: whenever the process dies,
the next one starts with the old or the new document, whole, and the control plane's retained copy
brings it up to date.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edged.control_plane import KeyReport, Twin
from edged.errors import DesiredError
from edged.report.desired_file import keep_desired, read_desired
from edged.report.twin import (
    Desired,
    Step,
    key_reports,
    masked,
    overlay,
    parse_desired,
    refused_reports,
    step,
)
from edged.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConfigurationPorts:
    """What settings are applied to. Called one at a time, by any thread.

    Attributes:
        apply: takes over what may change while the service runs.
        check: what of it cannot be as things are: path -> why; empty if all can.
        models: model -> version that is served now.
    """

    apply: Callable[[Settings], None]
    check: Callable[[Settings], Mapping[str, str]]
    models: Callable[[], Mapping[str, str]]


def settings_at_start(own: Settings) -> tuple[Settings, Desired | None]:
    """The settings to start with, and the desired document that is in them.

    Without an uplink there is none. One that does not fit any more is said and left out.
    """
    desired = read_desired(own.paths.desired) if own.uplink.enabled else None
    if desired is None:
        return own, None
    try:
        return overlay(own, desired), desired
    except DesiredError as err:
        log.error(  # noqa: TRY400  # no fault of ours
            "the desired settings that were kept do not fit any more, the device's own are used: "
            "%s",
            "; ".join(f"{path}: {why}" for path, why in err.keys.items()),
        )
        return own, None


class Configuration:
    """Which settings are in effect, and what became of those desired. Thread-safe.

    Args:
        own: the device's own settings, from its environment, credentials and file.
        started: those with which the service was started.
        desired: the document that is in them.
        ports: what settings are applied to.
    """

    def __init__(
        self, own: Settings, started: Settings, desired: Desired | None, ports: ConfigurationPorts
    ) -> None:
        self._lock = threading.Lock()
        self._own = own
        self._effective = started
        self._applied = desired
        self._ports = ports
        self._file: Path = own.paths.desired
        self._refused: DesiredError | None = None

    def __repr__(self) -> str:
        version = self._applied.version if self._applied else None
        return f"<Configuration desired version {version}>"

    @property
    def effective(self) -> Settings:
        """The settings in effect."""
        return self._effective

    def desire(self, payload: bytes) -> bool:
        """Takes a desired document over, or says why not.

        Returns:
            Whether anything changed: settings, or the reason for a refusal.
        """
        with self._lock:
            try:
                changed = self._desire(payload)
                self._refused = None
            except DesiredError as err:
                known = self._refused
                self._refused = err
                log.warning("desired settings refused: %s", err.message, extra={"keys": err.keys})
                return known is None or (known.message, known.version) != (err.message, err.version)
            return changed

    def _desire(self, payload: bytes) -> bool:
        desired = parse_desired(payload)
        what = step(desired, self._applied)
        if what is Step.KNOWN:
            return self._refused is not None
        newest = self._applied.version if self._applied else 0
        if what is Step.OLD:
            raise DesiredError(
                f"version {desired.version} is older than {newest}, which is in effect; give it a "
                "larger version",
                version=desired.version,
            )
        if what is Step.RIVAL:
            raise DesiredError(
                f"another document of version {newest} is in effect; give this one a larger "
                "version",
                version=desired.version,
            )
        wanted = overlay(self._own, desired)
        if wrong := self._ports.check(wanted):
            raise DesiredError(
                f"{len(wrong)} of its settings cannot be taken over, so none is",
                version=desired.version,
                keys=wrong,
            )
        keep_desired(self._file, desired)
        self._applied = desired
        self._take_over(wanted)
        log.info("desired settings taken over", extra={"version": desired.version})
        return True

    def reload(self, own: Settings) -> list[str]:
        """Takes the device's own settings over again, with the desired ones over them.

        Returns:
            Names of the settings that need a restart.

        Raises:
            DesiredError: the desired settings do not fit them; nothing changes.
        """
        with self._lock:
            wanted = overlay(own, self._applied) if self._applied else own
            self._own = own
            return self._take_over(wanted)

    def _take_over(self, wanted: Settings) -> list[str]:
        waiting = self._effective.needs_restart(wanted)
        self._effective = self._effective.with_live(wanted)
        self._ports.apply(self._effective)
        return waiting

    def twin(self) -> Twin:
        """What is reported to the control plane."""
        with self._lock:
            applied, refused = self._applied, self._refused
            keys = self._keys(applied, refused)
            seen = refused.version if refused else applied.version if applied else None
            return Twin(
                desired_version=seen,
                applied_version=applied.version if applied else None,
                digest=applied.digest if applied else "",
                status=_status(keys, applied, refused),
                keys=keys,
                config=masked(self._effective),
                models=self._ports.models(),
            )

    def _keys(self, applied: Desired | None, refused: DesiredError | None) -> list[KeyReport]:
        if refused is not None:
            return refused_reports(refused)
        return key_reports(applied, self._own, self._effective) if applied else []


def _status(keys: list[KeyReport], applied: Desired | None, refused: DesiredError | None) -> str:
    if refused is not None:
        return "rejected"
    if any(key.status == "pending" for key in keys):
        return "pending_restart"
    return "none" if applied is None else "applied"
