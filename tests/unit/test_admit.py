"""Who is let in, and what the others are told."""

from __future__ import annotations

import pytest

from edged.errors import (
    DrainingError,
    EdgedError,
    ExpiredError,
    LateError,
    PayloadTooLargeError,
    QueueFullError,
)
from edged.serve.admit import Admission
from edged.serve.request import Priority, Receipt, ReplyTo, Request

RULE = Admission(queue_samples=10)
NOW = 100.0


def make_request(samples: int = 1, left_s: float = 1.0) -> Request:
    """A request that is sound in form."""
    return Request(
        model="digits",
        id="",
        samples=samples,
        tensors={},
        deadline=NOW + left_s,
        priority=Priority.NORMAL,
        received=NOW,
        reply_to=ReplyTo("r", None, 0),
        receipt=Receipt(1, 1, 1, 1),
    )


@pytest.mark.parametrize(("samples", "waiting"), [(1, 0), (10, 0), (1, 9), (4, 6)])
def test_what_fits_is_let_in(samples: int, waiting: int) -> None:
    """Up to the limit, inclusive, there is room."""
    request = make_request(samples)

    assert (
        RULE.refusal(request, NOW, waiting=waiting, drain_s=1.0, starts_in_s=0.0, draining=False)
        is None
    )


@pytest.mark.parametrize(("samples", "waiting"), [(10, 1), (1, 10), (5, 6)])
def test_what_does_not_fit_is_told_when_to_come_again(samples: int, waiting: int) -> None:
    """The refusal says how many wait, how many are allowed, and when there should be room."""
    request = make_request(samples)

    refusal = RULE.refusal(
        request, NOW, waiting=waiting, drain_s=0.25, starts_in_s=0.0, draining=False
    )

    assert isinstance(refusal, QueueFullError)
    assert refusal.retry_after_ms == 250
    assert refusal.message == (
        f"{waiting} samples wait for model 'digits' and this request has {samples}; at most 10 may "
        "wait (serve.queue_samples); send fewer, or slower"
    )


def test_retry_is_never_at_once() -> None:
    """A requester that obeys does not spin."""
    refusal = RULE.refusal(
        make_request(1), NOW, waiting=10, drain_s=0.0, starts_in_s=0.0, draining=False
    )

    assert refusal is not None
    assert refusal.retry_after_ms == 1


@pytest.mark.parametrize(("left_s", "late_ms"), [(0.0, 0), (-0.25, 250)])
def test_what_is_too_late_is_told_by_how_much(left_s: float, late_ms: int) -> None:
    """A deadline that has come or passed is refused before anything else is looked at."""
    request = make_request(11, left_s)

    refusal = RULE.refusal(request, NOW, waiting=10, drain_s=1.0, starts_in_s=0.0, draining=False)

    assert isinstance(refusal, ExpiredError)
    assert refusal.message == (f"the request was {late_ms} ms past its deadline when it was read")


def test_what_can_never_fit_is_not_to_be_sent_again() -> None:
    """More samples than may wait at all: coming again would change nothing."""
    refusal = refused(make_request(11))

    assert isinstance(refusal, PayloadTooLargeError)
    assert not refusal.retryable
    assert refusal.message == (
        "the request has 11 samples, but at most 10 may wait (serve.queue_samples); "
        "send several requests"
    )


def test_what_could_only_be_started_late_is_refused_at_once() -> None:
    """It is told what it would have needed, and when to come again."""
    refusal = refused(make_request(left_s=0.5), starts_in_s=0.75)

    assert isinstance(refusal, LateError)
    assert refusal.retryable
    assert refusal.retry_after_ms == 250
    assert refusal.message == (
        "the request could be started in 750 ms at the earliest, its deadline is in 500 ms; "
        "allow more time, or send fewer requests"
    )


def test_what_can_just_be_started_in_time_is_let_in() -> None:
    """Up to the very deadline."""
    assert refused(make_request(left_s=0.5), starts_in_s=0.5) is None


def refused(request: Request, starts_in_s: float = 0.0) -> EdgedError | None:
    """What the rule says of a request while nothing waits."""
    return RULE.refusal(
        request, NOW, waiting=0, drain_s=0.0, starts_in_s=starts_in_s, draining=False
    )


def test_a_stopping_service_takes_nothing() -> None:
    """Whatever else is wrong with it, the requester learns that the service is stopping."""
    refusal = RULE.refusal(
        make_request(11, -1), NOW, waiting=10, drain_s=1.0, starts_in_s=0.0, draining=True
    )

    assert isinstance(refusal, DrainingError)
    assert refusal.retryable
    assert refusal.retry_after_ms == 5000
