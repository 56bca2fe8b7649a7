"""The waiting room with real threads: who wakes whom, and what is never started."""

from __future__ import annotations

import math
import queue
import threading
import time

import numpy as np
import pytest

from edged.errors import DrainingError, ExpiredError, PayloadTooLargeError
from edged.latency import LatencyCurve
from edged.serve.admit import Admission
from edged.serve.batch import WaitingRoom
from edged.serve.request import Priority, Receipt, ReplyTo, Request, Work
from edged.serve.timer import BatchTimer, Reason

CURVE = LatencyCurve((1, 4), (0.010, 0.013))
PATIENCE_S = 30.0
DEVICE = "cpu"


class Sleeper:
    """A room, and a device's thread that asks it for work.

    The room's clock is read by `take` while it holds the lock, before it sleeps. So once the
    thread has read it, nobody gets the lock before the thread sleeps.
    """

    def __init__(self, lanes: int = 1, price: float = 0.0, cap: int = 4) -> None:
        self.stopped_at: float | None = None
        self.timer = BatchTimer(CURVE, cap, price=price)
        self.room = WaitingRoom({"m": self.timer}, Admission(100).refusal, self._clock)
        self.room.add_device(DEVICE, lanes)
        self._looked = threading.Event()
        self._works: queue.Queue[Work | None] = queue.Queue()
        self._thread: threading.Thread | None = None

    def _clock(self) -> float:
        if threading.current_thread() is self._thread:
            self._looked.set()
        return time.monotonic() if self.stopped_at is None else self.stopped_at

    def sleep(self) -> None:
        """Starts a thread that takes once, and returns when it sleeps, or has taken."""
        self._looked.clear()
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()
        assert self._looked.wait(PATIENCE_S)
        assert self.room.samples >= 0  # takes the lock: so the thread has let go of it

    def _take(self) -> None:
        self._works.put(self.room.take(DEVICE))

    def woken(self) -> Work | None:
        """What the thread took."""
        work = self._works.get(timeout=PATIENCE_S)
        assert self._thread is not None
        self._thread.join(PATIENCE_S)
        return work

    @property
    def asleep(self) -> bool:
        """Whether the thread has taken nothing yet."""
        return self._works.empty()


def make_request(
    samples: int = 1, *, left_s: float = 60.0, priority: Priority = Priority.NORMAL
) -> Request:
    """A request that comes now."""
    now = time.monotonic()
    return Request(
        model="m",
        id="",
        samples=samples,
        tensors={"x": np.zeros((samples, 1), np.float32)},
        deadline=now + left_s,
        priority=priority,
        received=now,
        reply_to=ReplyTo("r", None, 0),
        receipt=Receipt(1, 0, 0, 0),
    )


def test_no_request_is_started_after_its_deadline() -> None:
    """A request whose deadline passes while the device is busy is handed back, never run."""
    now = 1000.0
    room = WaitingRoom({"m": BatchTimer(CURVE, 4)}, Admission(100).refusal, lambda: now)
    room.add_device(DEVICE, 1)
    requests = [make_request(samples=3) for _ in range(3)]
    for request, deadline in zip(requests, (now + 9, now + 1, now + 2), strict=True):
        object.__setattr__(request, "deadline", deadline)
        object.__setattr__(request, "received", now)
        room.put(request)

    first = room.take(DEVICE)
    assert first is not None
    assert first.batch is not None
    # Earliest deadline first; of the next one the first sample filled the batch up.
    assert [(p.request, p.start, p.stop) for p in first.batch.parts] == [
        (requests[1], 0, 3), (requests[2], 0, 1),
    ]  # fmt: skip
    now += 2.0  # the very instant of a deadline is too late
    room.completed(DEVICE, "m", 4, 2.0)
    second = room.take(DEVICE)

    assert second is not None
    assert [(p.request, p.start, p.stop) for p in second.expired] == [(requests[2], 1, 3)]
    assert second.batch is not None
    assert [part.request for part in second.batch.parts] == [requests[0]]
    with pytest.raises(ExpiredError):
        room.put(requests[2])
    assert room.samples == 0


def test_an_arrival_wakes_a_sleeping_device() -> None:
    """A device that waits for work gets what arrives."""
    sleeper = Sleeper()
    sleeper.sleep()
    assert sleeper.asleep

    request = make_request(2)
    sleeper.room.put(request)

    work = sleeper.woken()
    assert work is not None
    assert work.batch is not None
    assert [part.request for part in work.batch.parts] == [request]
    assert work.batch.reason == Reason.COUNT.value


def test_a_completion_wakes_a_sleeping_device() -> None:
    """With all lanes busy what waits stays, until a lane is free."""
    sleeper = Sleeper()
    sleeper.room.put(make_request())
    sleeper.room.take(DEVICE)
    sleeper.room.put(make_request(2))
    sleeper.sleep()
    assert sleeper.asleep

    sleeper.room.completed(DEVICE, "m", 1, 0.01)

    work = sleeper.woken()
    assert work is not None
    assert work.batch is not None
    assert work.batch.samples == 2


