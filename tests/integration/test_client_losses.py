"""The client when it is full, refused, cut off or closed, against a real mosquitto."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edged import protocol
from edged.client import Endpoint, InferClient, tensor_message
from edged.client.result import reply_error
from edged.errors import (
    BadParameterError,
    BrokerError,
    ClientError,
    ConfigError,
    EdgedError,
    ReplyError,
    ServiceError,
)
from tests.doubles.broker import Mosquitto
from tests.doubles.responder import Asked, Responder, Said, doubled

PARENT = "00-11111111111111111111111111111111-2222222222222222-01"
SAMPLE = {"x": np.arange(6, dtype=np.float32).reshape(1, 6)}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    """One mosquitto for all tests of this module that do not take it away."""
    with Mosquitto(tmp_path_factory.mktemp("mosquitto")) as running:
        yield running


def endpoint(broker: Mosquitto) -> Endpoint:
    """The scripted device on that broker."""
    return Endpoint("double", broker.host, broker.port)


def silent_at_first(count: int) -> tuple[list[Asked], Callable[[Asked], list[Said]]]:
    """A device that answers nothing until so many requests are there, and then all of them."""
    waiting: list[Asked] = []

    def answer(asked: Asked) -> list[Said]:
        waiting.append(asked)
        if len(waiting) < count:
            return []
        return [said for each in waiting[-count:] for said in doubled(each)]

    return waiting, answer


def wait_down(client: InferClient) -> None:
    """Until the client has seen that its connection is gone."""
    until = time.monotonic() + 10
    while client._link.is_up:
        assert time.monotonic() < until, client
        time.sleep(0.002)


def test_a_full_client_waits_for_a_place(broker: Mosquitto) -> None:
    """With as many requests outstanding as are allowed the next one waits, and goes on later."""
    message = tensor_message(SAMPLE)
    with (
        Responder(broker.host, broker.port, lambda _asked: []) as device,
        InferClient(endpoint(broker), max_outstanding=2) as client,
    ):
        held = [client.submit("double", message) for _ in range(2)]
        with pytest.raises(TimeoutError, match="2 requests are without an answer"):
            client.submit("double", message, wait_s=0.01)
        with pytest.raises(TimeoutError, match="max_outstanding"):
            client.infer("double", SAMPLE, timeout_s=0.01)
        held[0].cancel()
        third = client.submit("double", message, wait_s=10)
        device._answer = doubled
        with ThreadPoolExecutor(1) as pool:
            waits = pool.submit(client.infer, "double", SAMPLE)
            third.cancel()
            assert waits.result(10).status == 200
        held[1].cancel()


def test_a_callback_may_send_and_never_waits(broker: Mosquitto) -> None:
    """What is sent from a callback goes out; where there is no place it fails at once."""
    ends: queue.SimpleQueue[object] = queue.SimpleQueue()
    message = tensor_message(SAMPLE)
    with (
        Responder(broker.host, broker.port),
        InferClient(endpoint(broker), max_outstanding=1) as client,
    ):

        def again(_done: object) -> None:
            ends.put(client.submit("double", message))  # there is a place: an answer came
            try:
                client.submit("double", message)
            except TimeoutError as err:
                ends.put(err)

        client.submit("double", message).add_done_callback(again)
        follower, refused = ends.get(timeout=10), ends.get(timeout=10)
        assert isinstance(follower, Future)
        assert follower.result(10).status == 200
        assert isinstance(refused, TimeoutError)


def test_a_request_that_nobody_takes_fails_at_once(broker: Mosquitto) -> None:
    """The broker says that nobody is subscribed: the caller need not wait for the time-out."""
    with InferClient(replace(endpoint(broker), device="nobody")) as client:  # noqa: SIM117
        with pytest.raises(BrokerError, match="nobody takes requests of device 'nobody'"):
            client.infer("double", SAMPLE, timeout_s=60)


def test_a_request_that_the_broker_refuses_fails_at_once(tmp_path: Path) -> None:
    """A broker that lets this client publish nothing says so, and the request ends with that."""
    rules = tmp_path / "rules"
    rules.write_text("topic read edged/#\n", encoding="utf-8")
    rules.chmod(0o644)
    with (
        Mosquitto(tmp_path / "broker", [f"acl_file {rules}"]) as broker,
        InferClient(endpoint(broker)) as client,
        pytest.raises(BrokerError, match=r"refuses the request \(Not authorized"),
    ):
        client.infer("double", SAMPLE, timeout_s=60)


def test_requests_survive_the_loss_of_the_connection(tmp_path: Path) -> None:
    """What was sent before, and while the broker was away, is answered when it is back."""
    waiting, answer = silent_at_first(3)
    message = tensor_message(SAMPLE)
    with (
        Mosquitto(tmp_path, persistent=True) as broker,
        Responder(broker.host, broker.port, answer, session_s=60) as device,
        InferClient(endpoint(broker)) as client,
    ):
        sent = [client.submit("double", message)]
        broker.stop()
        wait_down(client)  # else the one that is cancelled may have left for the broker that stops
        sent += [client.submit("double", message) for _ in range(2)]
        client.submit("double", message).cancel()
        broker.start()
        device.wait_subscribed()
        assert [client.wait(future, "double", 30).status for future in sent] == [200] * 3
    assert len({asked.correlation for asked in waiting}) == 3  # what was cancelled never left


def test_a_closed_client_says_so(broker: Mosquitto) -> None:
    """Sending after the end is an error of its own, and closing twice is none."""
    client = InferClient(endpoint(broker))
    client.close()
    with InferClient(endpoint(broker)) as used:
        pass
    used.close()
    with pytest.raises(BrokerError, match="the client is closed"):
        used.connect()
    with pytest.raises(BrokerError, match="the client is closed"):
        used.infer("double", SAMPLE)


def test_wrong_settings_of_a_client_are_refused(tmp_path: Path) -> None:
    """Numbers out of range, and a certificate that cannot be read."""
    with pytest.raises(BadParameterError, match="max_outstanding"):
        InferClient(Endpoint("double"), max_outstanding=0)
    with pytest.raises(ConfigError, match="ca_file"):
        InferClient(Endpoint("double", ca_file=tmp_path / "missing.pem"))


def test_trace_and_source_travel_and_come_back(broker: Mosquitto) -> None:
    """Trace context and source are user properties of the request; the reply's trace is shown."""
    trace = {"traceparent": PARENT, "tracestate": "a=1"}

    def traced(asked: Asked) -> list[Said]:
        said = doubled(asked)[0]
        return [replace(said, user=said.user | {name: asked.user[name] for name in trace})]

    with (
        Responder(broker.host, broker.port, traced) as device,
        InferClient(endpoint(broker)) as client,
    ):
        result = client.infer("double", SAMPLE, source="door", traceparent=PARENT, tracestate="a=1")
    assert device.asked[0].user[protocol.SOURCE] == "door"
    assert result.trace == trace


def test_every_code_of_a_reply_has_its_class() -> None:
    """Each error that a device can answer is raised as `ReplyError` and as that error."""
    for kind in (ClientError, ServiceError):
        for one in _all_below(kind):
            error = reply_error("m", code=one.code, status=one.status, retryable=one.retryable)
            assert isinstance(error, ReplyError)
            assert error.code == one.code
            assert isinstance(error, one) or "code" not in vars(one)
    assert type(reply_error("m", code="of_the_future", status=500)) is ReplyError


def _all_below(kind: type[EdgedError]) -> list[type[EdgedError]]:
    below = [each for each in kind.__subclasses__() if each.__module__ == "edged.errors"]
    return [kind, *(found for each in below for found in _all_below(each))]
