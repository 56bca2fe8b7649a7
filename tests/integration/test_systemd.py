"""The units as systemd itself reads them, the installation into a folder, mosquitto's drop-in."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edged.settings import BrokerSettings
from tests.doubles.broker import Mosquitto

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "systemd"
WAIT_S = 20.0
RECEIVE_MAXIMUM = BrokerSettings().receive_maximum

needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def _run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command outside of the surrounding make, and returns what it said."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}
    }
    return subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )


def _lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


# ------------------------------------------------------------------ units


@needs_analyze
def test_systemd_accepts_both_units(tmp_path: Path) -> None:
    """`systemd-analyze verify` has nothing to say, once the program that they start exists."""
    program = tmp_path / "edged/bin/edged"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for unit, name in (
        ("edged.service", "edged.service"),
        ("edged-build@.service", "edged-build@digits.service"),
    ):
        text = (UNITS / unit).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace("/opt/edged", str(tmp_path / "edged")))
        done = _run("systemd-analyze", "verify", "--man=no", tmp_path / name)

        assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


@needs_analyze
@pytest.mark.parametrize("unit", ["edged.service", "edged-build@.service"])
def test_the_sandbox_is_tight(unit: str) -> None:
    """The judgement of systemd itself is 2.1 or better, of 10 for a unit without any sandbox."""
    done = _run("systemd-analyze", "security", "--offline=true", "--no-pager", UNITS / unit)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze cannot judge a unit that is not installed (before 250)")

    level = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert level is not None, done.stderr
    assert float(level.group(1)) <= 2.1


@pytest.mark.parametrize("unit", ["edged.service", "edged-build@.service"])
def test_nothing_in_a_unit_hides_the_gpu(unit: str) -> None:
    """These options take the device nodes or the driver's files away, some of them silently."""
    keys = {line.partition("=")[0] for line in _lines(UNITS / unit)}

    assert not keys & {
        "ProtectClock", "DevicePolicy", "DeviceAllow", "PrivateDevices", "ProcSubset",
        "PrivateUsers", "MemoryDenyWriteExecute",
    }  # fmt: skip


def test_both_units_run_in_the_same_sandbox() -> None:
    """An engine is built under the rules it is served under; only what differs on purpose does."""

    def sandbox(unit: str) -> set[str]:
        text = (UNITS / unit).read_text(encoding="utf-8").partition("# ----")[2]
        return {line for line in text.splitlines() if re.match(r"[A-Z]\w+=", line)}

    differing = sandbox("edged.service") ^ sandbox("edged-build@.service")

    assert {line.partition("=")[0] for line in differing} == {
        "RestrictAddressFamilies", "IPAddressDeny", "RemoveIPC", "OOMScoreAdjust", "OOMPolicy",
        "WantedBy",
    }  # fmt: skip


def _copy_accounts(root: Path) -> None:
    (root / "etc").mkdir()
    for name in ("passwd", "group"):
        shutil.copy(Path("/etc") / name, root / "etc" / name)


@pytest.mark.skipif(
    shutil.which("systemd-sysusers") is None or os.geteuid() != 0,
    reason="needs systemd-sysusers, and root for a root folder of its own",
)
def test_the_user_and_the_folders_are_made(tmp_path: Path) -> None:
    """Under another root: user edged in both groups of the GPU's nodes, folders owned by it."""
    _copy_accounts(tmp_path)
    users = _run("systemd-sysusers", f"--root={tmp_path}", UNITS / "edged.sysusers")
    folders = _run("systemd-tmpfiles", f"--root={tmp_path}", "--create", UNITS / "edged.tmpfiles")

    assert (users.returncode, folders.returncode) == (0, 0), users.stderr + folders.stderr
    entry = re.search(r"^edged:x:(\d+):(\d+):", (tmp_path / "etc/passwd").read_text(), re.MULTILINE)
    assert entry is not None
    groups = (tmp_path / "etc/group").read_text()
    assert re.search(r"^video:.*\bedged$", groups, re.MULTILINE)
    assert re.search(r"^render:.*\bedged$", groups, re.MULTILINE)
    for folder in ("", "engines", "calib"):
        stat = (tmp_path / "var/lib/edged" / folder).stat()
        assert (stat.st_uid, stat.st_mode & 0o777) == (int(entry.group(1)), 0o750)


