"""The uplink over TLS: both sides show certificates; without the right ones nothing is sent."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.broker import Mosquitto, free_port
from tests.doubles.cloud import Cloud
from tests.doubles.reporting import TOPICS, Line, numbers


@dataclass
class Plain:
    """A second listener of the broker, without TLS, for the control plane of the test."""

    port: int
    host: str = "127.0.0.1"


def openssl(*arguments: str, folder: Path) -> None:
    """Runs openssl in a folder."""
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=30)


def certificate(folder: Path, name: str, extension: str = "") -> None:
    """A key and a certificate signed by ``ca`` in the folder."""
    request = ["req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key",
               "-out", f"{name}.csr", "-subj", f"/CN={name}"]  # fmt: skip
    openssl(*request, folder=folder)
    (folder / f"{name}.ext").write_text(extension, encoding="ascii")
    sign = ["x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-days", "2",
            "-CAcreateserial", "-extfile", f"{name}.ext", "-out", f"{name}.pem"]  # fmt: skip
    openssl(*sign, folder=folder)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate authority, and certificates of a broker and of a device."""
    folder = tmp_path_factory.mktemp("keys")
    authority = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out",
                 "ca.pem", "-days", "2", "-subj", "/CN=test"]  # fmt: skip
    openssl(*authority, folder=folder)
    certificate(folder, "broker", "subjectAltName=IP:127.0.0.1")
    certificate(folder, "device")
    return folder


def wait_listening(where: Plain, timeout_s: float = 20.0) -> None:
    """Until somebody accepts there."""
    until = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((where.host, where.port), timeout=1).close()
        except OSError:  # noqa: PERF203  # a few looks until it is there
            if time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return


@pytest.fixture
def tls_broker(keys: Path, tmp_path: Path) -> Iterator[tuple[Mosquitto, Plain]]:
    """A broker that asks for certificates, and its plain listener."""
    plain = Plain(free_port())
    lines = [
        f"cafile {keys / 'ca.pem'}",
        f"certfile {keys / 'broker.pem'}",
        f"keyfile {keys / 'broker.key'}",
        "require_certificate true",
        f"listener {plain.port} {plain.host}",
    ]
    with Mosquitto(tmp_path / "broker", lines) as broker:
        wait_listening(plain)  # it opens its listeners one after the other
        yield broker, plain


def uplink(broker: Mosquitto, keys: Path, **changes: Any) -> dict[str, Any]:
    """Settings of the uplink to a broker with TLS."""
    settings = {
        "host": broker.host, "port": broker.port, "tls": True, "ca_file": keys / "ca.pem",
        "cert_file": keys / "device.pem", "key_file": keys / "device.key",
    }  # fmt: skip
    return settings | changes


def test_with_a_client_certificate(
    tls_broker: tuple[Mosquitto, Plain], keys: Path, tmp_path: Path
) -> None:
    """Reports go up and desired settings come down, through a broker of the uplink's own."""
    broker, plain = tls_broker
    with Cloud(plain, TOPICS) as cloud, Line(tmp_path, plain, uplink=uplink(broker, keys)) as line:
        line.emit(1, 2)
        assert numbers(cloud.wait_records("event", "stopping", 2)) == [1, 2]
        cloud.desire(1, serve={"drain_s": 3})
        cloud.wait_reported(lambda document: document["applied_version"] == 1)


def test_a_certificate_that_comes_later_is_used(
    tls_broker: tuple[Mosquitto, Plain], keys: Path, tmp_path: Path
) -> None:
    """Without its file the service runs and reports wait; once it is there they go up."""
    broker, plain = tls_broker
    late = tmp_path / "late.pem"
    settings = uplink(broker, keys, cert_file=late)
    with Cloud(plain, TOPICS) as cloud, Line(tmp_path, plain, uplink=settings) as line:
        line.emit(1)
        line.wait_stats(lambda s: s["event"]["rows"] >= 1, "one event in the outbox")
        assert cloud.records("event") == []
        late.write_bytes((keys / "device.pem").read_bytes())
        cloud.wait_records("event", "stopping", 1)
