"""The doctor: each lack is a line with its meaning and its cure, and the table never breaks off."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import sys
from pathlib import Path

import pytest

from edged import doctor
from edged.device import read_device
from edged.doctor_line import Line
from edged.engine_store import EngineStore
from edged.errors import ConfigError
from edged.manifest import Manifest, Verdict
from edged.recipe import InputSpec, OutputSpec
from edged.runners import fingerprint
from edged.settings import BrokerSettings, PathSettings, ServeSettings, load_settings

ENGINE = b"stands for an ONNX file; the doctor checks its digest and does not load it"


def _install(folder: Path, name: str = "digits", *, passed: bool = True, arch: str = "") -> None:
    """Installs an engine for this machine, or for another architecture."""
    manifest = Manifest(
        model=name,
        key="0" * 64,
        created="2025-01-01T00:00:00Z",
        runner="onnx",
        fingerprint=fingerprint("onnx") | ({"arch": arch} if arch else {}),
        file="engine.onnx",
        sha256=hashlib.sha256(ENGINE).hexdigest(),
        precision="int8",
        sources={},
        input=(InputSpec(name="x", datatype="FP32", shape=(4,)),),
        output=(OutputSpec(name="y", shape=(2,)),),
        max_batch=16,
        warm_sizes=(1, 16),
        slo_ms=1000,
        latency_ms={"1": 1.0},
        quantized=(),
        verdict=Verdict(passed=passed, samples=1, metrics={}, reasons=() if passed else ("bad",)),
    )
    EngineStore(folder).install(manifest, {"engine.onnx": ENGINE})


def _engines(folder: Path, *models: str) -> list[Line]:
    return doctor.check_engines(PathSettings(engines=folder), ServeSettings(models=models))


def test_serving_is_possible_with_an_engine_and_a_broker(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole table on this machine: exit code 0, and every line that is not ok has a cure."""
    _install(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        settings = load_settings(
            broker={"port": server.getsockname()[1]},
            paths={"engines": tmp_path, "calib": tmp_path},
        )
        assert doctor.run(settings) == os.EX_OK

    table = capsys.readouterr().out
    assert re.search(
        r"^ok +engine digits +usable: int8, onnx, batches up to 16$", table, re.MULTILINE
    )
    assert "missing" not in table
    warned = len(re.findall(r"^warn", table, re.MULTILINE))
    assert len(re.findall(r"^ +means: \S", table, re.MULTILINE)) == warned
    assert len(re.findall(r"^ +mend:  \S", table, re.MULTILINE)) == warned
    assert table.endswith("\nserving is possible\n")


def test_what_is_missing_is_summed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No folder, no engine, no broker: exit code 69, and the last line names all three."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    settings = load_settings(
        broker={"port": port}, paths={"engines": tmp_path / "none", "calib": tmp_path}
    )

    assert doctor.run(settings) == os.EX_UNAVAILABLE
    assert capsys.readouterr().out.endswith(
        "\nserving is not possible: engines folder, engines, broker\n"
    )


def test_wrong_settings_are_a_line_and_not_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    """What does not depend on the settings is still looked at; the exit code is that of serve."""
    assert doctor.run(ConfigError("settings: broker.port: too large")) == os.EX_CONFIG

    table = capsys.readouterr().out
    assert re.search(r"^missing +settings +settings: broker\.port: too large$", table, re.MULTILINE)
    assert re.search(r"^ok +Python", table, re.MULTILINE)
    assert table.endswith("\nserving is not possible: settings\n")


def test_a_name_in_the_environment_that_is_no_setting_is_pointed_at() -> None:
    """A mistyped EDGED_BROKR__PORT changes nothing; whoever typed it should be told."""
    environ = {
        "EDGED_BROKR__PORT": "1", "EDGED_BROKER__PORT": "1", "edged_log__level": "info",
        "EDGED_SERVE": "{}", "EDGED_CONFIG": "x", "PATH": "/bin",
    }  # fmt: skip

    _, *warned = doctor.check_settings(load_settings(), environ)

    assert [line.found for line in warned] == ["EDGED_BROKR__PORT names no setting"]


