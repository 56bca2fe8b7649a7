"""Start-up, memory, and the latency of one request at a time against a bare MQTT echo.

``python tests/bench/one_at_a_time.py RESULT.json`` (`make bench`). All in one run on one mosquitto:
the same client, the same bodies in both directions, rounds of echo, edged and engine interleaved,
medians. The figure to meet: p50 of edged <= p50 of the echo + engine alone + 0.5 ms.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from edged.build.dataset import SampleBatch, load_dataset, model_inputs  # noqa: E402  # needs the path above
from edged.build.pipeline import build_model  # noqa: E402
from edged.client import Endpoint, InferClient, Message, tensor_message  # noqa: E402
from edged.client.endpoint import Delivery, Publication  # noqa: E402
from edged.client.link import Link  # noqa: E402
from edged.engine_store import Engine, EngineStore  # noqa: E402
from edged.load_generator import OK, Answer, one_at_a_time  # noqa: E402
from edged.protocol import HEADER_LENGTH, Topics  # noqa: E402
from edged.runners import load, run_batch  # noqa: E402
from tests.doubles.broker import Mosquitto  # noqa: E402
from tests.doubles.service import clean_environment, copy_model  # noqa: E402

MODEL = "digits"
ROUNDS = 10
REQUESTS = 200
WARM_UP = 50
STARTS = 5
LIMIT_MS = 0.5
# What systemd/edged.service sets; the echo gets them too.
TUNING = {
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "67108864",
}


def service_environment(folder: Path, broker: Mosquitto, notify: Path) -> dict[str, str]:
    """Settings of the service under test."""
    return clean_environment(
        EDGED_BROKER__HOST=broker.host,
        EDGED_BROKER__PORT=str(broker.port),
        EDGED_DEVICE__NAME="edge",
        EDGED_PATHS__ENGINES=str(folder / "engines"),
        EDGED_PATHS__CALIB=str(folder / "calib"),
        NOTIFY_SOCKET=str(notify),
        **TUNING,
    )


@contextlib.contextmanager
def service(
    folder: Path, broker: Mosquitto, **settings: str
) -> Iterator[tuple[psutil.Process, float]]:
    """Runs `edged serve` with more settings; its process, and the seconds from exec to READY=1."""
    notify = folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(notify))
        listener.settimeout(60)
        with (folder / "daemon.log").open("ab") as log:
            begun = time.monotonic()
            process = subprocess.Popen(
                [sys.executable, "-m", "edged", "serve"],
                env=service_environment(folder, broker, notify) | settings,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            while b"READY=1" not in listener.recv(65536):
                pass
            listener.close()  # nobody reads what else it says
            yield psutil.Process(process.pid), time.monotonic() - begun
        finally:
            process.terminate()
            process.wait(30)
            notify.unlink()


@contextlib.contextmanager
def echo(folder: Path, broker: Mosquitto, reply: Delivery) -> Iterator[None]:
    """Runs the echo with one of edged's own replies."""
    body = folder / "reply"
    body.write_bytes(reply.payload)
    script = str(Path(__file__).with_name("echo.py"))
    address = [broker.host, str(broker.port)]
    process = subprocess.Popen(
        [sys.executable, script, *address, "echo", str(body), reply.user[HEADER_LENGTH]],
        env=clean_environment(PYTHONPATH=str(ROOT), **TUNING),
        stdout=subprocess.PIPE,
    )
    with process:
        try:
            if process.stdout is None or not process.stdout.readline():
                raise RuntimeError("the echo ended before it listened")
            yield
        finally:
            process.terminate()


def one_reply(endpoint: Endpoint, message: Message) -> Delivery:
    """A reply of the service as it comes from the broker."""
    arrived = threading.Event()
    replies: list[Delivery] = []
    topics = Topics(endpoint.root, endpoint.device)

    def keep(delivery: Delivery) -> None:
        replies.append(delivery)
        arrived.set()

    link = Link(endpoint, "bench-raw", [topics.reply("bench-raw")], keep, 5.0)
    link.connect()
    try:
        user = [(HEADER_LENGTH, str(message.header_length))]
        link.publish(
            Publication(
                topics.infer(MODEL), message.payload, topics.reply("bench-raw"), b"1",
                message.content_type, user,
            )
        )  # fmt: skip
        if not arrived.wait(10):
            raise TimeoutError("the service did not answer within 10 s")
    finally:
        link.close()
    return replies[0]


def one_by_one(client: InferClient, message: Message, count: int) -> list[Answer]:
    """Answers to requests sent one at a time."""
    answers = one_at_a_time(lambda _index: client.submit(MODEL, message), count)
    failed = [answer.code for answer in answers if answer.code != OK]
    if failed:
        raise RuntimeError(f"{len(failed)} requests failed: {sorted(set(failed))}")
    return answers


def latencies_ms(answers: Sequence[Answer]) -> list[float]:
    """From the call of `submit` to the decoded answer."""
    return [answer.latency_s * 1e3 for answer in answers if answer.latency_s is not None]


def said_ms(answers: Sequence[Answer], name: str) -> list[float]:
    """A time that the service says of itself in its answers."""
    return [answer.result.parameters[name] / 1e3 for answer in answers if answer.result]


