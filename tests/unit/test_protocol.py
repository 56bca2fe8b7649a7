"""Topics and documents of the protocol."""

from __future__ import annotations

import pytest

from edged import protocol
from edged.protocol import RequestTopic, Topics, check_response_topic

TOPICS = Topics("edged/v1", "dev1")


def test_topics_stay_within_seven_slashes() -> None:
    """Cloud brokers carry at most 8 levels, also with a root of two."""
    longest = TOPICS.infer_v3("model", "client", "request")
    assert longest.count("/") == protocol.MAX_SLASHES
    assert TOPICS.reply_v3("m", "c", "r").count("/") == protocol.MAX_SLASHES


def test_no_topic_has_more_than_seven_slashes() -> None:
    """Neither any that is written nor any filter, whatever is added to `Topics`."""
    made: list[str] = [*TOPICS.subscriptions, *TOPICS.uplink_subscriptions]
    for name, member in vars(Topics).items():
        if isinstance(member, property):
            made += [value for value in [getattr(TOPICS, name)] if isinstance(value, str)]
        elif callable(member) and not name.startswith(("_", "parse_")):
            count = member.__code__.co_argcount - 1
            made.append(getattr(TOPICS, name)(*["x"] * count))

    assert TOPICS.root.count("/") == 1, "the longest root there may be"
    assert {TOPICS.status, TOPICS.report("x"), TOPICS.ack, TOPICS.command("x")} <= set(made)
    assert all(topic.count("/") <= protocol.MAX_SLASHES for topic in made)


def test_request_topics_are_read_back() -> None:
    """What `infer` and `infer_v3` write, `parse_request` reads."""
    assert TOPICS.parse_request(TOPICS.infer("m")) == RequestTopic("m")
    assert TOPICS.parse_request(TOPICS.infer_v3("m", "c", "7")) == RequestTopic("m", "c", "7")


@pytest.mark.parametrize(
    "topic",
    [
        "edged/v1/dev1/infer", "edged/v1/dev2/infer/m", "edged/v1/dev1/infer/m/rq/c",
        "edged/v1/dev1/infer/m/rs/c/r", "edged/v1/dev1/infer/m/rq//r", "edged/v1/dev1/status",
        "edged/v1/dev1/infer/m/rq/c/r/x",
    ],
)  # fmt: skip
def test_other_topics_are_no_requests(topic: str) -> None:
    """Replies, foreign devices and incomplete topics are not read as requests."""
    assert TOPICS.parse_request(topic) is None


def test_own_publications_match_no_own_subscription() -> None:
    """The daemon never hears itself: no loop is possible."""
    subscribed = [filter_.split("/") for filter_ in TOPICS.subscriptions]
    published = [
        TOPICS.status, TOPICS.dead, TOPICS.telemetry("metrics"), TOPICS.event("result"),
        TOPICS.reply("c"), TOPICS.reply_v3("m", "c", "r"),
    ]  # fmt: skip
    for topic in (one.split("/") for one in published):
        for levels in subscribed:
            assert len(levels) != len(topic) or any(
                want not in {"+", have} for want, have in zip(levels, topic, strict=True)
            )


@pytest.mark.parametrize("root", ["", "a/b/c", "a//b", "+", "#", "$SYS", "a/"])
def test_roots_that_make_no_topics_are_refused(root: str) -> None:
    """A root of wildcards, empty or too many levels is a mistake in the settings."""
    with pytest.raises(ValueError, match="root"):
        Topics(root, "d")


@pytest.mark.parametrize("device", ["", "a/b", "+", "a#", "$d", "a\x00"])
def test_device_names_that_are_no_level_are_refused(device: str) -> None:
    """A device's name is one level of a topic."""
    with pytest.raises(ValueError, match="device"):
        Topics("edged/v1", device)


def test_own_topics_are_refused_even_under_a_configured_prefix() -> None:
    """A prefix as wide as the root still does not open the device's own topics."""
    extra = ("edged/v1/",)
    assert check_response_topic("edged/v1/other/x", "edged/v1", [TOPICS], extra) is None
    for topic in (TOPICS.status, TOPICS.infer("m"), TOPICS.dead, TOPICS.base):
        assert check_response_topic(topic, "edged/v1", [TOPICS], extra) is not None


@pytest.mark.parametrize("root", ["edged", "edged/v1"])
def test_reply_topics_of_the_fleet_are_allowed_under_any_root(root: str) -> None:
    """What `reply` makes may be published to, by this device and by its neighbours."""
    mine = Topics(root, "d")
    assert check_response_topic(mine.reply("c"), root, [mine]) is None
    assert check_response_topic(Topics(root, "e").reply("c"), root, [mine]) is None


def test_error_document_has_a_delay_only_where_there_is_one() -> None:
    """No made-up advice: retry_after_ms stands there only if it is known."""
    plain = protocol.error_document("no", "bad_header", retryable=False)
    assert plain == {"error": "no", "code": "bad_header", "retryable": False}
    later = protocol.error_document("no", "queue_full", retryable=True, retry_after_ms=5)
    assert later["retry_after_ms"] == 5


def test_birth_and_will_of_one_run_can_be_paired() -> None:
    """Run and connection number stand in both, so that a late will is recognised."""
    birth = protocol.status_document("online", "b1", 3, version="1", ts=1.5, models=("m",))
    will = protocol.status_document("offline", "b1", 3)
    assert (birth["boot_id"], birth["session"]) == (will["boot_id"], will["session"])
    assert birth["protocol"] == protocol.PROTOCOL_VERSION
