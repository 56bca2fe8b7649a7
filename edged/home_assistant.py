"""Home Assistant's MQTT discovery: one retained document that names this device's sensors.

The sensors read what is published anyway, status and telemetry; nothing else is published for them.
Source: Home Assistant, MQTT integration, "device discovery" (``<prefix>/device/<id>/config``).
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from edged import __version__
from edged.atomic_files import replace_file
from edged.integration_settings import HomeAssistantSettings
from edged.protocol import STATES, Topics

log = logging.getLogger(__name__)

Document: TypeAlias = dict[str, Any]
Publish: TypeAlias = Callable[[str, bytes], bool]
MISSED = 3
"""Telemetry that is missing so many times in a row makes what is read from it unknown."""


def identifier(text: str) -> str:
    """A text with none but the characters that discovery allows; different texts stay different."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", text)
    return plain if plain == text else f"{plain}_{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def discovery_topic(prefix: str, device: str) -> str:
    """Where the document goes, retained; an empty payload there removes the device."""
    return f"{prefix}/device/edged_{identifier(device)}/config"


def discovery_document(
    topics: Topics, models: Sequence[str], devices: Sequence[str], telemetry_interval_s: float
) -> Document:
    """What Home Assistant is told.

    Args:
        topics: of this device.
        models: names of those that are served.
        devices: devices in use, as ``serve.devices`` names them; a CPU has no sensors of its own.
        telemetry_interval_s: how often telemetry comes.
    """
    accelerators = [name for name in devices if not name.startswith("cpu")]
    own = f"edged_{identifier(topics.device)}"
    sensors = {
        **_of_service(topics),
        **{key: it for model in models for key, it in _of_model(topics, model).items()},
        **{key: it for name in accelerators for key, it in _of_device(topics, name).items()},
    }
    for key, sensor in sensors.items():
        sensor |= {"platform": "sensor", "unique_id": f"{own}_{key}"}
        if sensor["state_topic"] != topics.status:
            sensor["expire_after"] = max(1, round(MISSED * telemetry_interval_s))
    return {
        "device": {
            "identifiers": [own],
            "name": topics.device,
            "manufacturer": "edged",
            "model": "Inference device",
            "sw_version": __version__,
        },
        "origin": {"name": "edged", "sw_version": __version__},
        "availability": [
            {
                "topic": topics.status,
                "value_template": "{{ 'offline' if value_json.state == 'offline' else 'online' }}",
            }
        ],
        "components": sensors,
        "qos": 1,
    }


def _of_service(topics: Topics) -> dict[str, Document]:
    telemetry = topics.telemetry("metrics")
    return {
        "status": {
            "name": "Status",
            "state_topic": topics.status,
            "value_template": "{{ value_json.state }}",
            "device_class": "enum",
            "options": list(STATES),
        },
        "waiting": {
            "name": "Samples waiting",
            "state_topic": telemetry,
            "value_template": "{{ value_json.waiting_samples }}",
            "state_class": "measurement",
            "icon": "mdi:tray-full",
        },
        "outstanding": {
            "name": "Requests outstanding",
            "state_topic": telemetry,
            "value_template": "{{ value_json.outstanding }}",
            "state_class": "measurement",
            "icon": "mdi:tray-full",
        },
    }


def _of_model(topics: Topics, model: str) -> dict[str, Document]:
    key = identifier(model)
    telemetry = topics.telemetry("metrics")
    sensors: dict[str, Document] = {
        f"{key}_version": {
            "name": f"{model} version",
            "state_topic": topics.status,
            "value_template": "{{ ((value_json.engines or {}).get('"
            + model
            + "') or {}).engine }}",
            "entity_category": "diagnostic",
        },
        f"{key}_replies": {
            "name": f"{model} answered requests",
            "state_topic": telemetry,
            "value_template": _series("replies_total", model)
            + "{{ found | selectattr('status', 'eq', '200') | sum(attribute='value') }}",
            "state_class": "total_increasing",
        },
    }
    for name in ("p50", "p99"):
        sensors[f"{key}_latency_{name}"] = {
            "name": f"{model} latency {name}",
            "state_topic": telemetry,
            "value_template": _series("latency_seconds", model)
            + "{{ (found[0]."
            + name
            + " * 1000) | round(2) if found else none }}",
            "unit_of_measurement": "ms",
            "device_class": "duration",
            "state_class": "measurement",
        }
    return sensors


