"""Bytes from the broker -> `Request`: sound in form and fit for a model that is served here.

Checked in this order, each with its own error: reply address, retained, size, model, content type,
body, inputs, outputs, deadline, priority. Nothing is allocated from a size that the sender states,
and no error message repeats more than a short, escaped piece of what was sent.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal, Protocol

import numpy as np

from edged import protocol, trace_context, v2
from edged.errors import (
    BadHeaderError,
    BadParameterError,
    BadResponseTopicError,
    ModelUnavailableError,
    NoResponseTopicError,
    PayloadTooLargeError,
    TruncatedBodyError,
    UnknownModelError,
    UnsupportedContentTypeError,
)
from edged.image_frame import ImageFrame
from edged.postprocess import Postprocessor
from edged.preprocess import decode_framed
from edged.recipe import MODEL_NAME, InputSpec, OutputSpec
from edged.serve.request import Arrival, Priority, ReplyTo, Request
from edged.serve.request_inputs import check_inputs, describe
from edged.serve.request_outputs import choices_of

_MAX_TIME = 2**53
"""Largest time in a parameter; every whole number up to it is exact as a float."""
_TOPICS = 256
"""Topics that are remembered; one has at most 64 KB."""
_COUNT = re.compile(r"[0-9]{1,9}", re.ASCII)
_MILLISECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,6})?", re.ASCII)
_MAGIC = ((b"\x89PNG\r\n\x1a\n", protocol.PNG), (b"\xff\xd8\xff", protocol.JPEG))
_PRIORITIES = {name: Priority[name.upper()] for name in protocol.PRIORITIES}


class ModelSpec(Protocol):
    """What decoding needs to know of a served model; `edged.engine_store.Manifest` has it."""

    @property
    def input(self) -> tuple[InputSpec, ...]:
        """Every input of a request."""

    @property
    def output(self) -> tuple[OutputSpec, ...]:
        """Every output, in the order of the answer."""

    @property
    def postprocessor(self) -> Postprocessor | None:
        """What makes further outputs of these, or None."""

    @property
    def slo_ms(self) -> float:
        """Deadline of a request that brings none, milliseconds from its arrival."""

    @property
    def freshness(self) -> Literal["all", "latest"]:
        """Whether every request counts, or the latest one of each source."""


@dataclass(frozen=True)
class Limits:
    """What one request may ask for at most.

    Attributes:
        max_request_bytes: of its body.
        max_request_samples: in it.
        max_deadline_s: seconds from its arrival; a later deadline is cut to this.
    """

    max_request_bytes: int = 16 * 1024 * 1024
    max_request_samples: int = 1024
    max_deadline_s: float = 300.0


class Decoder:
    """Decodes the requests of one device. Any thread may use it.

    Args:
        topics: this device's topics.
        models: looks a served model up by name, None if there is none; ``dict.get`` will do.
        limits: what one request may ask for.
        reply_prefixes: beginnings of response topics allowed besides the fleet's own.
        pool: topics of the pool that this device is a member of.
        unavailable: names of models that are configured but could not be loaded.
        wall: Unix seconds, for the one deadline that is a date.
        clock: monotonic seconds, likewise.
    """

    def __init__(
        self,
        topics: protocol.Topics,
        models: Callable[[str], ModelSpec | None],
        *,
        limits: Limits = Limits(),
        reply_prefixes: Sequence[str] = (),
        pool: protocol.PoolTopics | None = None,
        unavailable: Container[str] = frozenset(),
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._topics = topics
        self._pool = pool
        self._models = models
        self._limits = limits
        # Requesters come back: what was found out about a topic is true for ever.
        self._parse_topic = lru_cache(_TOPICS)(self._parse)
        self._refused_topic = lru_cache(_TOPICS)(
            partial(
                protocol.check_response_topic,
                root=topics.root,
                own=(topics,) if pool is None else (topics, pool),
                extra_prefixes=tuple(reply_prefixes),
            )
        )
        self._unavailable = unavailable
        self._wall = wall
        self._clock = clock

    def _parse(self, topic: str) -> protocol.RequestTopic | None:
        asked = self._topics.parse_request(topic)
        return self._pool.parse_request(topic) if asked is None and self._pool else asked

    def reply_to(self, arrival: Arrival) -> ReplyTo:
        """Where the answer goes, an error's too. Correlation data over the limit is left out.

        Raises:
            NoResponseTopicError: the request names no response topic.
            BadResponseTopicError: it names one that may not be published to.
        """
        asked = self._parse_topic(arrival.topic)
        if asked is not None and asked.client:
            topic = self._reply_topic_v3(asked)
        else:
            topic = self._reply_topic(arrival)
        correlation = arrival.correlation
        if correlation is not None and len(correlation) > protocol.MAX_CORRELATION_BYTES:
            correlation = None
        return ReplyTo(
            topic=topic,
            correlation=correlation,
            qos=min(arrival.receipt.qos, 1),
            trace=trace_context.passed_on(arrival.user),
            json_only=asked is not None and bool(asked.client),
            device=self._topics.device if asked is not None and asked.pooled else "",
        )

    def decode(self, arrival: Arrival, reply_to: ReplyTo | None = None) -> Request:
        """Decodes a whole request.

        Args:
            arrival: as the broker delivered it; `Request.tensors` are views of its payload.
            reply_to: what `reply_to` gave for it, where that was asked already.

        Raises:
            ClientError: it cannot be served as it was sent; the class says what is wrong.
            ModelUnavailableError: the model is configured but could not be loaded.
        """
        reply_to = reply_to or self.reply_to(arrival)
        self._check_envelope(arrival)
        asked, model = self._model(arrival)
        body, binary, frame = _parse_body(arrival, model)
        inputs = check_inputs(body, model.input)
        if (samples := inputs.samples) > self._limits.max_request_samples:
            raise PayloadTooLargeError(
                f"the request has {samples} samples, at most {self._limits.max_request_samples} "
                "are allowed; send several requests"
            )
        return Request(
            model=asked.model,
            id=body.id,
            samples=samples,
            tensors=inputs.tensors,
            deadline=self._deadline(arrival, body.parameters, model.slo_ms),
            priority=_priority(arrival.user, asked.priority, body.parameters),
            received=arrival.received,
            reply_to=reply_to,
            receipt=arrival.receipt,
            outputs=choices_of(body, model.output, model.postprocessor, binary=binary),
            source=_source(arrival.user, asked) if model.freshness == "latest" else "",
            length=inputs.length,
            unpadded=inputs.unpadded,
            frame=frame,
        )

    def _reply_topic_v3(self, asked: protocol.RequestTopic) -> str:
        levels = (asked.model, asked.client, asked.request_id)
        if not all(map(protocol.is_level, levels)):
            raise BadResponseTopicError(
                f"model, client and request of the topic ({', '.join(map(v2.show, levels))}) must "
                "have 1 to 128 characters without wildcards, control characters or a leading '$'"
            )
        return self._topics.reply_v3(*levels)

    def _reply_topic(self, arrival: Arrival) -> str:
        topic = arrival.response_topic
        if not topic:
            raise NoResponseTopicError(
                "the request has no response topic; set MQTT 5's Response Topic to "
                f"{self._topics.reply('<client>')}"
            )
        why = self._refused_topic(topic)
        if why:
            raise BadResponseTopicError(f"response topic {v2.show(topic)} is refused: {why}")
        return topic

    def _check_envelope(self, arrival: Arrival) -> None:
        if arrival.retained:
            raise BadParameterError(
                "the request is a retained message, which would run again at every connection; "
                "publish it without the retain flag"
            )
        if len(arrival.correlation or b"") > protocol.MAX_CORRELATION_BYTES:
            raise BadParameterError(
                f"the correlation data has {len(arrival.correlation or b'')} bytes, at most "
                f"{protocol.MAX_CORRELATION_BYTES} are allowed"
            )
        size, limit = len(arrival.payload), self._limits.max_request_bytes
        if size > limit:
            raise PayloadTooLargeError(
                f"the body has {size} bytes, at most {limit} are allowed; send fewer samples "
                "in one request"
            )
        if not size:
            raise TruncatedBodyError("the body is empty; send a V2 request or an image")

    def _model(self, arrival: Arrival) -> tuple[protocol.RequestTopic, ModelSpec]:
        asked = self._parse_topic(arrival.topic)
        if asked is None:
            raise UnknownModelError(
                f"topic {v2.show(arrival.topic)} is no request topic; publish to "
                f"{self._topics.infer('<model>')}"
            )
        name = asked.model
        model = self._models(name) if re.fullmatch(MODEL_NAME, name, re.ASCII) else None
        if model is not None:
            return asked, model
        if name in self._unavailable:
            raise ModelUnavailableError(
                f"model {name!r} is configured here, but could not be loaded; its operator finds "
                "the reason in the log and with edged doctor"
            )
        raise UnknownModelError(
            f"no model {v2.show(name)} is served here; the retained message on "
            f"{self._topics.status} lists those that are"
        )

    def _deadline(self, arrival: Arrival, parameters: Mapping[str, Any], slo_ms: float) -> float:
        """Monotonic seconds: the earliest that the request states, else the model's."""
        stated: list[float] = []
        if arrival.expiry_s is not None:
            stated.append(arrival.expiry_s)
        if (text := arrival.user.get(protocol.DEADLINE_MS)) is not None:
            if not _MILLISECONDS.fullmatch(text) or float(text) <= 0:
                raise BadParameterError(
                    f"{protocol.DEADLINE_MS} {v2.show(text)} must be milliseconds above 0, "
                    "for example 250 or 12.5"
                )
            stated.append(float(text) / 1e3)
        if timeout_us := _time(parameters, "timeout"):
            stated.append(timeout_us / 1e6)
        if unix_ms := _time(parameters, "deadline_unix_ms"):
            # A date: what it leaves is counted from now, not from the arrival.
            since = self._clock() - arrival.received
            stated.append(unix_ms / 1e3 - self._wall() + since)
        left = min(stated, default=slo_ms / 1e3)
        return arrival.received + min(left, self._limits.max_deadline_s)


