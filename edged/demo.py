"""`make demo`: the whole line once, on this machine, with nothing to prepare.

Builds the engine of the bundled model, starts the embedded broker and `edged serve`, sends the
held-out test images over MQTT, compares every answer with what the engine gives in-process, and
shows what a control plane received, with the embedded broker as its broker too.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TextIO

from edged.answer_check import Expected, accuracy, read_expected, wrong_answers
from edged.build.pipeline import build_model
from edged.client import Endpoint, InferClient, Result
from edged.embedded_broker import VOLATILE, EmbeddedBroker
from edged.engine_store import EngineStore
from edged.errors import BrokerError, EdgedError
from edged.load_generator import Answer, Load, open_loop, print_table, summarize
from edged.report_receiver import ReportReceiver

_DEVICE = "demo"
_READY_S = 60.0
_STOP_S = 30.0
_REPORTED_S = 10.0
# glibc gives large blocks back to the kernel at once, and every large message then page-faults
# its buffers again; with these limits it keeps them.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "67108864"}


@dataclass(frozen=True)
class DemoOptions:
    """What the demo runs.

    Attributes:
        model: a model with recipe, ONNX file and calibration set.
        engines: folder of recipes and engines.
        calib: folder of calibration sets.
        work: folder for config files and logs; what the demo puts there it removes.
        rate_hz: requests a second, evenly spaced in the mean (Poisson).
        seconds: at least so long; every test image is sent equally often.
    """

    model: str = "digits"
    engines: Path = Path("engines")
    calib: Path = Path("calib")
    work: Path = Path(".demo")
    rate_hz: float = 200.0
    seconds: float = 5.0


def run(options: DemoOptions, *, out: TextIO | None = None) -> int:
    """Runs the demo.

    Args:
        options: model, folders and load.
        out: for progress and the table; None: standard output.

    Returns:
        0 if every request was answered as the engine computes it; 1 otherwise; 130 after Ctrl-C.
    """
    say = _Teller(out or sys.stdout)
    begun = time.monotonic()
    try:
        with _terminated_as_interrupt(), _work_folder(options.work) as folder:
            right = _run(options, folder, say)
    except KeyboardInterrupt:
        say.line("interrupted; broker and daemon are stopped")
        return 130
    except (EdgedError, TimeoutError) as err:
        say.line(f"demo failed: {err}")
        return 1
    verdict = "every answer is right" if right else "NOT every answer is right"
    say.line(f"{verdict}; {time.monotonic() - begun:.0f} s in all")
    return 0 if right else 1


def _run(options: DemoOptions, folder: Path, say: _Teller) -> bool:
    say.line(f"1/5  engine of {options.model!r} from {options.calib / options.model}")
    build_model(
        options.model,
        engines=options.engines,
        calib=options.calib,
        runner="onnx",
        precision="int8",  # what it is to show; `edged build` takes the fastest here
        progress=say.progress,
    )
    engine = EngineStore(options.engines).current(options.model)
    expected = read_expected(engine, options.calib / options.model)
    with EmbeddedBroker(folder) as broker:
        say.line(f"2/5  broker on {broker.host}:{broker.port}, {VOLATILE}")
        endpoint = Endpoint(_DEVICE, broker.host, broker.port)
        with (
            ReportReceiver(endpoint) as receiver,
            _daemon(options, endpoint, folder) as daemon,
            InferClient(endpoint) as client,
        ):
            ready_s = _wait_ready(client, daemon, folder)
            say.line(f"3/5  edged serve is online after {ready_s:.1f} s")
            answers, table = _load(options, client, expected, say)
            reported = receiver.wait("result", len(answers), _REPORTED_S)
    say.line(
        "4/5  outcome (rumqttd keeps Nagle's algorithm on; latency through mosquitto is lower)"
    )
    say.out.write(table)
    say.row("precision", "; ".join((engine.manifest.precision.upper(), *engine.manifest.notes)))
    right = _judge(answers, expected, say)
    return _show_reports(receiver, say) and reported and right


def _show_reports(receiver: ReportReceiver, say: _Teller) -> bool:
    """What the control plane received; whether all of it came."""
    say.line("5/5  what the control plane received, by stream")
    streams = receiver.streams()
    for name, stream in streams.items():
        say.row(
            name,
            f"{len(stream.numbers)} records in {stream.messages} messages, "
            f"{stream.payload_bytes / 1024:.1f} KB; {stream.gaps} missing, {stream.duplicates} "
            f"twice; the latest {stream.latest_s:.2f} s after its moment",
        )
    return all(stream.gaps == 0 for stream in streams.values())


def _load(
    options: DemoOptions, client: InferClient, expected: Expected, say: _Teller
) -> tuple[list[Answer], str]:
    """Sends every sample equally often; returns the answers and the printed table."""
    samples = len(expected.messages)
    rounds = max(1, -(-int(options.rate_hz * options.seconds) // samples))
    load_plan = Load(options.rate_hz, rounds * samples)

    def submit(index: int) -> Future[Result]:
        return client.submit(options.model, expected.messages[index % samples])

    def progress(sent: int, total: int) -> None:
        say.progress(f"{sent} of {total} requests sent, {options.rate_hz:g}/s", sent / total)

    answers, wall_s = open_loop(submit, load_plan.schedule(), progress=progress)
    summary = summarize(
        answers, wall_s=wall_s, duplicates=client.unmatched, offered_hz=options.rate_hz
    )
    table = io.StringIO()
    print_table(summary, table)
    return answers, table.getvalue()


def _judge(answers: Sequence[Answer], expected: Expected, say: _Teller) -> bool:
    wrong = wrong_answers(answers, expected)
    say.row(
        "accuracy",
        f"{accuracy(answers, expected):.4f} INT8 engine over MQTT, {expected.fp32_top1:.4f} FP32 "
        f"model ({len(expected.labels)} held-out samples)",
    )
    say.row(
        "as computed",
        f"{len(answers) - len(wrong)} of {len(answers)}: the class, and every value within "
        f"{expected.tolerance:.1e} of the engine run in-process",
    )
    return not wrong


# ------------------------------------------------------------------ broker, daemon, folder, signals


def _environment() -> dict[str, str]:
    """This environment without anything that would change the daemon's settings."""
    foreign = {"CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("EDGED_") and name not in foreign
    }
    return kept | _MALLOC


