"""The simulated device: what it does with a policy's decisions, and what a run amounts to."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.latency import LatencyCurve
from edged.serve.timer import BatchTimer, Decision, Reason, Waiting
from edged.simulate.arrivals import Arrivals, poisson
from edged.simulate.device import Device, Rules, simulate
from edged.simulate.summary import settle_batches, stability, summarize
from tests.doubles.batching_policies import FixedDelay, Greedy, fixed_delay

CURVE = LatencyCurve((1, 2, 4, 8), (0.003, 0.004, 0.006, 0.010))


def _at(*times: float) -> Arrivals:
    return Arrivals(np.asarray(times, np.float64), np.zeros(len(times), np.int64))


def test_a_batch_is_all_that_came_while_the_one_before_ran() -> None:
    """Greedy by hand: the first alone at its arrival, the others together when it ends."""
    ran = simulate(Greedy(8), _at(1.0, 1.001, 1.002, 1.5), Device(CURVE))

    assert ran.sizes.tolist() == [1, 2, 1]
    assert ran.closed.tolist() == pytest.approx([1.0, 1.003, 1.5])
    assert ran.free.tolist() == pytest.approx([0.0, 1.003, 1.007])
    assert ran.latencies().tolist() == pytest.approx([0.003, 0.006, 0.005, 0.003])
    assert ran.reasons == {"count": 3}


@given(
    gaps=st.lists(st.floats(0, 0.02), min_size=1, max_size=60),
    count=st.integers(1, 8),
    delay_s=st.floats(0, 0.03),
)
def test_the_loop_is_the_recursion(gaps: list[float], count: int, delay_s: float) -> None:
    """A fixed delay, event by event, is what its own recursion makes of it, batch by batch."""
    came = _at(*np.cumsum(gaps).tolist())

    ran = simulate(FixedDelay(8, count, delay_s), came, Device(CURVE))

    alone = fixed_delay(came, CURVE, 8, count, delay_s)
    assert ran.sizes.tolist() == alone.sizes.tolist()
    assert ran.closed == pytest.approx(alone.closed, abs=1e-9)


@given(
    gaps=st.lists(st.floats(0, 0.02), min_size=1, max_size=80),
    price=st.sampled_from([0.0, 2.0, 10.0, math.inf]),
    slo_s=st.sampled_from([0.005, 0.02, math.inf]),
    expire=st.booleans(),
)
@settings(max_examples=60)
def test_everything_is_served_once_or_has_expired(
    gaps: list[float], price: float, slo_s: float, *, expire: bool
) -> None:
    """The daemon's timer in the loop: no sample twice, none lost, none started too late."""
    came = _at(*np.cumsum(gaps).tolist())
    timer = BatchTimer(CURVE, 8, price=price, slo_s=slo_s)

    ran = simulate(timer, came, Device(CURVE), Rules(slo_s=slo_s, expire=expire))

    served = ran.served().tolist()
    assert served == sorted(set(served))
    starts = np.repeat(ran.closed, ran.sizes)
    assert (starts >= came.times[ran.served()]).all()
    assert (ran.closed >= ran.free).all()
    if expire:
        assert (starts < came.times[ran.served()] + slo_s).all()
    else:
        assert len(served) == len(came)


def test_a_slow_spell_slows_what_starts_in_it() -> None:
    """Twice the time from second 1 to 2, and only for batches that begin there."""
    device = Device(CURVE, steps=((1.0, 2.0), (2.0, 1.0)))

    ran = simulate(Greedy(8), _at(0.5, 1.5, 2.5), device)

    assert ran.service_s.tolist() == pytest.approx([0.003, 0.006, 0.003])


def test_noise_is_seeded() -> None:
    """The same seed gives the same times, another one others; on average they are the curve's."""
    came = poisson(50, 2_000, 1)

    one, again, other = (
        simulate(Greedy(1), came, Device(CURVE, noise=0.05, seed=seed)) for seed in (1, 1, 2)
    )

    assert (one.service_s == again.service_s).all()
    assert (one.service_s != other.service_s).any()
    assert float(np.log(one.service_s / 0.003).std()) == pytest.approx(0.05, rel=0.1)


