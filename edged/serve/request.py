"""What travels along the request path: frozen values, no behaviour that waits or does I/O.

``Arrival`` (bytes from the broker) -> ``Request`` (decoded) -> ``Batch`` of ``Part`` -> ``Outcome``
(what to answer) -> ``Reply`` (bytes to the broker). Times are monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from edged.errors import EdgedError
from edged.image_frame import ImageFrame
from edged.value import identity, value

Array = npt.NDArray[np.generic]


class Priority(IntEnum):
    """Class of a request; a lower number goes first."""

    URGENT = 0
    NORMAL = 1
    BACKGROUND = 2


@value
class Receipt:
    """What is needed to acknowledge an arrival to the broker.

    Attributes:
        epoch: number of the connection it came in on; void on any other one.
        order: running number of the arrival; the broker wants acknowledgements in this order.
        mid: MQTT packet identifier.
        qos: 0 needs no acknowledgement.
        fingerprint: of the request (`edged.serve.fingerprint`), 0 with QoS 0.
    """

    epoch: int
    order: int
    mid: int
    qos: int
    fingerprint: int = 0


@value
class Arrival:
    """One PUBLISH as the broker delivered it. Nothing in it is trusted.

    Attributes:
        topic: topic name.
        payload: the body; a large one is a view of the buffer that it was received into.
        receipt: for the acknowledgement.
        received: monotonic seconds, stamped on the network thread.
        response_topic: MQTT 5 Response Topic, "" if absent.
        correlation: MQTT 5 Correlation Data, None if absent.
        content_type: MQTT 5 Content Type, "" if absent.
        expiry_s: what is left of the MQTT 5 Message Expiry Interval, None if absent.
        user: MQTT 5 user properties; of a name given twice the last one.
        retained: the broker sent it because it was retained, not because it was published now.
    """

    topic: str
    payload: bytes | memoryview
    receipt: Receipt
    received: float
    response_topic: str = ""
    correlation: bytes | None = None
    content_type: str = ""
    expiry_s: int | None = None
    user: Mapping[str, str] = field(default_factory=dict)
    retained: bool = False


@value
class ReplyTo:
    """Where an answer goes and what it must carry back.

    Attributes:
        topic: response topic, already checked against the allowed prefixes.
        correlation: copied from the request untouched, None if it brought none.
        qos: 0 or 1, as the request came.
        trace: ``traceparent`` and ``tracestate`` of the request, copied to the reply.
        json_only: the requester speaks MQTT 3.1.1: answer in plain JSON, whatever it asked for.
        device: name of this device where the requester cannot know it, as it asked a pool; else "".
    """

    topic: str
    correlation: bytes | None
    qos: int
    trace: Mapping[str, str] = field(default_factory=dict)
    json_only: bool = False
    device: str = ""


@value
class OutputChoice:
    """One output that a request asks for.

    Attributes:
        name: name of the output.
        binary: raw bytes after the header (True) or numbers in the JSON header (False).
        classes: 0, or answer the so many largest entries as ``value:index[:label]`` instead.
        counted: output that says how many entries of each sample are filled, so that the rest is
            left out; "": all are.
    """

    name: str
    binary: bool = True
    classes: int = 0
    counted: str = ""


@identity
class Request:
    """A decoded request: sound in form, not yet admitted.

    Attributes:
        model: a model that is served here.
        id: the V2 ``id``, "" if the requester gave none.
        samples: number of samples, at least 1; a request may carry several.
        tensors: every input of the model by name, ``[samples, *shape]`` as requests carry it.
        deadline: monotonic seconds; it is not started after this.
        priority: its class.
        received: monotonic seconds of its arrival.
        reply_to: where the answer goes.
        receipt: for the acknowledgement.
        outputs: which outputs to answer, in this order.
        source: a newer request of the same source takes this one's place; "": none does.
        length: of a model with inputs of variable length, what its samples are padded to; else 0.
        unpadded: the length that they have; else 0.
        frame: how its image lies in the input, None where tensors were sent.
    """

    model: str
    id: str
    samples: int
    tensors: Mapping[str, Array]
    deadline: float
    priority: Priority
    received: float
    reply_to: ReplyTo
    receipt: Receipt
    outputs: tuple[OutputChoice, ...] = ()
    source: str = ""
    length: int = 0
    unpadded: int = 0
    frame: ImageFrame | None = None

    @property
    def queue(self) -> str:
        """Where it waits: batches are made of requests of one queue."""
        return queue_name(self.model, self.length)


def queue_name(model: str, length: int = 0) -> str:
    """Name of the queue for one model and padded length; a model's name has no ``@``."""
    return f"{model}@{length}" if length else model


