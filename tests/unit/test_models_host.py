"""Engines from a real store on ONNX Runtime: loaded, checked, renewed, refused."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edged.engine_store import GOLDEN_FILE, EngineStore
from edged.errors import EdgedError, EngineRefusedError
from edged.runners import Array, run_batch
from edged.serve.models import ModelHost, devices_for
from edged.settings import ServeSettings
from tests.doubles.engines import TABLE, install_picker

NAME = "picker"
INDICES = np.array([[0], [1], [2], [-1]], np.int64)
FINITE = INDICES[:3]


def quiet(_where: str, _done: int, _total: int) -> None:
    """Nobody looks at the progress."""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[ModelHost]:
    """A store with one engine, two devices; what is served at the end is closed."""
    install_picker(tmp_path, NAME)
    made = ModelHost(EngineStore(tmp_path), ServeSettings(devices=("cpu:0", "cpu:1")))
    yield made
    for model in made.models.values():
        model.close()


def serve(host: ModelHost) -> None:
    """Loads the model, and takes it as served."""
    model = host.load(NAME, quiet)
    assert model is not None
    host.models[NAME] = model


def install_again(host: ModelHost, digit: str) -> None:
    """The same engine under another key."""
    engine = host.store.current(NAME)
    manifest = engine.manifest.model_copy(update={"key": digit * 64})
    with host.store.building(NAME):
        host.store.install(manifest, {"engine.onnx": engine.read()})


# ------------------------------------------------------------------ which devices


@pytest.mark.parametrize(
    ("runner", "wanted", "fitting"),
    [
        ("onnx", ("auto",), ("cpu",)),
        ("tensorrt", ("auto",), ("cuda:0",)),
        ("onnx", ("cpu:0", "cpu:1"), ("cpu:0", "cpu:1")),
        ("onnx", ("cuda:0", "cpu"), ("cpu",)),
        ("tensorrt", ("cuda:1", "cpu", "cuda:0"), ("cuda:1", "cuda:0")),
        ("onnx", ("auto", "cpu", "cpu"), ("cpu",)),
        ("dla", ("auto", "cuda:0"), ("dla:0",)),
        ("dla", ("cuda:0", "dla:1", "dla:0"), ("dla:1", "dla:0")),
        ("tensorrt", ("dla:0", "cuda:0"), ("cuda:0",)),
    ],
)
def test_an_engine_runs_on_the_devices_of_its_kind(
    host: ModelHost, runner: str, wanted: tuple[str, ...], fitting: tuple[str, ...]
) -> None:
    """In the order of the settings, each once; an engine for a DLA runs on no GPU."""
    change: dict[str, object] = {"runner": runner}
    if runner == "dla":
        change = {"runner": "tensorrt", "fingerprint": {"dla": "yes"}}
    manifest = host.store.current(NAME).manifest.model_copy(update=change)

    assert devices_for(manifest, wanted) == fitting


@pytest.mark.parametrize(("runner", "wanted"), [("onnx", ("cuda:0",)), ("tensorrt", ("cpu:0",))])
def test_an_engine_without_a_device_says_what_to_do(
    host: ModelHost, runner: str, wanted: tuple[str, ...]
) -> None:
    """It names the kind that is needed and what the settings have."""
    manifest = host.store.current(NAME).manifest.model_copy(update={"runner": runner})

    with pytest.raises(EngineRefusedError, match=r"serve\.devices is .*add one, or build"):
        devices_for(manifest, wanted)


# ------------------------------------------------------------------ load and renew


def test_a_model_is_loaded_on_each_device_and_measured(host: ModelHost) -> None:
    """Progress is told, a latency curve is there for each, and the answers are right."""
    told: list[tuple[str, int, int]] = []

    model = host.load(NAME, lambda *step: told.append(step))

    assert model is not None
    host.models[NAME] = model
    assert told == [(f"picker on {device}", n, 2) for device in ("cpu:0", "cpu:1") for n in (1, 2)]
    assert host.devices() == ["cpu:0", "cpu:1"]
    for device, curve in model.curves.items():
        assert curve.sizes == (1, 4)
        assert model.runners[device].device == device
        found = run_batch(model.runners[device], {"x": FINITE}).outputs["y"]
        np.testing.assert_array_equal(found[:, 0], TABLE[:3])
    assert {event.engine for event in model.events(5.0)} == {model.version}
    assert set(host.timers("cpu:1")) == {NAME}
    assert host.served("cpu:1")[NAME].version == model.version
    assert host.manifest(NAME) is model.manifest
    assert host.manifest("nobody") is None
    assert repr(host) == "<ModelHost ['picker'], refused []>"


def test_the_operator_s_slo_reaches_the_timers(host: ModelHost) -> None:
    """`serve.slo_ms` is what requests without a deadline get, so the timers go by it too."""
    serve(host)
    own = host.models[NAME].manifest.slo_ms
    assert host.timers("cpu:1")[NAME].slo_s == pytest.approx(own / 1e3)

    host.settings = host.settings.model_copy(update={"slo_ms": {NAME: 12.5}})

    assert host.timers("cpu:1")[NAME].slo_s == pytest.approx(0.0125)
    assert host.slos_s() == {NAME: pytest.approx(0.0125)}


def test_the_engine_that_serves_is_not_loaded_again(host: ModelHost) -> None:
    """None, as long as it is the current one."""
    serve(host)
    assert host.load(NAME, quiet) is None

    install_again(host, "b")

    model = host.load(NAME, quiet)
    assert model is not None
    assert model.version == "b" * 12
    model.close()


def test_a_device_is_renewed_with_the_engine_that_serves(host: ModelHost) -> None:
    """Though a newer one is current; the other device's runner stays, the failed one is closed."""
    serve(host)
    old = host.models[NAME]
    install_again(host, "b")

    served = host.renew("cpu:0", quiet)

    model = host.models[NAME]
    assert model.version == old.version == served[NAME].version
    assert model.runners["cpu:1"] is old.runners["cpu:1"]
    assert model.runners["cpu:0"] is not old.runners["cpu:0"]
    assert served[NAME].runner is model.runners["cpu:0"]
    with pytest.raises(ValueError, match="closed"):
        old.runners["cpu:0"].submit(0, 1, lambda _completion: None)
    run_batch(model.runners["cpu:0"], {"x": FINITE})


