"""What `edged bench` itself costs: processor time of the generator for each request.

``python -m tests.bench.generator`` puts load on an echo behind a mosquitto of its own: the daemon's
request path around no model, requests and replies of 1 KB, QoS 1 both ways. Each row is one run;
the client's row is `edged.client`, which does the same with a future for each request.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from edged import bench
from edged.bench import BenchOptions
from edged.client import Endpoint, InferClient, Result, tensor_message
from tests.bench.echo_service import ENTRIES
from tests.doubles.broker import Mosquitto

LINES = ["max_inflight_messages 200", "max_queued_messages 0"]
RATES = (500.0, 1000.0, 2000.0)
OUTSTANDING = 64


def generator_row(options: BenchOptions) -> str:
    """A run of the generator."""
    out, err = io.StringIO(), io.StringIO()
    if bench.run(options, out=out, err=err):
        raise SystemExit(err.getvalue() + out.getvalue())
    found = json.loads(out.getvalue())
    what = f"{options.rate_hz:.0f}/s offered" if options.rate_hz else f"{OUTSTANDING} outstanding"
    name = f"edged bench, {what}, {options.connections} connections"
    lag = found["lag_ms"]["p99"]
    return f"{name:<52}{found['answered_hz']:>9.0f}{found['generator_cpu_us']:>8.0f}{lag:>8.2f}"


def client_row(endpoint: Endpoint, seconds: float) -> str:
    """The same closed loop with `edged.client`."""
    message = tensor_message({"x": np.zeros((1, ENTRIES), np.float32)})
    with InferClient(endpoint, max_outstanding=OUTSTANDING) as client:
        began, used = time.monotonic(), time.process_time()
        futures: list[Future[Result]] = []
        while time.monotonic() < began + seconds:
            futures.append(client.submit("echo", message))
        for future in futures:
            future.result(30)
        took, cpu = time.monotonic() - began, time.process_time() - used
    name = f"edged.client, {OUTSTANDING} outstanding, 1 connection"
    return f"{name:<52}{len(futures) / took:>9.0f}{cpu * 1e6 / len(futures):>8.0f}{'-':>8}"


def say(line: str) -> None:
    """A row as soon as it is known."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each row")
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as folder, Mosquitto(Path(folder), LINES) as broker:
        command = [sys.executable, "-m", "tests.bench.echo_service", str(broker.port)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as echo:
            try:
                if echo.stdout:
                    echo.stdout.readline()
                endpoint = Endpoint("bench", broker.host, broker.port)
                say(f"{'':<52}{'answers/s':>9}{'CPU us':>8}{'p99 lag':>8}")
                for connections in (1, 50):
                    for rate in (*RATES, 0.0):
                        options = BenchOptions(
                            endpoint, "echo", random=f"x=FP32[{ENTRIES}]", rate_hz=rate,
                            outstanding=OUTSTANDING, seconds=seconds, connections=connections,
                            json=True,
                        )  # fmt: skip
                        say(generator_row(options))
                say(client_row(endpoint, seconds))
            finally:
                echo.kill()


if __name__ == "__main__":
    main()
