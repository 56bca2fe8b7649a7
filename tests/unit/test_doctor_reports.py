"""What the doctor says of the outbox and of the way to the control plane."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from edged.doctor_line import Line
from edged.doctor_reports import check_outbox, check_uplink
from edged.metrics import Metrics
from edged.report.outbox import Outbox
from edged.report.outbox_file import DATABASE
from edged.report_settings import UplinkSettings
from edged.settings import BrokerSettings, OutboxSettings

ON = UplinkSettings(enabled=True)
WAIT_S = 30.0
SMALL = 65_536


def small(path: Path) -> OutboxSettings:
    """Limits that any disk has room for."""
    return OutboxSettings(
        path=path,
        rollout_max_bytes=SMALL,
        event_max_bytes=SMALL,
        result_max_bytes=SMALL,
        telemetry_max_bytes=SMALL,
    )


def states(lines: list[Line]) -> list[tuple[str, str]]:
    """State and subject of each line."""
    return [(line.state, line.what) for line in lines]


def test_without_an_uplink_nothing_is_looked_at(tmp_path: Path) -> None:
    """One line each says that it is off, whatever else is set."""
    off = UplinkSettings(cert_file=tmp_path / "none", key_file=tmp_path / "none")
    assert states(check_outbox(OutboxSettings(path=tmp_path), off)) == [("ok", "outbox")]
    assert states(check_uplink(off, BrokerSettings())) == [("ok", "uplink")]


def test_an_outbox_that_is_not_there_yet_will_be_made(tmp_path: Path) -> None:
    """The nearest folder counts: the service makes the rest."""
    lines = check_outbox(small(tmp_path / "a" / "b"), ON)
    assert states(lines) == [("ok", "outbox"), ("ok", "outbox file")]
    assert "none yet" in lines[1].found


def test_an_outbox_with_something_in_quarantine(tmp_path: Path) -> None:
    """What waits is counted, also while the service runs; what was refused is a warning."""
    settings = small(tmp_path / "outbox")
    outbox = Outbox(settings, Metrics())
    outbox.start()
    for _ in range(3):
        outbox.emit("event", b"{}")
    assert outbox.flush(WAIT_S)
    outbox.quarantine(outbox.take(1, 1000)[0].id, "schema")
    assert outbox.flush(WAIT_S)
    lines = check_outbox(settings, ON)
    assert outbox.stop(WAIT_S)

    assert states(lines) == [("ok", "outbox"), ("ok", "outbox file"), ("warn", "quarantine")]
    assert "2 reports wait" in lines[1].found
    assert "1 reports" in lines[2].found
    assert states(check_outbox(settings, ON)) == states(lines)


def test_a_disk_without_room_for_the_limits_is_a_warning(tmp_path: Path) -> None:
    """More than any disk of this machine has free."""
    disk = os.statvfs(tmp_path)
    if disk.f_bavail * disk.f_frsize > 256 * 2**30:
        pytest.skip("more room than the largest limits")
    huge = 68_719_476_736
    settings = OutboxSettings(
        path=tmp_path,
        rollout_max_bytes=huge,
        event_max_bytes=huge,
        result_max_bytes=huge,
        telemetry_max_bytes=huge,
    )
    line = check_outbox(settings, ON)[0]
    assert (line.state, line.what) == ("warn", "outbox")
    assert "its limits allow" in line.found
    assert "outbox.result_max_bytes" in line.mend


def test_a_folder_that_cannot_be_one_is_a_warning(tmp_path: Path) -> None:
    """A file stands in its place."""
    (tmp_path / "file").write_text("", encoding="ascii")
    (line,) = check_outbox(small(tmp_path / "file" / "outbox"), ON)
    assert line.state == "warn"
    assert "cannot be written" in line.found


def test_a_damaged_file_is_a_warning(tmp_path: Path) -> None:
    """The reason is named."""
    (tmp_path / DATABASE).write_bytes(b"no database at all" * 1000)
    lines = check_outbox(small(tmp_path), ON)
    assert states(lines) == [("ok", "outbox"), ("warn", "outbox file")]
    assert lines[1].mend


def test_the_control_plane_is_reached_or_not() -> None:
    """A port that listens, one that does not, and a name that there is not."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        plain = {"enabled": True, "tls": False, "port": port, "host": "127.0.0.1"}
        (reached,) = check_uplink(UplinkSettings.model_validate(plain), BrokerSettings())
        broker = BrokerSettings(port=port)
        (same,) = check_uplink(UplinkSettings(enabled=True), broker)
    (refused,) = check_uplink(UplinkSettings.model_validate(plain), BrokerSettings())
    unknown_host = UplinkSettings.model_validate({**plain, "host": "a" * 250})
    (unknown,) = check_uplink(unknown_host, BrokerSettings())

    assert [line.state for line in (reached, same, refused, unknown)] == [
        "ok",
        "ok",
        "warn",
        "warn",
    ]
    assert "not reachable" in refused.found
    assert "does not resolve" in unknown.found


def test_tls_files_are_tried(tmp_path: Path) -> None:
    """Missing, no PEM, the key of another certificate: each is said; a fitting pair is fine."""
    for name in ("one", "two"):
        request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
        files = ["-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}"]
        subprocess.run(
            [*request, *files], cwd=tmp_path, check=True, capture_output=True, timeout=WAIT_S
        )
    (tmp_path / "text").write_text("no key", encoding="ascii")

    def tried(cert: str, key: str) -> Line:
        with socket.create_server(("127.0.0.1", 0)) as server:
            uplink = UplinkSettings(
                enabled=True,
                host="127.0.0.1",
                port=server.getsockname()[1],
                ca_file=tmp_path / "one.pem",
                cert_file=tmp_path / cert,
                key_file=tmp_path / key,
            )
            return check_uplink(uplink, BrokerSettings())[0]

    assert tried("one.pem", "one.key").state == "ok"
    for cert, key, found in (
        ("absent.pem", "one.key", "absent.pem cannot be read"),
        ("one.pem", "text", "cannot be used"),
        ("one.pem", "two.key", "cannot be used"),
    ):
        line = tried(cert, key)
        assert (line.state, line.what) == ("warn", "uplink TLS")
        assert found in line.found
