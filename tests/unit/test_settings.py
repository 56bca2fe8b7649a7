"""Settings: where they come from, which source wins, and what a wrong one is answered with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edged.errors import ConfigError
from edged.settings import load_settings


def _file(folder: Path, text: str) -> Path:
    path = folder / "edged.toml"
    path.write_text(text, encoding="utf-8")
    return path


def _credentials(folder: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    """Fills a credentials folder as LoadCredential= does."""
    for name, value in files.items():
        path = folder / "credentials" / f"edged.{name}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(value, encoding="utf-8")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder / "credentials"))


def test_sources_win_field_by_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code over environment over credentials over file; what one lacks is the next's."""
    file = _file(
        tmp_path,
        '[broker]\nhost = "file"\nport = 1\nusername = "file"\nkeepalive_s = 7\n',
    )
    _credentials(
        tmp_path,
        monkeypatch,
        {
            "broker.port": "2",
            "broker.username": "credential",
            "broker.password": "credential\n",
        },
    )
    monkeypatch.setenv("EDGED_BROKER__PORT", "3")
    monkeypatch.setenv("EDGED_BROKER__USERNAME", "environment")

    broker = load_settings(file, broker={"username": "code"}).broker

    assert (broker.host, broker.port, broker.username) == ("file", 3, "code")
    assert broker.password is not None
    assert broker.password.get_secret_value() == "credential"
    assert broker.keepalive_s == 7


def test_the_environment_may_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EDGED_CONFIG stands in for --config; --config goes before it."""
    monkeypatch.setenv("EDGED_CONFIG", str(_file(tmp_path, '[device]\nname = "press-7"\n')))
    (tmp_path / "other").mkdir()
    other = _file(tmp_path / "other", '[device]\nname = "press-8"\n')

    assert load_settings().device.name == "press-7"
    assert load_settings(other).device.name == "press-8"


def test_a_list_in_the_environment_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list works as JSON; a bare word is refused with the form that is wanted."""
    monkeypatch.setenv("EDGED_SERVE__MODELS", '["digits", "watch"]')
    assert load_settings().serve.models == ("digits", "watch")

    monkeypatch.setenv("EDGED_SERVE__MODELS", "digits")
    with pytest.raises(ConfigError, match="a list in the environment is JSON"):
        load_settings()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[broker]\nport = 0\n", "broker.port: Input should be greater than or equal to 1"),
        ("[broker]\nprot = 1883\n", "broker.prot: Extra inputs are not permitted"),
        ("[brokre]\nport = 1883\n", "brokre: Extra inputs are not permitted"),
        ("[broker]\nbackoff_min_s = 60\n", "backoff_min_s 60.0 is above backoff_max_s 30.0"),
        ('[broker]\ncert_file = "c.pem"\n', "cert_file and key_file go together"),
        ('[serve]\nreply_prefixes = ["plant"]\n', "reply prefix 'plant' must end in '/'"),
        ('[serve]\nreply_prefixes = ["a/#/"]\n', "no wildcard"),
        ('[device]\nname = "a/b"\n', "device.name: String should match pattern"),
        ("[serve]\nmax_deadline_s = nan\n", "serve.max_deadline_s: Input should be"),
        ("[broker\n", "cannot be read"),
    ],
)
def test_a_wrong_file_is_refused_with_field_and_rule(text: str, said: str, tmp_path: Path) -> None:
    """The message names the file, the field and what is allowed."""
    file = _file(tmp_path, text)

    with pytest.raises(ConfigError) as caught:
        load_settings(file)

    assert said in caught.value.message
    assert str(file) in caught.value.message


def test_every_wrong_field_is_named_at_once(tmp_path: Path) -> None:
    """Whoever mends a file sees all of its mistakes in one go."""
    file = _file(tmp_path, '[broker]\nport = 0\n[serve]\ndevice = "gpu"\n[log]\nlevel = "loud"\n')

    with pytest.raises(ConfigError) as caught:
        load_settings(file)

    assert all(f in caught.value.message for f in ("broker.port", "serve.device", "log.level"))


def test_a_file_that_was_named_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong path is no silent fall-back to the defaults."""
    with pytest.raises(ConfigError, match="does not exist"):
        load_settings(tmp_path / "missing.toml")

    monkeypatch.setenv("EDGED_CONFIG", str(tmp_path / "missing.toml"))
    with pytest.raises(ConfigError, match="does not exist"):
        load_settings()


@pytest.mark.parametrize("overrides", [{}, {"broker": {"port": 0}}])
def test_secrets_are_not_shown(
    overrides: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the settings' own text nor an error about another field holds a password."""
    _credentials(tmp_path, monkeypatch, {"broker.password": "hunter2"})

    try:
        shown = repr(load_settings(**overrides))
    except ConfigError as err:
        shown = err.message

    assert "hunter2" not in shown


def test_a_credential_of_an_unknown_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A typing mistake in LoadCredential= is found at start and not by the broker's refusal."""
    _credentials(tmp_path, monkeypatch, {"broker.pasword": "hunter2"})

    with pytest.raises(ConfigError, match=r"broker\.pasword: Extra inputs"):
        load_settings()


def test_settings_cannot_be_changed() -> None:
    """A component cannot alter what another one reads."""
    with pytest.raises(ValueError, match="frozen"):
        load_settings().broker.port = 1
