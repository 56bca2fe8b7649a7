"""What others use of a device, from our own idle gaps."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.serve.idle_gaps import FRESH_S, IdleGaps


def believed() -> IdleGaps:
    """Gaps that have seen an idle and a busy device: at second 0 others used nothing."""
    gaps = IdleGaps()
    gaps.warmed(1.0)
    gaps.look(0.0, 0.0, 2.0, 0.0)
    return gaps


def test_a_look_counts_only_in_a_whole_idle_period() -> None:
    """While we ran in the period, or run now, the total says nothing about others."""
    gaps = believed()
    gaps.look(1.0, 0.9, 0.5, 0.0)
    gaps.look(1.5, 0.9, 0.0, 0.5)
    gaps.look(2.0, 0.9, 0.0, 9.0)
    assert gaps.share(2.0, 1.0) == 0.0

    for second in range(2, 12):
        gaps.look(float(second), 0.6, 2.0, 0.0)
    assert gaps.share(12.0, 1.0) == pytest.approx(0.6, abs=0.05)


def test_a_source_that_never_moved_is_not_believed() -> None:
    """Zeros whatever runs are no idle neighbour."""
    gaps = IdleGaps()
    gaps.warmed(None)
    gaps.warmed(0.0)
    gaps.look(0.0, 0.0, 0.0, 5.0)
    gaps.look(1.0, 0.0, 0.0, 6.0)
    gaps.look(2.0, 0.0, 5.0, 6.0)

    assert gaps.share(2.0, 1.0) is None


@pytest.mark.parametrize(
    ("busy", "seconds", "known"),
    [(0.85, 0.25, True), (0.75, 0.25, False), (1.0, 9.0, False)],
)
def test_a_source_that_moved_while_batches_filled_a_second_is_believed(
    busy: float, seconds: float, *, known: bool
) -> None:
    """Short gaps between batches, as one lane has them, do no harm; rare looks tell nothing."""
    gaps = IdleGaps()
    gaps.look(0.0, 0.1, 2.0, 0.0)
    for number in range(1, 9):
        gaps.look(number * seconds, 0.9, 0.0, number * seconds * busy)
    end = 8 * seconds
    gaps.look(end + 2, 0.1, 2.0, end * busy)

    assert (gaps.share(end + 2, 1.0) is not None) is known


def test_without_fresh_gaps_the_stretch_of_our_batches_tells() -> None:
    """Twice the time is one busy neighbour; a little more is nothing to go by."""
    gaps = believed()

    assert gaps.share(FRESH_S + 1, 2.0) == pytest.approx(0.5)
    assert gaps.share(FRESH_S + 1, 1.2) is None
    assert repr(gaps) == "<IdleGaps others 0.00, believed True>"


@given(
    st.lists(st.tuples(st.floats(), st.floats(0, 9), st.booleans()), max_size=20),
    st.floats(0.3, 20),
)
def test_a_share_is_a_share_or_unknown(looks: list[tuple[float, float, bool]], phi: float) -> None:
    """Whatever a sensor says within its range, or beyond it as no number."""
    gaps, total_s = believed(), 0.0
    for number, (utilisation, seconds, busy) in enumerate(looks):
        value = utilisation if not math.isfinite(utilisation) else min(abs(utilisation), 1.0)
        total_s += seconds if busy else 0.0
        gaps.look(float(number), value, 0.0 if busy else seconds, total_s)

    share = gaps.share(float(len(looks)), phi)

    assert share is None or 0 <= share <= 1