def _series(metric: str, model: str) -> str:
    """Sets ``found`` to a metric's series of a model."""
    return (
        "{% set found = (value_json.metrics." + metric + " | default([]))"
        " | selectattr('model', 'eq', '" + model + "') | list %}"
    )


def _of_device(topics: Topics, device: str) -> dict[str, Document]:
    key = identifier(device)
    found = "{% set found = (value_json.devices or {}).get('" + device + "') or {} %}"
    return {
        f"{key}_load": {
            "name": f"{device} load",
            "state_topic": topics.telemetry("metrics"),
            "value_template": found
            + "{{ (found.load * 100) | round(1) if found.load is number else none }}",
            "unit_of_measurement": "%",
            "state_class": "measurement",
            "icon": "mdi:gauge",
        },
        f"{key}_temperature": {
            "name": f"{device} temperature",
            "state_topic": topics.telemetry("metrics"),
            "value_template": found
            + "{{ found.temperature_c if found.temperature_c is number else none }}",
            "unit_of_measurement": "°C",
            "device_class": "temperature",
            "state_class": "measurement",
        },
    }


# ------------------------------------------------------------------ announcing and withdrawing


class HomeAssistant:
    """Keeps the retained document as it should be. For the main thread.

    What was announced is kept in a file, so that it is withdrawn after this was switched off, and
    so that sensors that are gone are taken out.

    Args:
        settings: ``[home_assistant]``.
        topics: of this device.
        telemetry_interval_s: how often telemetry comes.
        publish: (topic, payload) -> whether the link took it, retained.
    """

    def __init__(
        self,
        settings: HomeAssistantSettings,
        topics: Topics,
        telemetry_interval_s: float,
        publish: Publish,
    ) -> None:
        self._settings = settings
        self._topics = topics
        self._interval_s = telemetry_interval_s
        self._publish = publish
        self._topic = discovery_topic(settings.prefix, topics.device)
        self._told: object = None

    def __repr__(self) -> str:
        return f"<HomeAssistant {self._topic} {'on' if self._settings.enabled else 'off'}>"

    def look(self, connection: int, models: Sequence[str], devices: Sequence[str]) -> None:
        """Announces or withdraws this device, if it has not been done yet for what there is.

        Args:
            connection: number of the one that stands.
            models: those that are served.
            devices: accelerators in use.
        """
        seen = (connection, tuple(models), tuple(devices))
        if seen == self._told:
            return
        before = self._read()
        if before and (not self._settings.enabled or before["topic"] != self._topic):
            if not self._publish(before["topic"], b""):
                return
            before = {}
            if not self._settings.enabled:
                self._settings.state_file.unlink(missing_ok=True)
        if self._settings.enabled and not self._announce(before, models, devices):
            return
        self._told = seen

    def _announce(
        self, before: Mapping[str, Any], models: Sequence[str], devices: Sequence[str]
    ) -> bool:
        document = discovery_document(self._topics, models, devices, self._interval_s)
        sensors = list(document["components"])
        # A component that was announced is taken out by its platform alone.
        gone = set(before.get("components", ())) - set(sensors)
        document["components"] |= {key: {"platform": "sensor"} for key in sorted(gone)}
        self._keep({"topic": self._topic, "components": sensors})
        return self._publish(self._topic, json.dumps(document, separators=(",", ":")).encode())

    def _read(self) -> Document:
        try:
            found = json.loads(self._settings.state_file.read_bytes())
            return {"topic": str(found["topic"]), "components": list(found["components"])}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as err:
            log.warning("what Home Assistant was told before cannot be read: %s", err)
            return {}

    def _keep(self, state: Document) -> None:
        path: Path = self._settings.state_file
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, json.dumps(state).encode(), mode=0o644)
        except OSError as err:
            log.warning(
                "what Home Assistant is told cannot be kept (%s): it will not be withdrawn by "
                "itself when home_assistant.enabled is switched off",
                err,
            )
