"""systemd's notification protocol: ready, alive, stopping. See sd_notify(3).

Nothing here raises into the service: without a manager (a terminal, a container) every call is a
no-operation, and a datagram that cannot be sent is dropped.
"""

from __future__ import annotations

import os
import socket
import time

_SEND_TIMEOUT_S = 1.0


def notify(
    *,
    ready: bool = False,
    reloading: bool = False,
    stopping: bool = False,
    watchdog: bool = False,
    status: str | None = None,
    extend_timeout_s: float | None = None,
) -> bool:
    """Tells systemd the state of the service, in one datagram. Any thread may call it.

    Args:
        ready: start-up, or a reload, is finished.
        reloading: a reload begins; send ``ready=True`` when it is finished.
        stopping: the service is going down.
        watchdog: the service is alive and makes progress.
        status: one line for ``systemctl status``; line breaks in it become spaces.
        extend_timeout_s: starting or stopping needs at least so many more seconds from now.

    Returns:
        Whether a datagram was handed to systemd.
    """
    lines = []
    if reloading:
        # Type=notify-reload (systemd 253) wants the time; older versions ignore it.
        lines += ["RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}"]
    lines += [name for name, given in (("READY=1", ready), ("STOPPING=1", stopping)) if given]
    if watchdog:
        lines.append("WATCHDOG=1")
    if extend_timeout_s is not None:
        lines.append(f"EXTEND_TIMEOUT_USEC={int(extend_timeout_s * 1e6)}")
    if status is not None:
        lines.append(f"STATUS={' '.join(status.split())}")
    return bool(lines) and _send("\n".join(lines).encode("utf-8", "replace"))


def _send(datagram: bytes) -> bool:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]  # an abstract socket is written with "@" for its leading NUL
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(_SEND_TIMEOUT_S)
            # Unconnected, a full queue at the other end would be waited for by spinning: poll(2)
            # tells of that queue only where the socket is connected.
            sock.connect(address)
            sock.send(datagram)
    except OSError:
        return False
    return True


def watchdog_interval_s() -> float | None:
    """How often to send ``watchdog=True``, in seconds: half of the unit's WatchdogSec=.

    Half is what sd_watchdog_enabled(3) recommends.

    Returns:
        None where no watchdog watches this process.
    """
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        limit_us = int(os.environ["WATCHDOG_USEC"])
    except (KeyError, ValueError):
        return None
    return limit_us / 2e6 if limit_us > 0 else None
