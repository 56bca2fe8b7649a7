"""The price of GPU time: modes, what raises it, and how fast it moves."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.gpu_load import UNKNOWN, GpuLoad
from edged.serve.price import MODES, MOST, price_of, priced, slewed


def test_modes_and_numbers() -> None:
    """A mode has its price, a number is one, and a huge one is cut."""
    assert [price_of(mode) for mode in MODES] == [0.0, 2.0, 10.0, math.inf]
    assert price_of("3.5") == price_of(3.5) == 3.5
    assert price_of("1e9") == MOST


@pytest.mark.parametrize("wrong", ["fast", "-1", "nan", "inf", "", math.nan, -0.5])
def test_what_is_no_mode_is_refused(wrong: str | float) -> None:
    """The message names what is allowed."""
    with pytest.raises(ValueError, match="latency, balanced, eco, use-the-slo, or a number >= 0"):
        price_of(wrong)


def test_what_is_unknown_adds_nothing() -> None:
    """Unknown is not bad news."""
    assert priced(2.0, UNKNOWN, None) == 2.0


def test_others_heat_and_power_make_it_dearer() -> None:
    """Each by itself; a device at its trip point adds the whole price of heat."""
    assert priced(2.0, UNKNOWN, 0.5) == 3.0
    assert priced(2.0, GpuLoad(temperature_c=82.5), None) == pytest.approx(7.0)
    assert priced(2.0, GpuLoad(temperature_c=99.0, trip_c=99.0), None) == 12.0
    assert priced(2.0, GpuLoad(temperature_c=60.0, trip_c=99.0), None) == 2.0
    assert priced(2.0, GpuLoad(throttled=True), None) == 7.0
    assert priced(2.0, GpuLoad(throttled=False, low_power=True), None) == 7.0
    assert priced(math.inf, GpuLoad(throttled=True), 1.0) == math.inf
    assert priced(MOST, GpuLoad(throttled=True), 1.0) == MOST


def test_who_asked_for_latency_alone_gets_it() -> None:
    """A price of 0 stays 0 on a hot, throttled, shared device in a low power mode."""
    bad = GpuLoad(temperature_c=99.0, trip_c=99.0, throttled=True, low_power=True)

    assert priced(price_of("latency"), bad, 1.0) == 0.0


@given(st.floats(0, MOST), st.one_of(st.none(), st.floats()), st.one_of(st.none(), st.floats()))
def test_a_price_is_always_one(base: float, others: float | None, heat: float | None) -> None:
    """Whatever a sensor says, the price is between the operator's and the most."""
    price = priced(base, GpuLoad(temperature_c=heat, trip_c=heat), others)

    assert base <= price <= MOST


@given(st.floats(0, MOST), st.floats(0, MOST), st.floats(0, 10))
def test_it_moves_by_a_factor_of_two_a_second(now: float, wanted: float, passed: float) -> None:
    """On its way it never overshoots, and never jumps."""
    after = slewed(now, wanted, passed)

    assert min(now, wanted) <= after <= max(now, wanted)
    assert after <= max(now, 0.25) * 2**passed * (1 + 1e-9)
    assert after >= now / 2**passed * (1 - 1e-9) or after <= 0.25


def test_it_arrives() -> None:
    """From 0 to 10 and back in a few seconds; to and from infinity at once."""
    price = 0.0
    for _ in range(24):
        price = slewed(price, 10.0, 0.25)
    assert price == 10.0
    for _ in range(24):
        price = slewed(price, 0.0, 0.25)
    assert price == 0.0
    assert slewed(0.0, math.inf, 0.1) == math.inf
    assert slewed(math.inf, 2.0, 0.1) == 2.0
