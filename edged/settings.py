"""Settings: one section class a component; environment over credentials over a TOML file.

Order, first wins: arguments in code, ``EDGED_<SECTION>__<FIELD>`` in the environment, files
``edged.<section>.<field>`` in systemd's credentials directory, the TOML file (``--config``, else
``EDGED_CONFIG``, else /etc/edged/edged.toml where it exists). A component gets its own section,
never the whole. docs/settings.md lists every field and a test compares the two.
"""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from edged.errors import ConfigError
from edged.integration_settings import HomeAssistantSettings, TracingSettings
from edged.report_settings import ReportSettings, UplinkSettings
from edged.settings_section import Section as _Section
from edged.settings_section import check_connection

DEFAULT_FILE = Path("/etc/edged/edged.toml")
CREDENTIAL_PREFIX = "edged."


def _host_name() -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname().split(".")[0]) or "edged"


class DeviceSettings(_Section):
    """``[device]``: what this device is called on the broker."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = Field(
        default_factory=_host_name
    )
    """Second part of every topic, and part of the MQTT client id. Default: the host's name."""
    root: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)?$")] = "edged/v1"
    """First levels of every topic."""

    @field_validator("name")
    @classmethod
    def _not_taken(cls, value: str) -> str:
        if value == "pool":
            raise ValueError("'pool' is taken by the topics of pools; choose another name")
        return value


class BrokerSettings(_Section):
    """``[broker]``: the MQTT 5 broker that requests come from."""

    host: Annotated[str, Field(min_length=1, max_length=253)] = "127.0.0.1"
    """Name or address; with ``transport = "unix"`` the path of the socket."""
    port: Annotated[int, Field(ge=1, le=65535)] = 1883
    transport: Literal["tcp", "websockets", "unix"] = "tcp"
    websocket_path: Annotated[str, Field(pattern=r"^/[!-~]{0,255}$")] = "/mqtt"
    mqtt_version: Literal["5", "3.1.1"] = "5"
    """3.1.1 is for a broker that has nothing newer: no properties, no limits, no back-pressure."""
    username: str | None = None
    password: SecretStr | None = None
    tls: bool = False
    """TLS with the system's certificate authorities, or with ca_file."""
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    keepalive_s: Annotated[int, Field(ge=1, le=65535)] = 30
    session_expiry_s: Annotated[int, Field(ge=0, le=0xFFFFFFFE)] = 3600
    """The broker keeps undelivered requests for so long while this device is away."""
    receive_maximum: Annotated[int, Field(ge=1, le=65535)] = 256
    """Requests the broker may have outstanding here: its brake when the queue is full."""
    send_window: Annotated[int, Field(ge=1, le=65535)] = 100
    """Replies that may wait for the broker's acknowledgement."""
    max_packet_bytes: Annotated[int, Field(ge=1024, le=268_435_455)] = 17 * 1024 * 1024
    """Largest packet the broker may send here; above max_request_bytes, so that a request that is a
    little too large is answered so, and not dropped by the broker."""
    connect_timeout_s: Annotated[float, Field(gt=0, le=300)] = 5.0
    backoff_min_s: Annotated[float, Field(gt=0, le=3600)] = 0.5
    backoff_max_s: Annotated[float, Field(gt=0, le=3600)] = 30.0
    offline_after_s: Annotated[float, Field(ge=0, le=3600)] = 10.0
    """Without a broker for so long at start, the service declares itself offline and is ready."""
    will_delay_s: Annotated[int, Field(ge=0, le=3600)] = 5
    """The broker waits so long before it says that this device is offline."""

    @model_validator(mode="after")
    def _consistent(self) -> BrokerSettings:
        check_connection(self)
        if self.transport == "unix" and (self.tls or not self.host.startswith("/")):
            raise ValueError(
                'transport "unix" takes the path of a socket as host, from "/" on, and no TLS'
            )
        return self


