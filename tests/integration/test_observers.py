"""The daemon with tracing and Home Assistant's discovery, on a real mosquitto."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from edged.client import Endpoint, InferClient
from edged.home_assistant import discovery_topic
from tests.doubles.broker import Mosquitto
from tests.doubles.daemon import TOPICS, Daemon, wait_online
from tests.doubles.wire import WireClient

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CONFIG = discovery_topic("homeassistant", TOPICS.device)


class Collector(BaseHTTPRequestHandler):
    """Takes spans as an OpenTelemetry collector does."""

    seen: SimpleQueue[ExportTraceServiceRequest]

    def do_POST(self) -> None:
        """Keeps what was sent."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            raise AssertionError("compression was not asked for")
        self.seen.put(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_about: object) -> None:
        """Says nothing."""


@pytest.fixture
def collector() -> Iterator[tuple[str, SimpleQueue[ExportTraceServiceRequest]]]:
    """Its address, and what it took."""
    Collector.seen = SimpleQueue()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/traces", Collector.seen
    server.shutdown()
    server.server_close()
    thread.join()


def test_spans_and_discovery_come_and_go(
    tmp_path: Path,
    broker: Mosquitto,
    served_engines: Path,
    collector: tuple[str, SimpleQueue[ExportTraceServiceRequest]],
) -> None:
    """Switched on, a request's spans reach the collector and Home Assistant finds the device.

    Switched off again, the device is withdrawn, nothing is exported, and a trace still comes back.
    """
    address, exported = collector
    state = str(tmp_path / "home_assistant.json")
    image = {"image": np.zeros((1, 8, 8, 1), np.uint8)}
    endpoint = Endpoint(TOPICS.device, broker.host, broker.port)
    switched_on = Daemon(
        tmp_path, served_engines, broker, serve__models='["digits"]', tracing__enabled="true",
        tracing__endpoint=address, home_assistant__enabled="true", home_assistant__state_file=state,
    )  # fmt: skip
    with (
        WireClient(broker, filters=("edged/v1/#", "homeassistant/#")) as client,
        InferClient(endpoint) as requester,
    ):
        with switched_on:
            announced = client.wait_message(CONFIG).json()
            assert {"status", "digits_version"} <= set(announced["components"])
            result = requester.infer("digits", image, traceparent=PARENT)
            (resource,) = exported.get(timeout=30).resource_spans
            assert switched_on.stop() == 0
        spans = [span for scope in resource.scope_spans for span in scope.spans]
        assert [span.name for span in spans] == ["queue", "compute", "infer digits"]
        assert {span.trace_id.hex() for span in spans} == {PARENT.split("-")[1]}
        told = {each.key: each.value.string_value for each in spans[-1].attributes}
        assert told["edged.model.version"] == result.model_version
        switched_off = Daemon(
            tmp_path, served_engines, broker, serve__models='["digits"]',
            home_assistant__state_file=state,
        )  # fmt: skip
        with switched_off:
            wait_online(client, boots=2)
            assert client.wait_messages(CONFIG, 2)[-1].payload == b""
            assert requester.infer("digits", image, traceparent=PARENT).trace == {
                "traceparent": PARENT
            }
            assert switched_off.stop() == 0
    assert exported.empty()
    with WireClient(broker, filters=("homeassistant/#", "edged/v1/flush/#")) as late:
        late.flush()
        assert not late.messages(CONFIG)