# ------------------------------------------------------------------ the body


def _parse_body(
    arrival: Arrival, model: ModelSpec
) -> tuple[v2.InferRequest, bool, ImageFrame | None]:
    """The body, whether outputs that do not say come in binary form, and where an image lies."""
    form = _form(arrival)
    if form in {protocol.PNG, protocol.JPEG}:
        body, frame = _parse_image(arrival, model, form)
        return body, False, frame
    text = arrival.user.get(protocol.HEADER_LENGTH)
    if text is not None and not _COUNT.fullmatch(text):
        raise BadHeaderError(
            f"{protocol.HEADER_LENGTH} {v2.show(text)} must be the length of the JSON header in "
            "bytes, as a decimal number"
        )
    length = None if text is None else int(text)
    return v2.parse_request(arrival.payload, length), length is not None, None


def _form(arrival: Arrival) -> str:
    """The content type, or what the body looks like where there is none."""
    given = arrival.content_type.partition(";")[0].strip().lower()
    if given in protocol.REQUEST_CONTENT_TYPES:
        return given
    allowed = ", ".join(protocol.REQUEST_CONTENT_TYPES)
    if given:
        raise UnsupportedContentTypeError(
            f"content type {v2.show(given)} is not taken; it must be one of {allowed}"
        )
    if protocol.HEADER_LENGTH in arrival.user:
        return protocol.OCTET_STREAM
    start = bytes(arrival.payload[:64])
    if start.lstrip().startswith(b"{"):
        return protocol.JSON
    for magic, form in _MAGIC:
        if start.startswith(magic):
            return form
    raise UnsupportedContentTypeError(
        f"the request has no content type, and its first bytes {start[:8].hex()} are neither "
        f"JSON nor PNG nor JPEG; set one of {allowed}, and for binary tensors the user property "
        f"{protocol.HEADER_LENGTH}"
    )


