"""The asyncio client against a real mosquitto, with a device that is scripted to misbehave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edged import protocol
from edged.client import AsyncInferClient, Endpoint, image_message, tensor_message
from edged.errors import BadParameterError, BrokerError, ReplyError, UnknownModelError
from tests.doubles.broker import Mosquitto, free_port
from tests.doubles.responder import Asked, Responder, Said, doubled

SAMPLE = {"x": np.arange(6, dtype=np.float32).reshape(1, 6)}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    """One mosquitto for all tests of this module that do not take it away."""
    with Mosquitto(tmp_path_factory.mktemp("mosquitto")) as running:
        yield running


def endpoint(broker: Mosquitto) -> Endpoint:
    """The scripted device on that broker."""
    return Endpoint("double", broker.host, broker.port)


def with_client(
    broker: Mosquitto,
    story: Callable[[AsyncInferClient], Awaitable[None]],
    *,
    max_outstanding: int = 64,
) -> None:
    """Runs a story with a connected client, in an event loop of its own."""

    async def told() -> None:
        async with AsyncInferClient(endpoint(broker), max_outstanding=max_outstanding) as client:
            await story(client)
            assert ": 0 requests outstanding" in repr(client)

    asyncio.run(told())


def nothing(_asked: Asked) -> list[Said]:
    """No answer."""
    return []


def test_many_tasks_get_their_own_answers(broker: Mosquitto) -> None:
    """More tasks than may be outstanding: each waits its turn and has its own answer."""

    async def story(client: AsyncInferClient) -> None:
        samples = [{"x": np.array([[number]], np.int32)} for number in range(100)]
        results = await asyncio.gather(*(client.infer("double", each) for each in samples))
        assert [int(result["x"].item()) for result in results] == [2 * n for n in range(100)]

    with Responder(broker.host, broker.port):
        with_client(broker, story, max_outstanding=8)


def test_no_more_are_outstanding_than_allowed(broker: Mosquitto) -> None:
    """The third of two waits for a place; cancelling one that is outstanding gives it one."""

    async def story(client: AsyncInferClient) -> None:
        message = tensor_message(SAMPLE)
        first, second = [await client.submit("double", message) for _ in range(2)]
        third = asyncio.ensure_future(client.submit("double", message))
        assert not (await asyncio.wait([third], timeout=0.05))[0]
        first.cancel()
        (await asyncio.wait_for(third, 10)).cancel()
        second.cancel()
        await asyncio.sleep(0)  # the loop tells the client of what was cancelled

    with Responder(broker.host, broker.port, nothing):
        with_client(broker, story, max_outstanding=2)


def test_a_cancelled_task_forgets_its_request(broker: Mosquitto) -> None:
    """Cancelled while it waits for an answer, a task ends, and a late answer goes nowhere."""

    async def story(client: AsyncInferClient) -> None:
        task = asyncio.ensure_future(client.infer("double", SAMPLE, timeout_s=60))
        await asyncio.wrap_future(device.first)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        device.say(doubled(device.asked[0])[0])
        device._answer = doubled
        await client.infer("double", SAMPLE)
        assert client.unmatched == 1

    with Responder(broker.host, broker.port, nothing) as device:
        with_client(broker, story)


def test_a_timeout_says_where_it_asked(broker: Mosquitto) -> None:
    """No answer in time is the built-in TimeoutError, also where asyncio has its own."""

    async def story(client: AsyncInferClient) -> None:
        with pytest.raises(TimeoutError, match="edged/v1/double/infer/double"):
            await client.infer("double", SAMPLE, timeout_s=0.05)

    with Responder(broker.host, broker.port, nothing):
        with_client(broker, story)


def test_errors_have_their_class(broker: Mosquitto) -> None:
    """An error reply is raised as the class of its code, a wrong option before anything is sent."""
    document = protocol.error_document("no model 'x'", "unknown_model", retryable=False)

    def refuse(asked: Asked) -> list[Said]:
        return [Said(asked, json.dumps(document).encode(), {"status": "404"}, protocol.JSON)]

    async def story(client: AsyncInferClient) -> None:
        with pytest.raises(UnknownModelError) as caught:
            await client.infer("x", SAMPLE)
        assert isinstance(caught.value, ReplyError)
        with pytest.raises(BadParameterError, match="priority"):
            await client.infer("x", SAMPLE, priority="now")

    with Responder(broker.host, broker.port, refuse):
        with_client(broker, story)


def test_images_and_options_travel(broker: Mosquitto) -> None:
    """An image's type is seen from its first bytes; options become user properties."""
    image = b"\xff\xd8\xff and whatever follows"

    def empty(asked: Asked) -> list[Said]:
        return [Said(asked, b'{"model_name":"double","outputs":[]}', {"status": "200"})]

    async def story(client: AsyncInferClient) -> None:
        await client.infer_image("double", image, classes=2, deadline_ms=12.5)
        answer = await client.submit("double", image_message(image), priority="urgent")
        assert (await answer).status == 200

    with Responder(broker.host, broker.port, empty) as device:
        with_client(broker, story)
    assert [asked.content_type for asked in device.asked] == [protocol.JPEG] * 2
    assert device.asked[0].user[protocol.DEADLINE_MS] == "12.5"
    assert device.asked[0].user[protocol.CLASSIFICATION] == "2"
    assert device.asked[1].user[protocol.PRIORITY] == "urgent"


def test_status_is_waited_for(broker: Mosquitto) -> None:
    """A state that is there is told at once, one that does not come is a TimeoutError."""
    topics = protocol.Topics(protocol.DEFAULT_ROOT, "states")

    async def story() -> None:
        async with AsyncInferClient(replace(endpoint(broker), device="states")) as client:
            assert (await client.wait_status("online", 10))["boot_id"] == "b"
            assert client.status is not None
            with pytest.raises(TimeoutError, match="'draining'"):
                await client.wait_status("draining", 0.05)

    with Responder(broker.host, broker.port, nothing, topics) as device:
        device.say_status(json.dumps(protocol.status_document("online", "b", 1)).encode())
        asyncio.run(story())
        device.say_status(b"")


def test_closing_fails_what_is_outstanding(broker: Mosquitto) -> None:
    """A task that waits for an answer ends with the client."""

    async def story() -> None:
        async with AsyncInferClient(endpoint(broker)) as client:
            answer = await client.submit("double", tensor_message(SAMPLE))
        with pytest.raises(BrokerError, match="closed before"):
            await asyncio.wait_for(answer, 10)
        with pytest.raises(BrokerError, match="the client is closed"):
            await client.submit("double", tensor_message(SAMPLE))

    with Responder(broker.host, broker.port, nothing):
        asyncio.run(story())


def test_a_missing_broker_is_said() -> None:
    """Nobody listening is a BrokerError that names host and port."""
    port = free_port()

    async def story() -> None:
        with pytest.raises(BrokerError, match=f"no MQTT broker at 127.0.0.1:{port}"):
            await AsyncInferClient(Endpoint("double", port=port)).connect()

    asyncio.run(story())


def test_the_connection_outlives_a_held_up_loop(tmp_path: Path) -> None:
    """A broker that went away and came back while the loop stood still is found again."""

    async def story(client: AsyncInferClient) -> None:
        assert (await client.infer("double", SAMPLE)).status == 200
        running.kill()
        running.start()
        device.wait_subscribed()  # the loop stands still meanwhile
        assert (await client.infer("double", SAMPLE, timeout_s=30)).status == 200

    with Mosquitto(tmp_path) as running, Responder(running.host, running.port) as device:
        with_client(running, story)