def test_a_renewal_without_the_engine_s_file_is_refused(host: ModelHost) -> None:
    """Two builds later the folder may be gone: told as such, and a reload mends it."""
    serve(host)
    first = host.store.current(NAME).path.parent
    install_again(host, "b")
    shutil.rmtree(first)

    with pytest.raises(EngineRefusedError, match="cannot be read"):
        host.renew("cpu:0", quiet)

    model = host.load(NAME, quiet)
    assert model is not None
    assert sorted(model.runners) == ["cpu:0", "cpu:1"]
    host.models[NAME].close()
    host.models[NAME] = model


def test_earlier_engine_serves_where_the_current_one_fits_no_longer(
    host: ModelHost, tmp_path: Path
) -> None:
    """As after an upgrade of the runtime; the model is known to need another build."""
    fitting = host.store.current(NAME)
    install_picker(tmp_path, NAME, bound_to={"runner": "onnx", "arch": "vax"})

    model = host.load(NAME, quiet)

    assert model is not None
    assert model.engine == fitting
    assert host.outdated == {NAME}
    model.close()
    install_picker(tmp_path, NAME)
    again = host.load(NAME, quiet)
    assert again is not None
    again.close()
    assert host.outdated == set()


@pytest.mark.parametrize("flaw", ["damaged", "no pass", "another device's", "none"])
def test_what_may_not_be_loaded_is_refused(host: ModelHost, tmp_path: Path, flaw: str) -> None:
    """With the reason; nothing is served."""
    if flaw == "damaged":
        host.store.current(NAME).path.write_bytes(b"rust")
    elif flaw == "no pass":
        install_picker(tmp_path, NAME, passed=False)
    elif flaw == "another device's":
        for _ in range(2):  # the one before it is no better
            install_picker(tmp_path, NAME, bound_to={"runner": "onnx", "arch": "vax"})
    else:
        shutil.rmtree(tmp_path / NAME)
    reasons = {
        "damaged": "changed or damaged", "no pass": "did not pass",
        "another device's": "another device", "none": "no engine of model",
    }  # fmt: skip

    with pytest.raises(EngineRefusedError, match=reasons[flaw]):
        host.load(NAME, quiet)
    assert host.models == {}


def test_wanted_models_are_those_listed_or_all(host: ModelHost, tmp_path: Path) -> None:
    """An empty list asks for every model that has an engine."""
    install_picker(tmp_path, "another")
    assert host.wanted() == ("another", NAME)

    host.settings = ServeSettings(models=("b", "a"))

    assert host.wanted() == ("b", "a")


# ------------------------------------------------------------------ golden samples


def golden(**arrays: Array) -> bytes:
    """A file of golden samples; ``in_x`` is the array ``in:x``."""
    file = io.BytesIO()
    named = {name.replace("_", ":"): rows for name, rows in arrays.items()}
    np.savez(file, **named)  # type: ignore[arg-type]  # names are no keyword of savez
    return file.getvalue()


