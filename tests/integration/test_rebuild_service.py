"""An engine that fits no longer, as after an upgrade: the service mends it by itself."""

from __future__ import annotations

import json
import time
from pathlib import Path

from edged.build.pipeline import build_model
from edged.client import Endpoint, InferClient
from edged.engine_store import EngineStore
from tests.doubles import digits
from tests.doubles.broker import Mosquitto
from tests.doubles.service import running_service


def make_foreign(engines: Path) -> str:
    """The current engine says that it was built for another runtime; its version."""
    path = EngineStore(engines).current("digits").path.with_name("manifest.json")
    document = json.loads(path.read_text())
    document["fingerprint"]["onnxruntime"] = "0.1"
    path.write_text(json.dumps(document))
    return str(document["key"][:12])


def only_foreign(engines: Path) -> None:
    """Nothing in the store fits."""
    make_foreign(engines)


def version(client: InferClient) -> str:
    """Of the engine that answers now."""
    pixels = digits.images()[:1]
    return str(client.infer("digits", {"image": pixels}, timeout_s=60).model_version)


def test_service_builds_what_fits_before_it_serves(tmp_path: Path) -> None:
    """With nothing that could serve it waits for the build instead of ending."""
    with (
        Mosquitto(tmp_path / "broker") as broker,
        running_service(
            tmp_path,
            broker.host,
            broker.port,
            before=only_foreign,
        ) as endpoint,
        InferClient(endpoint) as client,
    ):
        built = EngineStore(tmp_path / "engines").current("digits").manifest
        assert built.fingerprint["onnxruntime"] != "0.1"
        assert version(client) == built.key[:12]
        (engine,) = client.wait_status("online", 30)["engines"].values()
        assert engine["precision"] == built.precision
        assert engine["notes"] == list(built.notes)
    assert "is built anew in the background" in (tmp_path / "daemon.log").read_text()


def test_earlier_engine_serves_until_the_new_one_is_built(tmp_path: Path) -> None:
    """Requests are answered from the start, first by the one before, at last by the new one."""
    versions: dict[str, str] = {}

    def upgrade(engines: Path) -> None:
        versions["before"] = EngineStore(engines).current("digits").manifest.key[:12]
        build_model("digits", engines=engines, calib=tmp_path / "calib", precision="fp32")
        versions["foreign"] = make_foreign(engines)

    with Mosquitto(tmp_path / "broker") as broker:
        with running_service(tmp_path, broker.host, broker.port, before=upgrade) as endpoint:
            seen = follow(endpoint, versions["before"])
        current = EngineStore(tmp_path / "engines").current("digits")
    assert seen[0] == versions["before"]
    assert seen[-1] == current.manifest.key[:12]
    assert versions["foreign"] not in seen
    assert "is served by its earlier engine" in (tmp_path / "daemon.log").read_text()


def follow(endpoint: Endpoint, first: str) -> list[str]:
    """Versions that answer, until another one than the first does."""
    seen: list[str] = []
    end = time.monotonic() + 90
    with InferClient(endpoint) as client:
        while time.monotonic() < end and (not seen or seen[-1] == first):
            found = version(client)
            if not seen or seen[-1] != found:
                seen.append(found)
    return seen
