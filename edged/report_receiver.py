"""What a control plane would see of one device's reports: for the demo. It keeps numbers alone."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import final

from edged import protocol
from edged.client.endpoint import Delivery, Endpoint
from edged.client.link import Link
from edged.control_plane import unpack

_CONNECT_S = 10.0


@dataclass
class Stream:
    """What came of one stream.

    Attributes:
        numbers: (epoch, number) of each record.
        records: all that came, repetitions included.
        messages: batches.
        payload_bytes: of the batches.
        latest_s: the longest that a live record took from its moment until it was here.
    """

    numbers: set[tuple[str, int]] = field(default_factory=set)
    records: int = 0
    messages: int = 0
    payload_bytes: int = 0
    latest_s: float = 0.0

    @property
    def duplicates(self) -> int:
        """Records that came again."""
        return self.records - len(self.numbers)

    @property
    def gaps(self) -> int:
        """Numbers below the largest of their epoch that did not come."""
        largest: dict[str, int] = {}
        for epoch, number in self.numbers:
            largest[epoch] = max(number, largest.get(epoch, 0))
        return sum(largest.values()) - len(self.numbers)


@final
class ReportReceiver:
    """Hears the reports of a device; a context manager.

    Args:
        endpoint: the broker and the device.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        topics = protocol.Topics(endpoint.root, endpoint.device)
        self._changed = threading.Condition()
        self._streams: dict[str, Stream] = {}
        client_id = f"edged-receiver-{time.time_ns():x}"
        filters = (topics.report("+"),)
        self._link = Link(endpoint, client_id, filters, self._take, _CONNECT_S)

    def __repr__(self) -> str:
        return f"<ReportReceiver {sorted(self._streams)}>"

    def __enter__(self) -> ReportReceiver:
        self._link.connect()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._link.close()

    def wait(self, stream: str, records: int, timeout_s: float) -> bool:
        """Waits until so many different records of a stream are here; whether they are in time."""
        with self._changed:
            return self._changed.wait_for(
                lambda: len(self._streams.get(stream, Stream()).numbers) >= records, timeout_s
            )

    def streams(self) -> dict[str, Stream]:
        """What came so far, by stream."""
        with self._changed:
            return dict(sorted(self._streams.items()))

    def _take(self, delivery: Delivery) -> None:
        batch = unpack(delivery.payload, delivery.user.get(protocol.CONTENT_ENCODING, ""))
        now = time.time()
        with self._changed:
            stream = self._streams.setdefault(str(batch["stream"]), Stream())
            stream.messages += 1
            stream.payload_bytes += len(delivery.payload)
            for record in batch["records"]:
                stream.records += 1
                stream.numbers.add((batch["epoch"], record["seq"]))
                if batch["mode"] == "live":
                    stream.latest_s = max(stream.latest_s, now - record["time"])
            self._changed.notify_all()
