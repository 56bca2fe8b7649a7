"""Inputs of variable length on ONNX Runtime: by bucket, padded, masked, cut, and counted."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import numpy as np
import pytest

from edged import protocol
from edged.engine_store import EngineStore
from edged.errors import EngineRefusedError
from edged.metrics import Metrics
from edged.serve.admit import Admission
from edged.serve.batch import WaitingRoom
from edged.serve.decode import Decoder
from edged.serve.devices import Devices, Notice
from edged.serve.gpu import Device
from edged.serve.models import ModelHost
from edged.serve.pipeline import Pipeline
from edged.serve.pipeline_ports import Sender, Watchers
from edged.serve.request import Arrival, LinkUp, Receipt, Reply
from edged.settings import ServeSettings
from tests.doubles.engines import averager, install_averager
from tests.doubles.runner import WAIT_S
from tests.doubles.turns import Turns

TOPICS = protocol.Topics("edged/v1", "dev")
NAME = "averager"


@final
class Site:
    """The request path over a store with the averager; replies are kept by correlation."""

    def __init__(self, root: Path) -> None:
        install_averager(root, NAME)
        settings = ServeSettings(onnx_threads=1)
        self.metrics = Metrics()
        self.host = ModelHost(EngineStore(root), settings)
        self.room = WaitingRoom({}, Admission(100).refusal)
        notice = Notice(lambda _event: None, lambda: None, lambda _where, _done, _total: None)
        self.devices = Devices(self.host, self.room, self.metrics, notice)
        self.events = self.devices.load()
        self.decoder = Decoder(TOPICS, self.host.manifest)
        self.pipeline = Pipeline(
            self.decoder,
            self.devices.formats,
            self.room,
            self.metrics,
            Watchers(lambda _outcome, _status: None, lambda _change: None),
            dead_topic=TOPICS.dead,
        )
        self._replies: dict[str, Reply] = {}
        self._came = threading.Condition()
        self._turns = Turns()

    def start(self) -> None:
        """Starts all threads."""
        self.run(self.devices.start(self.pipeline.done))

    def run(self, running: list[Device]) -> None:
        """Starts the threads of devices that are registered."""
        up = LinkUp(1, session_present=False, window=100, max_packet_bytes=0)
        self.pipeline.link_changed(up)  # first, or answers of QoS 0 would have nowhere to go
        sender = Sender(self._publish, lambda _receipt: True, self._turns.wake)
        self.pipeline.start(sender, running)
        self._turns.start(self.pipeline)

    def _publish(self, reply: Reply) -> int:
        with self._came:
            self._replies[(reply.correlation or b"").decode()] = reply
            self._came.notify_all()
        return 1

    def ask(self, name: str, *rows: list[list[float]]) -> None:
        """A request comes in; see `arrival`."""
        self.pipeline.arrived(arrival(name, *rows))
        self._turns.wake()

    def answer(self, name: str) -> dict[str, Any]:
        """The answer to a request."""
        with self._came:
            assert self._came.wait_for(lambda: name in self._replies, WAIT_S)
            document = json.loads(self._replies[name].payload)
        if "code" in document:
            return dict(document)
        return {
            each["name"]: np.reshape(each["data"], each["shape"]) for each in document["outputs"]
        } | {"batch": document["parameters"]["batch_size"]}

    def close(self) -> None:
        """Ends everything."""
        self._turns.stop()
        self.pipeline.stop()
        for model in self.host.models.values():
            model.close()


def arrival(name: str, *rows: list[list[float]]) -> Arrival:
    """A request with samples of one length, ``[n, length, 2]``."""
    data = np.asarray(rows, np.float32)
    tensor = {"name": "x", "datatype": "FP32", "shape": list(data.shape), "data": data.tolist()}
    return Arrival(
        topic=TOPICS.infer(NAME),
        payload=json.dumps({"inputs": [tensor]}).encode(),
        receipt=Receipt(1, 0, 0, 0),
        received=time.monotonic(),
        response_topic=TOPICS.reply("me"),
        correlation=name.encode(),
    )


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Loaded, not started."""
    made = Site(tmp_path)
    yield made
    made.close()


def test_each_length_has_its_runner_and_its_timer(site: Site) -> None:
    """Buckets 3 and 5 and the largest length of 8, over one session of the runtime."""
    site.start()
    model = site.host.models[NAME]

    assert set(model.queues("cpu")) == {"averager@3", "averager@5", "averager@8"}
    assert set(site.room.timer_states(time.monotonic())) == set(model.queues("cpu"))
    sessions = {id(vars(runner)["_graph"]) for runner, _ in model.queues("cpu").values()}
    assert len(sessions) == 1


def test_samples_are_padded_masked_and_cut_back(site: Site) -> None:
    """The mean is over the data alone, whatever the padding is; outputs have the data's length."""
    site.start()
    for length in range(1, 9):
        rows = [[float(n), 2.0 * n] for n in range(1, length + 1)]
        site.ask(str(length), rows, [[5.0, 7.0]] * length)
        answer = site.answer(str(length))

        middle = (length + 1) / 2
        np.testing.assert_allclose(answer["mean"], [[middle, 2 * middle], [5.0, 7.0]])
        np.testing.assert_allclose(answer["twice"], 2 * np.array([rows, [[5.0, 7.0]] * length]))


def test_a_batch_holds_one_bucket(site: Site) -> None:
    """Requests of lengths 1 to 3 run together, one of length 4 by itself; padding is counted."""
    running = site.devices.start(site.pipeline.done)
    for name, length in (("a", 1), ("b", 3), ("c", 4), ("d", 2)):
        request = site.decoder.decode(arrival(name, [[1.0, 1.0]] * length))
        site.room.put(request)  # all wait before the device looks
    site.run(running)

    assert [site.answer(name)["batch"] for name in "abcd"] == [3, 3, 1, 3]
    assert site.metrics.value("positions_total", NAME) == 3 * 3 + 5
    assert site.metrics.value("positions_padded_total", NAME) == 2 + 0 + 1 + 1


def test_what_is_too_long_is_refused_with_the_limit(site: Site) -> None:
    """The message names max_length, and nothing was run."""
    site.start()
    site.ask("long", [[0.0, 0.0]] * 9)

    answer = site.answer("long")

    assert answer["code"] == "bad_shape"
    assert "has length 9, but this model takes 1 to 8 (max_length)" in str(answer["error"])
    assert site.metrics.total("batches_total") == 0


def test_an_axis_that_the_model_fixes_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    """The recipe says that it is variable, the model does not."""
    model = averager()
    for tensor in (*model.graph.input, *model.graph.output):
        if len(tensor.type.tensor_type.shape.dim) > 1:
            dim = tensor.type.tensor_type.shape.dim[1]
            dim.dim_value = 8 if dim.dim_param == "length" else 2
    install_averager(tmp_path, NAME, model.SerializeToString())
    host = ModelHost(EngineStore(tmp_path), ServeSettings(onnx_threads=1))

    with pytest.raises(EngineRefusedError, match=r"the manifest says \['batch', 3, 2\]"):
        host.load(NAME, lambda _where, _done, _total: None)