def _parse_image(
    arrival: Arrival, model: ModelSpec, form: str
) -> tuple[v2.InferRequest, ImageFrame]:
    spec = model.input[0]
    if len(model.input) != 1 or spec.image == "none":
        raise UnsupportedContentTypeError(
            f"this model takes no {form}; send tensors as {protocol.OCTET_STREAM} or "
            f"{protocol.JSON}: {', '.join(map(describe, model.input))}"
        )
    text = arrival.user.get(protocol.CLASSIFICATION, "0")
    if not _COUNT.fullmatch(text):
        raise BadParameterError(
            f"{protocol.CLASSIFICATION} {v2.show(text)} must be a whole number from 0 on"
        )
    height, width, _ = spec.shape
    pixels, frame = decode_framed(
        arrival.payload, mode=spec.image, height=height, width=width, fill=spec.letterbox
    )
    asked: tuple[v2.RequestedOutput, ...] = ()
    if int(text):
        asked = tuple([v2.RequestedOutput(o.name, classes=int(text)) for o in model.output])
    return v2.InferRequest((v2.Tensor(spec.name, pixels[np.newaxis]),), asked), frame


# ------------------------------------------------------------------ parameters


def _time(parameters: Mapping[str, Any], name: str) -> int:
    """A time in whole units; 0 where it is not given."""
    value = parameters.get(name, 0)
    if type(value) is not int or not 0 <= value <= _MAX_TIME:
        raise BadParameterError(
            f"parameter {name} {v2.show(value)} must be a whole number from 0 (none) to {_MAX_TIME}"
        )
    return value


def _priority(user: Mapping[str, str], topic: str, parameters: Mapping[str, Any]) -> Priority:
    """The user property first, then the topic's, then the body's, by name or Triton's number."""
    value = user.get(protocol.PRIORITY, topic or parameters.get(protocol.PRIORITY, 0))
    if isinstance(value, str) and value in _PRIORITIES:
        return _PRIORITIES[value]
    if type(value) is int and value >= 0 and protocol.PRIORITY not in user:
        return Priority.NORMAL if value == 0 else Priority(min(value, 3) - 1)
    raise BadParameterError(
        f"priority {v2.show(value)} must be one of {', '.join(protocol.PRIORITIES)}, or in the "
        "body a number: 0 (default), 1 (urgent), 2 (normal), 3 or more (background)"
    )


def _source(user: Mapping[str, str], asked: protocol.RequestTopic) -> str:
    """Whose newer request supersedes this one: as the property names it, else the 3.1.1 client."""
    source = user.get(protocol.SOURCE, asked.client)
    if len(source) > protocol.MAX_SOURCE_CHARS:
        raise BadParameterError(
            f"{protocol.SOURCE} {v2.show(source)} has {len(source)} characters, at most "
            f"{protocol.MAX_SOURCE_CHARS} are allowed"
        )
    return source
