"""An MQTT broker for the demo, the documents and the tests: iotcore's rumqttd as a child process.

Never for production: it is volatile (sessions and retained messages die with it), has no
passwords, and listens on loopback only. Production uses mosquitto or another real broker.

The child ends when this process does, however it ends: it reads its standard input, a pipe whose
other end is here, and the kernel closes that end even after ``kill -9``.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import final

from edged.errors import BrokerError

VOLATILE = "volatile: sessions and retained messages are lost when it stops; not for production"
HOST = "127.0.0.1"
MAX_PAYLOAD_BYTES = 16 * 1024 * 1024
_START_TIMEOUT_S = 15.0
_STOP_TIMEOUT_S = 5.0
_ATTEMPTS = 3

_ROUTER = """\
id = 0

# rumqttd keeps what was published in a log per topic filter and drops the oldest segment when all
# are full; the default of 1 GB per filter is too much for a development machine.
[router]
id = 0
max_connections = 256
max_outgoing_packet_count = 200
max_segment_size = 8388608
max_segment_count = 4
"""

_LISTENER = """
[{version}.1]
name = "{version}"
listen = "{host}:{port}"
next_connection_delay_ms = 1
[{version}.1.connections]
connection_timeout_ms = 10000
max_payload_size = {max_payload}
max_inflight_count = 100
dynamic_filters = true
"""


def config_text(port: int, port_v3: int) -> str:
    """The broker's TOML: MQTT 5 on ``port``, MQTT 3.1.1 on ``port_v3``, both loopback only."""
    listeners = (
        _LISTENER.format(version=version, host=HOST, port=at, max_payload=MAX_PAYLOAD_BYTES)
        for version, at in (("v5", port), ("v4", port_v3))
    )
    return _ROUTER + "".join(listeners)


@final
class EmbeddedBroker:
    """A loopback broker that lives as long as a ``with`` block.

    Attributes:
        host: always 127.0.0.1.
        port: MQTT 5 listener.
        port_v3: MQTT 3.1.1 listener (rumqttd speaks one version a listener).

    Args:
        folder: gets the config file and the log; must exist.
        port: port of the MQTT 5 listener; 0: a free one.
        port_v3: port of the MQTT 3.1.1 listener; 0: a free one.
    """

    def __init__(self, folder: Path, *, port: int = 0, port_v3: int = 0) -> None:
        self.host = HOST
        self.port = port
        self.port_v3 = port_v3
        self._wanted = (port, port_v3)
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        state = f"running as {self.pid}" if self.pid else "stopped"
        return f"<EmbeddedBroker {self.host}:{self.port} {state}, volatile>"

    @property
    def pid(self) -> int | None:
        """Process id of the broker, None while it does not run."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def __enter__(self) -> EmbeddedBroker:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Starts the broker and returns when both ports accept.

        Raises:
            BrokerError: iotcore is not installed, a given port is taken, or it does not listen.
        """
        for attempt in range(_ATTEMPTS):
            self.port, self.port_v3 = _choose_ports(self._wanted)
            self._check_untaken()
            self._spawn()
            try:
                self._wait_until_listening()
            except BrokerError:
                self.stop()
                # Between choosing a free port and binding it somebody else may have taken it.
                if all(self._wanted) or attempt == _ATTEMPTS - 1:
                    raise
            else:
                return

    def stop(self) -> None:
        """Ends the broker and frees its ports. May be called twice."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()

    @property
    def _log(self) -> Path:
        return self._folder / "broker.log"

    def _check_untaken(self) -> None:
        for port in (self.port, self.port_v3):
            if _accepts(port):
                raise BrokerError(
                    f"port {port} on {self.host} is taken by another program; "
                    "stop it, choose another port, or give 0 for a free one"
                )

    def _spawn(self) -> None:
        config = self._folder / "broker.toml"
        config.write_text(config_text(self.port, self.port_v3), encoding="utf-8")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "edged.embedded_broker", str(config)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )

    def _wait_until_listening(self) -> None:
        until = time.monotonic() + _START_TIMEOUT_S
        waiting = [self.port, self.port_v3]
        while waiting:
            if _accepts(waiting[0]):
                waiting.pop(0)
            elif self._ended_within(0.02) or time.monotonic() > until:
                lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                said = lines[-1] if lines else "nothing in its log"
                raise BrokerError(
                    f"the embedded broker did not listen on {self.host}:{waiting[0]} within "
                    f"{_START_TIMEOUT_S:g} s ({said}); install edged[demo], or choose another port"
                )

    def _ended_within(self, seconds: float) -> bool:
        if self._process is None:
            return True
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


def _choose_ports(wanted: tuple[int, int]) -> tuple[int, int]:
    with ExitStack() as stack:
        chosen = []
        for port in wanted:
            probe = stack.enter_context(socket.socket())
            if not port:
                probe.bind((HOST, 0))
            chosen.append(port or int(probe.getsockname()[1]))
        return chosen[0], chosen[1]


def _accepts(port: int) -> bool:
    try:
        with socket.create_connection((HOST, port), timeout=1):
            return True
    except OSError:
        return False


def _exit_with_parent() -> None:
    # Returns when the parent's end of the pipe is closed. Not through sys.stdin, whose lock a
    # blocked reader would hold while the interpreter wants to end.
    os.read(0, 1)
    os._exit(0)


def serve(config: str) -> None:
    """Runs the broker in this process until it is ended; the child's whole work."""
    # Ctrl-C reaches every process of the terminal. The parent decides when the broker goes, so
    # that the daemon can still answer what it accepted.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # rumqttd logs every packet at ERROR level from inside its tracing spans.
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("rumqttd").setLevel(logging.CRITICAL)
    threading.Thread(target=_exit_with_parent, name="parent-watch", daemon=True).start()
    from iotcore import IotCoreBroker

    IotCoreBroker(config_path=config).run_forever()


if __name__ == "__main__":
    serve(sys.argv[1])
