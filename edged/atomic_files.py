"""Files and links that are there whole or not at all, also after a crash or on a full disk."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def staging_folder(parent: Path) -> Iterator[Path]:
    """A folder to fill and to rename; whatever is left of it is removed."""
    path = Path(tempfile.mkdtemp(prefix=".new.", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def unused_name(parent: Path, name: str) -> Path:
    """``parent/name``, or ``name-2`` and so on: what serves is never renamed or overwritten."""
    target, number = parent / name, 1
    while target.exists():
        number += 1
        target = parent / f"{name}-{number}"
    return target


def write_synced(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Writes a file, and returns once it is on the disk."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fchmod(handle, mode)
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(path: Path) -> None:
    """Returns once the names in a folder are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """A file's new content, by rename: a reader finds the old or the new one."""
    temporary = path.with_name(f".new.{path.name}.{os.getpid()}")
    try:
        write_synced(temporary, data, mode=mode)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_link(link: Path, target: Path) -> None:
    """A symbolic link's new target, likewise."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.rename(link)


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder; links are not followed."""
    files = (Path(top) / name for top, _, names in os.walk(folder) for name in names)
    return sum(path.lstat().st_size for path in files)
