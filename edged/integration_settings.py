"""Sections of the settings for what this device can work with: OpenTelemetry, Home Assistant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from edged.settings_section import Section


class TracingSettings(Section):
    """``[tracing]``: OpenTelemetry spans of requests; needs the extra ``otel``."""

    enabled: bool = False
    endpoint: Annotated[str, Field(pattern=r"^https?://[!-~]{1,1000}$")] | None = None
    """Where spans go by OTLP over HTTP; None: where OpenTelemetry's own environment variables say,
    else a collector on this device."""
    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the requests without a caller's trace that are recorded; a caller decides itself."""
    max_waiting: Annotated[int, Field(ge=1, le=1_000_000)] = 4096
    """Requests whose spans wait to be exported; beyond it they are dropped and counted."""


class HomeAssistantSettings(Section):
    """``[home_assistant]``: discovery by Home Assistant on the broker of requests."""

    enabled: bool = False
    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$")] = "homeassistant"
    """Home Assistant's discovery prefix."""
    state_file: Path = Path("/var/lib/edged/home_assistant.json")
    """What was announced, so that it is withdrawn when this is switched off."""
