"""What every section of the settings has in common."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section: frozen, with no field that it does not know, and with finite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Connection(Protocol):
    """What the sections that say how to connect have in common."""

    @property
    def backoff_min_s(self) -> float: ...  # noqa: D102  # as in the sections
    @property
    def backoff_max_s(self) -> float: ...  # noqa: D102
    @property
    def tls(self) -> bool: ...  # noqa: D102
    @property
    def ca_file(self) -> Path | None: ...  # noqa: D102
    @property
    def cert_file(self) -> Path | None: ...  # noqa: D102
    @property
    def key_file(self) -> Path | None: ...  # noqa: D102


def check_connection(section: Connection) -> None:
    """Whether its fields agree.

    Raises:
        ValueError: they do not; the message says which.
    """
    if section.backoff_min_s > section.backoff_max_s:
        raise ValueError(
            f"backoff_min_s {section.backoff_min_s} is above backoff_max_s {section.backoff_max_s}"
        )
    if (section.cert_file is None) != (section.key_file is None):
        raise ValueError("cert_file and key_file go together: give both or none")
    if not section.tls and (section.ca_file or section.cert_file):
        raise ValueError("ca_file and cert_file are for TLS: set tls = true, or leave them out")
