"""`edged simulate`: questions, answers, headroom, charts."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.cli import main
from edged.engine_store import EngineStore
from edged.errors import BadParameterError
from edged.serve.timer import BatchTimer
from edged.serve.tuning import EVERY_S
from edged.simulate import command
from edged.simulate.arrivals import Cameras
from edged.simulate.arrivals import cameras as periodic
from edged.simulate.capacity import carries, find_capacity
from edged.simulate.device import Device, Rules, simulate
from edged.simulate.options import SimulateOptions
from edged.simulate.summary import Summary, summarize
from edged.simulate.workload import parse_curve, plant, workload
from tests.doubles.engines import install_picker

QUICK = 2_000


def _ask(tmp_path: Path, **said: object) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    options = SimulateOptions(**{"requests": QUICK, **said})  # type: ignore[arg-type]
    code = command.run(options, tmp_path / "engines", out=out, err=err)
    return code, out.getvalue(), err.getvalue()


def test_a_device_that_carries_the_cameras_says_yes(tmp_path: Path) -> None:
    """40 cameras at 15 fps on a fast device: yes, with its figures and the headroom; code 0."""
    code, out, err = _ask(tmp_path, curve="2+0.25b", cameras=40, fps=15.0, slo_ms=50.0)

    assert (code, err) == (0, "")
    assert "yes: 40 cameras under 50 ms: 100.00% answered in time" in out
    assert "headroom: up to " in out
    assert "p99.9, ms" in out
    assert "decoding, encoding and the network come on top" in out


def test_a_device_that_does_not_says_no(tmp_path: Path) -> None:
    """The same cameras on a slow device: no, with what it would carry; code 1."""
    code, out, _ = _ask(tmp_path, curve="8+4b", cap=8, cameras=40, fps=15.0, slo_ms=50.0)

    assert code == 1
    assert "no: 40 cameras under 50 ms" in out
    carried = int(out.split("headroom: up to ")[1].split(" cameras")[0])
    assert 3 <= carried < 40
    again, _, _ = _ask(tmp_path, curve="8+4b", cap=8, cameras=carried, fps=15.0, slo_ms=50.0)
    assert again == 0


def test_a_built_model_brings_its_curve_batch_and_slo(tmp_path: Path) -> None:
    """With --model the manifest says what a batch takes, how large it may be, and the SLO."""
    install_picker(tmp_path / "engines", "picker")
    manifest = EngineStore(tmp_path / "engines").current("picker").manifest

    code, out, _ = _ask(tmp_path, model="picker", rate=200.0, json=True)

    told = json.loads(out)
    assert (told["device"], told["slo_ms"]) == ("picker", manifest.slo_ms)
    assert told["carried"] == (code == 0)
    place = plant(SimulateOptions(model="picker"), manifest)
    assert (place.cap, place.curve.seconds) == (manifest.max_batch, manifest.curve.seconds)


@pytest.mark.parametrize("kind", ["poisson", "mmpp", "diurnal", "pareto", "bursts"])
def test_any_arrival_model_can_be_asked_about(tmp_path: Path, kind: str) -> None:
    """Without an SLO there is no yes or no: figures and code 0."""
    code, out, _ = _ask(tmp_path, curve="1:2.25,8:4,32:10", arrivals=kind, rate=300.0)

    assert code == 0
    assert "300 requests/s on 1:2.25,8:4,32:10" in out
    assert "headroom" not in out


def test_a_recorded_capture_can_be_asked_about(tmp_path: Path) -> None:
    """Its headroom is how much faster it may come."""
    trace = tmp_path / "capture.txt"
    trace.write_text("\n".join(str(0.01 * n) for n in range(1_000)), encoding="utf-8")

    code, out, _ = _ask(tmp_path, curve="2+0.25b", trace=trace, slo_ms=25.0)

    assert code == 0
    assert "times the trace's speed" in out


@pytest.mark.parametrize(
    ("said", "slo_ms"),
    [
        ({"curve": "0.1+0.01b", "rate": 100_000.0}, 200.0),  # it can do 76,190/s
        ({"curve": "2+0.25b", "rate": 3_800.0}, 1_000.0),  # 3,200/s
        ({"curve": "2+0.25b", "rate": 2_000.0, "slow": ("0:9999:2",)}, 60_000.0),  # 1,600/s
        ({"curve": "2+0.25b", "arrivals": "diurnal", "rate": 2_500.0}, 50.0),  # at noon 4,750/s
    ],
)
def test_what_cannot_be_carried_for_long_is_a_no(
    tmp_path: Path, said: dict[str, object], slo_ms: float
) -> None:
    """However short the run and however long the SLO; and the headroom agrees."""
    code, out, _ = _ask(tmp_path, **said, cap=32, slo_ms=slo_ms, json=True)

    told = json.loads(out)
    assert (code, told["carried"]) == (1, False)
    assert 0 < told["capacity"] < told["load"]


def test_the_last_requests_count_by_themselves() -> None:
    """99.5 % in time, and only 90 % of the last tenth: it gets worse, so it is a no."""
    fine = _carried(yes=True)

    assert carries(fine)
    assert not carries(replace(fine, attainment=0.995, last=0.9))
    assert not carries(replace(fine, offered=1.0))


def test_the_timer_is_tuned_as_in_the_daemon(tmp_path: Path) -> None:
    """Once a second: the figures are those of a hundred seconds with the daemon's rule."""
    cameras = Cameras(4, 5.0, window_s=0.01)
    _, out, _ = _ask(
        tmp_path, curve="2+0.25b", cameras=4, fps=5.0, window_ms=10.0, mode="10", json=True
    )
    curve = parse_curve("2+0.25b")
    timer = BatchTimer(curve, 32, price=10.0)
    rules = Rules(expire=True, tune=timer.retune, tune_s=EVERY_S)

    ran = simulate(timer, periodic(cameras, 100.0), Device(curve, noise=0.02), rules)

    assert json.loads(out)["policies"]["timer"]["mean_ms"] == summarize(ran).mean_ms