RIGHT = TABLE[[0, 1, 2]][:, None, :]
DAMAGED: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "no archive": lambda: b"these are no arrays",
    "cut": lambda: golden(in_x=FINITE, out_y=RIGHT)[:-40],
    "a byte turned": lambda: golden(in_x=FINITE, out_y=RIGHT).replace(b"\x02\0\0\0", b"\x03\0\0\0"),
    "one array": lambda: _array(FINITE),
    "no input": lambda: golden(out_y=RIGHT),
    "no output": lambda: golden(in_x=FINITE),
    "no samples": lambda: golden(in_x=FINITE[:0], out_y=RIGHT[:0]),
    "too many samples": lambda: golden(in_x=FINITE.repeat(9, 0), out_y=RIGHT.repeat(9, 0)),
    "another shape": lambda: golden(in_x=FINITE[:, None], out_y=RIGHT),
    "another dtype": lambda: golden(in_x=FINITE.astype(np.float32), out_y=RIGHT),
    "fewer answers": lambda: golden(in_x=FINITE, out_y=RIGHT[:1]),
    "texts": lambda: golden(in_x=FINITE, out_y=np.array([["a"]])),
}


def _array(rows: Array) -> bytes:
    file = io.BytesIO()
    np.save(file, rows)
    return file.getvalue()


def put_golden(host: ModelHost, data: bytes) -> None:
    """Puts golden samples beside the current engine."""
    host.store.current(NAME).path.with_name(GOLDEN_FILE).write_bytes(data)


@pytest.mark.parametrize("off", [0.0, 0.01])
def test_an_engine_that_still_computes_the_same_is_loaded(host: ModelHost, off: float) -> None:
    """Within the tolerance, which is a share of the largest value."""
    put_golden(host, golden(in_x=FINITE, out_y=(RIGHT * (1 + off)).astype(np.float32)))

    serve(host)


@pytest.mark.parametrize("wrong", [1.1, -1.0, np.nan, 0.0])
def test_an_engine_that_computes_something_else_is_refused(host: ModelHost, wrong: float) -> None:
    """The message says which output and by how much."""
    put_golden(host, golden(in_x=FINITE, out_y=(RIGHT * wrong).astype(np.float32)))

    with pytest.raises(EngineRefusedError, match=r"computes something else .*'y' is off by"):
        host.load(NAME, quiet)


@pytest.mark.parametrize("damage", DAMAGED)
def test_golden_samples_that_cannot_be_used_are_a_refusal(host: ModelHost, damage: str) -> None:
    """Whatever is in the file: a reason, never another exception; the same at a later load."""
    put_golden(host, DAMAGED[damage]())

    for _ in range(2):
        with pytest.raises(EdgedError, match=r"golden samples of 'picker' cannot be used"):
            host.load(NAME, quiet)


# ------------------------------------------------------------------ what is desired


def test_a_version_that_is_asked_for_is_loaded_instead_of_the_newest(host: ModelHost) -> None:
    """The one before the newest, and the newest again once none is asked for."""
    old = host.store.current(NAME).manifest.key[:12]
    install_again(host, "f")
    settings = host.settings

    host.settings = settings.model_copy(update={"versions": {NAME: old}})
    serve(host)
    assert host.models[NAME].version == old
    assert host.load(NAME, quiet) is None
    host.settings = settings
    newest = host.load(NAME, quiet)
    assert newest is not None
    assert newest.version == "f" * 12
    newest.close()


def test_a_version_that_is_gone_is_no_reason_not_to_serve(
    host: ModelHost, caplog: pytest.LogCaptureFixture
) -> None:
    """The newest engine is loaded, and it is said."""
    host.settings = host.settings.model_copy(update={"versions": {NAME: "0" * 12}})

    serve(host)

    assert host.models[NAME].version == host.store.current(NAME).manifest.key[:12]
    assert "not in the store any more" in caplog.text


def test_a_deadline_that_is_asked_for_goes_before_the_recipe_s(host: ModelHost) -> None:
    """At once, for requests that come from then on; without one the recipe's holds."""
    serve(host)
    manifest = host.manifest(NAME)
    assert manifest is not None
    host.settings = host.settings.model_copy(update={"slo_ms": {NAME: 7.5}})
    changed = host.manifest(NAME)
    assert changed is not None
    assert changed.slo_ms == 7.5
    assert host.manifest(NAME) is changed
    assert changed.model_copy(update={"slo_ms": manifest.slo_ms}) == manifest
    host.settings = host.settings.model_copy(update={"slo_ms": {}})
    assert host.manifest(NAME) is manifest
