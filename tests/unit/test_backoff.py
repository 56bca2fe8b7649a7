"""How long the broker link waits before it tries again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.backoff import Backoff, backoff_s

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


@given(
    st.floats(0.01, 10), st.floats(1, 10), st.lists(st.floats(0, 1, exclude_max=True), min_size=1)
)
def test_back_off_is_bounded_and_grows(
    shortest: float, factor: float, chances: list[float]
) -> None:
    """Each pause is between half its ceiling and its ceiling, which doubles up to the longest."""
    longest = shortest * factor
    backoff = Backoff(shortest, longest)
    for number, chance in enumerate(chances):
        ceiling = min(longest, shortest * 2.0**number)
        assert ceiling / 2 <= backoff.pause_s(0.0, chance) <= ceiling


def test_back_off_begins_anew_after_a_steady_connection_only() -> None:
    """A connection shorter than twice the longest pause does not reset it; a longer one does."""
    backoff = Backoff(1.0, 8.0)
    pauses = [backoff.pause_s(0.0, 0.0) for _ in range(3)]
    assert pauses == [0.5, 1.0, 2.0]
    backoff.connected(100.0)
    assert backoff.pause_s(115.9, 0.0) == 4.0
    backoff.connected(200.0)
    assert backoff.pause_s(216.0, 0.0) == 0.5
    assert "1 attempts" in repr(backoff)
