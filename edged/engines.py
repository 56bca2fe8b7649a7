"""``edged engines``: what is in the store, whether it is whole, and the way back."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edged.atomic_files import size_of
from edged.engine_store import Engine, EngineStore, check_usable
from edged.errors import ConfigError, EdgedError
from edged.runners import fingerprint, load

Row = dict[str, Any]


@dataclass(frozen=True)
class EnginesOptions:
    """What is asked for.

    Attributes:
        store: folder of models.
        action: ``list``, ``verify``, ``rollback`` or ``prune``.
        models: names; none: all that have an engine.
        run: with ``verify``: also load each engine and run its golden samples.
        device: ``cuda:N``, where TensorRT engines are compared and run.
        json: print one JSON document.
    """

    store: Path
    action: str
    models: Sequence[str] = ()
    run: bool = False
    device: str = "cuda:0"
    json: bool = False


def run(options: EnginesOptions) -> int:
    """Does it and prints a table; returns 0, or 1 if anything is wrong.

    Raises:
        ConfigError: no model is named to be rolled back.
    """
    store = EngineStore(options.store)
    if options.action == "rollback" and not options.models:
        raise ConfigError("rollback needs the names of the models; edged engines lists them")
    names = list(options.models) or store.models()
    actions: dict[str, Callable[[str], list[Row]]] = {
        "list": lambda name: _rows(store, name, options, read=False),
        "verify": lambda name: _rows(store, name, options, read=True),
        "rollback": lambda name: [_roll_back(store, name)],
        "prune": lambda name: [{"model": name, "freed_bytes": store.prune(name)}],
    }
    rows: list[Row] = []
    for name in names:
        try:
            rows += actions[options.action](name)
        except EdgedError as err:  # noqa: PERF203  # a few models
            rows.append({"model": name, "problem": err.message})
    _print(rows, as_json=options.json)
    return 1 if any(row.get("problem") for row in rows) else 0


def _rows(store: EngineStore, name: str, options: EnginesOptions, *, read: bool) -> list[Row]:
    """The current and the previous engine of a model."""
    rows = [_row("current", store.current(name), options, read=read)]
    try:
        previous = store.previous(name)
    except EdgedError:
        return rows
    # What only waits to be rolled back to may be of an earlier runtime: told, but no fault.
    row = _row("previous", previous, options, read=read)
    if not read:
        row["note"] = row.pop("problem", "")
    return [*rows, row]


def _row(state: str, engine: Engine, options: EnginesOptions, *, read: bool) -> Row:
    manifest = engine.manifest
    row: Row = {
        "model": manifest.model,
        "state": state,
        "engine": manifest.key[:12],
        "precision": manifest.precision,
        "runner": manifest.runner,
        "created": manifest.created,
        "bytes": size_of(engine.path.parent),
        "notes": list(manifest.notes),
    }
    try:
        check_usable(manifest, fingerprint(manifest.runner, options.device))
        if read:
            engine.read()
        if read and options.run:
            _run(engine, options.device)
    except EdgedError as err:
        row["problem"] = err.message
    return row


def _run(engine: Engine, device: str) -> None:
    """Loads an engine and compares with what it gave when it was verified."""
    from edged.serve.golden import check_golden

    runner = load(engine, device=device if engine.manifest.runner == "tensorrt" else "cpu")
    try:
        runner.prepare(lambda _done, _total: None)
        check_golden(engine, runner)
    finally:
        runner.close()


def _roll_back(store: EngineStore, name: str) -> Row:
    engine = store.roll_back(name)
    return {
        "model": name,
        "engine": engine.manifest.key[:12],
        "precision": engine.manifest.precision,
        "note": "current now; a running service takes it over at: systemctl reload edged",
    }


def _print(rows: Sequence[Row], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(list(rows), indent=2))
        return
    if not rows:
        print("no engines; build one with: edged build MODEL", file=sys.stderr)
    for row in rows:
        shown = {k: v for k, v in row.items() if k not in {"notes", "note", "problem", "bytes"}}
        size = f"{row['bytes'] / 1e6:.1f} MB" if "bytes" in row else ""
        print("  ".join([*(str(value) for value in shown.values()), size]).rstrip())
        for note in (*row.get("notes", ()), row.get("note", "")):
            if note:
                print(f"    {note}")
        if row.get("problem"):
            print(f"    problem: {row['problem']}")
