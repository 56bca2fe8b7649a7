"""One line of the table that ``edged doctor`` prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "missing"]

AS_SERVICE = "if the service runs as its own user, ask as that user: sudo -u edged edged doctor"


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
        state: ``ok``; ``warn``: serving works without it; ``missing``: serving does not.
        what: what was looked at.
        found: what was found.
        means: what it means for serving, "" with ``ok``.
        mend: command or change that mends it, "" with ``ok``.
    """

    state: State
    what: str
    found: str
    means: str = ""
    mend: str = ""
