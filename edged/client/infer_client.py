"""Requests out, answers in, joined by their correlation data."""

from __future__ import annotations

import itertools
import json
import re
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from types import TracebackType
from typing import Any, final

from edged import protocol
from edged.client.link import Delivery, Endpoint, Link, Publication
from edged.client.messages import Array, Message, image_message, read_reply, tensor_message
from edged.errors import BadParameterError, BrokerError, EdgedError

_CLIENT_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")


@dataclass(frozen=True)
class Result:
    """The answer to one request.

    Attributes:
        outputs: arrays by output name; classifications are strings ``value:index[:label]``.
        parameters: what the device says about it: ``queue_us``, ``compute_us``, ``batch_size``,
            ``batch_reason`` and others of docs/protocol.md.
        status: 200.
        model_version: which engine answered.
        latency_s: seconds from `InferClient.submit` to the reply's arrival.
    """

    outputs: Mapping[str, Array]
    parameters: Mapping[str, Any]
    status: int
    model_version: str
    latency_s: float


@dataclass(frozen=True)
class _Pending:
    future: Future[Result]
    model: str
    sent: float


@final
class InferClient:
    """A connection to one device; a context manager.

    Args:
        endpoint: broker and device.
        client_id: MQTT client id and last level of the reply topic; None: a random one.
        connect_timeout_s: for the connection and the subscriptions.

    Raises:
        BadParameterError: the client id is no topic level.
    """

    def __init__(
        self, endpoint: Endpoint, *, client_id: str | None = None, connect_timeout_s: float = 5.0
    ) -> None:
        self.client_id = client_id or f"edged-client-{secrets.token_hex(6)}"
        if not _CLIENT_ID.match(self.client_id):
            raise BadParameterError(
                f"client id {self.client_id!r} must be 1 to 64 of A-Z a-z 0-9 . _ - and begin with "
                "a letter or a digit: it is a level of the reply topic"
            )
        self.endpoint = endpoint
        self.topics = protocol.Topics(endpoint.root, endpoint.device)
        self.reply_topic = self.topics.reply(self.client_id)
        self.unmatched = 0
        """Replies to no outstanding request: duplicates, or later than the caller waited."""
        self._lock = threading.Lock()
        self._pending: dict[bytes, _Pending] = {}
        # An earlier run with this client id may still be answered: do not count from zero.
        self._numbers = itertools.count(secrets.randbits(62))
        self._status: dict[str, Any] | None = None
        self._changed = threading.Condition()
        subscriptions = (self.reply_topic, self.topics.status)
        self._link = Link(endpoint, self.client_id, subscriptions, self._deliver, connect_timeout_s)

    def __repr__(self) -> str:
        with self._lock:
            waiting = len(self._pending)
        return f"<InferClient {self.client_id}: {waiting} requests outstanding>"

    def __enter__(self) -> InferClient:
        self.connect()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def connect(self) -> None:
        """Connects and subscribes. A later loss is mended in the background.

        Raises:
            BrokerError: the broker cannot be reached or refuses; the message says which.
        """
        self._link.connect()

    def close(self) -> None:
        """Disconnects; what is still outstanding fails with `BrokerError`. May be called twice."""
        self._link.close()
        with self._lock:
            left = list(self._pending.values())
            self._pending.clear()
        for pending in left:
            if pending.future.set_running_or_notify_cancel():
                pending.future.set_exception(
                    BrokerError("the client was closed before the answer came")
                )

    # ------------------------------------------------------------------ requests

    def submit(
        self,
        model: str,
        message: Message,
        *,
        priority: str | None = None,
        deadline_ms: int | None = None,
        expiry_s: int | None = None,
    ) -> Future[Result]:
        """Sends one request and returns at once.

        The future ends with a `Result`, or with the `ReplyError` that the device answered. It has
        no timeout of its own; cancel it to forget the request.

        Args:
            model: a model's name.
            message: from `tensor_message` or `image_message`.
            priority: one of `edged.protocol.PRIORITIES`; None: normal.
            deadline_ms: the device starts nothing later than this after its arrival.
            expiry_s: the broker drops the request when it could not deliver it for so long.

        Raises:
            BadParameterError: no such priority, or a deadline below 1 ms.
            PayloadTooLargeError: larger than the broker takes.
        """
        correlation = next(self._numbers).to_bytes(8, "big")
        publication = Publication(
            self.topics.infer(model),
            message.payload,
            self.reply_topic,
            correlation,
            message.content_type,
            _user_properties(message, priority, deadline_ms),
            expiry_s,
        )
        future: Future[Result] = Future()
        with self._lock:
            self._pending[correlation] = _Pending(future, model, time.monotonic())
        future.add_done_callback(lambda _done: self._take(correlation))
        try:
            self._link.publish(publication)
        except EdgedError:
            future.cancel()
            raise
        return future

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        *,
        outputs: Sequence[str] = (),
        classes: int = 0,
        timeout_s: float = 10.0,
        priority: str | None = None,
        deadline_ms: int | None = None,
    ) -> Result:
        """Asks for one answer and waits for it.

        Args:
            model: a model's name.
            inputs: every input by name, ``[n, *shape]``; samples along the first axis.
            outputs: names of the wanted outputs; empty: all.
            classes: with outputs: the so many best entries as ``value:index[:label]`` instead.
            timeout_s: seconds to wait for the answer.
            priority: one of `edged.protocol.PRIORITIES`; None: normal.
            deadline_ms: the device starts nothing later than this after its arrival.

        Raises:
            ReplyError: the device answered with an error.
            TimeoutError: no answer in time.
            PayloadTooLargeError: larger than the broker takes.
        """
        message = tensor_message(inputs, outputs=outputs, classes=classes)
        future = self.submit(
            model, message, priority=priority, deadline_ms=deadline_ms, expiry_s=int(timeout_s) + 1
        )
        return self.wait(future, model, timeout_s)

    def infer_image(
        self, model: str, image: bytes, content_type: str, *, timeout_s: float = 10.0
    ) -> Result:
        """Asks for the answer to one PNG or JPEG file's content; see `infer`."""
        future = self.submit(model, image_message(image, content_type), expiry_s=int(timeout_s) + 1)
        return self.wait(future, model, timeout_s)

    def wait(self, future: Future[Result], model: str, timeout_s: float) -> Result:
        """Waits for a submitted request, and forgets it when the time is up.

        Raises:
            ReplyError: the device answered with an error.
            TimeoutError: no answer in time; the message says what the device's status is.
        """
        try:
            return future.result(timeout_s)
        except FutureTimeoutError:
            if not future.cancel():  # it came at this very moment
                return future.result()
        known = "has no status there" if self.status is None else f"says it is {self._state()!r}"
        raise TimeoutError(
            f"no answer within {timeout_s:g} s to a request on {self.topics.infer(model)}; device "
            f"{self.endpoint.device!r} {known}: check its name, the topic root, and that "
            "`edged serve` runs"
        )

    # ------------------------------------------------------------------ the device's status

    @property
    def status(self) -> Mapping[str, Any] | None:
        """The device's retained status document, None while there is none."""
        return self._status

    def wait_status(self, state: str, timeout_s: float) -> Mapping[str, Any]:
        """Waits until the device's status has this state; returns the document.

        Raises:
            TimeoutError: it has not in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._state() == state, timeout_s):
                raise TimeoutError(
                    f"device {self.endpoint.device!r} did not become {state!r} within "
                    f"{timeout_s:g} s; its status is {self._state()!r}"
                )
            return self._status or {}

    def _state(self) -> str | None:
        return None if self._status is None else str(self._status.get("state"))

    # ------------------------------------------------------------------ on the network thread

    def _deliver(self, delivery: Delivery) -> None:
        if delivery.topic == self.topics.status:
            self._note_status(delivery.payload)
        elif (pending := self._take(delivery.correlation)) is None:
            self.unmatched += 1
        elif pending.future.set_running_or_notify_cancel():
            _complete(pending, delivery)

    def _note_status(self, payload: bytes) -> None:
        try:
            document = json.loads(payload)
        except ValueError:
            document = None
        with self._changed:
            self._status = document if isinstance(document, dict) else None
            self._changed.notify_all()

    def _take(self, correlation: bytes) -> _Pending | None:
        with self._lock:
            return self._pending.pop(correlation, None)


def _complete(pending: _Pending, delivery: Delivery) -> None:
    try:
        reply = read_reply(delivery.payload, delivery.content_type, delivery.user)
    except EdgedError as err:
        pending.future.set_exception(err)
        return
    latency_s = delivery.received - pending.sent
    pending.future.set_result(
        Result(reply.outputs, reply.parameters, reply.status, reply.model_version, latency_s)
    )


def _user_properties(
    message: Message, priority: str | None, deadline_ms: int | None
) -> list[tuple[str, str]]:
    if priority is not None and priority not in protocol.PRIORITIES:
        raise BadParameterError(
            f"priority {priority!r} must be one of {', '.join(protocol.PRIORITIES)}"
        )
    if deadline_ms is not None and deadline_ms < 1:
        raise BadParameterError(f"deadline_ms must be at least 1, not {deadline_ms}")
    user: list[tuple[str, str]] = []
    if message.header_length is not None:
        user.append((protocol.HEADER_LENGTH, str(message.header_length)))
    if message.classes:
        user.append((protocol.CLASSIFICATION, str(message.classes)))
    if priority is not None:
        user.append((protocol.PRIORITY, priority))
    if deadline_ms is not None:
        user.append((protocol.DEADLINE_MS, str(deadline_ms)))
    return user