class ServeSettings(_Section):
    """``[serve]``: models, limits and devices of the request path."""

    models: tuple[str, ...] = ()
    """Models to serve; empty: every model that has an engine."""
    devices: Annotated[
        tuple[Annotated[str, Field(pattern=r"^(auto|cpu(:\d+)?|(cuda|dla):\d+)$")], ...],
        Field(min_length=1),
    ] = ("auto",)
    """Devices that share the work; auto: as the engine needs, cuda:0, dla:0 or the CPU."""
    queue_samples: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    """Samples that may wait for one model; beyond it requests are answered ``queue_full``."""
    max_request_bytes: Annotated[int, Field(ge=1, le=268_435_455)] = 16 * 1024 * 1024
    max_request_samples: Annotated[int, Field(ge=1, le=65536)] = 1024
    max_deadline_s: Annotated[float, Field(gt=0, le=86_400)] = 300.0
    """A request's own deadline is cut to this."""
    dedup_bytes: Annotated[int, Field(ge=0, le=4_294_967_296)] = 16 * 1024 * 1024
    """Replies kept for requests that come again: bytes with some overhead each; 0: none."""
    dedup_s: Annotated[float, Field(ge=0, le=86_400)] = 300.0
    """For so long after its arrival a request that comes again gets the reply that was kept."""
    reply_prefixes: tuple[str, ...] = ()
    """Response topics allowed besides ``{root}/<device>/reply/``: beginnings, each ends in "/"."""
    pool: Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63})?$")] = ""
    """Pool whose requests this device shares with others (docs/pool.md); empty: none."""
    onnx_threads: Annotated[int, Field(ge=0, le=256)] = 0
    """Threads of ONNX Runtime inside one operator; 0: one for each core."""
    drain_s: Annotated[float, Field(ge=0, le=600)] = 20.0
    """At SIGTERM, so long is given to what was already accepted."""
    slo_ms: dict[str, Annotated[float, Field(gt=0, le=3_600_000)]] = Field(default={})
    """Model -> deadline of a request that names none, instead of its recipe's."""
    versions: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]] = Field(default={})
    """Model -> version of the engine to serve, instead of the one that was installed last."""
    stuck_s: Annotated[float, Field(gt=0, le=3600)] = 30.0
    """A stage with work that makes no progress for so long stops the watchdog from being fed."""
    rebuild: bool = True
    """Whether an engine for another device or runtime is built anew in the background."""

    @model_validator(mode="after")
    def _prefixes(self) -> ServeSettings:
        for prefix in self.reply_prefixes:
            if not prefix.endswith("/") or prefix.startswith("$") or set("+#") & set(prefix):
                raise ValueError(
                    f"reply prefix {prefix!r} must end in '/', hold no wildcard and no leading '$'"
                )
        return self


_MODE = r"(latency|balanced|eco|use-the-slo|\d{1,9}(\.\d{1,9})?)"


