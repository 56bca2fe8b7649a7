"""Desired settings: read, judged, laid over the device's own, reported. Pure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.control_plane import desired_document, reported_document
from edged.errors import DesiredError
from edged.events import json_bytes
from edged.protocol import MAX_DESIRED_BYTES
from edged.report.configuration import Configuration, ConfigurationPorts, settings_at_start
from edged.report.desired_file import keep_desired, read_desired
from edged.report.twin import (
    MASK,
    MOST_SECTIONS,
    Desired,
    Step,
    fitting,
    masked,
    overlay,
    parse_desired,
    step,
)
from edged.settings import LIVE, LOCAL_SECTIONS, LOCAL_SETTINGS, Settings


def own(folder: Path, **sections: Any) -> Settings:
    """A device's own settings."""
    base = {"uplink": {"enabled": True}, "paths": {"desired": folder / "desired.json"}}
    return Settings.model_validate(base | sections)


def document(version: int, **sections: Any) -> bytes:
    """A desired document."""
    return json.dumps(desired_document(version, sections)).encode()


class Death(BaseException):
    """The process ends here."""


class Device:
    """A configuration whose applications are noted."""

    def __init__(self, folder: Path, **sections: Any) -> None:
        settings = own(folder, **sections)
        started, desired = settings_at_start(settings)
        self.applied: list[Settings] = []
        self.wrong: dict[str, str] = {}
        self.dies = False
        self.configuration = Configuration(
            settings,
            started,
            desired,
            ConfigurationPorts(self.apply, lambda _settings: self.wrong, dict),
        )

    def apply(self, settings: Settings) -> None:
        """Notes it, or dies."""
        if self.dies:
            raise Death
        self.applied.append(settings)

    def keys(self) -> dict[str, str]:
        """What became of each setting."""
        return {key.path: key.status for key in self.configuration.twin().keys}


def test_a_document_of_thousands_of_keys_gets_a_short_answer(tmp_path: Path) -> None:
    """Wherever the keys are, the reported document stays small and says how many are not named."""
    device, most = Device(tmp_path), 64 * 1024
    sections: dict[str, Any] = {f"a{number}" + "x" * 400: {} for number in range(MOST_SECTIONS)}
    settings: dict[str, Any] = {"serve": {f"a{number}" + "x" * 400: 1 for number in range(400)}}

    for version, config in enumerate((sections, settings, dict.fromkeys(sections, 7)), 1):
        device.configuration.desire(document(version, **config))
        twin = device.configuration.twin()
        assert twin.status == "rejected"
        assert len(json_bytes(reported_document(twin, "b", 1.0)["keys"])) < most
    device.configuration.desire(document(9, **settings))
    assert device.configuration.twin().keys[-1].reason == "and 300 more"
    device.configuration.desire(document(10, **sections, one={}))
    assert [key.reason for key in device.configuration.twin().keys] == [
        f"more than {MOST_SECTIONS} sections in one document"
    ]


@pytest.mark.parametrize("most", [0, 300, 2000, 100_000])
def test_a_reported_document_is_made_to_fit(tmp_path: Path, most: int) -> None:
    """Its members are left out one after the other, and it names them; what fits is not touched."""
    whole = reported_document(Device(tmp_path).configuration.twin(), "b", 1.0)

    found = fitting(whole, most)

    left_out = {0: ["config", "keys", "models"], 300: ["config"], 2000: ["config"]}.get(most, [])
    assert found.get("left_out", []) == left_out
    assert found | {"left_out": 0} == whole | {"left_out": 0} | {
        name: type(whole[name])() for name in left_out
    }
    assert most == 0 or len(json_bytes(found)) <= most


def test_what_is_live_is_applied_and_the_rest_is_pending(tmp_path: Path) -> None:
    """Each key says what became of it; what needs a restart is in effect at the next start."""
    device = Device(tmp_path)

    assert device.configuration.desire(
        document(1, log={"level": "debug"}, serve={"max_request_bytes": 5, "drain_s": 3})
    )

    twin = device.configuration.twin()
    assert device.keys() == {
        "log.level": "applied", "serve.drain_s": "applied", "serve.max_request_bytes": "pending",
    }  # fmt: skip
    assert (twin.status, twin.applied_version, twin.desired_version) == ("pending_restart", 1, 1)
    assert device.applied[-1].log.level == "debug"
    assert device.applied[-1].serve.max_request_bytes != 5
    again = Device(tmp_path)
    assert again.configuration.effective.serve.max_request_bytes == 5
    assert again.configuration.twin().status == "applied"


def test_the_same_document_again_changes_nothing(tmp_path: Path) -> None:
    """It is applied once, however often it comes, and over a restart too."""
    device = Device(tmp_path)
    payload = document(1, log={"level": "debug"})

    assert [device.configuration.desire(payload) for _ in range(3)] == [True, False, False]
    assert len(device.applied) == 1
    again = Device(tmp_path)
    assert not again.configuration.desire(payload)
    assert again.applied == []


