"""What a build has finished, by what it was made from: a build that is killed goes on from there.

A stage's key is a digest over its inputs: contents, options, and the version of the code that makes
it. Its result is found again while none of them changes, whatever else does::

    <engines>/<model>/built/.stages/<stage>-<key16>.bin    what was made
    <engines>/<model>/built/.stages/<stage>-<key16>.json   its inputs and its digest, written last

A result without its JSON, or whose digest is another one, was not finished and is made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edged.atomic_files import replace_file
from edged.errors import BuildError

STAGES = ".stages"


def stage_key(inputs: Mapping[str, Any]) -> str:
    """sha256 over a stage's inputs; what JSON cannot hold is refused."""
    return hashlib.sha256(json.dumps(dict(inputs), sort_keys=True).encode()).hexdigest()


class Stages:
    """The finished stages of one model.

    Args:
        folder: where they lie; made when it is needed.
        fresh: take nothing that is there, but keep what is made.
    """

    def __init__(self, folder: Path, *, fresh: bool = False) -> None:
        self._folder = folder
        self._fresh = fresh
        self.used: dict[str, str] = {}
        """Stage -> key, of all that were asked for."""
        self._kept: set[str] = set()

    def __repr__(self) -> str:
        return f"<Stages {sorted(self.used)}>"

    def get(self, stage: str, inputs: Mapping[str, Any], make: Callable[[], bytes]) -> bytes:
        """The result of a stage: the one that is there, or a new one.

        Args:
            stage: its name, e.g. ``quantized``.
            inputs: all that it depends on, by name; digests stand for contents.
            make: makes it.

        Raises:
            BuildError: it cannot be written; or whatever ``make`` raises.
        """
        key = stage_key(inputs)
        path = self._folder / f"{stage}-{key[:16]}.bin"
        self.used[stage] = key
        self._kept |= {path.name, path.with_suffix(".json").name}
        known = None if self._fresh else _read(path)
        if known is not None:
            return known
        data = make()
        about = {"stage": stage, "inputs": dict(inputs), "sha256": hashlib.sha256(data).hexdigest()}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            replace_file(path, data)
            replace_file(path.with_suffix(".json"), (json.dumps(about, indent=2) + "\n").encode())
        except OSError as err:
            raise BuildError(
                f"the result of stage {stage!r} ({len(data) >> 10} KiB) cannot be written: "
                f"{err.strerror or err}; free space where the engines lie, or build as the user "
                "that owns them"
            ) from err
        return data

    def prune(self) -> None:
        """Removes all stages that this build did not ask for."""
        if self._folder.is_dir():
            for path in self._folder.iterdir():
                if path.name not in self._kept:
                    with contextlib.suppress(OSError):
                        path.unlink()


def _read(path: Path) -> bytes | None:
    try:
        wanted = json.loads(path.with_suffix(".json").read_bytes())["sha256"]
        data = path.read_bytes()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return data if hashlib.sha256(data).hexdigest() == wanted else None
