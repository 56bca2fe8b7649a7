"""``edged engines``: what it lists, verifies, rolls back and prunes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edged.cli import main
from edged.engine_store import EngineStore
from edged.runners import fingerprint
from tests.doubles.stored import install


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    """Model ``m`` with a current and an earlier engine that fit this machine."""
    store = EngineStore(tmp_path)
    for number in (1, 2):
        install(store, f"engine {number}".encode(), key=str(number) * 64, here=fingerprint("onnx"))
    return store


def ask(capsys: pytest.CaptureFixture[str], store: EngineStore, *words: str) -> tuple[int, Any]:
    """Exit code and document of ``edged engines ... --json``."""
    code = main(["engines", *words, "--engines", str(store.root), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_list_shows_both_engines_with_precision_and_size(
    store: EngineStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """As data and as a table."""
    code, rows = ask(capsys, store)
    assert code == 0
    assert [(row["state"], row["engine"]) for row in rows] == [
        ("current", "2" * 12), ("previous", "1" * 12),
    ]  # fmt: skip
    assert all(row["bytes"] > 0 and row["precision"] == "int8" for row in rows)
    assert main(["engines", "--engines", str(store.root)]) == 0
    assert "m  current  222222222222  int8  onnx" in capsys.readouterr().out


def test_an_engine_for_something_else_is_a_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The list says what differs, and the exit code that not all is well."""
    store = EngineStore(tmp_path)
    install(store, here={"runner": "onnx", "onnxruntime": "0.1"})
    code, (row,) = ask(capsys, store)
    assert code == 1
    assert "onnxruntime: built for '0.1', here" in row["problem"]


def test_verify_compares_digests(store: EngineStore, capsys: pytest.CaptureFixture[str]) -> None:
    """A changed file is found, also that of the engine to roll back to."""
    assert ask(capsys, store, "verify", "m")[0] == 0
    store.previous("m").path.write_bytes(b"changed")
    code, rows = ask(capsys, store, "verify", "m")
    assert code == 1
    assert "changed or damaged" in rows[1]["problem"]


def test_verify_can_run_the_engine(store: EngineStore, capsys: pytest.CaptureFixture[str]) -> None:
    """These engines have the right digest, but are no models."""
    code, rows = ask(capsys, store, "verify", "--run", "m")
    assert code == 1
    assert "ONNX Runtime cannot load the model" in rows[0]["problem"]


def test_rollback_swaps_and_needs_a_name(
    store: EngineStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """Never all models at once by leaving the name out."""
    assert main(["engines", "rollback", "--engines", str(store.root)]) == 78
    assert "needs the names" in capsys.readouterr().err
    assert ask(capsys, store, "rollback", "m")[0] == 0
    assert store.current("m").read() == b"engine 1"


def test_prune_frees_and_tells(store: EngineStore, capsys: pytest.CaptureFixture[str]) -> None:
    """What serves stays."""
    code, (row,) = ask(capsys, store, "prune")
    assert (code, row["model"]) == (0, "m")
    assert row["freed_bytes"] > 0
    assert store.current("m").read() == b"engine 2"


def test_unknown_model_is_a_problem_and_not_a_crash(
    store: EngineStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are still told."""
    code, rows = ask(capsys, store, "list", "nobody", "m")
    assert code == 1
    assert "no engine of model 'nobody'" in rows[0]["problem"]
    assert rows[1]["model"] == "m"


def test_empty_store_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is wrong with it."""
    assert main(["engines", "--engines", str(tmp_path)]) == 0
    assert "edged build MODEL" in capsys.readouterr().err
