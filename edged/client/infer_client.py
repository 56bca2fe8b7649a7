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

from typing_extensions import Unpack

from edged import protocol
from edged.client.endpoint import Delivery, Endpoint, Publication
from edged.client.link import Link
from edged.client.messages import Array, Message, image_message, read_reply, tensor_message
from edged.client.result import Result
from edged.client.sending_options import SendingOptions, user_properties
from edged.errors import BadParameterError, BrokerError, EdgedError
from edged.mqtt import reason_codes

MAX_OUTSTANDING = 1024
"""Requests that may be without an answer at once, unless the caller says otherwise."""
MOST_OUTSTANDING = 60_000
"""MQTT numbers what is on its way with 16 bits (MQTT 5, 2.2.1)."""
_CLIENT_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")


@dataclass(frozen=True)
class _Pending:
    future: Future[Result]
    sent: float


@final
class InferClient:
    """A connection to one device; a context manager. Any thread may use it.

    Args:
        endpoint: broker and device.
        client_id: MQTT client id and last level of the reply topic; None: a random one.
        connect_timeout_s: for the connection and the subscriptions.
        max_outstanding: requests without an answer; the next one waits for a place.

    Raises:
        BadParameterError: the client id is no topic level, or the number out of range.
        ConfigError: a certificate or key of the endpoint cannot be read.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        client_id: str | None = None,
        connect_timeout_s: float = 5.0,
        max_outstanding: int = MAX_OUTSTANDING,
    ) -> None:
        self.client_id = client_id or f"edged-client-{secrets.token_hex(6)}"
        if not _CLIENT_ID.match(self.client_id):
            raise BadParameterError(
                f"client id {self.client_id!r} must be 1 to 64 of A-Z a-z 0-9 . _ - and begin with "
                "a letter or a digit: it is a level of the reply topic"
            )
        if not 1 <= max_outstanding <= MOST_OUTSTANDING:
            raise BadParameterError(
                f"max_outstanding is {max_outstanding}, it must be from 1 to {MOST_OUTSTANDING}"
            )
        self.endpoint = endpoint
        self.topics = endpoint.topics
        # A pool has no status of its own.
        topics = self.topics
        self._status_topics = (topics.status,) if isinstance(topics, protocol.Topics) else ()
        self.reply_topic = self.topics.reply(self.client_id)
        self.max_outstanding = max_outstanding
        self.unmatched = 0
        """Replies to no outstanding request: duplicates, or later than the caller waited."""
        self._changed = threading.Condition()
        self._pending: dict[bytes, _Pending] = {}
        self._closed = False
        # An earlier run with this client id may still be answered: do not count from zero.
        self._numbers = itertools.count(secrets.randbits(62))
        self._status: dict[str, Any] | None = None
        self._awaited: list[tuple[str, Future[Mapping[str, Any]]]] = []
        self._link = Link(
            endpoint,
            self.client_id,
            (self.reply_topic, *self._status_topics),
            self._deliver,
            connect_timeout_s,
            self._rejected,
        )

    def __repr__(self) -> str:
        return f"<InferClient {self.client_id}: {len(self._pending)} requests outstanding>"

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
        self.start().result()

    def start(self) -> Future[None]:
        """Begins to connect and returns at once; the future ends as `connect` does."""
        return self._link.start()

    def close(self) -> None:
        """Disconnects; what is still outstanding fails with `BrokerError`. May be called twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._link.close()
        for correlation in list(self._pending):
            self._fail(correlation, BrokerError("the client was closed before the answer came"))

    # ------------------------------------------------------------------ requests

    def submit(
        self,
        model: str,
        message: Message,
        *,
        wait_s: float | None = None,
        **options: Unpack[SendingOptions],
    ) -> Future[Result]:
        """Sends one request and returns.

        The future ends with a `Result`, with the `ReplyError` that the device answered, or with
        `BrokerError` if the broker refuses the request or nobody takes it. It has no timeout of its
        own; cancel it to forget the request. Its callbacks run on the client's thread.

        Args:
            model: a model's name.
            message: from `tensor_message` or `image_message`.
            wait_s: for a place among the outstanding requests; None: as long as it takes.
            options: see `SendingOptions`.

        Raises:
            BadParameterError: an option has a value that is not allowed.
            PayloadTooLargeError: larger than the broker takes.
            BrokerError: the client is closed.
            TimeoutError: no place in time; at once in a callback of this client.
        """
        user = user_properties(message, options)
        correlation = next(self._numbers).to_bytes(8, "big")
        future: Future[Result] = Future()
        self._take_place(correlation, future, wait_s)
        future.add_done_callback(lambda done: self._ended(correlation, done))
        try:
            self._link.publish(
                Publication(
                    self.topics.infer(model),
                    message.payload,
                    self.reply_topic,
                    correlation,
                    message.content_type,
                    user,
                    options.get("expiry_s"),
                )
            )
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
        **options: Unpack[SendingOptions],
    ) -> Result:
        """Asks for one answer and waits for it.

        Args:
            model: a model's name.
            inputs: every input by name, ``[n, *shape]``; samples along the first axis.
            outputs: names of the wanted outputs; empty: all.
            classes: with outputs: the so many best entries as ``value:index[:label]`` instead.
            timeout_s: seconds to wait for the answer, and for a place among those outstanding.
            options: see `SendingOptions`; without ``expiry_s`` the broker drops the request soon
                after nobody waits for it.

        Raises:
            ReplyError: the device answered with an error.
            TimeoutError: no answer in time.
            BrokerError: the broker refuses the request, or nobody takes it.
            PayloadTooLargeError: larger than the broker takes.
        """
        message = tensor_message(inputs, outputs=outputs, classes=classes)
        return self._ask(model, message, timeout_s, options)

    def infer_image(
        self,
        model: str,
        image: bytes,
        content_type: str = "",
        *,
        classes: int = 0,
        timeout_s: float = 10.0,
        **options: Unpack[SendingOptions],
    ) -> Result:
        """Asks for the answer to one PNG or JPEG file's content; see `infer`, `image_message`."""
        message = image_message(image, content_type, classes=classes)
        return self._ask(model, message, timeout_s, options)

    def _ask(
        self, model: str, message: Message, timeout_s: float, options: SendingOptions
    ) -> Result:
        until = time.monotonic() + timeout_s
        options.setdefault("expiry_s", int(timeout_s) + 1)
        future = self.submit(model, message, wait_s=timeout_s, **options)
        return self.wait(future, model, max(0.0, until - time.monotonic()))

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
        raise TimeoutError(self.no_answer(model, timeout_s))

    def no_answer(self, model: str, timeout_s: float) -> str:
        """What to say when a request was not answered in time."""
        known = "has no status there" if self.status is None else f"says it is {self._state()!r}"
        if self.endpoint.pool:
            known = "may have no member that is there"
        link = "" if self._link.is_up else "; there is no connection to the broker"
        return (
            f"no answer within {timeout_s:.3g} s to a request on {self.topics.infer(model)}{link}; "
            f"{self.endpoint} {known}: check its name, the topic root, and that "
            "`edged serve` runs"
        )

    def _take_place(self, correlation: bytes, future: Future[Result], wait_s: float | None) -> None:
        if self._link.on_its_thread():
            wait_s = 0.0  # answers come on this very thread
        with self._changed:
            in_time = self._changed.wait_for(
                lambda: self._closed or len(self._pending) < self.max_outstanding, wait_s
            )
            if self._closed:
                raise BrokerError("the client is closed; make a new one to send requests")
            if not in_time:
                raise TimeoutError(
                    f"{len(self._pending)} requests are without an answer, as many as "
                    f"max_outstanding allows, and none was answered within {wait_s:g} s"
                )
            self._pending[correlation] = _Pending(future, time.monotonic())

    def _ended(self, correlation: bytes, future: Future[Result]) -> None:
        if self._take(correlation) is not None and future.cancelled():
            self._link.forget(correlation)

    def _take(self, correlation: bytes) -> _Pending | None:
        with self._changed:
            pending = self._pending.pop(correlation, None)
            self._changed.notify()
            return pending

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
        future = self.status_future(state)
        try:
            return future.result(timeout_s)
        except FutureTimeoutError:
            future.cancel()
            raise TimeoutError(self.no_status(state, timeout_s)) from None

    def status_future(self, state: str) -> Future[Mapping[str, Any]]:
        """Done with the status document as soon as it has this state."""
        future: Future[Mapping[str, Any]] = Future()
        with self._changed:
            self._awaited = [each for each in self._awaited if not each[1].done()]
            self._awaited.append((state, future))
        self._tell_status()
        return future

    def no_status(self, state: str, timeout_s: float) -> str:
        """What to say when a device did not reach a state in time."""
        return (
            f"device {self.endpoint.device!r} did not become {state!r} within {timeout_s:g} s; "
            f"its status is {self._state()!r}"
        )

    def _state(self) -> str | None:
        return None if self._status is None else str(self._status.get("state"))

    def _tell_status(self) -> None:
        state, document = self._state(), self._status or {}
        with self._changed:
            met = [future for wanted, future in self._awaited if wanted == state]
            self._awaited = [each for each in self._awaited if each[0] != state]
        for future in met:
            if future.set_running_or_notify_cancel():
                future.set_result(document)

    # ------------------------------------------------------------------ on the link's thread

    def _deliver(self, delivery: Delivery) -> None:
        if delivery.topic in self._status_topics:
            self._note_status(delivery.payload)
        elif (pending := self._take(delivery.correlation)) is None:
            self.unmatched += 1
        elif pending.future.set_running_or_notify_cancel():
            _complete(pending, delivery)

    def _rejected(self, correlation: bytes, reason: int) -> None:
        said = reason_codes.name(reason)
        why = f"the broker refuses the request ({said})"
        if reason < reason_codes.FAILURE:
            why = f"nobody takes requests of {self.endpoint} ({said})"
        self._fail(
            correlation,
            BrokerError(f"{why}: check its name, the topic root, and the broker's access rules"),
        )

    def _fail(self, correlation: bytes, error: EdgedError) -> None:
        pending = self._take(correlation)
        if pending is not None and pending.future.set_running_or_notify_cancel():
            pending.future.set_exception(error)

    def _note_status(self, payload: bytes) -> None:
        try:
            document = json.loads(payload)
        except ValueError:
            document = None
        self._status = document if isinstance(document, dict) else None
        self._tell_status()


def _complete(pending: _Pending, delivery: Delivery) -> None:
    try:
        reply = read_reply(delivery.payload, delivery.content_type, delivery.user)
    except EdgedError as err:
        pending.future.set_exception(err)
        return
    latency_s = delivery.received - pending.sent
    trace = {
        name: delivery.user[name] for name in protocol.TRACE_PROPERTIES if name in delivery.user
    }
    pending.future.set_result(
        Result(
            reply.outputs,
            reply.parameters,
            reply.status,
            reply.model_version,
            latency_s,
            trace,
            delivery.user.get(protocol.DEVICE, ""),
        )
    )