@pytest.mark.parametrize("earlier", [False, True])
def test_an_expired_request_is_handed_out_while_all_lanes_are_busy(earlier: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """Whoever is too late is told so when it happens, also if it came while the device slept."""
    sleeper = Sleeper()
    sleeper.room.put(make_request())
    sleeper.room.take(DEVICE)
    late = make_request(3, left_s=0.2)
    if not earlier:
        sleeper.room.put(make_request(left_s=60))
        sleeper.sleep()
        sleeper.room.put(late)
    else:
        sleeper.room.put(late)
        sleeper.sleep()

    work = sleeper.woken()

    assert work is not None
    assert work.batch is None
    assert [(part.request, part.start, part.stop) for part in work.expired] == [(late, 0, 3)]
    assert time.monotonic() >= late.deadline


def test_the_armed_time_wakes_a_sleeping_device() -> None:
    """A request that waits for company is run without it once its guard says so."""
    sleeper = Sleeper(price=10)
    now = time.monotonic()
    for number in range(200):
        sleeper.timer.arrived(now - 2 + number / 100, 1)
    sleeper.room.put(make_request())
    assert sleeper.timer.limit(time.monotonic()) > 1
    sleeper.sleep()

    work = sleeper.woken()

    assert work is not None
    assert work.batch is not None
    assert work.batch.samples == 1


def test_company_wakes_a_sleeping_device() -> None:
    """A request that waits for company is run with it as soon as it has come."""
    sleeper = Sleeper(price=10)
    request = make_request()
    sleeper.stopped_at = request.received  # so that no guard closes the batch
    for number in range(200):
        sleeper.timer.arrived(request.received - 2 + number / 100, 1)
    sleeper.room.put(request)
    sleeper.sleep()
    assert sleeper.asleep

    sleeper.room.put(make_request(3, left_s=90))

    work = sleeper.woken()
    assert work is not None
    assert work.batch is not None
    assert work.batch.samples == 4


def test_drain_runs_what_waits_for_company() -> None:
    """A stopping service closes batches at once."""
    sleeper = Sleeper(price=10)
    request = make_request()
    sleeper.stopped_at = request.received  # so that no guard closes the batch
    for number in range(200):
        sleeper.timer.arrived(request.received - 2 + number / 100, 1)
    sleeper.room.put(request)
    sleeper.sleep()
    assert sleeper.asleep

    sleeper.room.drain()

    work = sleeper.woken()
    assert work is not None
    assert work.batch is not None
    assert work.batch.reason == Reason.DRAIN.value


def test_what_was_drained_takes_requests_again() -> None:
    """Drained by command: refused until it is resumed; once closed, it stays so."""
    sleeper = Sleeper()
    sleeper.room.drain()
    with pytest.raises(DrainingError):
        sleeper.room.put(make_request())

    sleeper.room.resume()

    sleeper.room.put(make_request())
    assert sleeper.room.samples == 1
    sleeper.room.close()
    sleeper.room.resume()
    with pytest.raises(DrainingError):
        sleeper.room.put(make_request())


def test_close_ends_take() -> None:
    """A sleeping device is told that there is no more work, and so is whoever asks later."""
    sleeper = Sleeper()
    sleeper.sleep()
    assert sleeper.asleep

    assert sleeper.room.close() == []

    assert sleeper.woken() is None
    assert sleeper.room.take(DEVICE) is None


def test_close_gives_back_what_waits() -> None:
    """Nothing is lost silently: what was not run is returned."""
    sleeper = Sleeper()
    request = make_request(6)
    sleeper.room.put(request)
    sleeper.room.take(DEVICE)

    (left,) = sleeper.room.close()

    assert (left.request, left.start, left.stop) == (request, 4, 6)


def test_a_refused_request_leaves_no_trace() -> None:
    """Neither the queue nor the arrival estimate knows of a request that was not let in."""
    sleeper = Sleeper()

    with pytest.raises(PayloadTooLargeError):
        sleeper.room.put(make_request(101))

    assert sleeper.room.samples == 0
    assert repr(sleeper.timer).endswith("0 samples seen, cap 4>")
    assert repr(sleeper.room) == "<WaitingRoom 0 samples, free lanes: cpu 1>"


def test_an_urgent_request_goes_first() -> None:
    """Class counts before deadline, deadline before arrival."""
    room = Sleeper(cap=2, lanes=9).room
    background = make_request(left_s=1, priority=Priority.BACKGROUND)
    late, soon = make_request(left_s=50), make_request(left_s=20)
    urgent = make_request(left_s=90, priority=Priority.URGENT)
    for request in (background, late, soon, urgent):
        room.put(request)

    order = []
    while room.samples:
        work = room.take(DEVICE)
        assert work is not None
        assert work.batch is not None
        order += [part.request for part in work.batch.parts]

    assert order == [urgent, soon, late, background]


def test_many_threads_share_the_room() -> None:
    """Intake threads put while devices take and complete: every sample is run exactly once."""
    timer = BatchTimer(CURVE, 4)
    room = WaitingRoom({"m": timer}, Admission(10**6).refusal)
    room.add_device("a", 2)
    room.add_device("b", 1)
    requests = [make_request(1 + number % 7) for number in range(300)]
    ran: dict[int, list[tuple[int, int]]] = {id(request): [] for request in requests}
    left = threading.Semaphore(0)
    total = sum(request.samples for request in requests)

    def device(name: str) -> None:
        while (work := room.take(name)) is not None:
            assert work.batch is not None
            for part in work.batch.parts:
                ran[id(part.request)].append((part.start, part.stop))
                left.release(part.samples)
            room.completed(name, "m", work.batch.samples, 0.01)

    def intake(mine: list[Request]) -> None:
        for request in mine:
            room.put(request)

    devices = [threading.Thread(target=device, args=(name,)) for name in ("a", "b")]
    intakes = [threading.Thread(target=intake, args=(requests[n::3],)) for n in range(3)]
    threads = (*devices, *intakes)
    for thread in threads:
        thread.start()
    assert all(left.acquire(timeout=PATIENCE_S) for _ in range(total))
    assert room.close() == []
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not any(thread.is_alive() for thread in threads)

    for request in requests:
        numbers = [n for start, stop in ran[id(request)] for n in range(start, stop)]
        assert sorted(numbers) == list(range(request.samples))
    assert repr(room) == "<WaitingRoom 0 samples, free lanes: a 2, b 1>"
    assert math.isfinite(timer.rate(time.monotonic()))
