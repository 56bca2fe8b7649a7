"""A mosquitto with a second listener of any transport, with and without TLS."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.doubles.broker import Mosquitto, free_port

TRANSPORTS = ("tcp", "tls", "websockets", "websockets-tls", "unix")


def certificates(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself, and its key."""
    folder.mkdir()
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
            "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate),
        ],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    return certificate, key


@contextmanager
def listening(folder: Path, transport: str) -> Iterator[tuple[Mosquitto, dict[str, Any]]]:
    """A broker with a second listener, and the settings for that one."""
    lines, port = [], free_port()
    settings: dict[str, Any] = {"port": port, "host": "127.0.0.1"}
    if transport == "unix":
        path = folder / "mqtt.sock"
        lines = [f"listener 0 {path}"]
        settings = {"host": str(path), "transport": "unix"}
    elif transport != "tcp":
        lines = [f"listener {port} 127.0.0.1"]
    if transport.startswith("websockets"):
        lines.append("protocol websockets")
        settings["transport"] = "websockets"
    if transport.endswith("tls"):
        certificate, key = certificates(folder / "tls")
        lines += [f"certfile {certificate}", f"keyfile {key}"]
        settings |= {"host": "localhost", "tls": True, "ca_file": certificate}
    with Mosquitto(folder / "broker", lines) as broker:
        if transport == "tcp":
            settings["port"] = broker.port
        yield broker, settings
