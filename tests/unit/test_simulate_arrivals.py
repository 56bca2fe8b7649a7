"""Arrival models: their rates, their shapes, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edged.errors import BadParameterError, InputFileError
from edged.simulate.arrivals import (
    Arrivals,
    Cameras,
    Modulation,
    bursts,
    cameras,
    diurnal,
    mmpp,
    pareto,
    poisson,
)
from edged.simulate.recorded import read_recorded

MODELS: list[Callable[..., Arrivals]] = [poisson, pareto, bursts, mmpp]


def _variation(came: Arrivals) -> float:
    gaps = np.diff(came.times)
    return float(gaps.std() / gaps.mean())


@pytest.mark.parametrize("model", MODELS)
def test_every_model_keeps_its_rate_and_its_seed(model: Callable[..., Arrivals]) -> None:
    """Ascending times at the rate that was asked for; the same seed, the same times."""
    came = model(500.0, 200_000, 3)

    assert (np.diff(came.times) >= 0).all()
    assert came.rate == pytest.approx(500, rel=0.1)
    assert (came.times == model(500.0, 200_000, 3).times).all()
    assert (came.times[:100] != model(500.0, 200_000, 4).times[:100]).any()


def test_models_differ_in_how_irregular_they_are() -> None:
    """Poisson gaps vary by 1; bursts, modulation and heavy tails by more."""
    plain = _variation(poisson(500, 100_000, 1))

    assert plain == pytest.approx(1, abs=0.02)
    assert all(_variation(model(500.0, 100_000, 1)) > 1.1 for model in (pareto, bursts, mmpp))


def test_modulated_phases_have_their_own_rates() -> None:
    """Phase by phase, half and three times the mean rate, with the phases told."""
    shape = Modulation()
    came = mmpp(1000, 300_000, 2, modulation=shape)

    starts, phases = zip(*came.phases, strict=True)
    inside = np.searchsorted(starts, came.times, side="right") - 1
    phase = np.asarray(phases)[inside]
    lasts = np.diff([*starts, came.times[-1]])
    rates = [(phase == j).sum() / lasts[np.asarray(phases) == j].sum() for j in (0, 1)]

    assert rates == pytest.approx(shape.rates(1000), rel=0.02)
    assert shape.rates(1000) == pytest.approx((500, 3000))


def test_a_day_has_its_night_at_the_beginning() -> None:
    """The first tenth of a day is quiet, its middle is busy, the mean is the rate."""
    came = diurnal(100, 90_000, 1, period_s=600, swing=0.9)

    assert int((came.times < 600).sum()) == pytest.approx(60_000, rel=0.02)
    quiet = ((came.times % 600) < 60).mean()
    busy = (np.abs(came.times % 600 - 300) < 30).mean()
    assert busy > 5 * quiet


def test_triggered_cameras_come_in_groups() -> None:
    """All frames of a trigger lie within the window; each camera comes once a period."""
    came = cameras(Cameras(16, 25, window_s=0.002), seconds=4)

    assert len(came) == 16 * 100
    assert float((came.times % 0.04).max()) <= 0.002 + 1e-9
    assert np.bincount(came.sources).tolist() == [100] * 16


def test_cameras_drift_and_drop_frames() -> None:
    """Dropouts thin the frames out; drift and jitter move them off their period."""
    exact = cameras(Cameras(1, 10), seconds=100)
    loose = cameras(Cameras(1, 10, jitter_s=0.001, drift_ppm=50, dropout=0.2), seconds=100)

    assert np.diff(exact.times) == pytest.approx(np.full(999, 0.1))
    assert len(loose) == pytest.approx(800, abs=50)
    assert float(np.abs(np.diff(loose.times) / 0.1 % 1).std()) > 0.001


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: poisson(0, 10), "rate is 0"),
        (lambda: poisson(float("nan"), 10), "rate is nan"),
        (lambda: pareto(10, 10, shape=1.0), "shape"),
        (lambda: diurnal(10, 10, swing=2), "swing is 2"),
        (lambda: cameras(Cameras(0, 30), 1), "cameras is 0"),
        (lambda: cameras(Cameras(1, 30, dropout=1), 1), "dropout 1"),
    ],
)
def test_nonsense_is_refused(make: Callable[[], Arrivals], said: str) -> None:
    """An amount that cannot be names itself."""
    with pytest.raises(BadParameterError, match=said):
        make()


@pytest.mark.parametrize(
    "text",
    [
        "12.5\n12.0\n14.0\n",
        "time,source\n12.5,b\n12.0,a\n14.0,b\n",
        "[12.5, 12.0, 14.0]",
        '[{"t": 12.5, "camera": "b"}, {"t": 12.0, "camera": "a"}, {"t": 14.0, "camera": "b"}]',
        '{"ts": 12.5, "topic": "b"}\n{"ts": 12.0, "topic": "a"}\n{"ts": 14.0, "topic": "b"}\n',
    ],
    ids=["lines", "csv", "json", "objects", "json lines"],
)
def test_captures_are_read_in_every_form(tmp_path: Path, text: str) -> None:
    """Whatever the form: three times from second 0 in order, with their sources if told."""
    path = tmp_path / "capture"
    path.write_text(text, encoding="utf-8")

    came = read_recorded(path)

    assert came.times.tolist() == pytest.approx([0.0, 0.5, 2.0])
    assert len(set(came.sources.tolist())) == (2 if "a" in text else 1)


@pytest.mark.parametrize("text", ["", "hello\nworld\n", "[1, null]", '{"x": 1}', "nan\n", "[[1]]"])
def test_what_is_no_capture_is_refused(tmp_path: Path, text: str) -> None:
    """The message names the file, and what a capture looks like where that helps."""
    path = tmp_path / "capture"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(InputFileError, match="capture"):
        read_recorded(path)


def test_a_missing_capture_is_said(tmp_path: Path) -> None:
    """A file that is not there is an error with its name."""
    with pytest.raises(InputFileError, match=r"nothing\.csv"):
        read_recorded(tmp_path / "nothing.csv")