# ------------------------------------------------------------------ make install


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    done = _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def _make(target: str, destination: Path, *variables: str) -> str:
    done = _run(
        "make", "-f", "systemd/install.mk", target, f"DESTDIR={destination}",
        f"PYTHON={sys.executable}", "PIP_ARGS=--no-index --no-deps", *variables,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _files(folder: Path) -> set[str]:
    """All files but the inside of the virtual environment."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if (path.is_file() or path.is_symlink()) and "opt/edged/" not in str(path)
    }


def test_install_and_uninstall(wheel: Path, tmp_path: Path) -> None:
    """Every file gets to its place; uninstalling keeps settings and engines, PURGE=1 nothing."""
    root = tmp_path / "root"
    _make("install", root, f"WHEEL={wheel}")

    files = _files(root)
    assert files >= {
        "etc/systemd/system/edged.service", "etc/systemd/system/edged-build@.service",
        "etc/sysusers.d/edged.conf", "etc/tmpfiles.d/edged.conf", "etc/edged/edged.toml",
        "usr/local/bin/edged",
    }  # fmt: skip
    for recipe in (ROOT / "engines").glob("*/recipe.toml"):
        assert f"var/lib/edged/engines/{recipe.parent.name}/recipe.toml" in files
        assert f"var/lib/edged/calib/{recipe.parent.name}/dataset.toml" in files
    assert not any("/built/" in name for name in files)
    assert (root / "etc/edged/edged.toml").stat().st_mode & 0o777 == 0o640
    assert (root / "usr/local/bin/edged").readlink() == Path("/opt/edged/bin/edged")
    launcher = (root / "opt/edged/bin/edged").read_text(encoding="utf-8")
    assert launcher.startswith("#!/opt/edged/bin/python")
    imported = _run(root / "opt/edged/bin/python", "-Ic", "import edged; print(edged.__file__)")
    assert imported.stdout.startswith(str(root / "opt/edged/lib"))

    said = _make("uninstall", root)
    kept = _files(root)
    assert "kept:" in said
    assert not (root / "opt/edged").exists()
    assert all(name.startswith(("etc/edged/", "var/lib/edged/")) for name in kept)
    assert "etc/edged/edged.toml" in kept

    _make("uninstall", root, "PURGE=1")
    assert _files(root) == set()


def test_an_upgrade_keeps_what_the_operator_changed(wheel: Path, tmp_path: Path) -> None:
    """A second installation touches neither settings nor models; the unit follows PREFIX."""
    root = tmp_path / "root"
    recipe = root / "var/lib/edged/engines/digits/recipe.toml"
    for path in (root / "etc/edged/edged.toml", recipe):
        path.parent.mkdir(parents=True)
        path.write_text("# mine\n", encoding="utf-8")

    for _ in range(2):
        _make("install", root, f"WHEEL={wheel}", "PREFIX=/srv/edge/edged")

    assert (root / "etc/edged/edged.toml").read_text() == "# mine\n"
    assert recipe.read_text() == "# mine\n"
    unit = (root / "etc/systemd/system/edged.service").read_text(encoding="utf-8")
    assert "ExecStart=/srv/edge/edged/bin/edged serve\n" in unit
    assert "/opt/edged" not in unit


@pytest.mark.parametrize(
    ("variable", "said"),
    [("PREFIX=/", "PREFIX '/' must be"), ("PYTHON=false", "false is older than 3.10")],
)
def test_a_wrong_choice_is_refused_before_anything_is_written(
    variable: str, said: str, tmp_path: Path
) -> None:
    """The message names the value and what to give instead; the folder stays empty."""
    done = _run("make", "-f", "systemd/install.mk", "install", f"DESTDIR={tmp_path}", variable)

    assert done.returncode != 0
    assert said in done.stderr
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ mosquitto


class _Client:
    """A client that collects what it is sent, and acknowledges only if told so."""

    def __init__(self, broker: Mosquitto, name: str, *, acknowledges: bool = True) -> None:
        self.received: list[str] = []
        self.send_limit = 0
        self._changed = threading.Condition()
        self._done: set[int] = set()
        self._reasons: dict[int, ReasonCode] = {}
        self._up = threading.Event()
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=name, protocol=paho.MQTTv5,
            manual_ack=not acknowledges,
        )  # fmt: skip
        self._client.username_pw_set(name)
        self._client.on_connect = self._connected
        self._client.on_message = lambda _c, _u, message: self._note(
            lambda: self.received.append(message.topic)
        )
        self._client.on_publish = lambda _c, _u, mid, reason, _p: self._note(
            lambda: self._reasons.__setitem__(mid, reason)
        )
        self._client.on_subscribe = lambda _c, _u, mid, _r, _p: self._note(
            lambda: self._done.add(mid)
        )
        connect = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        connect.ReceiveMaximum = RECEIVE_MAXIMUM
        self._client.connect(broker.host, broker.port, properties=connect)
        self._client.loop_start()
        assert self._up.wait(WAIT_S)

    def _connected(self, *given: Any) -> None:
        self.send_limit = int(getattr(given[-1], "ReceiveMaximum", 65535))
        self._up.set()

    def _note(self, change: Callable[[], object]) -> None:
        with self._changed:
            change()
            self._changed.notify_all()

    def wait(self, condition: Callable[[], bool]) -> None:
        """Waits until the condition holds."""
        with self._changed:
            assert self._changed.wait_for(condition, WAIT_S)

    def subscribe(self, topic: str) -> None:
        """Subscribes and waits for the broker's answer."""
        _, mid = self._client.subscribe(topic, qos=1)
        assert mid is not None
        self.wait(lambda: mid in self._done)

    def may_publish(self, topic: str) -> bool:
        """Publishes with QoS 1; whether the broker took it."""
        mid = self._client.publish(topic, b"x", qos=1).mid
        self.wait(lambda: mid in self._reasons)
        return not self._reasons[mid].is_failure

    def close(self) -> None:
        """Disconnects."""
        self._client.disconnect()
        self._client.loop_stop()


def test_mosquitto_takes_the_drop_in(tmp_path: Path) -> None:
    """A client may have 200 messages on their way, and is handed as many as it asks for."""
    lines = _lines(UNITS / "mosquitto-edged.conf")
    with Mosquitto(tmp_path / "broker", lines, persistent=True) as broker:
        slow = _Client(broker, "slow", acknowledges=False)
        sender = _Client(broker, "sender")
        try:
            assert sender.send_limit == 200
            slow.subscribe("requests")
            assert all(sender.may_publish("requests") for _ in range(RECEIVE_MAXIMUM + 20))
            slow.wait(lambda: len(slow.received) == RECEIVE_MAXIMUM)
        finally:
            slow.close()
            sender.close()


def test_the_documented_access_list_lets_each_do_its_part(tmp_path: Path) -> None:
    """Device, client and stranger may do what docs/operations.md says, and no more."""
    document = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    found = re.search(r"^```acl\n(.*?)^```", document, re.MULTILINE | re.DOTALL)
    assert found is not None
    rules = tmp_path / "acl"
    rules.write_text(found.group(1), encoding="utf-8")
    base = "edged/v1/press-7"
    with Mosquitto(tmp_path / "broker", [f"acl_file {rules}"]) as broker:
        device, line, other = (_Client(broker, name) for name in ("press-7", "line-3", "other"))
        try:
            for client in (device, line, other):
                client.subscribe("#")
            assert line.may_publish(f"{base}/infer/digits")
            assert line.may_publish(f"{base}/infer/digits/rq/line-3/1")
            assert not line.may_publish(f"{base}/infer/digits/rq/other/1")
            assert not line.may_publish(f"{base}/status")
            assert not other.may_publish(f"{base}/infer/digits")
            own = ["reply/other", "reply/line-3", "infer/digits/rs/line-3/1", "tele/metrics"]
            for topic in (*own, "event/started", "dead", "status"):
                assert device.may_publish(f"{base}/{topic}")
            assert not device.may_publish("edged/v1/press-8/status")
            assert not device.may_publish(f"{base}/infer/digits")

            line.wait(lambda: f"{base}/status" in line.received)
            assert line.received == [
                f"{base}/{topic}"
                for topic in ("reply/line-3", "infer/digits/rs/line-3/1", "status")
            ]
            device.wait(lambda: len(device.received) == 2)
            assert device.received == [
                f"{base}/infer/digits",
                f"{base}/infer/digits/rq/line-3/1",
            ]
            other.wait(lambda: other.received == [f"{base}/reply/other"])
        finally:
            for client in (device, line, other):
                client.close()
