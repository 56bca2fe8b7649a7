"""`edged bench` against the real service on the bundled digits, through a real mosquitto."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edged import bench, protocol
from edged.bench import BenchOptions
from edged.bench.options import read_mix
from edged.cli import main
from edged.client import Endpoint
from tests.doubles import digits
from tests.doubles.broker import Mosquitto, free_port
from tests.doubles.service import running_service
from tests.doubles.wire import Ask, WireClient


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """A served digits model that tells of itself once a second."""
    folder = tmp_path_factory.mktemp("bench")
    with (
        Mosquitto(folder / "broker", ["max_packet_size 100000"]) as broker,
        running_service(
            folder, broker.host, broker.port, EDGED_REPORT__TELEMETRY_INTERVAL_S="1"
        ) as served,
    ):
        yield served


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A .npz file of images."""
    np.savez(tmp_path / "all.npz", image=digits.images()[:32])
    return str(tmp_path / "all.npz")


def call(options: BenchOptions) -> tuple[int, str, str]:
    """Runs it: exit code, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    code = bench.run(options, out=out, err=err, stdin=io.BytesIO())
    return code, out.getvalue(), err.getvalue()


def document(options: BenchOptions) -> dict[str, Any]:
    """The JSON of a run that loses nothing."""
    code, out, err = call(replace(options, json=True))
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def test_bench_answers_every_request_and_says_how(endpoint: Endpoint, file: str) -> None:
    """An open-loop run answers all; JSON has counts, percentiles and batches that add up."""
    options = BenchOptions(endpoint, "digits", file, rate_hz=150, seconds=1, samples=4)
    code, out, err = call(replace(options, json=True, slo_ms=5000))
    found = json.loads(out)
    assert code == 0
    assert (found["sent"], found["answered"], found["lost"]) == (150, 150, 0)
    assert (found["duplicates"], found["foreign"]) == (0, 0)
    assert sum(found["batches"].values()) == 150
    assert min(int(name.split()[0]) for name in found["batches"]) >= 4
    assert found["latency_ms"]["p50"] <= found["latency_ms"]["p99"]
    assert found["good_share"] == 1.0
    assert "150/150 requests sent" in err


def test_many_connections_classes_and_bursts(endpoint: Endpoint, file: str, tmp_path: Path) -> None:
    """Each class is told apart, nothing is lost, charts are written, and a warm-up is left out."""
    plot = tmp_path / "run.svg"
    found = document(
        BenchOptions(
            endpoint, "digits", file, rate_hz=200, seconds=1, warmup_s=0.5, arrivals="bursts",
            connections=8, mix=read_mix("urgent=1:20000,normal=2:20000"), plot=plot,
        )
    )  # fmt: skip
    assert 150 <= found["sent"] <= 250
    assert found["answered"] == found["sent"]
    assert set(found["classes"]) == {"urgent 20000 ms", "normal 20000 ms"}
    assert sum(each["answered"] for each in found["classes"].values()) == found["answered"]
    assert plot.read_text(encoding="utf-8").startswith("<svg")


@pytest.mark.parametrize("payload", ["json", "png", "jpeg"])
def test_every_form_of_payload_is_answered(endpoint: Endpoint, file: str, payload: Any) -> None:
    """As the binary form above."""
    options = BenchOptions(endpoint, "digits", file, rate_hz=100, seconds=0.3, payload=payload)
    assert document(options)["answered"] == 30


def test_one_at_a_time_never_shares_a_batch(endpoint: Endpoint, file: str) -> None:
    """A closed loop with one request outstanding: every batch has the size of one request."""
    found = document(BenchOptions(endpoint, "digits", file, rate_hz=0, seconds=0.3))
    assert found["answered"] == found["sent"] > 0
    assert {name.split()[0] for name in found["batches"]} == {"1"}
    assert found["offered_hz"] == 0


def test_qos_0_random_inputs_and_several_outstanding(endpoint: Endpoint) -> None:
    """A closed loop over two connections, of numbers that nobody has to have in a file."""
    options = BenchOptions(endpoint, "digits", random="image=UINT8[8,8,1]", qos=0, rate_hz=0)
    found = document(replace(options, outstanding=8, connections=2, seconds=0.3))
    assert found["answered"] == found["sent"] >= 8


def test_a_capture_is_sent_again(endpoint: Endpoint, file: str, tmp_path: Path) -> None:
    """As many requests as it has times."""
    trace = tmp_path / "times.txt"
    trace.write_text("\n".join(str(0.01 * number) for number in range(20)), encoding="utf-8")
    assert document(BenchOptions(endpoint, "digits", file, trace=trace))["sent"] == 20


def test_telemetry_tells_the_cpu_time_of_a_request(endpoint: Endpoint, file: str) -> None:
    """A run longer than two telemetry intervals knows it, without anything but the broker."""
    usage = document(BenchOptions(endpoint, "digits", file, rate_hz=50, seconds=2.5))["usage"]
    assert usage["source"] == "telemetry"
    assert 0 < usage["cpu_ms"] < 1000


def test_bench_counts_refusals_by_code(endpoint: Endpoint, tmp_path: Path) -> None:
    """Requests that the device refuses are counted under the code of the refusal."""
    np.savez(tmp_path / "wrong.npz", image=np.zeros((2, 9, 9, 1), np.uint8))
    wrong = BenchOptions(endpoint, "digits", str(tmp_path / "wrong.npz"), rate_hz=100, seconds=0.1)
    assert document(wrong)["refused"] == {"bad_shape": 10}
    nobody = BenchOptions(endpoint, "letters", random="x=FP32[1]", rate_hz=100, seconds=0.1)
    assert document(nobody)["refused"] == {"unknown_model": 10}


def test_what_cannot_be_measured_is_one_line_and_exit_1(
    endpoint: Endpoint, file: str, tmp_path: Path
) -> None:
    """No broker, no device, nothing to cut, too large for the broker: each says what to do."""
    np.savez(tmp_path / "odd.npz", a=np.zeros(2), b=np.zeros(3))
    options = BenchOptions(endpoint, "digits", file, seconds=1)
    for wrong, why in (
        (replace(options, endpoint=replace(endpoint, port=free_port())), "no MQTT broker"),
        (
            replace(options, endpoint=replace(endpoint, device="nobody")),
            "nobody takes requests of device 'nobody'",
        ),
        (
            replace(options, endpoint=Endpoint(host=endpoint.host, port=endpoint.port, pool="p")),
            "nobody takes requests of pool 'p'",
        ),
        (replace(options, file=str(tmp_path / "odd.npz")), "'a': 2, 'b': 3"),
        (replace(options, file=str(tmp_path / "none.npz")), "No such file"),
        (replace(options, file="", random="x=FP32[50000]"), "the broker takes at most 100000"),
        (replace(options, pid=2**31 - 1), "there is no process"),
    ):
        code, out, err = call(wrong)
        assert (code, out) == (1, "")
        assert why in err


def test_a_device_that_is_offline_is_said_at_once(endpoint: Endpoint, file: str) -> None:
    """Its kept session would swallow the requests."""
    status = protocol.Topics(endpoint.root, "gone").status
    with WireClient(SimpleNamespace(host=endpoint.host, port=endpoint.port)) as client:
        client.publish(Ask(status, b'{"state":"offline"}', retain=True))
        client.flush()
    gone = replace(endpoint, device="gone")
    code, _, err = call(BenchOptions(gone, "digits", file))
    assert code == 1
    assert "device 'gone' says it is 'offline'" in err


def test_the_command_line_reaches_it(
    endpoint: Endpoint, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """All that the options say comes through; what contradicts itself is refused."""
    where = ["--host", endpoint.host, "--port", str(endpoint.port), "--device", endpoint.device]
    load = ["--rate", "100", "--seconds", "0.2", "--mix", "urgent=1:9000", "--connections", "2"]
    assert main(["bench", "digits", file, *where, *load]) == 0
    assert "20 sent: 20 answered" in capsys.readouterr().out
    assert main(["bench", "digits", file, *where, *load, "--priority", "urgent"]) == 1
    assert "leave the others out" in capsys.readouterr().err
