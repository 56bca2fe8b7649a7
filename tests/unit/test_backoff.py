"""How long the broker link waits before it tries again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.backoff import backoff_s

chances = st.floats(0, 1, exclude_max=True)
seconds = st.floats(0.001, 3600)


@given(st.integers(0, 10**9), seconds, seconds, chances)
def test_the_wait_keeps_its_bounds(attempt: int, one: float, other: float, chance: float) -> None:
    """Never above the longest, never below half of the shortest, after any number of attempts."""
    shortest, longest = sorted((one, other))

    wait = backoff_s(attempt, shortest, longest, chance)

    assert shortest / 2 <= wait <= longest


@given(st.integers(0, 40), seconds, seconds, chances)
def test_it_does_not_shrink_with_attempts(
    attempt: int, one: float, other: float, chance: float
) -> None:
    """With the same luck a later attempt waits as long or longer."""
    shortest, longest = sorted((one, other))

    earlier = backoff_s(attempt, shortest, longest, chance)
    later = backoff_s(attempt + 1, shortest, longest, chance)

    assert later >= earlier


@pytest.mark.parametrize(
    ("attempt", "chance", "expected"),
    [(0, 0.0, 0.25), (0, 0.5, 0.375), (1, 0.0, 0.5), (3, 0.0, 2.0), (9, 0.0, 15.0)],
)
def test_it_doubles(attempt: int, chance: float, expected: float) -> None:
    """From 0.5 s to 30 s, with jitter over the upper half."""
    assert backoff_s(attempt, 0.5, 30.0, chance) == pytest.approx(expected)


def test_a_fleet_does_not_come_back_at_once() -> None:
    """Devices with different luck are spread over half of the wait."""
    waits = [backoff_s(10, 0.5, 30.0, number / 100) for number in range(100)]

    assert max(waits) - min(waits) > 14
    assert len(set(waits)) == 100
