"""What others use of a device, from our own idle gaps."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.serve.idle_gaps import FRESH_S, IdleGaps


def look(
    gaps: IdleGaps, now: float, utilisation: float | None, idle_s: float, busy_s: float
) -> bool | None:
    """One look, as the tuner's thread takes it; what the period before it was."""
    busy = gaps.period(now, idle_s, busy_s)
    gaps.look(now, utilisation, busy=busy)
    return busy


def seen_idle() -> IdleGaps:
    """Gaps that have seen an idle device: at second 0 others used nothing."""
    gaps = IdleGaps()
    look(gaps, 0.0, 0.0, 2.0, 0.0)
    return gaps


def test_a_look_counts_only_in_a_whole_idle_period() -> None:
    """While we ran in the period, or run now, the total says nothing about others."""
    gaps = seen_idle()
    assert look(gaps, 1.0, 0.9, 0.5, 0.0) is None
    assert look(gaps, 1.5, 0.9, 0.0, 0.5) is None
    look(gaps, 2.0, 0.9, 0.0, 9.0)
    assert gaps.share(2.0, 1.0) == 0.0

    for second in range(2, 12):
        look(gaps, float(second), 0.6, 2.0, 0.0)
    assert gaps.share(12.0, 1.0) == pytest.approx(0.6, abs=0.05)


@pytest.mark.parametrize(
    ("busy", "seconds", "known"),
    [(0.85, 0.25, True), (0.75, 0.25, False), (1.0, 9.0, False)],
)
def test_a_period_that_batches_filled_is_a_load_of_our_own(
    busy: float, seconds: float, *, known: bool
) -> None:
    """Short gaps between batches, as one lane has them, do no harm; rare looks tell nothing."""
    gaps = IdleGaps()
    periods = {
        look(gaps, number * seconds, 0.9, 0.0, number * seconds * busy) for number in range(1, 9)
    }

    assert (True in periods) is known
    assert False not in periods
    assert gaps.share(8 * seconds, 1.0) is None


def test_without_fresh_gaps_the_stretch_of_our_batches_tells() -> None:
    """Twice the time is one busy neighbour; a little more is nothing to go by."""
    gaps = seen_idle()

    assert gaps.share(FRESH_S + 1, 2.0) == pytest.approx(0.5)
    assert gaps.share(FRESH_S + 1, 1.2) is None
    assert repr(gaps) == "<IdleGaps others 0.00>"


@given(
    st.lists(st.tuples(st.floats(), st.floats(0, 9), st.booleans()), max_size=20),
    st.floats(0.3, 20),
)
def test_a_share_is_a_share_or_unknown(looks: list[tuple[float, float, bool]], phi: float) -> None:
    """Whatever a sensor says within its range, or beyond it as no number."""
    gaps, total_s = seen_idle(), 0.0
    for number, (utilisation, seconds, busy) in enumerate(looks):
        value = utilisation if not math.isfinite(utilisation) else min(abs(utilisation), 1.0)
        total_s += seconds if busy else 0.0
        look(gaps, float(number), value, 0.0 if busy else seconds, total_s)

    share = gaps.share(float(len(looks)), phi)

    assert share is None or 0 <= share <= 1
