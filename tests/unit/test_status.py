"""The retained status: which state it tells when, with what progress and which models."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edged import __version__
from edged.protocol import STATES, status_document
from edged.report.status import Status


def read(status: Status, state: str = "online", session: int = 1) -> dict[str, Any]:
    """The document."""
    return dict(json.loads(status.document(state, session)))


def test_it_begins_warming_without_models() -> None:
    """Models that are loaded already are not served yet."""
    status = Status(lambda: ("digits",))
    document = read(status)

    assert status.state == "warming"
    assert (document["state"], document["models"]) == ("warming", [])
    assert document["version"] == __version__
    assert "progress" not in document


def test_progress_is_told() -> None:
    """With the state that it belongs to."""
    status = Status(tuple)
    status.change("warming", "digits on cpu: 1 of 3 steps")

    assert read(status)["progress"] == "digits on cpu: 1 of 3 steps"
    assert repr(status) == "<Status warming digits on cpu: 1 of 3 steps>"


@pytest.mark.parametrize("state", STATES)
def test_models_are_named_while_they_are_served(state: str) -> None:
    """With a device out, too; not before, and not at the end."""
    status = Status(lambda: ("digits", "watch"))
    status.change(state)

    served = state in {"online", "degraded"}
    assert read(status)["state"] == state
    assert read(status)["models"] == (["digits", "watch"] if served else [])


def test_a_will_says_offline_whatever_the_state_is() -> None:
    """It is written when the connection begins, for when it has ended."""
    status = Status(lambda: ("digits",))
    status.change("degraded", "cuda:1 failed")

    will = read(status, "offline", 7)

    assert (will["state"], will["models"], will["session"]) == ("offline", [], 7)
    assert "progress" not in will
    assert status.state == "degraded"


def test_a_change_is_one_only_if_something_is_new() -> None:
    """So that the broker is told once: of a state, of progress, of models."""
    models = ["digits"]
    status = Status(lambda: tuple(models))

    assert status.change("online")
    assert not status.change("online")
    assert status.change("degraded", "cpu:1 failed")
    assert not status.change("degraded", "cpu:1 failed")
    assert status.change("online")
    models.append("watch")
    assert status.change("online")
    assert not status.change("online")


def test_one_run_has_one_boot_id() -> None:
    """And another run another one."""
    one, other = Status(tuple), Status(tuple)

    assert read(one)["boot_id"] == read(one, "offline", 2)["boot_id"]
    assert read(one)["boot_id"] != read(other)["boot_id"]


def test_the_members_are_those_of_the_protocol() -> None:
    """Without progress, exactly what `status_document` writes."""
    assert list(read(Status(tuple))) == list(status_document("online", "b", 1))


def test_document_tells_what_serves_and_why() -> None:
    """Precision and its reason, while there are models; another engine is news."""
    engines: dict[str, dict[str, object]] = {"m": {"engine": "a", "precision": "int8", "notes": []}}
    status = Status(lambda: ("m",), lambda: engines)
    assert status.change("online")
    assert not status.change("online")
    assert json.loads(status.document("online", 1))["engines"] == engines
    assert "engines" not in json.loads(status.document("offline", 1))
    engines["m"] = {"engine": "b", "precision": "fp16", "notes": ["INT8 was not taken"]}
    assert status.change("online")
