"""How many samples to wait for, and how many of them to take."""

from __future__ import annotations

import math

import pytest

from edged.latency import LatencyCurve
from edged.serve.batch_size import BUSY_FILL, FILL, control_limit, sizes_to_take, steps

SIZES = (1, 2, 4, 8, 16, 32)
TIMES = tuple(0.002 + 0.00025 * size for size in SIZES)
STEPPED = LatencyCurve(SIZES, TIMES, stepped=True)


def table(curve: LatencyCurve, cap: int = 32) -> tuple[float, ...]:
    """Service time by size."""
    return (0.0, *(curve(size) for size in range(1, cap + 1)))


def test_a_smooth_curve_has_no_steps_and_all_is_taken() -> None:
    """However steep the line is."""
    for beta in (0.0, 0.00025, 0.1):
        line = table(LatencyCurve((1, 32), (0.002 + beta, 0.002 + 32 * beta)))

        assert steps(line) == ()
        assert sizes_to_take(line, FILL) == tuple(range(33))


def test_buckets_are_found_where_the_curve_jumps() -> None:
    """Powers of two with a third of the time more each; the smallest ones cost too little."""
    assert steps(table(STEPPED)) == (4, 8, 16)


def test_a_bucket_is_taken_full_or_nearly_so() -> None:
    """From three quarters on, or 85 % above half load; below that the smaller bucket is taken."""
    idle, busy = sizes_to_take(table(STEPPED), FILL), sizes_to_take(table(STEPPED), BUSY_FILL)

    assert [idle[n] for n in (3, 4, 5, 6, 7, 11, 12, 17, 23, 24)] == [
        3, 4, 4, 6, 7, 8, 12, 16, 16, 24,
    ]  # fmt: skip
    assert [busy[n] for n in (5, 6, 7, 13, 14, 17, 27, 28)] == [4, 4, 7, 8, 14, 16, 16, 28]


def test_noise_at_a_small_size_is_no_bucket() -> None:
    """A first size that was measured too fast does not have all that waits served one by one."""
    noisy = table(LatencyCurve((1, 2, 4, 8, 16, 32), (0.3, 0.42, 0.46, 0.47, 0.5, 0.6)))

    assert steps(noisy) == (1,)
    assert sizes_to_take(noisy, FILL) == sizes_to_take(noisy, BUSY_FILL) == tuple(range(33))


def test_never_more_than_waits_and_never_nothing() -> None:
    """Whatever the curve: 1 to n of n samples."""
    for curve in (STEPPED, LatencyCurve((1,), (0.001,)), LatencyCurve((8,), (0.01,), stepped=True)):
        sizes = sizes_to_take(table(curve), FILL)

        assert all(1 <= taken <= waiting for waiting, taken in enumerate(sizes) if waiting)


def test_the_control_limit_is_the_formula() -> None:
    """At c = 10, 2 ms + 0.25 ms and 0.96 samples/ms: round(sqrt(2 x 10 x 2 x 0.96 x 0.76)) = 5."""
    assert control_limit(10, (0.002, 0.00025), 960, 32) == 5
    assert control_limit(10, (0.002, 0.00025), 960, 4) == 4


@pytest.mark.parametrize("price", [0.0, -1.0, math.nan])
def test_without_a_price_the_limit_is_one(price: float) -> None:
    """So it is when the device cannot keep up, or nothing is known of the rate."""
    assert control_limit(price, (0.002, 0.00025), 960, 32) == 1
    assert control_limit(10, (0.002, 0.00025), 5000, 32) == 1
    assert control_limit(10, (0.002, 0.00025), math.nan, 32) == 1