class TimerSettings(_Section):
    """``[timer]``: what the batch timer aims at."""

    mode: Annotated[str, Field(pattern=rf"^{_MODE}$")] = "latency"
    """latency, balanced, eco, use-the-slo, or the price of GPU time as a number."""
    models: tuple[
        Annotated[str, Field(pattern=rf"^[A-Za-z0-9][A-Za-z0-9._-]{{0,63}}={_MODE}$")], ...
    ] = ()
    """Models with another mode: ``name=mode``."""
    tune: bool = True
    """Whether the timer is tuned by replaying the last arrivals."""
    adapt: bool = True
    """Whether load by others, heat and power limits raise the price."""

    @field_validator("mode", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return f"{value:g}" if is_number else value

    def mode_of(self, model: str) -> str:
        """The mode of one model."""
        return dict(entry.split("=", 1) for entry in self.models).get(model, self.mode)


StreamBytes = Annotated[int, Field(ge=65_536, le=68_719_476_736)]
StreamAge = Annotated[float, Field(ge=1, le=31_536_000)]
StreamOverflow = Literal["reject_new", "drop_oldest", "keep_latest"]


class OutboxSettings(_Section):
    """``[outbox]``: where reports wait on disk, and how much of it they may use."""

    path: Path = Path("/var/lib/edged/outbox")
    """Folder of the database."""
    rollout_max_bytes: StreamBytes = 4 * 1024 * 1024
    rollout_max_age_s: StreamAge = 90 * 86_400.0
    rollout_overflow: StreamOverflow = "reject_new"
    event_max_bytes: StreamBytes = 16 * 1024 * 1024
    event_max_age_s: StreamAge = 30 * 86_400.0
    event_overflow: StreamOverflow = "drop_oldest"
    result_max_bytes: StreamBytes = 256 * 1024 * 1024
    result_max_age_s: StreamAge = 14 * 86_400.0
    result_overflow: StreamOverflow = "drop_oldest"
    telemetry_max_bytes: StreamBytes = 64 * 1024 * 1024
    telemetry_max_age_s: StreamAge = 7 * 86_400.0
    telemetry_overflow: StreamOverflow = "drop_oldest"
    application_ack: tuple[Literal["rollout", "event", "result", "telemetry"], ...] = ("rollout",)
    """Streams whose events are deleted only after the control plane's own acknowledgement."""
    max_event_bytes: Annotated[int, Field(ge=1024, le=16_777_216)] = 102_400
    """An event with a larger body is dropped and counted."""
    quarantine_max_bytes: Annotated[int, Field(ge=65_536, le=1_073_741_824)] = 4 * 1024 * 1024
    """What the control plane refused; beyond it the oldest goes."""
    memory_max_bytes: Annotated[int, Field(ge=65_536, le=1_073_741_824)] = 8 * 1024 * 1024
    """Events kept in memory while the disk cannot be written, shared evenly by the streams."""


class LogSettings(_Section):
    """``[log]``: to standard error, which journald keeps."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "text"] = "json"


class PathSettings(_Section):
    """``[paths]``: folders on this device."""

    engines: Path = Path("/var/lib/edged/engines")
    """Recipes, models and built engines."""
    calib: Path = Path("/var/lib/edged/calib")
    """Calibration sets and ranges."""
    desired: Path = Path("/var/lib/edged/desired.json")
    """The last good desired document, taken over at the next start too."""
    journal: Path = Path("/run/edged/crash.journal")
    """What is on the devices; in memory, and kept while the service is started anew."""


LIVE = frozenset(
    {
        "log.level", "log.format", "report.results", "serve.models", "serve.queue_samples",
        "serve.drain_s", "serve.stuck_s", "report.sample_rate", "report.confidence_below",
        "report.models", "report.telemetry_interval_s", "serve.slo_ms", "serve.versions",
        "timer.mode", "timer.models", "timer.tune", "timer.adapt",
    }
)  # fmt: skip
"""Settings that SIGHUP takes over; the others need a restart. docs/settings.md marks them."""

LOCAL_SECTIONS = frozenset(
    {"device", "broker", "uplink", "outbox", "paths", "tracing", "home_assistant"}
)
LOCAL_SETTINGS = frozenset({"serve.reply_prefixes", "serve.devices"})
"""Sections and settings that the control plane may not change: a wrong value would cut the device
off, or widen what it may be made to publish."""


class Settings(BaseSettings):
    """All sections. Build it with `load_settings`."""

    model_config = SettingsConfigDict(
        env_prefix="EDGED_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    device: DeviceSettings = Field(default_factory=DeviceSettings)
    broker: BrokerSettings = Field(default_factory=BrokerSettings)
    serve: ServeSettings = Field(default_factory=ServeSettings)
    timer: TimerSettings = Field(default_factory=TimerSettings)
    report: ReportSettings = Field(default_factory=ReportSettings)
    uplink: UplinkSettings = Field(default_factory=UplinkSettings)
    outbox: OutboxSettings = Field(default_factory=OutboxSettings)
    tracing: TracingSettings = Field(default_factory=TracingSettings)
    home_assistant: HomeAssistantSettings = Field(default_factory=HomeAssistantSettings)
    log: LogSettings = Field(default_factory=LogSettings)
    paths: PathSettings = Field(default_factory=PathSettings)

    @model_validator(mode="after")
    def _pool(self) -> Settings:
        if self.serve.pool and self.broker.mqtt_version != "5":
            raise ValueError(
                f'serve.pool = "{self.serve.pool}" needs broker.mqtt_version = "5": with MQTT '
                "3.1.1 the requests of a pool could not be answered"
            )
        return self

    def needs_restart(self, new: Settings) -> list[str]:
        """Names of the settings that differ in ``new`` and cannot change while the service runs."""
        pairs = [
            (f"{section}.{field}", getattr(getattr(self, section), field), value)
            for section, values in new
            for field, value in values
        ]
        return [name for name, old, value in pairs if old != value and name not in LIVE]

    def with_live(self, new: Settings) -> Settings:
        """These settings with what may change while the service runs taken from ``new``."""
        changed: dict[str, dict[str, Any]] = {}
        for name in LIVE:
            section, field = name.split(".")
            changed.setdefault(section, {})[field] = getattr(getattr(new, section), field)
        sections = {
            section: getattr(self, section).model_copy(update=fields)
            for section, fields in changed.items()
        }
        return self.model_copy(update=sections)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The order in the module's docstring; ``.env`` files and Docker secrets are not read."""
        del dotenv_settings, file_secret_settings
        file = settings_cls.model_config.get("toml_file")
        toml = (TomlConfigSettingsSource(settings_cls, file),) if file else ()
        return (init_settings, env_settings, _Credentials(settings_cls), *toml)


class _Credentials(PydanticBaseSettingsSource):
    """Files ``edged.<section>.<field>`` in the folder that systemd's LoadCredential= fills."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        del field
        return self._sections().get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return dict(self._sections())

    @staticmethod
    def _sections() -> dict[str, dict[str, str]]:
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        if not folder or not Path(folder).is_dir():
            return {}
        sections: dict[str, dict[str, str]] = {}
        for path in sorted(Path(folder).glob(f"{CREDENTIAL_PREFIX}*.*")):
            section, _, field = path.name.removeprefix(CREDENTIAL_PREFIX).partition(".")
            sections.setdefault(section, {})[field] = path.read_text(encoding="utf-8").rstrip("\n")
        return sections


def load_settings(file: Path | None = None, **overrides: dict[str, Any]) -> Settings:
    """Reads all sources.

    Args:
        file: the TOML file; None: EDGED_CONFIG, else /etc/edged/edged.toml where it exists.
        overrides: sections given in code, e.g. ``broker={"port": 1884}``; they win field by field.

    Raises:
        ConfigError: a file that was named is missing or is no TOML, or a field is wrong; the
            message names each field and what was allowed (values are not shown: secrets).
    """
    if file is None and (named := os.environ.get("EDGED_CONFIG")):
        file = Path(named)
    if file is not None and not _is_file(file):
        raise ConfigError(
            f"settings file {file} does not exist; give --config or EDGED_CONFIG a file"
        )
    if file is None and _is_file(DEFAULT_FILE):
        file = DEFAULT_FILE

    class _WithFile(Settings):
        model_config = SettingsConfigDict(toml_file=file)

    try:
        return _WithFile(**overrides)  # type: ignore[arg-type]  # validated by pydantic
    except ValidationError as err:
        lines = [
            f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}"
            for item in err.errors(include_url=False, include_input=False)
        ]
        where = f" (file {file})" if file else ""
        raise ConfigError(f"settings{where}: {'; '.join(lines)}") from err
    except SettingsError as err:
        raise ConfigError(
            f"settings: {err}; a list in the environment is JSON, "
            "for example EDGED_SERVE__MODELS='[\"digits\"]'"
        ) from err
    except (OSError, ValueError) as err:
        raise ConfigError(f"settings file {file} cannot be read: {err}") from err


def _is_file(path: Path) -> bool:
    """Whether it is one.

    Raises:
        ConfigError: that cannot be seen, for instance because its folder may not be searched.
    """
    try:
        return path.is_file()
    except OSError as err:
        raise ConfigError(f"settings file {path} cannot be read: {err.strerror}") from err
