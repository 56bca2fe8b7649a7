"""sd_notify: the datagrams that systemd would receive, on a real socket."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.sd_notify import notify, watchdog_interval_s


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The manager's end: a bound datagram socket that NOTIFY_SOCKET names."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        yield sock


def _lines(manager: socket.socket) -> list[str]:
    return manager.recv(65536).decode().split("\n")


def test_ready_with_status_is_one_datagram(manager: socket.socket) -> None:
    """Readiness and its status line arrive together, as sd_notify(3) writes them."""
    assert notify(ready=True, status="2 models warm, broker connected")

    assert _lines(manager) == ["READY=1", "STATUS=2 models warm, broker connected"]


def test_reloading_carries_the_monotonic_time(manager: socket.socket) -> None:
    """Since version 253 systemd refuses RELOADING=1 without the time, in microseconds."""
    notify(reloading=True)

    reloading, stamp = _lines(manager)
    assert reloading == "RELOADING=1"
    assert stamp.startswith("MONOTONIC_USEC=")
    assert int(stamp.partition("=")[2]) > 0


def test_each_state_has_its_line(manager: socket.socket) -> None:
    """Stopping, the watchdog's ping and a longer time limit, the latter in microseconds."""
    notify(stopping=True, watchdog=True, extend_timeout_s=1.5)

    assert _lines(manager) == ["STOPPING=1", "WATCHDOG=1", "EXTEND_TIMEOUT_USEC=1500000"]


def test_an_abstract_socket_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leading "@" stands for the NUL of an abstract address."""
    name = f"edged-test-{uuid.uuid4()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{name}")
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")

        assert notify(watchdog=True)
        assert _lines(sock) == ["WATCHDOG=1"]


@pytest.mark.parametrize("address", ["", "relative/path", "vsock:2:1234", "/does/not/exist"])
def test_nothing_is_raised_without_a_manager(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No manager, or none that can be reached, is no reason for the service to fail."""
    monkeypatch.setenv("NOTIFY_SOCKET", address)

    assert not notify(ready=True)


def test_nothing_to_say_sends_nothing(manager: socket.socket) -> None:
    """A call without a state is no datagram: the next one is the first that arrives."""
    assert not notify()
    notify(watchdog=True)

    assert _lines(manager) == ["WATCHDOG=1"]


@given(status=st.text())
def test_a_status_cannot_add_a_state(status: str) -> None:
    """Whatever an error message in the status holds, it stays within its own line."""
    name = f"edged-test-{uuid.uuid4()}"
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
        pytest.MonkeyPatch.context() as patch,
    ):
        sock.bind(f"\0{name}")
        sock.settimeout(5)
        patch.setenv("NOTIFY_SOCKET", f"@{name}")
        notify(status=status)

        assert sock.recv(65536).count(b"\n") == 0


def test_the_watchdog_is_pinged_at_half_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """WatchdogSec=30 arrives as microseconds; half is the advice of sd_watchdog_enabled(3)."""
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))

    assert watchdog_interval_s() == 15.0


@pytest.mark.parametrize("limit", [None, "", "soon", "0", "-5"])
def test_no_watchdog_is_none(limit: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a limit, or with one that is no positive number, nobody watches."""
    if limit is not None:
        monkeypatch.setenv("WATCHDOG_USEC", limit)

    assert watchdog_interval_s() is None


def test_a_watchdog_for_another_process_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child inherits the variables; WATCHDOG_PID tells it that they are its parent's."""
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))

    assert watchdog_interval_s() is None


def test_a_manager_that_does_not_read_is_not_waited_for_by_spinning(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once its queue is full, a datagram is dropped after the time limit, for next to no CPU."""
    monkeypatch.setattr("edged.sd_notify._SEND_TIMEOUT_S", 0.0)
    while notify(watchdog=True):
        pass
    monkeypatch.setattr("edged.sd_notify._SEND_TIMEOUT_S", 0.5)
    before = time.thread_time()

    assert not notify(watchdog=True)

    assert time.thread_time() - before < 0.02
    assert _lines(manager) == ["WATCHDOG=1"]
