"""What a pool changes for one device: topics, the answer's address, settings, joining, leaving."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from edged import protocol
from edged.errors import BadResponseTopicError, ConfigError
from edged.metrics import Metrics
from edged.mqtt.connection import Wake
from edged.serve.decode import Decoder
from edged.serve.pool import Membership
from edged.serve.request import Arrival, Receipt
from edged.serve.sending import Sending
from edged.serve.subscriptions import Subscriptions
from edged.settings import load_settings

POOL = protocol.PoolTopics("edged/v1", "line-3")
TOPICS = protocol.Topics("edged/v1", "press-7")
OWN = TOPICS.subscriptions


def no_model(_name: str) -> None:
    """No model is served."""


def asked(topic: str, reply: str) -> Arrival:
    """A request's envelope."""
    return Arrival(topic, b"{}", Receipt(1, 1, 1, 1), 0.0, response_topic=reply)


def test_topics_of_a_pool_are_read_as_they_are_written() -> None:
    """Model and class come back; other pools' topics and other forms are none of this pool's."""
    parse = POOL.parse_request
    assert parse(POOL.infer("m")) == protocol.RequestTopic("m", pooled=True)
    assert parse(POOL.infer_class("m", "urgent")) == protocol.RequestTopic(
        "m", priority="urgent", pooled=True
    )
    for foreign in (
        protocol.PoolTopics("edged/v1", "line-4").infer("m"),
        TOPICS.infer("m"),
        POOL.infer("m/rq/me/1"),
        POOL.infer("m/"),
    ):
        assert parse(foreign) is None
    assert all(filter_.count("/") <= protocol.MAX_SLASHES + 2 for filter_ in POOL.subscriptions)
    assert POOL.infer_class("m", "urgent").count("/") <= protocol.MAX_SLASHES


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "$share", "a\x00"])
def test_a_pool_name_that_is_no_level_is_refused(name: str) -> None:
    """It is a level of topics and the name of a group."""
    with pytest.raises(ValueError, match="pool name"):
        protocol.PoolTopics("edged/v1", name)


def test_no_device_may_be_called_pool() -> None:
    """Its topics would be those of a pool called ``infer``."""
    with pytest.raises(ValueError, match="taken by the topics of pools"):
        protocol.Topics("edged/v1", "pool")
    with pytest.raises(ConfigError, match="taken by the topics of pools"):
        load_settings(device={"name": "pool"})


def test_a_pool_needs_mqtt_5() -> None:
    """Its requests are answered to their Response Topic, which MQTT 3.1.1 has not."""
    with pytest.raises(ConfigError, match=r'needs broker\.mqtt_version = "5"'):
        load_settings(serve={"pool": "line-3"}, broker={"mqtt_version": "3.1.1"})
    with pytest.raises(ConfigError, match=r"serve\.pool"):
        load_settings(serve={"pool": "a/b"})


def test_only_an_answer_to_the_pool_names_the_device() -> None:
    """Who asked the device itself knows it; a device outside the pool does not know the topic."""
    member = Decoder(TOPICS, no_model, pool=POOL)
    reply = POOL.reply("me")
    assert member.reply_to(asked(POOL.infer("m"), reply)).device == "press-7"
    assert member.reply_to(asked(TOPICS.infer("m"), reply)).device == ""
    assert Decoder(TOPICS, no_model).reply_to(asked(POOL.infer("m"), reply)).device == ""


def test_a_pool_topic_is_no_response_topic() -> None:
    """Else a device could be made to ask its own pool, without end."""
    member = Decoder(TOPICS, no_model, pool=POOL, reply_prefixes=("edged/v1/pool/",))
    with pytest.raises(BadResponseTopicError):
        member.reply_to(asked(POOL.infer("m"), POOL.infer("m")))


class Broker(Sending):
    """Notes what is asked for; answers an UNSUBSCRIBE at once, after what ``sends`` does."""

    def __init__(self, sends: Callable[[], None] = lambda: None) -> None:
        super().__init__(Wake())
        self.filters: tuple[str, ...] = ()
        self.sends = sends
        self.told: Subscriptions | None = None

    def subscribe(self, filters: tuple[str, ...]) -> None:
        """Notes them."""
        self.filters = filters

    def unsubscribe(self, filters: tuple[str, ...]) -> None:
        """Forgets them."""
        self.filters = tuple(each for each in self.filters if each not in filters)
        self.sends()
        if self.told:
            self.told.left(1)


def membership(broker: Broker, most: int = 8) -> tuple[Membership, Subscriptions]:
    """A device of the pool whose link uses this broker."""
    broker.told = subscriptions = Subscriptions(OWN + POOL.subscriptions, broker, Metrics())
    return Membership(POOL, subscriptions, most), subscriptions


def test_a_device_leaves_its_pool_and_joins_it_again() -> None:
    """Its own topics stay; at each connection it asks for what it wants then."""
    broker = Broker()
    member, subscriptions = membership(broker)
    subscriptions.connected(shared=True)
    assert broker.filters == OWN + POOL.subscriptions
    assert member.leave()
    subscriptions.connected(shared=True)
    assert broker.filters == OWN
    member.join()
    assert broker.filters == OWN + POOL.subscriptions


def test_a_broker_without_shared_subscriptions_is_not_asked_for_them() -> None:
    """It would end the connection; the device serves its own topics, and counts."""
    broker = Broker()
    metrics = Metrics()
    subscriptions = Subscriptions(OWN + POOL.subscriptions, broker, metrics)
    subscriptions.connected(shared=False)
    assert broker.filters == OWN
    assert metrics.total("subscriptions_refused_total") == 1
    subscriptions.connected(shared=False)
    assert metrics.total("subscriptions_refused_total") == 1


def test_a_device_without_a_pool_leaves_nothing() -> None:
    """Nothing is sent, and nothing is waited for."""
    broker = Broker()
    alone = Membership(None, Subscriptions(OWN, broker, Metrics()), 8)
    alone.join()
    assert alone.leave()
    assert alone.leave_empty(lambda: 99, lambda: 0, 60.0) < 1.0
    assert broker.filters == ()


def test_leaving_goes_on_until_the_broker_has_nothing_more() -> None:
    """While requests come before the answer, or the device is full, the broker may have more."""
    arrived = itertools.chain([3, 2, 1], itertools.repeat(0))
    total = 0

    def sends() -> None:
        nonlocal total
        total += next(arrived)

    member, _ = membership(Broker(sends))
    outstanding = iter([8, 7, 7, 7])
    member.leave_empty(lambda: next(outstanding), lambda: total, 60.0)
    assert total == 6
    assert next(outstanding, None) is None


def test_leaving_ends_when_its_time_is_up() -> None:
    """Requests to the device itself may never cease."""
    numbers = itertools.count()
    member, _ = membership(Broker())
    assert member.leave_empty(lambda: 0, lambda: next(numbers), 0.02) < 30.0