@pytest.mark.parametrize(
    ("sections", "path"),
    [
        ({"log": {"level": "loud"}}, "log.level"),
        ({"log": {"colour": True}}, "log.colour"),
        ({"logs": {}}, "logs"),
        ({"log": {"level": "debug"}, "serve": {"queue_samples": -1}}, "serve.queue_samples"),
        ({"report": {"models": {"digits": {"results": "some"}}}}, "report.models.digits.results"),
        ({"serve": {"versions": {"digits": "../.."}}}, "serve.versions.digits"),
        *[({section: {"x": 1}}, f"{section}.x") for section in sorted(LOCAL_SECTIONS)],
        *[({n.split(".")[0]: {n.split(".")[1]: []}}, n) for n in sorted(LOCAL_SETTINGS)],
    ],
)
def test_a_document_with_any_error_is_refused_whole(
    tmp_path: Path, sections: dict[str, Any], path: str
) -> None:
    """Nothing of it is applied, the last good one stays, and the reason names the setting."""
    device = Device(tmp_path)
    device.configuration.desire(document(1, serve={"drain_s": 7}))

    device.configuration.desire(document(2, **sections))

    twin = device.configuration.twin()
    assert device.keys()[path] == "rejected"
    assert (twin.status, twin.applied_version, twin.desired_version) == ("rejected", 1, 2)
    assert len(device.applied) == 1
    assert Device(tmp_path).configuration.effective.serve.drain_s == 7
    device.configuration.desire(document(3, serve={"drain_s": 8}))
    assert device.configuration.twin().status == "applied"


def test_what_the_device_does_not_have_is_refused(tmp_path: Path) -> None:
    """A model or version that is not in the store is a reason like any other."""
    device = Device(tmp_path)
    device.wrong = {"serve.versions.digits": "not in the store"}

    device.configuration.desire(document(1, serve={"versions": {"digits": "0" * 12}}))

    assert device.keys()["serve.versions.digits"] == "rejected"
    assert read_desired(tmp_path / "desired.json") is None


def test_an_old_version_and_a_rival_are_refused(tmp_path: Path) -> None:
    """Only a larger version replaces what is in effect."""
    device = Device(tmp_path)
    device.configuration.desire(document(5, serve={"drain_s": 5}))

    device.configuration.desire(document(4, serve={"drain_s": 4}))
    old = device.configuration.twin()
    device.configuration.desire(document(5, serve={"drain_s": 55}))
    rival = device.configuration.twin()

    assert "older than 5" in old.keys[0].reason
    assert "another document of version 5" in rival.keys[0].reason
    assert device.configuration.effective.serve.drain_s == 5


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"{", b"\xff\xfe", b"[]", b"null", b"1", b'{"version": 1}', b"[" * 100_000,
        b'{"version": "1", "config": {}}', b'{"version": true, "config": {}}',
        b'{"version": -1, "config": {}}', b'{"version": 1e3, "config": {}}',
        b'{"version": 1, "config": {"log": []}}', b'{"version": 1, "config": {"x": NaN}}',
        b'{"version": 9223372036854775808, "config": {}}', b" " * (MAX_DESIRED_BYTES + 1),
    ],
)  # fmt: skip
def test_garbage_is_refused(tmp_path: Path, payload: bytes) -> None:
    """It changes nothing and is reported as rejected."""
    device = Device(tmp_path)

    device.configuration.desire(payload)

    twin = device.configuration.twin()
    assert (twin.status, twin.applied_version) == ("rejected", None)
    assert device.applied == []
    assert not (tmp_path / "desired.json").exists()


def test_an_empty_document_gives_the_device_its_own_settings_back(tmp_path: Path) -> None:
    """What a later document does not name is as the device has it."""
    device = Device(tmp_path, serve={"drain_s": 9})
    device.configuration.desire(document(1, serve={"drain_s": 3}))
    device.configuration.desire(document(2))

    assert device.configuration.effective.serve.drain_s == 9
    assert device.configuration.twin().status == "applied"


def test_desired_settings_go_before_the_file_also_after_a_reload(tmp_path: Path) -> None:
    """A reload changes what is not desired, and nothing else."""
    device = Device(tmp_path, serve={"drain_s": 9})
    device.configuration.desire(document(1, serve={"drain_s": 3}))

    device.configuration.reload(own(tmp_path, serve={"drain_s": 10, "stuck_s": 4}))

    assert device.configuration.effective.serve.drain_s == 3
    assert device.configuration.effective.serve.stuck_s == 4


def test_without_an_uplink_nothing_is_desired(tmp_path: Path) -> None:
    """What was kept is not looked at."""
    Device(tmp_path).configuration.desire(document(1, serve={"drain_s": 3}))

    started, desired = settings_at_start(own(tmp_path, uplink={"enabled": False}))

    assert desired is None
    assert started.serve.drain_s != 3


