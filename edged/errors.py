"""Every error, sorted by whose problem it is.

A request travels ``broker -> decode -> admit -> batch -> gpu -> encode -> publish``:

* decode and admit raise `ClientError` (the sender's mistake) or `ServiceError` (ours);
* gpu raises `ServiceError`;
* the build line raises `BuildError`, reading files and settings `ConfigError`.

An error that can reach a requester carries its wire ``code`` and ``status`` as class attributes;
docs/protocol.md lists them and a test compares the two. Messages say what, which value, what was
allowed and what to do; they never carry a path, an address or a stack.
"""

from __future__ import annotations

from collections.abc import Mapping


class EdgedError(Exception):
    """Base of all errors of this package; the message is meant for a human."""

    code: str = "internal"
    status: int = 500
    retryable: bool = False

    def __init__(self, message: str, *, retry_after_ms: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_ms = retry_after_ms


# ------------------------------------------------------------------ the requester's mistake


class ClientError(EdgedError):
    """The request cannot be served as it was sent; sending it again changes nothing."""

    code = "bad_request"
    status = 400


class BadHeaderError(ClientError):
    """The V2 header is not JSON, not an object, or its length property is wrong."""

    code = "bad_header"


class BadParameterError(ClientError):
    """A request parameter or user property has a value that is not allowed."""

    code = "bad_parameter"


class UnsupportedContentTypeError(ClientError):
    """The content type is none that this model takes."""

    code = "unsupported_content_type"


class TruncatedBodyError(ClientError):
    """The body is shorter or longer than its header says."""

    code = "truncated_body"


class NoResponseTopicError(ClientError):
    """The request names no response topic, so nobody could be answered."""

    code = "no_response_topic"


class BadResponseTopicError(ClientError):
    """The response topic is not under an allowed prefix, or is no topic name at all."""

    code = "bad_response_topic"


class UnknownModelError(ClientError):
    """No model of that name is served here."""

    code = "unknown_model"
    status = 404


class UnknownCommandError(ClientError):
    """There is no command of that name."""

    code = "unknown_command"
    status = 404


class ExpiredError(ClientError):
    """The deadline passed before the request could be started."""

    code = "expired"
    status = 408
    retryable = True


class SupersededError(ClientError):
    """A newer request of the same source came before this one was started."""

    code = "superseded"
    status = 409


class PayloadTooLargeError(ClientError):
    """The payload, or the number of samples in it, is over the limit."""

    code = "payload_too_large"
    status = 413


class BadTensorError(ClientError):
    """An input is missing, unknown, named twice or not of the form the model takes."""

    code = "bad_tensor"
    status = 422


class BadShapeError(BadTensorError):
    """An input's shape is not the model's."""

    code = "bad_shape"


class BadDatatypeError(BadTensorError):
    """An input's datatype is not the model's."""

    code = "bad_datatype"


class BadImageError(BadTensorError):
    """An encoded image cannot be decoded, or not into the model's input."""

    code = "bad_image"


# ------------------------------------------------------------------ ours


class ServiceError(EdgedError):
    """The request was sound; the service could not serve it."""


class QueueFullError(ServiceError):
    """As many samples wait as are allowed to."""

    code = "queue_full"
    status = 429
    retryable = True


class LateError(ServiceError):
    """With what waits before it, the request could not be started before its deadline."""

    code = "late"
    status = 429
    retryable = True


class ModelUnavailableError(ServiceError):
    """The model is configured here but could not be loaded."""

    code = "model_unavailable"
    status = 503


class DrainingError(ServiceError):
    """The service is stopping and takes no new requests."""

    code = "draining"
    status = 503
    retryable = True


class EngineError(ServiceError):
    """The engine failed on this batch."""

    code = "engine_failed"


class DeviceFaultError(EngineError):
    """The device itself failed: what it was given may be sound, and may run elsewhere."""

    code = "device_fault"
    status = 503
    retryable = True


class DeviceLostError(DeviceFaultError):
    """The device cannot be used any more by this process; a new one may use it."""


class PoisonError(ServiceError):
    """The process died twice with nothing but this request on its devices."""

    code = "poison"


class NonFiniteOutputError(ServiceError):
    """The engine's outputs hold NaN or infinity, which the recipe does not let through."""

    code = "nonfinite_output"


class ReplyTooLargeError(ServiceError):
    """The reply is larger than the broker accepts."""

    code = "reply_too_large"
    status = 413


class InternalError(ServiceError):
    """Something that should not happen did; the log has the details, the reply has not."""

    code = "internal"


# ------------------------------------------------------------------ files, settings, device, build


class ConfigError(EdgedError):
    """A recipe, a settings file or an environment variable is wrong."""

    code = "config"


class EngineRefusedError(EdgedError):
    """An engine in the store must not be loaded on this device; the message says why."""

    code = "engine_refused"


class EngineMismatchError(EngineRefusedError):
    """An engine was built for another device or runtime; building it here mends that."""


class OutboxError(EdgedError):
    """The outbox, where reports wait, cannot do what it was asked to."""

    code = "outbox"


class OutboxLockedError(OutboxError):
    """Another process uses this outbox."""


class OutboxDiskError(OutboxError):
    """The outbox's file cannot be opened or written now; it may be possible later."""


class OutboxBusyError(OutboxError):
    """The outbox waits for its disk and has not answered in time; that it is empty is not said."""


class OutboxVersionError(OutboxDiskError):
    """The outbox's file was written by a newer version; it is left as it is."""


class OutboxDamagedError(OutboxError):
    """The outbox's file is no database, or a damaged one."""


class OutboxDropError(OutboxError):
    """An event was dropped; the message says why."""


class BrokerError(EdgedError):
    """The broker cannot be reached or refuses the client."""

    code = "broker"


class BrokerProtocolError(BrokerError):
    """The broker sent what MQTT does not allow; ``reason`` is the reason code to tell it."""

    def __init__(self, message: str, reason: int) -> None:
        super().__init__(message)
        self.reason = reason


class InputFileError(EdgedError):
    """A file to be sent as a request cannot be read, or is none of the known formats."""

    code = "input_file"


class ReplyError(EdgedError):
    """A device answered a request of ours with an error; code, status and the rest are its own."""

    code = "reply"

    def __init__(
        self,
        message: str,
        *,
        code: str,
        status: int,
        retryable: bool = False,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(message, retry_after_ms=retry_after_ms)
        self.code = code
        self.status = status
        self.retryable = retryable


class BatchError(EdgedError):
    """A batch of reports cannot be read; for the control plane."""

    code = "batch"


def _cut(text: str) -> str:
    most = DesiredError.MOST_CHARACTERS
    return text if len(text) <= most else f"{text[:most]}..."


class DesiredError(EdgedError):
    """A desired document is refused whole; nothing of it was taken over.

    Args:
        message: for the document as a whole.
        version: the document's, None where it could not be read.
        keys: path of a setting -> why it is refused. At most `MOST` are kept, and texts are cut, so
            that a document cannot make the answer to it larger than a broker takes.
    """

    code = "desired"
    MOST = 100
    MOST_CHARACTERS = 256

    def __init__(
        self, message: str, *, version: int | None = None, keys: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.version = version
        named = dict(list((keys or {}).items())[: self.MOST])
        self.keys = {_cut(path): _cut(why) for path, why in named.items()}
        self.more = len(keys or {}) - len(named)
        """Settings that are refused, too, and not named."""


class BuildError(EdgedError):
    """A build cannot go on; the message says what to change."""

    code = "build_failed"


class BuildStoppedError(BuildError):
    """A build was killed, ran into its limits or was cancelled; no other precision is tried."""
