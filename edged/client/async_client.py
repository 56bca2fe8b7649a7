"""`InferClient` for an event loop.

The connection's thread stays: it keeps the connection alive and mends it however long the loop is
held up, and one link serves both clients. Each answer crosses to the loop once, by
``loop.call_soon_threadsafe`` inside `asyncio.wrap_future`, and cancelling goes the other way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, final

from typing_extensions import Unpack

from edged.client.endpoint import Endpoint
from edged.client.infer_client import MAX_OUTSTANDING, InferClient
from edged.client.messages import Array, Message, image_message, tensor_message
from edged.client.result import Result
from edged.client.sending_options import SendingOptions


@final
class AsyncInferClient:
    """A connection to one device; an asynchronous context manager, for one event loop.

    Arguments and errors are those of `InferClient`.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        client_id: str | None = None,
        connect_timeout_s: float = 5.0,
        max_outstanding: int = MAX_OUTSTANDING,
    ) -> None:
        self._client = InferClient(
            endpoint,
            client_id=client_id,
            connect_timeout_s=connect_timeout_s,
            max_outstanding=max_outstanding,
        )
        self._places = asyncio.Semaphore(max_outstanding)

    def __repr__(self) -> str:
        return f"<Async{repr(self._client)[1:]}"

    async def __aenter__(self) -> AsyncInferClient:
        await self.connect()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def client_id(self) -> str:
        """MQTT client id and last level of the reply topic."""
        return self._client.client_id

    @property
    def unmatched(self) -> int:
        """Replies to no outstanding request: duplicates, or later than the caller waited."""
        return self._client.unmatched

    @property
    def status(self) -> Mapping[str, Any] | None:
        """The device's retained status document, None while there is none."""
        return self._client.status

    async def connect(self) -> None:
        """Connects and subscribes; see `InferClient.connect`. Cancelled, it closes the client."""
        try:
            await asyncio.wrap_future(self._client.start())
        except asyncio.CancelledError:
            await self.close()
            raise

    async def close(self) -> None:
        """Disconnects; what is still outstanding fails with `BrokerError`. May be called twice."""
        await asyncio.to_thread(self._client.close)

    async def submit(
        self, model: str, message: Message, **options: Unpack[SendingOptions]
    ) -> asyncio.Future[Result]:
        """Sends one request, as soon as there is a place, and returns the future of its answer.

        Cancel the future to forget the request; see `InferClient.submit` for how it ends.

        Raises:
            BadParameterError: an option has a value that is not allowed.
            PayloadTooLargeError: larger than the broker takes.
            BrokerError: the client is closed.
        """
        await self._places.acquire()
        try:
            # There is a place: those who hold one here hold one there, or have given it back.
            answer = self._client.submit(model, message, wait_s=0.0, **options)
        except BaseException:
            self._places.release()
            raise
        future = asyncio.wrap_future(answer)
        future.add_done_callback(lambda _done: self._places.release())
        return future

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        *,
        outputs: Sequence[str] = (),
        classes: int = 0,
        timeout_s: float = 10.0,
        **options: Unpack[SendingOptions],
    ) -> Result:
        """Asks for one answer; see `InferClient.infer`. Cancelled, it forgets the request."""
        message = tensor_message(inputs, outputs=outputs, classes=classes)
        return await self._ask(model, message, timeout_s, options)

    async def infer_image(
        self,
        model: str,
        image: bytes,
        content_type: str = "",
        *,
        classes: int = 0,
        timeout_s: float = 10.0,
        **options: Unpack[SendingOptions],
    ) -> Result:
        """Asks for the answer to one PNG or JPEG file's content; see `InferClient.infer_image`."""
        message = image_message(image, content_type, classes=classes)
        return await self._ask(model, message, timeout_s, options)

    async def wait_status(self, state: str, timeout_s: float) -> Mapping[str, Any]:
        """Waits until the device's status has this state; returns the document.

        Raises:
            TimeoutError: it has not in time.
        """
        future = asyncio.wrap_future(self._client.status_future(state))
        try:
            return await asyncio.wait_for(future, timeout_s)
        except asyncio.TimeoutError:
            raise TimeoutError(self._client.no_status(state, timeout_s)) from None

    async def _ask(
        self, model: str, message: Message, timeout_s: float, options: SendingOptions
    ) -> Result:
        options.setdefault("expiry_s", int(timeout_s) + 1)
        try:
            return await asyncio.wait_for(self._answer(model, message, options), timeout_s)
        except asyncio.TimeoutError:
            raise TimeoutError(self._client.no_answer(model, timeout_s)) from None

    async def _answer(self, model: str, message: Message, options: SendingOptions) -> Result:
        return await (await self.submit(model, message, **options))