@pytest.mark.parametrize("text", ["", "{", '{"version": 1, "config": {"log": {"level": 3}}}'])
def test_a_damaged_file_leaves_the_device_s_own_settings(tmp_path: Path, text: str) -> None:
    """It is said, and the service starts."""
    (tmp_path / "desired.json").write_text(text, encoding="utf-8")

    started, desired = settings_at_start(own(tmp_path))

    assert desired is None
    assert started == own(tmp_path)


def test_what_cannot_be_kept_is_not_taken_over(tmp_path: Path) -> None:
    """A folder that cannot be written: refused with the reason, and tried again when it comes."""
    blocked = tmp_path / "blocked"
    blocked.write_text("a file, not a folder", encoding="utf-8")
    device = Device(tmp_path, paths={"desired": blocked / "desired.json"})
    payload = document(1, serve={"drain_s": 3})

    device.configuration.desire(payload)
    refused = device.configuration.twin()
    blocked.unlink()
    device.configuration.desire(payload)

    assert "cannot be kept" in refused.keys[0].reason
    assert device.configuration.effective.serve.drain_s == 3


@pytest.mark.parametrize(
    ("where", "kept"),
    [("edged.report.desired_file.replace_file", 1), ("edged.report.desired_file.sync_folder", 2),
     ("apply", 2)],
)  # fmt: skip
def test_death_at_any_moment_of_taking_over_leaves_one_document_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, kept: int
) -> None:
    """The next run begins with the old or the new one, and the retained copy brings it up to it."""
    device = Device(tmp_path)
    device.configuration.desire(document(1, serve={"drain_s": 1, "queue_samples": 11}))

    def die(*_: object, **__: object) -> None:
        raise Death

    newer = document(2, serve={"drain_s": 2, "queue_samples": 22})
    with monkeypatch.context() as dying:
        if where == "apply":
            device.dies = True
        else:
            dying.setattr(where, die)
        with pytest.raises(Death):
            device.configuration.desire(newer)

    again = Device(tmp_path)
    begun = again.configuration.effective.serve
    assert (begun.drain_s, begun.queue_samples) == (kept, 11 * kept)
    again.configuration.desire(newer)
    serve = again.configuration.effective.serve
    assert (serve.drain_s, serve.queue_samples) == (2, 22)
    assert len(again.applied) == 2 - kept
    assert set(again.keys().values()) == {"applied"}


def test_secrets_are_masked(tmp_path: Path) -> None:
    """Whether there is a password is told, never which."""
    settings = own(tmp_path, broker={"username": "u", "password": "hunter2"})

    text = json.dumps(masked(settings))

    assert "hunter2" not in text
    assert json.loads(text)["broker"]["password"] == MASK
    assert json.loads(text)["uplink"]["password"] is None


def test_every_live_setting_can_be_desired() -> None:
    """None of them is reserved to the device."""
    assert {name.split(".")[0] for name in LIVE}.isdisjoint(LOCAL_SECTIONS)
    assert LIVE.isdisjoint(LOCAL_SETTINGS)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
SECTIONS = st.sampled_from([*Settings.model_fields, "x"])
FIELDS = st.sampled_from(["level", "drain_s", "models", "slo_ms", "versions", "results", "x"])


@given(
    st.dictionaries(SECTIONS, st.dictionaries(FIELDS, JSON, max_size=3) | JSON, max_size=3),
    st.integers(0, 9),
)
def test_any_document_is_taken_over_or_refused_with_reasons(config: Any, version: int) -> None:
    """Nothing else is raised; what is taken over is unchanged by being kept and read again."""
    settings = Settings.model_validate({})
    try:
        desired = parse_desired(json.dumps(desired_document(version, config)).encode())
        wanted = overlay(settings, desired)
    except DesiredError:
        return
    again = parse_desired(json.dumps(desired_document(version, desired.config)).encode())
    assert again.digest == desired.digest
    assert overlay(settings, again) == wanted
    assert overlay(wanted, desired) == wanted


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), max_size=12))
def test_the_largest_version_wins_in_any_order(sent: list[tuple[int, int]]) -> None:
    """Whatever comes twice, late or out of order: versions never go back, the first stays."""
    applied: Desired | None = None
    for version, value in sent:
        desired = Desired(version, {"serve": {"drain_s": value}})
        if step(desired, applied) is Step.APPLY:
            assert applied is None or version > applied.version
            applied = desired
    if sent:
        assert applied is not None
        newest = max(version for version, _ in sent)
        assert applied.version == newest
        first = next(value for version, value in sent if version == newest)
        assert applied.config == {"serve": {"drain_s": first}}


@given(st.dictionaries(st.sampled_from(["log", "serve"]), st.dictionaries(FIELDS, JSON)))
def test_what_is_kept_is_read_again(tmp_path_factory: Any, config: Any) -> None:
    """Any document that could be read once can be read from the disk."""
    path = tmp_path_factory.getbasetemp() / "kept.json"
    desired = parse_desired(json.dumps(desired_document(3, config)).encode())
    keep_desired(path, desired)
    found = read_desired(path)
    assert found is not None
    assert found.digest == desired.digest
