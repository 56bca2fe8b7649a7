"""What ``edged doctor`` looks at for reports: the outbox on disk, and the way to the control plane.

Nothing here keeps the service from answering requests, so the worst of these lines is ``warn``.
"""

from __future__ import annotations

import os
import socket
import ssl
from pathlib import Path

from edged.doctor_line import AS_SERVICE, Line
from edged.errors import OutboxError
from edged.report.outbox_file import DATABASE
from edged.report.outbox_reader import read_stats
from edged.report_settings import UplinkSettings
from edged.settings import BrokerSettings, OutboxSettings

FILE_SHARE = 1.05
"""Bytes of the file for each byte that the streams count; see docs/outbox.md."""
MIB = 2**20


def check_outbox(settings: OutboxSettings, uplink: UplinkSettings) -> list[Line]:
    """Whether reports can wait on disk: folder, space for the limits, file, quarantine."""
    if not uplink.enabled:
        return [Line("ok", "outbox", "not used: uplink.enabled is false")]
    folder = _existing(settings.path)
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        means = "reports are kept in memory only, and are lost when the service ends"
        mend = f"sudo install -d -o edged -g edged {settings.path}; {AS_SERVICE}"
        return [Line("warn", "outbox", f"{settings.path}: {folder} cannot be written", means, mend)]
    return [_space(settings, folder), *_content(settings.path)]


def _existing(path: Path) -> Path:
    """The path, or the nearest of its parents that is there: the service makes what is missing."""
    return next((each for each in (path, *path.parents) if os.path.lexists(each)), Path("/"))


def _space(settings: OutboxSettings, folder: Path) -> Line:
    limits = (
        settings.rollout_max_bytes,
        settings.event_max_bytes,
        settings.result_max_bytes,
        settings.telemetry_max_bytes,
        settings.quarantine_max_bytes,
    )
    present = sum(each.stat().st_size for each in settings.path.glob(f"{DATABASE}*"))
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    needed = max(0, int(sum(limits) * FILE_SHARE) - present)
    found = f"{settings.path} can be written, {free // MIB} MiB free"
    if free >= needed:
        return Line("ok", "outbox", f"{found}, at most {needed // MIB} MiB more are used")
    means = "a long time offline fills the disk; what is reported then waits in memory, or is lost"
    mend = "free some space, or lower outbox.result_max_bytes and outbox.telemetry_max_bytes"
    return Line(
        "warn", "outbox", f"{found}, its limits allow {needed // MIB} MiB more", means, mend
    )


def _content(path: Path) -> list[Line]:
    if not (path / DATABASE).is_file():
        return [Line("ok", "outbox file", "none yet; the service makes it")]
    try:
        stats = read_stats(path)
    except OutboxError as err:
        means = "the service sets a damaged file aside, and leaves a newer version's as it is"
        mend = "see docs/outbox.md, When the disk fails"
        return [Line("warn", "outbox file", err.message, means, mend)]
    waiting = sum(each.rows for each in stats.values())
    lines = [Line("ok", "outbox file", f"can be read, {waiting} reports wait")]
    if refused := sum(each.quarantined for each in stats.values()):
        means = "the control plane refused them; they are kept until the quarantine is full"
        mend = "edged outbox names the reasons; edged outbox --requeue all has them sent again"
        lines.append(Line("warn", "quarantine", f"{refused} reports", means, mend))
    return lines


def check_uplink(uplink: UplinkSettings, broker: BrokerSettings) -> list[Line]:
    """Whether the control plane's broker has an address, and TLS files that can be used."""
    if not uplink.enabled:
        return [Line("ok", "uplink", "off: uplink.enabled is false")]
    own = uplink if uplink.host is not None else broker
    section = "uplink" if uplink.host is not None else "broker"
    host = uplink.host or broker.host
    return [*_tls_files(own, section), _reached(host, own.port, uplink.connect_timeout_s)]


def _tls_files(own: UplinkSettings | BrokerSettings, section: str) -> list[Line]:
    if not own.tls:
        return []
    means = "no connection to the control plane; reports wait in the outbox"
    for name in ("ca_file", "cert_file", "key_file"):
        path: Path | None = getattr(own, name)
        if path is not None and not (path.is_file() and os.access(path, os.R_OK)):
            mend = f"set {section}.{name} to a file that the service may read; {AS_SERVICE}"
            return [Line("warn", "uplink TLS", f"{path} cannot be read", means, mend)]
    try:
        context = ssl.create_default_context(cafile=own.ca_file)
        if own.cert_file is not None:
            context.load_cert_chain(own.cert_file, own.key_file, password="")
    except (OSError, ValueError) as err:  # ssl.SSLError is an OSError
        mend = f"give {section} PEM files, the key without a passphrase and of that certificate"
        return [Line("warn", "uplink TLS", f"its files cannot be used: {err}", means, mend)]
    return [Line("ok", "uplink TLS", "its files can be used")]


def _reached(host: str, port: int, timeout_s: float) -> Line:
    means = "reports wait in the outbox, and no desired settings and commands come"
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, ValueError) as err:  # a name that is too long is a UnicodeError
        mend = "mend uplink.host, or this machine's name service"
        return Line("warn", "uplink", f"{host} does not resolve: {err}", means, mend)
    try:
        with socket.create_connection((host, port), timeout_s):
            pass
    except OSError as err:
        mend = "look at [uplink] host and port, and at firewalls on the way"
        return Line("warn", "uplink", f"{host}:{port} not reachable: {err}", means, mend)
    return Line("ok", "uplink", f"{host}:{port} takes TCP connections (TLS and login not tried)")