class EngineAlone:
    """The engine in this process, batches of one."""

    def __init__(self, engine: Engine, sample: Mapping[str, Any]) -> None:
        self._runner = load(engine)
        self._feeds = model_inputs(SampleBatch(sample, None), engine.manifest.input)

    def times_ms(self, count: int) -> list[float]:
        """Times from submit to done."""
        times = []
        for _ in range(count):
            begun = time.perf_counter()
            run_batch(self._runner, self._feeds)
            times.append((time.perf_counter() - begun) * 1e3)
        return times

    def close(self) -> None:
        """Gives the engine back."""
        self._runner.close()


def compare(folder: Path, broker: Mosquitto, process: psutil.Process) -> dict[str, Any]:
    """Interleaved rounds; medians in milliseconds."""
    engine = EngineStore(folder / "engines").current(MODEL)
    split = load_dataset(folder / "calib" / MODEL, engine.manifest.input).heldout
    sample = next(iter(split.batches(1))).inputs
    message = tensor_message(sample)
    edge = Endpoint("edge", broker.host, broker.port)
    reply = one_reply(edge, message)
    alone = EngineAlone(engine, sample)
    rounds: dict[str, list[list[float]]] = {
        name: [] for name in ("echo", "engine", "edged", "edged: queue", "edged: compute")
    }
    with (
        echo(folder, broker, reply),
        InferClient(edge) as to_edged,
        InferClient(Endpoint("echo", broker.host, broker.port)) as to_echo,
    ):
        for client in (to_edged, to_echo):
            one_by_one(client, message, WARM_UP)
        alone.times_ms(WARM_UP)
        for number in range(ROUNDS):
            rounds["echo"].append(latencies_ms(one_by_one(to_echo, message, REQUESTS)))
            answers = one_by_one(to_edged, message, REQUESTS)
            rounds["edged"].append(latencies_ms(answers))
            rounds["edged: queue"].append(said_ms(answers, "queue_us"))
            rounds["edged: compute"].append(said_ms(answers, "compute_us"))
            rounds["engine"].append(alone.times_ms(REQUESTS))
            sys.stderr.write(f"\rround {number + 1} of {ROUNDS}")
        sys.stderr.write("\n")
        rss = process.memory_info().rss
    alone.close()
    return {
        "request_bytes": len(message.payload),
        "reply_bytes": len(reply.payload),
        "rss_mb": round(rss / 1e6, 1),
        "p50_ms": {name: percentile(each, 50) for name, each in rounds.items()},
        "p99_ms": {name: percentile(each, 99) for name, each in rounds.items()},
        "round_p50_ms": {
            name: [round(median(values), 4) for values in each] for name, each in rounds.items()
        },
    }


def percentile(rounds: Sequence[Sequence[float]], at: float) -> float:
    """Over all rounds together."""
    return round(float(np.percentile(np.concatenate(rounds), at)), 4)


def machine() -> dict[str, Any]:
    """What it was measured on."""
    said = subprocess.run(["mosquitto", "-h"], capture_output=True, text=True, check=False)
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "onnxruntime": version("onnxruntime"),
        "paho-mqtt": version("paho-mqtt"),
        "mosquitto": (said.stdout.splitlines() or ["?"])[0],
        "load_average": round(os.getloadavg()[0], 2),
    }


def measure(folder: Path) -> dict[str, Any]:
    """The whole run."""
    engines, calib = copy_model(MODEL, folder)
    build_model(MODEL, engines=engines, calib=calib, precision="int8")
    with Mosquitto(folder / "broker") as broker:
        starts = []
        for _ in range(STARTS - 1):
            with service(folder, broker) as (_, seconds):
                starts.append(round(seconds, 3))
        with service(folder, broker) as (process, seconds):
            starts.append(round(seconds, 3))
            idle_mb = round(process.memory_info().rss / 1e6, 1)
            found = compare(folder, broker, process)
    p50 = found["p50_ms"]
    overhead = round(p50["edged"] - p50["echo"] - p50["engine"], 4)
    return {
        "ready_s": starts, "ready_median_s": median(starts), "idle_rss_mb": idle_mb, **found,
        "overhead_ms": overhead, "requests": ROUNDS * REQUESTS, **machine(),
    }  # fmt: skip


def print_table(found: Mapping[str, Any]) -> None:
    """The figures and what they must keep."""
    p50, p99 = found["p50_ms"], found["p99_ms"]
    rows = [
        ("exec to READY", f"{found['ready_median_s']:.2f} s", "at most 2 s",
         found["ready_median_s"] <= 2),
        ("resident memory", f"{found['rss_mb']:.0f} MB", "at most 200 MB", found["rss_mb"] <= 200),
        *((f"{name} p50", f"{p50[name]:.3f} ms", f"p99 {p99[name]:.3f} ms", None) for name in p50),
        ("edged - echo - engine", f"{found['overhead_ms']:.3f} ms", f"at most {LIMIT_MS} ms",
         found["overhead_ms"] <= LIMIT_MS),
    ]  # fmt: skip
    for name, value, note, met in rows:
        verdict = {True: "met", False: "MISSED", None: ""}[met]
        sys.stdout.write(f"{name:<24}{value:>12}   {note:<18}{verdict}\n")


def main() -> None:
    """Measures, prints, and writes the JSON."""
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    print_table(found)
    Path(sys.argv[1]).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
