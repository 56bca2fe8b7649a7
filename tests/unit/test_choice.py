"""Which precision is installed: by measurement at the SLO's batch size."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.build.choice import LEAST_GAIN, Rounds, choose, slo_batch
from edged.build.precision import Variant

INT8, FP16, FP32 = Variant("int8"), Variant("fp16"), Variant("fp32")


def flat(**milliseconds: float) -> Rounds:
    """Three equal rounds at batch 1 and 8: ``b1=...``, ``b8=...``."""
    return {int(name[1:]): [value / 1e3] * 3 for name, value in milliseconds.items()}


def test_int8_is_installed_only_if_it_is_the_fastest() -> None:
    """FP16 wins here although INT8 beats FP32; the reason has both times and the batch."""
    timings = {INT8: flat(b1=3, b8=6), FP16: flat(b1=2, b8=4), FP32: flat(b1=4, b8=9)}
    decision = choose(timings, 1.0)
    assert (decision.variant, decision.batch) == (FP16, 8)
    assert decision.reasons == (
        "FP32 was not taken: a batch of 8 takes 9 ms, in FP16 4 ms (2.25 times as long)",
        "INT8 was not taken: a batch of 8 takes 6 ms, in FP16 4 ms (1.50 times as long)",
    )
    assert decision.gains[INT8] == pytest.approx(1.5)


def test_fastest_int8_is_installed() -> None:
    """It passed its gates before, so nothing speaks against it."""
    timings = {INT8: flat(b1=1, b8=2), FP32: flat(b1=2, b8=5)}
    assert choose(timings, 1.0).variant == INT8


def test_accuracy_is_not_given_away_for_noise() -> None:
    """A gain below the least one leaves the more accurate engine, and says so."""
    timings = {INT8: flat(b8=9.9), FP32: flat(b8=10)}
    decision = choose(timings, 1.0)
    assert decision.variant == FP32
    assert f"1.01 times as fast, but {LEAST_GAIN:g} is asked" in decision.reasons[0]


def test_batch_is_the_largest_that_fits_the_slo_in_the_fastest_precision() -> None:
    """With 5 ms, batch 8 fits in INT8 only: there FP32 could not hold the SLO at all."""
    timings = {INT8: flat(b1=1, b8=4, b16=9), FP32: flat(b1=1, b8=8, b16=16)}
    assert slo_batch(timings, 0.005) == (8, True)
    assert slo_batch(timings, 1.0) == (16, True)
    assert choose(timings, 0.005).batch == 8


def test_the_batch_decides_and_not_the_average() -> None:
    """FP32 is faster alone, INT8 in large batches: the SLO says which one counts."""
    timings = {INT8: flat(b1=2, b8=4), FP32: flat(b1=1, b8=8)}
    assert choose(timings, 0.003).variant == FP32
    assert choose(timings, 0.1).variant == INT8


def test_slo_that_nothing_holds_is_told() -> None:
    """They are then compared at the smallest batch."""
    decision = choose({FP32: flat(b1=4, b8=9)}, 0.002)
    assert decision.batch == 1
    assert decision.reasons == ("the SLO of 2 ms cannot be held: FP32 takes 4 ms for a batch of 1",)


def test_a_slow_round_that_hits_all_changes_nothing() -> None:
    """Rounds are compared pairwise: a busy machine slows both engines of a round."""
    timings: dict[Variant, Rounds] = {
        INT8: {1: [0.001, 0.010, 0.011]},
        FP32: {1: [0.0012, 0.012, 0.0132]},
    }
    assert choose(timings, 1.0).gains[INT8] == pytest.approx(1.2)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(1e-5, 1.0), min_size=3, max_size=3),
    st.floats(1e-4, 2.0),
)
def test_the_choice_is_within_the_least_gain_of_the_fastest(
    times: list[float], slo_s: float
) -> None:
    """Whatever is measured: a slower engine is taken only for its accuracy, and by little."""
    timings = {v: {1: [t] * 3} for v, t in zip((INT8, FP16, FP32), times, strict=True)}
    decision = choose(timings, slo_s)
    taken = timings[decision.variant][1][0]
    assert taken <= min(times) * LEAST_GAIN**2 * 1.0001
    assert len([r for r in decision.reasons if "was not taken" in r]) == 2
