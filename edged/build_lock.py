"""One build of a model at a time, over all processes."""

from __future__ import annotations

import contextlib
import fcntl
import os

from edged.errors import BuildError


def lock_build(handle: int, model: str) -> None:
    """Takes the lock, which ends when the file is closed, and writes down who has it.

    Raises:
        BuildError: another process has it; the message names its process.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as err:
        owner = os.pread(handle, 20, 0).decode("ascii", "replace").strip()
        by = f" (process {owner})" if owner.isdigit() else ""
        raise BuildError(
            f"another build of model {model!r} is running{by}; wait for it to end"
        ) from err
    # Whom to wait for; the lock itself is the kernel's and ends with its process.
    with contextlib.suppress(OSError):
        os.truncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
