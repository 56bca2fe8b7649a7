"""Request -> accepted, or the refusal to answer with. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from edged.errors import (
    DrainingError,
    EdgedError,
    ExpiredError,
    LateError,
    PayloadTooLargeError,
    QueueFullError,
)
from edged.serve.request import Request


@dataclass(frozen=True, slots=True)
class Admission:
    """The rule by which requests are let in.

    Attributes:
        queue_samples: most samples that may wait for one model.
    """

    queue_samples: int

    def refusal(
        self,
        request: Request,
        now: float,
        *,
        waiting: int,
        drain_s: float,
        starts_in_s: float,
        draining: bool,
    ) -> EdgedError | None:
        """Why a request is not let in; None if it is.

        Args:
            request: a decoded request.
            now: monotonic seconds.
            waiting: samples that wait for its model.
            drain_s: seconds that the device is expected to need for those.
            starts_in_s: seconds after which its first sample is started, at the least.
            draining: whether the service is stopping.
        """
        if draining:
            return DrainingError(
                "the service is draining and takes no new requests; send it again in a while",
                retry_after_ms=5000,
            )
        if request.deadline <= now:
            late_ms = round((now - request.deadline) * 1e3)
            return ExpiredError(f"the request was {late_ms} ms past its deadline when it was read")
        if request.samples > self.queue_samples:
            return PayloadTooLargeError(
                f"the request has {request.samples} samples, but at most {self.queue_samples} may "
                "wait (serve.queue_samples); send several requests"
            )
        if waiting + request.samples > self.queue_samples:
            return QueueFullError(
                f"{waiting} samples wait for model {request.model!r} and this request has "
                f"{request.samples}; at most {self.queue_samples} may wait (serve.queue_samples); "
                "send fewer, or slower",
                retry_after_ms=max(1, round(drain_s * 1e3)),
            )
        if now + starts_in_s > request.deadline:
            left_ms, needed_ms = (request.deadline - now) * 1e3, starts_in_s * 1e3
            return LateError(
                f"the request could be started in {needed_ms:.0f} ms at the earliest, its deadline "
                f"is in {left_ms:.0f} ms; allow more time, or send fewer requests",
                retry_after_ms=max(1, round(needed_ms - left_ms)),
            )
        return None