class _Never(Greedy):
    """Waits for ever."""

    def decide(self, now: float, waiting: Waiting) -> Decision:
        """Never."""
        return Decision(0, math.inf, Reason.COUNT)


def test_what_would_wait_for_ever_is_drained_at_the_end() -> None:
    """A policy that never closes loses nothing; its rest is run when nothing more comes."""
    ran = simulate(_Never(8), _at(0.1, 0.2), Device(CURVE))

    assert ran.reasons == {"drain": 1}
    assert ran.sizes.tolist() == [2]


def test_tuning_happens_at_simulated_times() -> None:
    """About once a simulated second while something waits; set-points are noted then."""
    told: list[float] = []
    rules = Rules(tune=told.append, watch=lambda _: 7.0, tune_s=1.0)

    ran = simulate(Greedy(8), poisson(100, 1_000, 1), Device(CURVE), rules)

    assert 8 <= len(told) <= 11
    assert min(b - a for a, b in pairwise(told)) >= 1.0
    assert ran.set_points == tuple((now, 7.0) for now in told)


def test_rounds_of_tuning_do_not_grow() -> None:
    """A noisy device moves the timer's scale all the time; its candidates stay as many."""
    timer = BatchTimer(CURVE, 8, price=2.0)
    counts: list[int] = []

    def tune(now: float) -> None:
        timer.retune(now)
        counts.append(len(timer.choice.seen) if timer.choice else 0)

    simulate(timer, poisson(100, 2_500, 1), Device(CURVE, noise=0.05), Rules(tune=tune))

    assert len(counts) > 20
    assert max(counts) <= 1.2 * counts[5]


def test_a_summary_counts_what_it_says() -> None:
    """Four requests by hand: quantiles, attainment, goodput, device time, histogram."""
    ran = simulate(Greedy(8), _at(1.0, 1.001, 1.002, 1.5), Device(CURVE))

    found = summarize(ran, slo_s=0.0045, warm_up=0)

    assert found.mean_ms == pytest.approx((3 + 6 + 5 + 3) / 4)
    assert found.attainment == 0.5
    assert found.goodput == pytest.approx(2 / 0.503)
    assert found.device_ms == pytest.approx((3 + 4 + 3) / 4)
    assert found.busy == pytest.approx(0.010 / 0.503)
    assert found.mean_batch == pytest.approx(4 / 3)
    assert found.histogram == {1: 2, 2: 1}
    assert found.cost_ms(2.0) == pytest.approx(found.mean_ms + 2 * found.device_ms)
    assert found.cost_ms(math.inf) == found.device_ms


def test_expired_requests_count_against_attainment() -> None:
    """Half of them expire behind a long batch: half of them are not answered in time."""
    slow = LatencyCurve((1,), (1.0,))
    came = _at(0.0, 0.1, 2.0, 2.1)

    found = summarize(
        simulate(Greedy(1), came, Device(slow), Rules(slo_s=0.5, expire=True)),
        slo_s=1.5, warm_up=0,
    )  # fmt: skip

    assert (found.requests, found.served, found.attainment) == (4, 2, 0.5)


def test_stability_tells_a_constant_from_a_flip() -> None:
    """A constant varies by nothing; one that flips each time has lag-1 near -1."""
    constant, flips = stability([3.0] * 10), stability([1.0, 3.0] * 20)

    assert (constant.variation, constant.lag1) == (0.0, 0.0)
    assert flips.variation == pytest.approx(0.5)
    assert flips.lag1 < -0.9


def test_settling_is_counted_in_batches_after_the_step() -> None:
    """A scale that is right from the fourth batch on has settled after three."""
    device = Device(CURVE, steps=((1.0, 2.0),))
    ran = simulate(Greedy(8), _at(*(0.5 + 0.1 * n for n in range(30))), device)
    after = int((ran.closed < 1.0).sum())
    scales = [1.0] * (after + 3) + [1.95] * (len(ran.closed) - after - 3)

    assert settle_batches(ran, scales, device, 0) == 3
    assert settle_batches(ran, [1.0] * len(ran.closed), device, 0) is None