def test_a_slow_spell_is_seen_in_the_answer(tmp_path: Path) -> None:
    """Ten times slower for half of the run: no longer in time."""
    asked = {"curve": "2+0.25b", "rate": 900.0, "slo_ms": 25.0}

    fine, _, _ = _ask(tmp_path, **asked)
    slow, _, _ = _ask(tmp_path, **asked, slow=("1:2:10",))

    assert (fine, slow) == (0, 1)


def test_no_headroom_is_beyond_what_the_device_can_do(tmp_path: Path) -> None:
    """A run is finite, so a long SLO would let any load through; 32 in 10 ms are the most."""
    asked = {"curve": "2+0.25b", "slo_ms": 60_000.0, "json": True}

    _, out, _ = _ask(tmp_path, **asked, rate=1_500.0)

    told = json.loads(out)
    assert told["most_requests_s"] == pytest.approx(3200)
    assert 2900 < told["capacity"] <= 3200


def test_an_overload_is_no_yes(tmp_path: Path) -> None:
    """Although all of the run's requests end within a long SLO; it is told with the figures."""
    code, out, _ = _ask(tmp_path, curve="2+0.25b", rate=5_000.0, slo_ms=60_000.0)

    assert code == 1
    assert "overload: 5000 requests/s come, the device can do 3200 at most" in out
    assert "no: 5000 requests/s" in out


