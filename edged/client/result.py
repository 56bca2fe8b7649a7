"""What a request came to: the answer, or the error of its code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from edged import errors
from edged.errors import BadParameterError, ReplyError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Classified:
    """One of the best entries of an output.

    Attributes:
        value: the entry.
        index: its place in the sample's output, counted as if that were flat.
        label: its name; "" where the device knows none.
    """

    value: float
    index: int
    label: str


@dataclass(frozen=True)
class Result:
    """The answer to one request.

    Attributes:
        outputs: arrays by output name; classifications are strings ``value:index[:label]``.
        parameters: what the device says about it: ``queue_us``, ``compute_us``, ``batch_size``,
            ``batch_reason`` and others of docs/protocol.md.
        status: 200.
        model_version: which engine answered.
        latency_s: seconds from the request's sending to the reply's arrival.
        trace: ``traceparent`` and ``tracestate`` as the device returned them.
        device: which device of a pool answered; "" where no pool was asked.
    """

    outputs: Mapping[str, Array]
    parameters: Mapping[str, Any]
    status: int
    model_version: str
    latency_s: float
    trace: Mapping[str, str] = field(default_factory=dict)
    device: str = ""

    def __getitem__(self, output: str) -> Array:
        """The array of one output.

        Raises:
            KeyError: there is none of that name.
        """
        return self.outputs[output]

    def classified(self, output: str) -> list[list[Classified]]:
        """The best entries of each sample, best first, where ``classes`` was asked for.

        Raises:
            KeyError: there is no output of that name.
            BadParameterError: it holds no classifications.
        """
        rows = self.outputs[output]
        if rows.dtype.kind != "O" or rows.ndim != 2:
            raise BadParameterError(
                f"output {output!r} is {rows.dtype} {list(rows.shape)}, no classification; ask for "
                "it with classes=1 or more"
            )
        return [[_classified(item) for item in row] for row in rows]


def _classified(item: bytes) -> Classified:
    value, index, *label = bytes(item).decode("utf-8", "replace").split(":", 2)
    return Classified(float(value), int(index), label[0] if label else "")


# ------------------------------------------------------------------ errors


def _below(kind: type[errors.EdgedError]) -> Iterator[type[errors.EdgedError]]:
    for each in kind.__subclasses__():
        yield each
        yield from _below(each)


def _typed() -> dict[str, type[ReplyError]]:
    """For each code of a reply a class that is both `ReplyError` and the code's own."""
    bases = (errors.ClientError, errors.ServiceError)
    known = [kind for base in bases for kind in (base, *_below(base))]
    kinds = {kind.code: kind for kind in known if "code" in vars(kind)}
    return {
        code: type(kind.__name__, (ReplyError, kind), {"__doc__": kind.__doc__, "code": code})
        for code, kind in kinds.items()
    }


_KINDS = _typed()


def reply_error(
    message: str, *, code: str, status: int, retryable: bool = False,
    retry_after_ms: int | None = None,
) -> ReplyError:  # fmt: skip
    """The error of a reply, as the class of its code; plain `ReplyError` for an unknown code.

    ``except ReplyError`` catches all of them, ``except QueueFullError`` that code alone.
    """
    kind = _KINDS.get(code, ReplyError)
    return kind(
        message, code=code, status=status, retryable=retryable, retry_after_ms=retry_after_ms
    )
