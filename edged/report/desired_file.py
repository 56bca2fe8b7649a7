"""The last good desired document on disk: written whole or not at all, and read at the start."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from edged.atomic_files import replace_file, sync_folder
from edged.control_plane import desired_document
from edged.errors import DesiredError
from edged.protocol import MAX_DESIRED_BYTES
from edged.report.twin import Desired, parse_desired

_MAX_KEPT_BYTES = 16 * MAX_DESIRED_BYTES  # of what was accepted, escaped and indented

log = logging.getLogger(__name__)


def read_desired(path: Path) -> Desired | None:
    """The document that was kept; None if there is none or it cannot be used, which is said."""
    try:
        return parse_desired(path.read_bytes(), _MAX_KEPT_BYTES)
    except FileNotFoundError:
        return None
    except (OSError, DesiredError) as err:
        log.error(  # noqa: TRY400  # no fault of ours
            "the desired settings that were kept cannot be used, the device's own are: %s", err
        )
        return None


def keep_desired(path: Path, desired: Desired) -> None:
    """Keeps a document: after a loss of power there is this one or the one before, whole.

    Raises:
        DesiredError: the disk does not take it.
    """
    text = json.dumps(desired_document(desired.version, desired.config), indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text.encode("utf-8", "surrogatepass"), mode=0o600)
        sync_folder(path.parent)
    except OSError as err:
        raise DesiredError(
            f"the document cannot be kept on the device ({err.strerror or err}), so it is not "
            "taken over; it is tried again at the next connection",
            version=desired.version,
        ) from err
