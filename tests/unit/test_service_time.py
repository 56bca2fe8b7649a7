"""The scale of the measured curve, and how cautious it is."""

from __future__ import annotations

import math
import random

import pytest

from edged.latency import LatencyCurve
from edged.serve.service_time import PHI_LIMITS, ServiceTime

CURVE = LatencyCurve((1, 32), (0.00225, 0.01))


def test_a_change_is_settled_within_five_batches() -> None:
    """Twice the time, with 5 % noise: within a tenth after five batches, and back again."""
    chance = random.Random(7)
    service = ServiceTime(CURVE, 32)
    for factor in (1.0, 2.0, 1.0, 3.0):
        for _ in range(100):
            service.completed(8, factor * CURVE(8) * math.exp(chance.gauss(0, 0.05)))
        for number in range(100):
            service.completed(8, factor * CURVE(8) * math.exp(chance.gauss(0, 0.05)))
            if number == 5:
                assert service.phi == pytest.approx(factor, rel=0.1)


def test_one_outlier_is_no_change() -> None:
    """A single batch that took ten times as long moves the scale by an eighth at most."""
    service = ServiceTime(CURVE, 32)
    service.completed(8, 10 * CURVE(8))

    assert service.phi < 1.125


def test_caution_covers_a_long_tail() -> None:
    """Where every tenth batch takes half as long again, the cautious time covers it."""
    service = ServiceTime(CURVE, 32)
    for number in range(400):
        service.completed(8, CURVE(8) * (1.5 if number % 10 == 0 else 1.0))

    assert service.caution * service.expected(8) >= 1.45 * CURVE(8)
    assert service.quantile(0.5) == pytest.approx(0, abs=0.05)


def test_without_noise_caution_ends() -> None:
    """A device that always takes the same time is not left early."""
    service = ServiceTime(CURVE, 32)
    for _ in range(300):
        service.completed(8, CURVE(8))

    assert service.caution == pytest.approx(1, abs=1e-3)


def test_the_line_and_the_table_follow_the_device() -> None:
    """Both are the measured ones times phi; beyond the cap the curve goes on."""
    service = ServiceTime(CURVE, 4)
    service.phi = 2.0

    assert service.line() == pytest.approx((0.004, 0.0005))
    assert service.expected(4) == pytest.approx(2 * CURVE(4))
    assert service.expected(32) == pytest.approx(0.02)
    assert repr(service) == "<ServiceTime phi 2.00, spread 0.100>"


def test_phi_stays_within_its_bounds() -> None:
    """However absurd the times."""
    service = ServiceTime(CURVE, 32)
    for _ in range(20):
        service.completed(1, 1e9)

    assert service.phi == PHI_LIMITS[1]