def test_one_usable_engine_is_enough(tmp_path: Path) -> None:
    """The others are warnings with their reason: damaged, failed, or for another machine."""
    _install(tmp_path)
    _install(tmp_path, "failed", passed=False)
    _install(tmp_path, "foreign", arch="riscv64")
    _install(tmp_path, "damaged")
    (tmp_path / "damaged/built/current/engine.onnx").write_bytes(b"other")

    lines = {line.what: line for line in _engines(tmp_path)}

    assert lines["engine digits"].state == "ok"
    for name, reason in (
        ("failed", "did not pass verification: bad"),
        ("foreign", "built for 'riscv64'"),
        ("damaged", "changed or damaged"),
    ):
        line = lines[f"engine {name}"]
        assert (line.state, line.mend) == ("warn", f"edged build {name}")
        assert reason in line.found


def test_without_a_usable_engine_serving_is_not_possible(tmp_path: Path) -> None:
    """An empty store, a model that has none, and one that did not pass all block serving."""
    assert [line.state for line in _engines(tmp_path)] == ["missing"]
    _install(tmp_path, "failed", passed=False)
    assert [line.state for line in _engines(tmp_path)] == ["missing"]
    assert [line.state for line in _engines(tmp_path, "digits")] == ["missing"]


def test_folders_that_are_missing_or_no_folders(tmp_path: Path) -> None:
    """Engines are needed for serving, calibration sets only for builds."""
    (tmp_path / "file").touch()
    engines, calib = doctor.check_folders(
        PathSettings(engines=tmp_path / "file", calib=tmp_path / "none")
    )

    assert (engines.state, calib.state) == ("missing", "warn")
    assert "cannot be read" in engines.found
    assert "does not exist" in calib.found


@pytest.mark.parametrize("host", ["127.0.0.1", "a" * 250])
def test_a_broker_that_cannot_be_reached_is_a_line(host: str) -> None:
    """A refused connection and an impossible name are told alike, with the address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    line, *_ = doctor._guarded(
        "broker", lambda: doctor.check_broker(BrokerSettings(host=host, port=port))
    )

    assert (line.state, line.what) == ("missing", "broker")
    assert f"{host}:{port} not reachable" in line.found


def test_a_package_that_breaks_the_interpreter_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A native library that ends the process ends only the process that tried it."""
    (tmp_path / "brokenlib.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)"
    )
    (tmp_path / "oldlib.py").write_text("raise ImportError('libcuda.so.1: no such file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    crashed = doctor._package("broken", ("brokenlib",), "means", "mend")
    failed = doctor._package("old", ("oldlib",), "means", "mend")

    assert (crashed.state, failed.state) == ("warn", "warn")
    assert "cannot be imported: exit code -11" in crashed.found
    assert failed.found.endswith("libcuda.so.1: no such file")


def test_the_packages_of_this_environment_are_found() -> None:
    """What the tests themselves run on is reported as it is."""
    lines = {line.what: line for line in doctor.check_packages()}

    assert sys.executable in lines["Python"].found
    for name in ("numpy", "onnxruntime", "Pillow"):
        assert lines[name].state == "ok"
    assert lines["numpy"].found == f"{__import__('numpy').__version__} (numpy)"


def test_driver_and_systemd_are_looked_for_under_the_root(tmp_path: Path) -> None:
    """A Jetson's driver may be part of L4T; the unit counts where it is installed."""
    assert doctor.check_driver(read_device(tmp_path))[0].state == "warn"
    assert doctor.check_systemd(tmp_path)[0].found == "does not run here"

    (tmp_path / "etc/systemd/system").mkdir(parents=True)
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    (tmp_path / "etc/nv_tegra_release").write_text("# R35 (release), REVISION: 5.0, GCID: 1")
    assert doctor.check_driver(read_device(tmp_path))[0].found == "part of L4T 35.5.0"
    assert doctor.check_systemd(tmp_path)[0].found == "runs without edged.service"

    (tmp_path / "etc/systemd/system/edged.service").touch()
    assert doctor.check_systemd(tmp_path)[0].state == "ok"


def test_the_clock_is_judged() -> None:
    """A board without a battery starts in the past; an unknown state is not called synchronised."""
    future = 4e9

    assert "before edged was installed" in doctor.check_clock(0.0, synchronised=True)[0].found
    assert doctor.check_clock(future, synchronised=True)[0].state == "ok"
    assert "not synchronised" in doctor.check_clock(future, synchronised=False)[0].found
    assert "not known" in doctor.check_clock(future, synchronised=None)[0].found


def test_a_check_that_fails_is_a_line() -> None:
    """No traceback: what a machine is like cannot all be foreseen."""

    def failing() -> list[Line]:
        raise RuntimeError("strange machine")

    (line,) = doctor._guarded("clock", failing)

    assert (line.state, line.what) == ("warn", "clock")
    assert "RuntimeError: strange machine" in line.found
