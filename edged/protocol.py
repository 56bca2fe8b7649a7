"""Topics, properties, content types and payload documents, with their version: the one definition.

serve, report, the client and the documents all take them from here; docs/protocol.md is tested
against it. Topics have at most 7 slashes, so that cloud brokers carry them (AWS IoT Core's limit).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

PROTOCOL_VERSION = 1
DEFAULT_ROOT = "edged/v1"
MAX_SLASHES = 7

# ------------------------------------------------------------------ properties and content types

HEADER_LENGTH = "inference-header-content-length"
"""User property: bytes of the JSON header before the binary tensors (Triton's HTTP header)."""
STATUS = "status"
"""User property of a reply: HTTP-like status code as decimal text."""
PRIORITY = "priority"
"""User property of a request: `PRIORITIES`."""
DEADLINE_MS = "deadline-ms"
"""User property of a request: milliseconds from its arrival; finer than Message Expiry."""
CLASSIFICATION = "classification"
"""User property of an image request: answer so many largest entries of each output."""
SOURCE = "source"
"""User property of a request: which camera or sensor it is of, for models that serve the latest."""
TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
TRACE_PROPERTIES = (TRACEPARENT, TRACESTATE)
"""User properties copied to the reply (W3C Trace Context for MQTT)."""
PRIORITIES = ("urgent", "normal", "background")

OCTET_STREAM = "application/octet-stream"
JSON = "application/json"
PNG = "image/png"
JPEG = "image/jpeg"
REQUEST_CONTENT_TYPES = (OCTET_STREAM, JSON, PNG, JPEG)

MAX_CORRELATION_BYTES = 1024
MAX_RESPONSE_TOPIC_BYTES = 1024
MAX_SOURCE_CHARS = 128
OK = 200
DEVICE = "device"
"""User property of a reply to a pool's request: which device answered."""
POOL = "pool"
"""Level of a pool's topics where others have the device's name; no device may have it."""

STREAM = "stream"
"""User property of a batch: one of `STREAMS`."""
FIRST_SEQ = "first-seq"
"""User property of a batch: sequence number of its first record, as decimal text."""
EPOCH = "epoch"
"""User property of a batch: its sequence numbers count within this."""
BATCH = "batch"
"""User property of a batch: its number in the run of the daemon, as decimal text."""
BOOT_ID = "boot-id"
"""User property of a batch: the run of the daemon that sent it."""
MODE = "mode"
"""User property of a batch: `MODES`."""
MODES = ("live", "replayed")
CONTENT_ENCODING = "content-encoding"
"""User property of a batch: ``zstd``; absent: not compressed."""
ZSTD = "zstd"
MAX_DESIRED_BYTES = 256 * 1024
"""A desired document may have so many bytes; a larger one is refused unread."""

# ------------------------------------------------------------------ topics

_FORBIDDEN = re.compile(r"[+#\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_LEVEL = re.compile(r"^[^/+#$\x00-\x1f\x7f][^/+#\x00-\x1f\x7f]{0,127}$")


def is_level(text: str) -> bool:
    """Whether a text can stand as one level of a topic: no wildcard, slash or control character."""
    return _LEVEL.fullmatch(text) is not None and _FORBIDDEN.search(text) is None


@dataclass(frozen=True)
class RequestTopic:
    """What the topic of a request says.

    Attributes:
        model: the model's name as sent, unchecked.
        client: MQTT 3.1.1 form only: the requester's name, else "".
        request_id: MQTT 3.1.1 form only: the request's name, else "".
        priority: as sent, unchecked; "" where the topic names none.
        pooled: it was sent to a pool.
    """

    model: str
    client: str = ""
    request_id: str = ""
    priority: str = ""
    pooled: bool = False


@dataclass(frozen=True)
class Topics:
    """All topics of one device.

    Attributes:
        root: first levels, e.g. ``edged/v1``; one or two levels.
        device: the device's name, one level.

    Raises:
        ValueError: root or device hold wildcards, control characters, ``$`` or too many levels.
    """

    root: str
    device: str

    def __post_init__(self) -> None:
        levels = self.root.split("/")
        if len(levels) > 2 or not all(_LEVEL.fullmatch(level) for level in levels):
            raise ValueError(
                f"topic root {self.root!r} must be one or two levels without '+', '#', leading '$'"
            )
        if not _LEVEL.fullmatch(self.device):
            raise ValueError(
                f"device name {self.device!r} must be one topic level without '/', '+' or '#'"
            )
        if self.device == POOL:
            raise ValueError(f"device name {POOL!r} is taken by the topics of pools")

    @property
    def base(self) -> str:
        """``{root}/{device}``."""
        return f"{self.root}/{self.device}"

    def infer(self, model: str) -> str:
        """Where requests for a model go."""
        return f"{self.base}/infer/{model}"

    def infer_class(self, model: str, priority: str) -> str:
        """Where requests of one class (`PRIORITIES`) for a model may go."""
        return f"{self.base}/infer/{model}/{priority}"

    def infer_v3(self, model: str, client: str, request_id: str) -> str:
        """Where an MQTT 3.1.1 client sends a request."""
        return f"{self.base}/infer/{model}/rq/{client}/{request_id}"

    def reply_v3(self, model: str, client: str, request_id: str) -> str:
        """Where the answer to `infer_v3` goes."""
        return f"{self.base}/infer/{model}/rs/{client}/{request_id}"

    @property
    def subscriptions(self) -> tuple[str, ...]:
        """Filters that the daemon subscribes for requests; none matches its own topics."""
        infer = f"{self.base}/infer/+"
        return (infer, f"{infer}/+", f"{infer}/rq/+/+")

    def reply(self, client: str) -> str:
        """The response topic that clients use unless they are configured otherwise."""
        return f"{self.base}/reply/{client}"

    @property
    def status(self) -> str:
        """Retained birth and will status."""
        return f"{self.base}/status"

    def telemetry(self, kind: str) -> str:
        """Telemetry stream of one kind (`TELEMETRY_KINDS`)."""
        return f"{self.base}/tele/{kind}"

    def event(self, kind: str) -> str:
        """Stream of events of one kind."""
        return f"{self.base}/event/{kind}"

    def report(self, stream: str) -> str:
        """Where batches of one stream (`STREAMS`) go up to the control plane."""
        return f"{self.base}/report/{stream}"

    @property
    def ack(self) -> str:
        """Where the control plane says what of a stream it has stored, and what it refuses."""
        return f"{self.base}/ack"

    @property
    def uplink(self) -> str:
        """Retained status of the connection to the control plane: birth and will."""
        return f"{self.base}/uplink"

    @property
    def config_desired(self) -> str:
        """Retained: the settings that the control plane wants."""
        return f"{self.base}/config/desired"

    @property
    def config_reported(self) -> str:
        """Retained: the settings that are in effect, and what became of those desired."""
        return f"{self.base}/config/reported"

    @property
    def rollout_desired(self) -> str:
        """Retained: the rollout that the control plane wants; an intent, never a model."""
        return f"{self.base}/rollout/desired"

    @property
    def rollout_reported(self) -> str:
        """Retained: the state of the rollout; its progress is the stream ``rollout``."""
        return f"{self.base}/rollout/reported"

    def command(self, name: str) -> str:
        """Where a command (`COMMANDS`) is asked for."""
        return f"{self.base}/cmd/{name}"

    def parse_command(self, topic: str) -> str | None:
        """The name in a command's topic, unchecked; None if it is none of this device's."""
        prefix = f"{self.base}/cmd/"
        return topic[len(prefix) :] if topic.startswith(prefix) else None

    @property
    def uplink_subscriptions(self) -> tuple[str, ...]:
        """Filters that the daemon subscribes on the control plane's broker."""
        return (self.config_desired, self.ack, f"{self.base}/cmd/+")

    @property
    def dead(self) -> str:
        """Requests that could not be answered: their headers and the reason, no payload."""
        return f"{self.base}/dead"

    def parse_request(self, topic: str) -> RequestTopic | None:
        """Reads a request topic; None if it is none of this device's."""
        prefix = f"{self.base}/infer/"
        if not topic.startswith(prefix):
            return None
        levels = topic[len(prefix) :].split("/")
        if len(levels) == 1:
            return RequestTopic(levels[0])
        if len(levels) == 2 and levels[1]:
            return RequestTopic(levels[0], priority=levels[1])
        if len(levels) == 4 and levels[1] == "rq" and levels[2] and levels[3]:
            return RequestTopic(levels[0], levels[2], levels[3])
        return None


@dataclass(frozen=True)
class PoolTopics:
    """Topics of a pool: devices that share the requests of one queue.

    MQTT 3.1.1 has no form of its own here: with it the answer's address is in the topic, which
    would get more than `MAX_SLASHES`.

    Attributes:
        root: first levels, as of the devices.
        pool: the pool's name, one level.

    Raises:
        ValueError: the name is no topic level.
    """

    root: str
    pool: str

    def __post_init__(self) -> None:
        if not is_level(self.pool):
            raise ValueError(
                f"pool name {self.pool!r} must be one topic level without '/', '+' or '#'"
            )

    @property
    def base(self) -> str:
        """``{root}/pool/{pool}``."""
        return f"{self.root}/{POOL}/{self.pool}"

    def infer(self, model: str) -> str:
        """Where requests for a model go."""
        return f"{self.base}/infer/{model}"

    def infer_class(self, model: str, priority: str) -> str:
        """Where requests of one class (`PRIORITIES`) for a model may go."""
        return f"{self.base}/infer/{model}/{priority}"

    def reply(self, client: str) -> str:
        """The response topic that clients of the pool use unless they are configured otherwise."""
        return f"{self.root}/{POOL}/reply/{client}"

    @property
    def subscriptions(self) -> tuple[str, ...]:
        """Shared filters: the broker gives each request to one of the pool's devices."""
        infer = f"$share/{self.pool}/{self.base}/infer/+"
        return (infer, f"{infer}/+")

    def parse_request(self, topic: str) -> RequestTopic | None:
        """Reads a request topic; None if it is none of this pool's."""
        prefix = f"{self.base}/infer/"
        if not topic.startswith(prefix):
            return None
        levels = topic[len(prefix) :].split("/")
        if len(levels) > 2 or (len(levels) == 2 and not levels[1]):
            return None
        return RequestTopic(levels[0], priority=levels[1] if len(levels) == 2 else "", pooled=True)


TELEMETRY_KINDS = ("metrics",)
STREAMS = ("result", "telemetry", "event", "rollout")
"""What goes up through the outbox; each stream has sequence numbers of its own."""
COMMANDS = ("drain", "resume", "reload", "get-config", "get-metrics", "diagnose")


def check_response_topic(
    topic: str, root: str, own: Iterable[Topics | PoolTopics], extra_prefixes: Sequence[str] = ()
) -> str | None:
    """Why a requester's response topic may not be published to; None if it may.

    The daemon publishes wherever a requester says, with the daemon's rights: so only
    ``{root}/+/reply/...`` and configured prefixes are allowed, never a wildcard (brokers before
    mosquitto 2.0.20 let one through), a ``$`` topic, or one of the daemon's own topics.

    Args:
        topic: the response topic as sent.
        root: topic root of this fleet.
        own: topics of this device, refused outside ``reply/`` even under an extra prefix.
        extra_prefixes: further allowed beginnings, each ending in "/".
    """
    if (reason := _not_a_topic_name(topic)) is not None:
        return reason
    levels = topic.split("/")
    depth = root.count("/") + 1
    under_reply = topic.startswith(f"{root}/") and levels[depth + 1 : depth + 2] == ["reply"]
    if under_reply and len(levels) > depth + 2 and all(levels):
        return None
    if any(topic == mine.base or topic.startswith(f"{mine.base}/") for mine in own):
        return "it is one of this device's own topics"
    if any(topic.startswith(prefix) for prefix in extra_prefixes):
        return None
    return f"it must be under {root}/<device>/reply/ or a configured prefix"


def _not_a_topic_name(topic: str) -> str | None:
    if not topic or len(topic.encode("utf-8", "surrogatepass")) > MAX_RESPONSE_TOPIC_BYTES:
        return f"it must have 1 to {MAX_RESPONSE_TOPIC_BYTES} bytes"
    if _FORBIDDEN.search(topic):
        return "it must hold no wildcard ('+', '#') and no control character"
    if topic.startswith("$"):
        return "it must not begin with '$'"
    return None


# ------------------------------------------------------------------ payload documents

STATES = ("warming", "online", "degraded", "draining", "offline")


def status_document(
    state: str, boot_id: str, session: int, *, version: str = "", ts: float = 0.0,
    models: Sequence[str] = (),
) -> dict[str, object]:  # fmt: skip
    """The retained status: birth, will and farewell.

    Args:
        state: one of `STATES`.
        boot_id: identifies this run of the daemon; equal in a birth and in its will.
        session: counts connections of this run; a will with an older one is a late one.
        version: edged's version.
        ts: Unix seconds.
        models: names of the models that are ready.
    """
    return {
        "protocol": PROTOCOL_VERSION,
        "state": state,
        "boot_id": boot_id,
        "session": session,
        "version": version,
        "ts": round(ts, 3),
        "models": list(models),
    }


def error_document(
    message: str, code: str, *, retryable: bool, retry_after_ms: int | None = None
) -> dict[str, object]:
    """Body of an error reply: V2's ``error`` with our code beside it."""
    document: dict[str, object] = {"error": message, "code": code, "retryable": retryable}
    if retry_after_ms is not None:
        document["retry_after_ms"] = retry_after_ms
    return document
