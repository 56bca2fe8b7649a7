"""The engine store: atomic install, what may be loaded, what is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edged.engine_store import EngineStore
from edged.errors import BuildError, EngineRefusedError
from tests.doubles.stored import HERE, install, manifest


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    """An empty store."""
    return EngineStore(tmp_path)


def test_installed_engine_is_current_and_whole(store: EngineStore) -> None:
    """What was installed is what is read, with the other files beside it."""
    installed = install(store)
    engine = store.usable("m", HERE)
    assert engine == installed
    assert engine.read() == b"engine"
    assert (engine.path.parent / "report.json").read_bytes() == b"{}"
    assert store.models() == ["m"]
    assert repr(store) == "<EngineStore 1 models>"


def test_latency_curve_is_ordered_by_size(store: EngineStore) -> None:
    """The manifest's latencies become a curve in seconds."""
    assert install(store).manifest.curve(2) == pytest.approx(2e-3)


def test_no_store_has_no_models(tmp_path: Path) -> None:
    """A folder that does not exist yet holds nothing."""
    assert EngineStore(tmp_path / "gone").models() == []


def test_only_the_current_and_the_previous_engine_stay(store: EngineStore, tmp_path: Path) -> None:
    """Older engines are removed; the one before stays for rolling back."""
    engines = [install(store, str(n).encode(), key=str(n) * 64) for n in range(4)]
    built = tmp_path / "m" / "built"
    folders = {path.name for path in built.iterdir() if path.is_dir() and not path.is_symlink()}
    assert folders == {engines[2].path.parent.name, engines[3].path.parent.name}
    assert (built / "current").readlink() == Path(engines[3].path.parent.name)
    assert (built / "previous").readlink() == Path(engines[2].path.parent.name)
    assert store.current("m").read() == b"3"


def test_same_key_again_does_not_touch_what_serves(store: EngineStore) -> None:
    """A forced build of the same sources gets a folder of its own."""
    first = install(store)
    second = install(store)
    assert second.path.parent != first.path.parent
    assert first.read() == second.read() == b"engine"


def test_rests_of_a_crashed_install_are_swept(store: EngineStore, tmp_path: Path) -> None:
    """A staging folder that nobody finished goes with the next install."""
    rest = tmp_path / "m" / "built" / ".new.crashed"
    rest.mkdir(parents=True)
    (rest / "engine.onnx").write_bytes(b"half")
    install(store)
    assert not rest.exists()


def test_failed_install_leaves_the_earlier_engine(store: EngineStore, tmp_path: Path) -> None:
    """A file that cannot be written stops the install; the old engine serves on."""
    first = install(store)
    with pytest.raises(BuildError, match="cannot install the engine of 'm'"):
        store.install(manifest(), {"engine.onnx": b"x", "no/such/folder": b"x"})
    assert store.current("m") == first
    assert not list((tmp_path / "m" / "built").glob(".new.*"))


def test_reader_keeps_its_engine_while_another_is_installed(store: EngineStore) -> None:
    """An engine that was looked up can be read after the next install."""
    install(store, b"old")
    looked_up = store.current("m")
    install(store, b"new", key="c" * 64)
    assert looked_up.read() == b"old"


@pytest.mark.parametrize("model", ["", "../m", "a/b", "x" * 80, ".hidden"])
def test_names_that_are_no_model_are_refused(store: EngineStore, model: str) -> None:
    """A name from outside never becomes a path."""
    with pytest.raises(EngineRefusedError, match="is no model name"):
        store.current(model)


def test_missing_engine_is_refused_with_the_command(store: EngineStore) -> None:
    """The message says how to build it."""
    with pytest.raises(EngineRefusedError, match="build it with: edged build m"):
        store.current("m")


def test_engine_without_a_pass_is_refused_with_its_reasons(store: EngineStore) -> None:
    """No engine is loaded whose manifest lacks a pass."""
    store.install(manifest(passed=False), {"engine.onnx": b"engine"})
    with pytest.raises(EngineRefusedError, match="did not pass verification: bad"):
        store.usable("m", HERE)


@pytest.mark.parametrize(
    "fingerprint", [{"runner": "onnx", "arch": "there"}, {"runner": "onnx"}, HERE | {"gpu": "x"}]
)
def test_engine_for_another_device_is_refused_with_what_differs(
    store: EngineStore, fingerprint: dict[str, str]
) -> None:
    """No engine is loaded whose fingerprint is not this device's."""
    install(store)
    with pytest.raises(EngineRefusedError, match=r"another device or runtime \((arch|gpu): built"):
        store.usable("m", fingerprint)


def test_changed_engine_file_is_refused(store: EngineStore) -> None:
    """What is loaded is what was built."""
    engine = install(store)
    engine.path.write_bytes(b"tampered")
    with pytest.raises(EngineRefusedError, match="changed or damaged"):
        engine.read()


def test_missing_engine_file_is_refused(store: EngineStore) -> None:
    """A manifest alone is no engine."""
    engine = install(store)
    engine.path.unlink()
    with pytest.raises(EngineRefusedError, match="cannot be read"):
        engine.read()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"manifest_version": 2}, "has version 2, this edged reads 1"),
        ({"model": "other"}, "is of 'other'"),
        ({"max_batch": 0}, "max_batch"),
        ({"file": "../../etc/passwd"}, "file"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_wrong_manifests_are_refused(
    store: EngineStore, change: dict[str, object], message: str
) -> None:
    """Another version, another model, values outside their limits, unknown fields."""
    path = install(store).path.parent / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(EngineRefusedError, match=message):
        store.current("m")


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_manifests_that_are_no_objects_are_refused(store: EngineStore, text: str) -> None:
    """Half a file is named as such."""
    path = install(store).path.parent / "manifest.json"
    path.write_text(text)
    with pytest.raises(EngineRefusedError, match="manifest of 'm'"):
        store.current("m")


def test_one_build_at_a_time(store: EngineStore) -> None:
    """A second build of the model is refused, of another one it is not; afterwards it may run."""
    with store.building("m"):
        with (
            pytest.raises(BuildError, match="another build of model 'm' is running"),
            store.building("m"),
        ):
            pass
        with store.building("other"):
            pass
    with store.building("m"):
        pass


def test_lock_in_an_unwritable_store_is_a_build_error(tmp_path: Path) -> None:
    """A file where the folder should be cannot be built into."""
    (tmp_path / "m").write_text("")
    with (
        pytest.raises(BuildError, match="store cannot be written"),
        EngineStore(tmp_path).building("m"),
    ):
        pass


def test_versions_are_the_current_and_the_previous_engine(store: EngineStore) -> None:
    """By 12 digits of their keys, the current one first; one that cannot be read is left out."""
    assert store.versions("m") == {}
    install(store, b"old", key="a" * 64)
    install(store, b"new", key="b" * 64)

    assert list(store.versions("m")) == ["b" * 12, "a" * 12]
    assert store.versions("m")["a" * 12].read() == b"old"
    (store.versions("m")["a" * 12].path.parent / "manifest.json").write_text("garbage")
    assert list(store.versions("m")) == ["b" * 12]
    assert store.versions("../m") == {}
