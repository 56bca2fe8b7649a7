"""Engines on disk: what was built, for which device, and whether it passed.

Layout, one folder a model, safe to read while a build installs::

    <engines>/<model>/built/<key12>/manifest.json   readable without any runtime
    <engines>/<model>/built/<key12>/<engine file>   engine.onnx or engine.plan (TensorRT)
    <engines>/<model>/built/current                 symlink to the folder that serves
    <engines>/<model>/built/previous                symlink to the one that served before

An engine is installed by writing a temporary folder beside it, syncing it, and renaming it; then
the symlink is replaced by rename. A crash leaves the old engine or the new one, never half of one.
Only the current and the previous engine of a model are kept; folders that begin with a dot are the
build's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from edged.atomic_files import (
    replace_link,
    size_of,
    staging_folder,
    sync_folder,
    unused_name,
    write_synced,
)
from edged.build_lock import lock_build
from edged.errors import BuildError, EngineMismatchError, EngineRefusedError
from edged.manifest import Manifest, parse_manifest
from edged.recipe import MODEL_NAME

BUILT = "built"
GOLDEN_FILE = "golden.npz"
"""Beside an engine: ``in:<name>`` as the model takes it, ``out:<name>`` as it was verified."""


class Engine(BaseModel):
    """An installed engine: its manifest and where its file lies."""

    model_config = ConfigDict(frozen=True)
    manifest: Manifest
    path: Path
    """The engine file."""

    def read(self) -> bytes:
        """The engine file's bytes, checked against the manifest: what is hashed is what is loaded.

        Raises:
            EngineRefusedError: the file is missing or is not the one that was built.
        """
        try:
            data = self.path.read_bytes()
        except OSError as err:
            raise EngineRefusedError(
                f"engine of {self.manifest.model!r} cannot be read ({err.strerror}); build it again"
            ) from err
        found = hashlib.sha256(data).hexdigest()
        if found != self.manifest.sha256:
            raise EngineRefusedError(
                f"engine file of {self.manifest.model!r} has digest {found[:12]}, its manifest "
                f"says {self.manifest.sha256[:12]}: it was changed or damaged; build it again"
            )
        return data


class EngineStore:
    """Engines under one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __repr__(self) -> str:
        return f"<EngineStore {len(self.models())} models>"

    def models(self) -> list[str]:
        """Names of the models that have a current engine, sorted."""
        if not self.root.is_dir():
            return []
        return sorted(p.parts[-4] for p in self.root.glob("*/built/current/manifest.json"))

    def is_gone(self, model: str) -> bool:
        """Whether nothing of a model is installed; False where that cannot be seen."""
        with contextlib.suppress(OSError):
            return self.root.is_dir() and not (self.root / model / "built/current").is_symlink()
        return False

    def current(self, model: str) -> Engine:
        """The engine that serves a model.

        Raises:
            EngineRefusedError: none is installed, or its manifest is unreadable.
        """
        return self._linked(model, "current")

    def versions(self, model: str) -> dict[str, Engine]:
        """The engines of a model that are there: version, 12 digits of its key, to engine.

        The current one comes first; one that cannot be read is left out.
        """
        found: dict[str, Engine] = {}
        for link in ("current", "previous"):
            with contextlib.suppress(EngineRefusedError):
                engine = self._linked(model, link)
                found.setdefault(engine.manifest.key[:12], engine)
        return found

    def previous(self, model: str) -> Engine:
        """The engine that served a model before.

        Raises:
            EngineRefusedError: there is none, or its manifest is unreadable.
        """
        return self._linked(model, "previous")

    def _linked(self, model: str, link: str) -> Engine:
        if not re.fullmatch(MODEL_NAME, model, re.ASCII):
            raise EngineRefusedError(f"{model[:80]!r} is no model name; allowed: {MODEL_NAME}")
        # Resolved once: manifest and engine are of one folder even while another one is installed.
        folder = (self.root / model / BUILT / link).resolve()
        try:
            text = (folder / "manifest.json").read_text(encoding="utf-8")
        except FileNotFoundError as err:
            if link == "previous":
                raise EngineRefusedError(f"there is no earlier engine of model {model!r}") from err
            raise EngineRefusedError(
                f"no engine of model {model!r} in the store; build it with: edged build {model}"
            ) from err
        except (OSError, UnicodeDecodeError) as err:
            raise EngineRefusedError(
                f"manifest of {model!r} cannot be read ({getattr(err, 'strerror', 'no UTF-8')})"
            ) from err
        manifest = parse_manifest(model, text)
        return Engine(manifest=manifest, path=folder / manifest.file)

    def usable(self, model: str, fingerprint: Mapping[str, str]) -> Engine:
        """The engine that serves a model, if it may be loaded on this device.

        Args:
            model: the model's name.
            fingerprint: what this device and its runtime are, for the engine's kind of runner.

        Raises:
            EngineRefusedError: it did not pass verification, or was built for something else.
        """
        engine = self.current(model)
        check_usable(engine.manifest, fingerprint)
        return engine

    def install(self, manifest: Manifest, files: Mapping[str, bytes]) -> Engine:
        """Installs an engine and makes it the current one, atomically; the older ones are removed.

        The engine that served before stays as ``previous``. Hold `building` meanwhile.

        Args:
            manifest: names the engine file, which must be among ``files``.
            files: name -> content.

        Raises:
            BuildError: the store cannot be written.
        """
        parent = self.root / manifest.model / BUILT
        try:
            parent.mkdir(parents=True, exist_ok=True)
            with staging_folder(parent) as staging:
                for name, data in files.items():
                    write_synced(staging / name, data)
                write_synced(
                    staging / "manifest.json",
                    (json.dumps(manifest.model_dump(mode="json"), indent=2) + "\n").encode(),
                )
                staging.chmod(0o755)
                sync_folder(staging)
                folder = unused_name(parent, manifest.key[:12])
                staging.rename(folder)
            _point(parent, folder.name)
        except OSError as err:
            raise BuildError(
                f"cannot install the engine of {manifest.model!r}: {err.strerror or err}; "
                "the engine that served before is untouched"
            ) from err
        _prune(parent)
        return Engine(manifest=manifest, path=folder / manifest.file)

    def roll_back(self, model: str) -> Engine:
        """Makes the previous engine the current one again, and the current one the previous.

        Raises:
            EngineRefusedError: there is no previous engine, or it is damaged or did not pass.
            BuildError: a build is running, or the store cannot be written.
        """
        with self.building(model):
            engine = self.previous(model)
            engine.read()
            if not engine.manifest.verdict.passed:
                raise EngineRefusedError(f"the earlier engine of {model!r} did not pass")
            try:
                _point(self.root / model / BUILT, engine.path.parent.name)
            except OSError as err:
                raise BuildError(
                    f"cannot roll the engine of {model!r} back: {err.strerror or err}; "
                    "the engine that served before is untouched"
                ) from err
        return engine

    def prune(self, model: str) -> int:
        """Removes all of a model but its current engine; returns the bytes that were freed.

        The previous engine goes, and so does what builds keep to be quicker the next time.

        Raises:
            BuildError: a build is running, or the store cannot be written.
        """
        parent = self.root / model / BUILT
        with self.building(model):
            before = size_of(parent)
            try:
                (parent / "previous").unlink(missing_ok=True)
            except OSError as err:
                raise BuildError(
                    f"cannot prune the engines of {model!r}: {err.strerror or err}"
                ) from err
            _prune(parent, own=True)
            return before - size_of(parent)

    @contextlib.contextmanager
    def building(self, model: str) -> Iterator[None]:
        """Keeps other processes from building the same model; freed by the kernel if this one dies.

        Raises:
            BuildError: another process builds this model, or the store cannot be written.
        """
        parent = self.root / model / BUILT
        try:
            parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(parent / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as err:
            raise BuildError(
                f"the engine store cannot be written for model {model!r}: {err.strerror or err}; "
                "build as the user that owns it"
            ) from err
        try:
            lock_build(handle, model)
            yield
        finally:
            os.close(handle)


def check_usable(manifest: Manifest, fingerprint: Mapping[str, str]) -> None:
    """Whether an engine may be loaded on a device.

    Args:
        manifest: of the engine.
        fingerprint: what the device and its runtime are, for the engine's kind of runner.

    Raises:
        EngineRefusedError: it did not pass verification.
        EngineMismatchError: it was built for something else; the message says what differs.
    """
    model = manifest.model
    if not manifest.verdict.passed:
        raise EngineRefusedError(
            f"engine of {model!r} did not pass verification: " + "; ".join(manifest.verdict.reasons)
        )
    differing = [
        f"{name}: built for {manifest.fingerprint.get(name)!r}, here {fingerprint.get(name)!r}"
        for name in sorted({*manifest.fingerprint, *fingerprint})
        if manifest.fingerprint.get(name) != fingerprint.get(name)
    ]
    if differing:
        raise EngineMismatchError(
            f"engine of {model!r} is for another device or runtime ({'; '.join(differing)}); "
            f"build it here with: edged build {model}"
        )


def _point(parent: Path, name: str) -> None:
    """Makes ``name`` the current engine; the one before becomes ``previous``."""
    current = parent / "current"
    if current.is_symlink():
        replace_link(parent / "previous", current.readlink())
    replace_link(current, Path(name))
    sync_folder(parent)


def _prune(parent: Path, *, own: bool = False) -> None:
    """Removes engines that no link names, and what a crashed install left.

    Args:
        parent: a model's ``built``.
        own: the build's own folders and files too.
    """
    kept = {(parent / name).resolve() for name in ("current", "previous")}
    for path in parent.iterdir():
        if path.is_symlink() or path.name == ".lock" or path.resolve() in kept:
            continue
        if path.name.startswith(".") and not (own or path.name.startswith(".new.")):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif own:
            with contextlib.suppress(OSError):
                path.unlink()
