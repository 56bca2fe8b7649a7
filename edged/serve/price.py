"""The price of GPU time: what an operator asked for, and what load, heat and power add. Pure.

c is the number of seconds of latency that one second of GPU time is worth; the timer minimises
``mean latency + c x (GPU time per request)``. Others on the device make its time dearer, and so do
heat and a power limit: they raise c, and nothing else.
"""

from __future__ import annotations

import math

from edged.gpu_load import DeviceLoad

MODES: dict[str, float] = {
    "latency": 0.0, "balanced": 2.0, "eco": 10.0, "use-the-slo": math.inf,
}  # fmt: skip
"""Price c by mode. At infinity only deadlines close a batch that is not full."""
MOST = 100.0
"""Largest finite price."""
BUSY_PRICE = 2.0
"""Added when others use the whole device."""
HOT_PRICE = 10.0
"""Added where the device is as hot as it may get, in proportion from `SOFT_C` on."""
POWER_PRICE = 5.0
"""Added while clocks are throttled, or a power mode holds them below what the device can."""
SOFT_C = 70.0
"""Degrees Celsius from which heat is priced."""
TRIP_C = 95.0
"""Degrees Celsius at which the price of heat is full, where the device does not name its own."""
DOUBLING_S = 1.0
"""The price at most doubles or halves in so many seconds, so that it cannot jerk the timer."""
SMALLEST = 0.25
"""Steps from and to 0 begin and end here."""


def price_of(mode: str | float) -> float:
    """The price c of a mode, or of a number, which may be written out.

    Raises:
        ValueError: no such mode, or a number that is negative or none.
    """
    if isinstance(mode, str) and mode in MODES:
        return MODES[mode]
    try:
        price = float(mode)
    except ValueError:
        price = math.nan
    if not 0 <= price < math.inf:
        raise ValueError(f"mode {mode!r} must be one of {', '.join(MODES)}, or a number >= 0")
    return min(price, MOST)


def priced(base: float, load: DeviceLoad, busy_by_others: float | None) -> float:
    """The price that a device's state makes of the operator's; an infinite one stays.

    Args:
        base: what the operator asked for.
        load: what is known of the device; what is not adds nothing.
        busy_by_others: share of the device that others use, 0 to 1, or None.
    """
    if math.isinf(base):
        return base
    extra = BUSY_PRICE * _share(busy_by_others) + HOT_PRICE * _heat(load)
    if load.throttled or load.low_power:
        extra += POWER_PRICE
    return min(base + extra, MOST)


def slewed(now: float, wanted: float, passed_s: float) -> float:
    """The price after so many seconds on its way from ``now`` to ``wanted``.

    To and from infinity, which an operator sets, it goes at once.
    """
    if not (math.isfinite(now) and math.isfinite(wanted)):
        return wanted
    factor = math.pow(2.0, min(max(0.0, passed_s) / DOUBLING_S, 64.0))
    if wanted > now:
        return min(wanted, max(now, SMALLEST) * factor)
    lower = now / factor
    return max(wanted, lower if lower > SMALLEST else 0.0)


def _share(value: float | None) -> float:
    return min(max(value, 0.0), 1.0) if value is not None and math.isfinite(value) else 0.0


def _heat(at: DeviceLoad) -> float:
    if at.temperature_c is None:
        return 0.0
    trip = at.trip_c if at.trip_c is not None and at.trip_c > SOFT_C else TRIP_C
    return _share((at.temperature_c - SOFT_C) / (trip - SOFT_C))
