"""The waiting room's lock with bells: who sleeps, who is woken, and that no call is lost."""

from __future__ import annotations

import threading

from edged.serve.sleepers import Sleepers

PATIENCE_S = 30.0


def test_a_time_that_passes_wakes() -> None:
    """Nobody calls: False, with the lock held again."""
    sleepers = Sleepers()
    with sleepers:
        assert not sleepers.wait(0.001)
        assert not sleepers.wait(0)
        assert not sleepers._lock.acquire(blocking=False)
    assert repr(sleepers) == "<Sleepers 0 asleep>"


def test_a_call_before_the_sleep_is_no_call() -> None:
    """Only those that sleep are called; the lock keeps the two apart."""
    sleepers = Sleepers()
    with sleepers:
        sleepers.notify_all()
        assert not sleepers.wait(0.001)


def test_every_sleeper_is_called_after_the_lock_is_free() -> None:
    """Three threads sleep; one call inside the lock wakes all of them once it is given back."""
    sleepers = Sleepers()
    asleep, woken = threading.Semaphore(0), threading.Semaphore(0)

    def sleep() -> None:
        with sleepers:
            asleep.release()  # the lock is held until the sleep has begun
            if sleepers.wait(PATIENCE_S):
                woken.release()

    threads = [threading.Thread(target=sleep) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert asleep.acquire(timeout=PATIENCE_S)
    with sleepers:
        sleepers.notify_all()
        assert not woken.acquire(blocking=False)
    for _ in threads:
        assert woken.acquire(timeout=PATIENCE_S)
    for thread in threads:
        thread.join(PATIENCE_S)


def test_no_call_is_lost_when_many_meet() -> None:
    """Two threads hand a number to and fro a thousand times, with times that nearly always pass."""
    sleepers = Sleepers()
    turn = [0]

    def play(mine: int) -> None:
        for _ in range(1000):
            with sleepers:
                while turn[0] % 2 != mine:
                    sleepers.wait(0.0001 if turn[0] % 5 else None)
                turn[0] += 1
                sleepers.notify_all()

    threads = [threading.Thread(target=play, args=(n,)) for n in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert turn == [2000]


def test_who_calls_and_then_sleeps_wakes_the_others_first() -> None:
    """Otherwise both would sleep for ever."""
    sleepers = Sleepers()
    asleep, woken = threading.Event(), threading.Event()

    def sleep() -> None:
        with sleepers:
            asleep.set()
            sleepers.wait(PATIENCE_S)
        woken.set()

    thread = threading.Thread(target=sleep)
    thread.start()
    assert asleep.wait(PATIENCE_S)
    with sleepers:
        sleepers.notify_all()
        while not woken.is_set():  # each time gives the lock away for a moment
            sleepers.wait(0.001)
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