def model_of(queue: str) -> str:
    """The model of a queue; the reverse of `queue_name`."""
    return queue.partition("@")[0]


@value
class Part:
    """Samples ``start`` to ``stop`` (exclusive) of one request, in one batch.

    ``attempt`` counts the devices that failed with them before.
    """

    request: Request
    start: int
    stop: int
    attempt: int = 0

    @property
    def samples(self) -> int:
        """Number of samples in this part."""
        return self.stop - self.start


@value
class Batch:
    """What one device runs at once.

    Attributes:
        model: all parts are for this model.
        parts: in the order in which they lie in the batch.
        samples: sum over the parts, at most the engine's maximum.
        reason: why the timer closed it (see `edged.serve.timer.Reason`).
        closed: monotonic seconds.
        length: what the samples are padded to, 0 where their length is fixed.
    """

    model: str
    parts: tuple[Part, ...]
    samples: int
    reason: str
    closed: float
    length: int = 0

    @property
    def queue(self) -> str:
        """The queue that it was taken from."""
        return queue_name(self.model, self.length)


@value
class Work:
    """What a device's thread gets.

    Attributes:
        batch: to run, or None.
        expired: parts whose deadline passed before they were started.
        retry: the device is out, and its time to try again has come.
        lateness_s: how long after the armed time its thread woke up; None: it was called instead.
    """

    batch: Batch | None
    expired: tuple[Part, ...] = ()
    retry: bool = False
    lateness_s: float | None = None


@value
class Timings:
    """Where the time of one request went.

    Attributes:
        queue_s: from arrival to the start of its first batch.
        compute_s: on the device, of its slowest batch.
        batch_samples: samples in the largest batch it was part of.
        reason: why that batch was closed.
    """

    queue_s: float = 0.0
    compute_s: float = 0.0
    batch_samples: int = 0
    reason: str = ""


@value
class Outcome:
    """The one end of a request: outputs, or the error to answer with.

    Attributes:
        receipt: of the arrival this ends.
        reply_to: None where nobody can be answered (bad response topic, 3.1.1 without one).
        model: as asked for, "" if unknown.
        id: the V2 ``id``.
        outputs: ``[samples, *shape]`` by name; empty with an error.
        error: None with outputs.
        choices: which outputs to answer, in this order.
        received: monotonic seconds of the arrival.
        deadline: monotonic seconds, None if it was refused before it had one.
        timings: where the time went.
        samples: number of samples, 0 where it was refused before they were counted.
        version: of the engine that ran its last samples, "" if none did.
    """

    receipt: Receipt
    reply_to: ReplyTo | None
    model: str
    id: str = ""
    outputs: Mapping[str, Array] = field(default_factory=dict)
    error: EdgedError | None = None
    choices: tuple[OutputChoice, ...] = ()
    received: float = 0.0
    deadline: float | None = None
    timings: Timings = Timings()
    samples: int = 0
    version: str = ""


@value
class Reply:
    """One PUBLISH to send: an answer on its way out.

    Attributes:
        topic: where to.
        payload: the body.
        qos: 0 or 1.
        correlation: MQTT 5 Correlation Data, None for none.
        content_type: MQTT 5 Content Type, "" for none.
        expiry_s: MQTT 5 Message Expiry Interval in seconds, None for none.
        user: MQTT 5 user properties, in this order.
        retain: whether the broker keeps it for later subscribers.
    """

    topic: str
    payload: bytes
    qos: int = 0
    correlation: bytes | None = None
    content_type: str = ""
    expiry_s: int | None = None
    user: tuple[tuple[str, str], ...] = ()
    retain: bool = False


@value
class LinkUp:
    """A connection stands and the subscriptions are asked for.

    Attributes:
        epoch: number of the connection, from 1.
        session_present: the broker kept the session.
        window: replies that may be unacknowledged at once.
        max_packet_bytes: largest packet the broker takes; 0: it named none.
    """

    epoch: int
    session_present: bool
    window: int
    max_packet_bytes: int


@value
class LinkDown:
    """The connection is gone."""

    epoch: int
    reason: str


@value
class Unanswerable:
    """A request that ended with nobody to answer.

    Attributes:
        receipt: for the acknowledgement.
        reason: for the count.
        letter: what is published on the dead topic instead, None for nothing.
    """

    receipt: Receipt
    reason: str
    letter: Reply | None = None


@value
class Rejected:
    """The broker refused a PUBLISH of ours, by its packet identifier."""

    mid: int


@value
class ReplyFormat:
    """What the replies of one model carry.

    Attributes:
        version: first 12 digits of the engine's key.
        labels: names of an output's entries, by output.
    """

    version: str = ""
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
