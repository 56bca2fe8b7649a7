"""Commands of the control plane: a request on ``cmd/{name}``, answered with status and correlation.

Whoever may publish there may command: the broker's access rules decide that (docs/reporting.md).
A command takes no arguments and may come twice.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping

from edged import protocol
from edged.control_plane import command_document
from edged.errors import BadParameterError, EdgedError, InternalError, UnknownCommandError
from edged.events import json_bytes
from edged.metrics import Metrics
from edged.protocol import Topics, check_response_topic
from edged.report.link_messages import Incoming, Outgoing

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 4096

Handlers = Mapping[str, Callable[[], Mapping[str, object]]]
"""Name of a command -> what carries it out and gives its result."""


class Commands:
    """Carries commands out.

    Args:
        topics: of this device.
        handlers: one for each of `edged.protocol.COMMANDS`.
        metrics: counters.
    """

    def __init__(self, topics: Topics, handlers: Handlers, metrics: Metrics) -> None:
        self._topics = topics
        self._handlers = handlers
        self._metrics = metrics

    def __repr__(self) -> str:
        return f"<Commands {sorted(self._handlers)}>"

    def answer(self, message: Incoming) -> Outgoing | None:
        """Carries a command out; None where nobody may be answered, and then nothing is done."""
        wrong = check_response_topic(message.response_topic, self._topics.root, (self._topics,))
        if wrong is not None:
            self._metrics.count("commands_dropped_total")
            log.warning("a command is not answered: its response topic is refused: %s", wrong)
            return None
        name = self._topics.parse_command(message.topic) or ""
        try:
            document, status = self._run(name, message), protocol.OK
        except EdgedError as err:
            document = protocol.error_document(err.message, err.code, retryable=err.retryable)
            status = err.status
        except Exception:
            log.exception("command %s failed", name)
            error = InternalError("the command failed; the device's log has the details")
            document = protocol.error_document(error.message, error.code, retryable=False)
            status = error.status
        known = name if name in self._handlers else "none"
        self._metrics.count("commands_total", known, str(status))
        correlation = message.correlation
        if correlation is not None and len(correlation) > protocol.MAX_CORRELATION_BYTES:
            correlation = None
        return Outgoing(
            message.response_topic,
            json_bytes(document),
            user=((protocol.STATUS, str(status)),),
            correlation=correlation,
        )

    def _run(self, name: str, message: Incoming) -> dict[str, object]:
        if message.retained:
            raise BadParameterError("a command must not be retained: it would run again for ever")
        handler = self._handlers.get(name)
        if handler is None:
            raise UnknownCommandError(
                f"there is no command {name[:64]!r}; there are {', '.join(self._handlers)}"
            )
        correlation = message.correlation or b""
        if len(correlation) > protocol.MAX_CORRELATION_BYTES:
            raise BadParameterError(
                f"correlation data has {len(correlation)} bytes, at most "
                f"{protocol.MAX_CORRELATION_BYTES} are copied"
            )
        _check_body(message.payload)
        log.info("command %s", name)
        return command_document(name, handler())


def _check_body(payload: bytes) -> None:
    """A body, where there is one, is an object without members: commands take no arguments."""
    if len(payload) > MAX_BODY_BYTES:
        raise BadParameterError(f"the body has {len(payload)} bytes, at most {MAX_BODY_BYTES}")
    if not payload:
        return
    try:
        empty = json.loads(payload) == {}
    except (ValueError, RecursionError):
        empty = False
    if not empty:
        raise BadParameterError("a command takes no arguments: send an empty body or {}")