def test_charts_are_well_formed(tmp_path: Path) -> None:
    """--plot writes one SVG with four charts, and text that needs no escape by the reader."""
    chart = tmp_path / "chart.svg"

    _ask(tmp_path, curve="2+0.25b", rate=300.0, slo_ms=25.0, plot=chart)

    tree = ET.fromstring(chart.read_text(encoding="utf-8"))  # noqa: S314  # we wrote it
    assert len(tree.findall("{http://www.w3.org/2000/svg}g")) == 4


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({}, "either --model or --curve"),
        ({"curve": "fast", "rate": 1.0}, "curve 'fast' must be a line"),
        ({"curve": "0+0b", "rate": 1.0}, "takes no time at all"),
        ({"curve": "2+1b"}, "no load is given"),
        ({"curve": "2+1b", "arrivals": "mmpp"}, "need --rate"),
        ({"curve": "2+1b", "rate": 1.0, "cameras": 2}, "--rate and --cameras are different loads"),
        ({"curve": "2+1b", "rate": 1.0, "cap": 2000}, "within 1 and 1024"),
        ({"curve": "2+1b", "rate": 1.0, "plot": Path("chart.png")}, "must be an .svg file"),
        ({"curve": "2+1b", "rate": 1.0, "plot": Path("none/c.svg")}, "a folder that exists"),
        ({"curve": "2+1b", "rate": -1.0}, "need --rate"),
        ({"curve": "2+1b", "arrivals": "cameras"}, "need --cameras"),
        ({"curve": "2+1b", "arrivals": "trace"}, "need --trace"),
        ({"curve": "2+1b", "cameras": 0}, "cameras is 0"),
        ({"curve": "2+1b", "rate": 1.0, "slow": ("9",)}, "slow '9' must be FROM:TO:FACTOR"),
        ({"curve": "2+1b", "rate": 1.0, "slow": ("2:1:2",)}, "FROM must be before TO"),
        ({"curve": "2+1b", "rate": 1.0, "slo_ms": 0.0}, "SLO 0 ms"),
        ({"curve": "2+1b", "rate": 1.0, "mode": "quick"}, "mode 'quick'"),
        ({"curve": "2+1b", "cameras": 1, "dropout": 0.9999}, "requests came, and 20 are needed"),
        ({"curve": "2+1b", "rate": 1.0, "requests": 3}, "3 requests say nothing"),
        ({"model": "nothing", "rate": 1.0}, "nothing"),
        ({"curve": "2+1b", "trace": Path("nothing.csv")}, r"nothing.csv"),
    ],
)
def test_a_question_without_an_answer_says_why(
    tmp_path: Path, said: dict[str, object], words: str
) -> None:
    """One line on standard error that says what to change, and code 2."""
    code, out, err = _ask(tmp_path, **said)

    assert (code, out) == (2, "")
    assert words in err
    assert err.startswith("edged simulate: ")


def test_the_command_line_reaches_the_simulator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Arguments become the question: here two slow spells, a mode and JSON."""
    arguments = "--curve 2+0.25b --rate 200 --slo 25 --mode eco --slow 1:2:2 --slow 3:4:2 --json"

    code = main(["simulate", *arguments.split(), "--requests", "1000"])

    told = json.loads(capsys.readouterr().out)
    assert code == 0
    assert told["policies"]["timer"]["requests"] == 900
    assert told["policies"]["timer"]["device_ms"] < told["policies"]["at once"]["device_ms"]


def test_curves_are_milliseconds() -> None:
    """A line and a table of the same device agree; a table may be stepped."""
    line, table = parse_curve("2+0.25b"), parse_curve("1:2.25,32:10")

    assert all(line(size) == pytest.approx(table(size)) for size in (1, 2, 7, 32))
    assert parse_curve("1:2,8:4", stepped=True)(2) == pytest.approx(0.004)


def test_more_cameras_come_more_often() -> None:
    """The workload of a camera question can be scaled by cameras."""
    load = workload(SimulateOptions(cameras=10, fps=20.0, requests=4_000))

    assert load.make(10, 4_000, 0.0).rate == pytest.approx(200, rel=0.05)
    assert load.make(30, 4_000, 0.0).rate == pytest.approx(600, rel=0.05)


def _carried(*, yes: bool) -> Summary:
    share = 1.0 if yes else 0.0
    return Summary(
        requests=1, served=1, mean_ms=1.0, p50_ms=1.0, p95_ms=1.0, p99_ms=1.0, p999_ms=1.0,
        attainment=share, goodput=1.0, device_ms=1.0, busy=share, mean_batch=1.0,
        histogram={}, reasons={},
    )  # fmt: skip


@given(limit=st.integers(0, 5_000), start=st.integers(1, 500))
def test_bisection_finds_the_last_number_that_is_carried(limit: int, start: int) -> None:
    """Whatever it begins with: exactly the limit, in a number of runs that grows by its logarithm.

    A limit of 0 is found as 0.
    """
    found = find_capacity(lambda load: _carried(yes=load <= limit), start, whole=True)

    assert found.load == limit
    assert len(found.tried) <= 4 + 2 * math.log2(max(limit, start) + 1)


@given(limit=st.floats(0.01, 1e4), start=st.floats(0.1, 100))
def test_a_rate_is_found_to_two_per_cent(limit: float, start: float) -> None:
    """Rates are no whole numbers; the answer is never above the limit."""
    found = find_capacity(lambda load: _carried(yes=load <= limit), start, whole=False)

    assert 0.97 * limit <= found.load <= limit


def test_an_empty_curve_table_is_refused() -> None:
    """A table without a size is no curve."""
    with pytest.raises(BadParameterError, match="must be a line"):
        parse_curve("")
