"""The best batches with all arrivals known beforehand: dynamic programming over camera groups.

Serving in the order of arrival, a plan cuts the arrivals into consecutive batches, and each batch
starts as soon as the device is free and its last sample is there; starting later gains nothing. Of
two plans for the same arrivals, one that costs no more and ends no later is never worse, so only
the plans on that frontier are kept. Groups that lie far apart leave one plan between them.
"""

from __future__ import annotations

from collections.abc import Sequence

from edged.latency import LatencyCurve

Plan = tuple[float, float, float]
"""``(free, latency, device)``: when the device is free again, and what it cost so far, seconds."""


def clairvoyant(
    arrivals: Sequence[float], curve: LatencyCurve, cap: int, price: float = 0.0
) -> tuple[float, float]:
    """``(mean latency, device time a request)`` in seconds of the cheapest plan for J_c.

    Args:
        arrivals: seconds, ascending.
        curve: service time by batch size.
        cap: most samples in a batch.
        price: c of ``J_c = latency + c x device time``.
    """
    sums = [0.0]
    for came in arrivals:
        sums.append(sums[-1] + came)
    plans: list[list[Plan]] = [[(0.0, 0.0, 0.0)]]
    for end in range(1, len(arrivals) + 1):
        found: list[Plan] = []
        for begin in range(max(0, end - cap), end):
            service = curve(end - begin)
            for free, latency, device in plans[begin]:
                done = max(free, arrivals[end - 1]) + service
                spent = (end - begin) * done - (sums[end] - sums[begin])
                found.append((done, latency + spent, device + service))
        following = arrivals[end] if end < len(arrivals) else float("inf")
        plans.append(_frontier(found, price, following))
    _, latency, device = min(plans[-1], key=lambda plan: plan[1] + price * plan[2])
    return latency / len(arrivals), device / len(arrivals)


def _frontier(plans: Sequence[Plan], price: float, following: float) -> list[Plan]:
    """The plans that no other one beats; being free before the next arrival is no advantage."""
    kept: list[Plan] = []
    cheapest = float("inf")
    for free, latency, device in sorted(
        plans, key=lambda plan: (max(plan[0], following), plan[1] + price * plan[2])
    ):
        if latency + price * device < cheapest:
            cheapest = latency + price * device
            kept.append((free, latency, device))
    return kept
