"""The retained status of the service: what it says of itself at birth, in its will, and between."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence

from edged import __version__
from edged.protocol import status_document


class Status:
    """State and progress of the service, and the documents that tell them. Thread-safe.

    Args:
        models: names of the models that are ready now.
        engines: what to tell of each of them, by name.
    """

    def __init__(
        self,
        models: Callable[[], Sequence[str]],
        engines: Callable[[], Mapping[str, Mapping[str, object]]] = dict,
    ) -> None:
        self._models = models
        self._engines = engines
        self._boot_id = str(uuid.uuid4())
        self._lock = threading.Lock()
        self._state = "warming"
        self._progress = ""
        self._told: tuple[tuple[str, ...], str] = ((), "{}")

    def __repr__(self) -> str:
        return f"<Status {self._state} {self._progress}>".replace(" >", ">")

    @property
    def boot_id(self) -> str:
        """Identifies this run of the service."""
        return self._boot_id

    @property
    def state(self) -> str:
        """One of `edged.protocol.STATES`."""
        return self._state

    def change(self, state: str, progress: str = "") -> bool:
        """Sets state and progress; whether either is new, or other engines serve than before."""
        models, engines = tuple(self._models()), self._engines()
        told = (models, json.dumps(engines, sort_keys=True))
        with self._lock:
            changed = (state, progress, told) != (self._state, self._progress, self._told)
            self._state, self._progress, self._told = state, progress, told
        return changed

    def document(self, state: str, session: int) -> bytes:
        """The document for the broker.

        Args:
            state: ``online``: the state as it is now; any other one is told as it is given.
            session: number of the connection.
        """
        with self._lock:
            told = self._state if state == "online" else state
            progress = self._progress if state == "online" else ""
        document = status_document(
            told,
            self._boot_id,
            session,
            version=__version__,
            ts=time.time(),
            models=tuple(self._models()) if told in {"online", "degraded"} else (),
        )
        if document["models"]:
            document["engines"] = self._engines()
        if progress:
            document["progress"] = progress
        return json.dumps(document, separators=(",", ":")).encode()
