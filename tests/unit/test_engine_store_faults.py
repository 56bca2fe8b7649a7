"""Every write, rename and sync of the store fails once, or is the last thing before a crash."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edged.engine_store import EngineStore
from edged.errors import BuildError, EngineRefusedError
from tests.doubles.stored import install

ROOT = Path(__file__).resolve().parents[2]
CALLS = ("open", "write", "fsync", "rename", "mkdir", "symlink", "fchmod", "chmod")

_CRASH = """
import os, sys
from pathlib import Path
from edged.engine_store import EngineStore
from tests.doubles.stored import install
from tests.unit.test_engine_store_faults import failing

# One process a step, all from one interpreter: nothing but the step's own process dies.
step = 0
while True:
    step += 1
    root = Path(sys.argv[1]) / str(step)
    root.mkdir()
    install(EngineStore(root), b"old", key="1" * 64)
    child = os.fork()
    if child == 0:
        failing(step, lambda: os._exit(9), setattr)
        install(EngineStore(root), b"new", key="2" * 64)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        print(step - 1)
        break
"""


def failing(
    number: int, what: Callable[[], None], patch: Callable[[Any, str, Any], None]
) -> list[str]:
    """Makes the ``number``-th call into the system do something else; returns those made so far."""
    made: list[str] = []

    def wrap(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            made.append(name)
            if len(made) == number:
                what()
            return real(*arguments, **options)

        return call

    for name in CALLS:
        patch(os, name, wrap(name))
    return made


def refusal(store: EngineStore) -> str:
    """Why a second engine was refused; "" if it was not."""
    try:
        install(store, b"new", key="2" * 64)
    except BuildError as err:
        return err.message
    return ""


def check(store: EngineStore, *allowed: bytes) -> None:
    """What serves is whole and one of these, and the store can be used."""
    assert store.current("m").read() in allowed
    install(store, b"next", key="3" * 64)
    assert store.current("m").read() == b"next"
    built = store.root / "m" / "built"
    assert not list(built.glob(".new.*"))


def test_every_call_that_fails_leaves_the_old_engine_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first, second, third call finds the disk full, and so on until none is left."""

    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    step, refused = 0, 0
    while True:
        step += 1
        store = EngineStore(tmp_path / str(step))
        install(store, b"old", key="1" * 64)
        with monkeypatch.context() as context:
            made = failing(step, full, context.setattr)
            said = refusal(store)
        if said:
            refused += 1
            assert "No space left on device; the engine that served before" in said
        if len(made) < step:
            break
        check(store, b"old", b"new")
    assert refused > 10
    assert step - 1 >= refused


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a crash is a process that is gone")
def test_every_crash_leaves_the_old_engine_or_the_new_one(tmp_path: Path) -> None:
    """The process is gone before its first, second, third call: nothing is half installed."""
    ended = subprocess.run(
        [sys.executable, "-c", _CRASH, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=90,
    )  # fmt: skip
    steps = int(ended.stdout)
    assert steps > 10
    for step in range(1, steps + 1):
        check(EngineStore(tmp_path / str(step)), b"old", b"new")


def test_read_only_store_is_refused_before_any_work() -> None:
    """/proc can be written by nobody, not even by root."""
    with (
        pytest.raises(BuildError, match=r"store cannot be written for model 'm'.*user that owns"),
        EngineStore(Path("/proc")).building("m"),
    ):
        pass


# ------------------------------------------------------------------ the way back


def test_roll_back_swaps_current_and_previous(tmp_path: Path) -> None:
    """And back again."""
    store = EngineStore(tmp_path)
    install(store, b"first", key="1" * 64)
    install(store, b"second", key="2" * 64)
    assert store.roll_back("m").read() == b"first"
    assert (store.current("m").read(), store.previous("m").read()) == (b"first", b"second")
    assert store.roll_back("m").read() == b"second"


def test_there_is_no_way_back_to_what_is_not_there_or_damaged(tmp_path: Path) -> None:
    """What serves stays."""
    store = EngineStore(tmp_path)
    first = install(store, b"first", key="1" * 64)
    with pytest.raises(EngineRefusedError, match="there is no earlier engine of model 'm'"):
        store.roll_back("m")
    install(store, b"second", key="2" * 64)
    first.path.write_bytes(b"damaged")
    with pytest.raises(EngineRefusedError, match="changed or damaged"):
        store.roll_back("m")
    assert store.current("m").read() == b"second"


def test_prune_leaves_only_what_serves(tmp_path: Path) -> None:
    """The earlier engine, stages and caches go; what was freed is told."""
    store = EngineStore(tmp_path)
    install(store, b"first", key="1" * 64)
    install(store, b"second", key="2" * 64)
    built = tmp_path / "m" / "built"
    (built / ".stages").mkdir()
    (built / ".stages" / "quantized-1.bin").write_bytes(b"x" * 5000)
    (built / ".timing-1.cache").write_bytes(b"x" * 100)
    freed = store.prune("m")
    assert freed > 5100
    assert store.current("m").read() == b"second"
    kept = {path.name for path in built.iterdir()}
    assert kept == {".lock", "current", store.current("m").path.parent.name}


def test_an_install_leaves_the_builds_own_folders(tmp_path: Path) -> None:
    """Stages outlive it: the next build starts from them."""
    store = EngineStore(tmp_path)
    install(store)
    stages = tmp_path / "m" / "built" / ".stages"
    stages.mkdir()
    install(store, b"second", key="2" * 64)
    assert stages.is_dir()


def test_nothing_is_rolled_back_or_pruned_while_a_build_runs(tmp_path: Path) -> None:
    """They take the same lock; the message names the process."""
    store = EngineStore(tmp_path)
    install(store)
    for change in (store.roll_back, store.prune):
        with (
            store.building("m"),
            pytest.raises(BuildError, match=rf"is running \(process {os.getpid()}\)"),
        ):
            change("m")