def _settings(options: DemoOptions, endpoint: Endpoint, folder: Path) -> str:
    """The daemon's TOML; JSON strings and lists are TOML too."""
    return "\n".join(
        [
            "[device]",
            f"name = {json.dumps(endpoint.device)}",
            f"root = {json.dumps(endpoint.root)}",
            "[broker]",
            f"host = {json.dumps(endpoint.host)}",
            f"port = {endpoint.port}",
            "[serve]",
            f"models = {json.dumps([options.model])}",
            "[report]",
            'results = "all"',
            "telemetry_interval_s = 2",
            "[uplink]",
            "enabled = true",
            "[outbox]",
            f"path = {json.dumps(str(folder.resolve() / 'outbox'))}",
            "[log]",
            'format = "text"',
            "[paths]",
            f"engines = {json.dumps(str(options.engines.resolve()))}",
            f"calib = {json.dumps(str(options.calib.resolve()))}",
            f"desired = {json.dumps(str(folder.resolve() / 'desired.json'))}",
            f"journal = {json.dumps(str(folder.resolve() / 'crash.journal'))}",
            "",
        ]
    )


def _end_with_parent() -> list[str]:
    """Prefix of a command that the kernel ends when we die, even by ``kill -9`` (util-linux)."""
    return ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []


@contextlib.contextmanager
def _daemon(
    options: DemoOptions, endpoint: Endpoint, folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    config = folder / "edged.toml"
    config.write_text(_settings(options, endpoint, folder), encoding="utf-8")
    with (folder / "daemon.log").open("wb") as log:
        process = subprocess.Popen(
            [*_end_with_parent(), sys.executable, "-m", "edged", "--config", str(config), "serve"],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for us: we stop the daemon in its order
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_ready(client: InferClient, daemon: subprocess.Popen[bytes], folder: Path) -> float:
    begun = time.monotonic()
    while not _online(client):
        waited = time.monotonic() - begun
        if daemon.poll() is not None or waited > _READY_S:
            text = (folder / "daemon.log").read_text(encoding="utf-8", errors="replace")
            tail = "\n".join(text.splitlines()[-20:])
            raise BrokerError(
                f"edged serve did not come online within {waited:.0f} s "
                f"(exit code {daemon.poll()}); its log ends:\n{tail}"
            )
    return time.monotonic() - begun


def _online(client: InferClient) -> bool:
    try:
        client.wait_status("online", 0.1)
    except TimeoutError:
        return False
    return True


@contextlib.contextmanager
def _work_folder(work: Path) -> Iterator[Path]:
    """A folder of this run's own below ``work``, removed at the end."""
    work.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=work))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another demo may be using it
            work.rmdir()


@contextlib.contextmanager
def _terminated_as_interrupt() -> Iterator[None]:
    """SIGTERM, like Ctrl-C, unwinds the stack, so that daemon and broker are stopped."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Teller:
    """Prints lines; progress overwrites itself on a terminal, and elsewhere is a line a second."""

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self._open = False
        self._told = 0.0

    def line(self, text: str) -> None:
        print("\n" * self._open + text, file=self.out, flush=True)
        self._open = False

    def row(self, name: str, text: str) -> None:
        self.line(f"{name:<14}{text}")

    def progress(self, sentence: str, share: float) -> None:
        text = f"     {share:4.0%}  {sentence}"
        now = time.monotonic()
        if self.out.isatty():
            print(f"\r\x1b[K{text}", end="", file=self.out, flush=True)
            self._open = True
        elif share >= 1 or now - self._told > 1:
            self._told = now
            self.line(text)
