"""Sections of the settings for reports and for the control plane."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, model_validator

from edged.settings_section import Section, check_connection

ResultPolicy = Literal["none", "all", "sampled", "uncertain", "changed", "summary"]


class ModelReport(Section):
    """How the results of one model are reported; what is not given is as for the others."""

    results: ResultPolicy | None = None
    sample_rate: Annotated[float, Field(ge=0, le=1)] | None = None
    confidence_below: Annotated[float, Field(ge=0, le=1)] | None = None


class ReportSettings(Section):
    """``[report]``: what is told besides replies."""

    telemetry_interval_s: Annotated[float, Field(ge=0.1, le=86_400)] = 10.0
    results: ResultPolicy = "none"
    """Which answered requests are reported as results."""
    sample_rate: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of the requests that ``sampled`` reports."""
    confidence_below: Annotated[float, Field(ge=0, le=1)] = 0.6
    """``uncertain`` reports requests with a sample whose best class is less probable than this."""
    models: dict[str, ModelReport] = Field(default={})
    """Model -> its own policy."""


class UplinkSettings(Section):
    """``[uplink]``: the connection to the control plane."""

    enabled: bool = False
    """Whether reports are kept in the outbox and sent up, and desired settings taken."""
    host: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """The control plane's broker; None: the broker of ``[broker]``, with its login and TLS."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8883
    username: str | None = None
    password: SecretStr | None = None
    tls: bool = True
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    keepalive_s: Annotated[int, Field(ge=1, le=65535)] = 60
    connect_timeout_s: Annotated[float, Field(gt=0, le=300)] = 10.0
    backoff_min_s: Annotated[float, Field(gt=0, le=3600)] = 1.0
    backoff_max_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    max_message_bytes: Annotated[int, Field(ge=4096, le=1_048_576)] = 128_000
    """Largest message that is sent up; AWS IoT Core takes 128 KB."""
    send_window: Annotated[int, Field(ge=1, le=100)] = 100
    """Messages that may wait for the broker's acknowledgement."""
    batch_delay_s: Annotated[float, Field(ge=0, le=60)] = 0.2
    """What comes within so long of each other goes up in one message."""
    compress: bool = True
    """Whether messages are compressed with zstd, where zstandard is installed."""
    replay_rate: Annotated[float, Field(ge=1, le=1_000_000)] = 500.0
    """Events a second that are sent of what waited for the connection."""
    require_subscriber: bool = True
    """Whether a message that the broker took, but that nobody subscribes, is sent again later."""
    ack_timeout_s: Annotated[float, Field(ge=0.1, le=86_400)] = 30.0
    """What the control plane has not acknowledged for so long is sent again."""

    @model_validator(mode="after")
    def _consistent(self) -> UplinkSettings:
        check_connection(self)
        return self
