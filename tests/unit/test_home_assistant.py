"""What Home Assistant is told, and what its templates make of our documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest

from edged.home_assistant import HomeAssistant, discovery_document, discovery_topic, identifier
from edged.integration_settings import HomeAssistantSettings
from edged.metrics import Metrics
from edged.protocol import Topics, status_document

TOPICS = Topics("edged/v1", "cam.7")
DOCUMENT = discovery_document(TOPICS, ["digits", "wake.word"], ["cpu", "cuda:0"], 10.0)
SENSORS: dict[str, dict[str, Any]] = DOCUMENT["components"]


def telemetry(*, known: bool) -> dict[str, Any]:
    """A telemetry document, with values or just after the start."""
    metrics = Metrics()
    if known:
        metrics.count("replies_total", "digits", "200", by=7)
        metrics.count("replies_total", "digits", "429", by=2)
        metrics.observe("latency_seconds", 0.004, "digits")
    loads = {"load": 0.25 if known else None, "temperature_c": 51.5 if known else None}
    document = {
        "waiting_samples": 3, "outstanding": 4, "metrics": metrics.snapshot(),
        "devices": {"cuda:0": loads, "cpu": {"load": None, "temperature_c": None}},
    }  # fmt: skip
    return dict(json.loads(json.dumps(document)))


def status() -> dict[str, Any]:
    """The status of a service with one model."""
    document = status_document("online", "b", 1, models=["digits"])
    return document | {"engines": {"digits": {"engine": "7a80074fc62a"}}}


def shown(key: str, *, known: bool = True) -> str:
    """What the sensor makes of the document that it reads."""
    sensor = SENSORS[key]
    document = status() if sensor["state_topic"] == TOPICS.status else telemetry(known=known)
    environment = jinja2.Environment(autoescape=False)  # noqa: S701  # no page is made of it
    return environment.from_string(sensor["value_template"]).render(value_json=document).strip()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("status", "online"), ("waiting", "3"), ("outstanding", "4"),
        ("digits_version", "7a80074fc62a"), ("digits_replies", "7"), ("digits_latency_p99", "4.97"),
        (f"{identifier('cuda:0')}_load", "25.0"), (f"{identifier('cuda:0')}_temperature", "51.5"),
    ],
)  # fmt: skip
def test_templates_find_their_values(key: str, value: str) -> None:
    """Each sensor reads what the service publishes, in the unit that it names."""
    assert shown(key) == value


def test_what_is_not_known_is_none() -> None:
    """Home Assistant shows ``None`` as unknown; a counter that never counted is 0."""
    for key in SENSORS:
        value = shown(key, known=False)
        if key.endswith(("_load", "_temperature", "_p50", "_p99")):
            assert value == "None", key
    assert shown("digits_replies", known=False) == "0"
    assert shown(f"{identifier('wake.word')}_version") == ""


def test_the_document_is_what_discovery_asks_for() -> None:
    """Identifiers, origin, and for each sensor a platform, a topic and a name of its own."""
    assert DOCUMENT["device"]["identifiers"] == [f"edged_{identifier('cam.7')}"]
    assert DOCUMENT["origin"]["name"] == "edged"
    for key, sensor in SENSORS.items():
        assert sensor["platform"] == "sensor"
        assert sensor["state_topic"] in {TOPICS.status, TOPICS.telemetry("metrics")}
        assert identifier(key) == key
    unique = [sensor["unique_id"] for sensor in SENSORS.values()]
    assert len(unique) == len(set(unique))
    assert not any("cpu_load" in key for key in SENSORS)
    topic = discovery_topic("homeassistant", "cam.7")
    assert topic.startswith("homeassistant/device/edged_cam_7_")
    assert topic.endswith("/config")
    assert SENSORS["waiting"]["expire_after"] == 30
    assert "expire_after" not in SENSORS["status"]


def test_different_names_stay_different() -> None:
    """Characters that discovery does not allow are replaced, and the name still tells apart."""
    assert identifier("digits") == "digits"
    assert identifier("a.b") != identifier("a_b") != identifier("a:b")


class Broker:
    """Keeps what is retained, and takes nothing while it is told to."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.count = 0
        self.takes = True

    def publish(self, topic: str, payload: bytes) -> bool:
        """Takes a retained message; an empty one removes it."""
        self.count += self.takes
        if self.takes:
            self.kept[topic] = payload
        if not self.kept.get(topic):
            self.kept.pop(topic, None)
        return self.takes


def home(broker: Broker, state: Path, *, enabled: bool = True, prefix: str = "ha") -> HomeAssistant:
    """A run of the service."""
    settings = HomeAssistantSettings(enabled=enabled, prefix=prefix, state_file=state)
    return HomeAssistant(settings, TOPICS, 10.0, broker.publish)


def test_it_is_announced_once_for_each_connection_and_change(tmp_path: Path) -> None:
    """Nothing is published while nothing changes; a broker that did not take it is asked again."""
    broker = Broker()
    service = home(broker, tmp_path / "state.json")
    broker.takes = False
    service.look(1, ["digits"], ["cpu"])
    broker.takes = True
    for connection, models in [(1, ["digits"]), (1, ["digits"]), (2, ["digits"]), (2, ["other"])]:
        service.look(connection, models, ["cpu"])
    assert broker.count == 3
    (document,) = broker.kept.values()
    sensors = json.loads(document)["components"]
    assert sensors["digits_version"] == {"platform": "sensor"}, "how a sensor is taken out"
    assert "value_template" in sensors["other_version"]


def test_switched_off_it_is_withdrawn_once(tmp_path: Path) -> None:
    """The next run removes what the last one announced, and a service that never did is silent."""
    broker, state = Broker(), tmp_path / "folder" / "state.json"
    home(broker, state).look(1, ["digits"], ["cpu"])
    assert broker.kept
    off = home(broker, state, enabled=False)
    broker.takes = False
    off.look(1, ["digits"], ["cpu"])
    broker.takes = True
    off.look(1, ["digits"], ["cpu"])
    assert not broker.kept
    assert not state.exists()
    count = broker.count
    home(broker, state, enabled=False).look(1, ["digits"], ["cpu"])
    assert broker.count == count


def test_another_prefix_takes_the_old_one_back(tmp_path: Path) -> None:
    """There is one document of a device, wherever it was before."""
    broker, state = Broker(), tmp_path / "state.json"
    home(broker, state).look(1, [], [])
    home(broker, state, prefix="other").look(1, [], [])
    assert [topic.split("/")[0] for topic in broker.kept] == ["other"]


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"topic": 1}'])
def test_a_damaged_file_is_as_none(tmp_path: Path, content: bytes) -> None:
    """It is announced all the same, and the file is whole again."""
    broker, state = Broker(), tmp_path / "state.json"
    state.write_bytes(content)
    home(broker, state).look(1, [], [])
    assert broker.kept
    assert json.loads(state.read_bytes())["topic"] in broker.kept
