"""The optima that the timer is compared with agree with each other and with the simulator."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.latency import LatencyCurve
from edged.serve import batch_size
from edged.simulate.arrivals import Modulation, mmpp, poisson
from edged.simulate.device import Device, simulate
from edged.simulate.summary import summarize
from tests.doubles.batching_policies import Greedy, Table
from tests.oracles.clairvoyant import clairvoyant
from tests.oracles.control_limit import control_limit, greedy_without_cap, inoue_bound
from tests.oracles.smdp import Problem, Process, cost_of, iterate_policies, iterate_values

CAP = 32
ALPHA, BETA = 0.002, 0.00025
SIZES = (1, 2, 4, 8, 16, 32)
LINEAR = LatencyCurve(SIZES, tuple(ALPHA + BETA * size for size in SIZES))
STEPPED = LatencyCurve(LINEAR.sizes, LINEAR.seconds, stepped=True)
CAPACITY = CAP / LINEAR(CAP)


def _poisson_problem(load: float, price: float, *, full: bool = False) -> Problem:
    return Problem(Process((load * CAPACITY,)), LINEAR, CAP, price, states=200, full=full)


@pytest.mark.parametrize(("load", "limit"), [(0.1, 2), (0.3, 2), (0.5, 3)])
def test_value_iteration_policy_iteration_and_the_exact_chain_agree(
    load: float, limit: int
) -> None:
    """Three ways to the same optimum, at c = 2: same cost, same control limit."""
    problem = _poisson_problem(load, 2.0)

    by_values, by_policies = iterate_values(problem), iterate_policies(problem)

    exact = control_limit(load * CAPACITY, LINEAR, CAP, limit).cost(2.0)
    assert by_values.cost == pytest.approx(exact, rel=1e-5)
    assert by_policies.cost == pytest.approx(exact, rel=1e-9)
    assert by_values.limit == by_policies.limit == limit
    others = [control_limit(load * CAPACITY, LINEAR, CAP, m).cost(2.0) for m in range(1, 8)]
    assert min(others) == pytest.approx(exact, rel=1e-12)


def test_published_optima_are_found() -> None:
    """The control limits and costs of the published comparison, in ms."""
    published = {  # (load, c) -> (M, J)
        (0.1, 0.0): (1, 3.06), (0.3, 0.0): (1, 4.20), (0.5, 0.0): (2, 5.35),
        (0.2, 2.0): (2, 6.10), (0.4, 2.0): (3, 6.20),
        (0.1, 10.0): (3, 15.05), (0.3, 10.0): (5, 11.88), (0.5, 10.0): (6, 11.19),
    }  # fmt: skip
    for (load, price), (limit, cost_ms) in published.items():
        found = iterate_policies(_poisson_problem(load, price))

        assert (found.limit, round(found.cost * 1e3, 2)) == (limit, cost_ms)


@given(
    load=st.floats(0.05, 0.7),
    price=st.floats(0, 20),
    scale=st.floats(0.01, 100),
)
@settings(max_examples=12)
def test_no_unit_of_time_is_special(load: float, price: float, scale: float) -> None:
    """All times k-fold: the same policy, and k times the cost."""
    curve = LatencyCurve(SIZES, tuple(scale * seconds for seconds in LINEAR.seconds))
    slow = Problem(Process((load * CAPACITY / scale,)), curve, CAP, price, states=150)

    one = iterate_policies(Problem(Process((load * CAPACITY,)), LINEAR, CAP, price, states=150))
    other = iterate_policies(slow)

    assert other.cost == pytest.approx(scale * one.cost, rel=1e-6)


def test_equal_phases_are_plain_poisson() -> None:
    """Two phases of one rate: same cost and same actions as without phases."""
    rate = 0.3 * CAPACITY
    plain = iterate_policies(Problem(Process((rate,)), LINEAR, CAP, 2.0, states=150))

    phased = iterate_policies(
        Problem(Process((rate, rate), (2.5, 10.0)), LINEAR, CAP, 2.0, states=150)
    )

    assert phased.cost == pytest.approx(plain.cost, rel=1e-8)
    assert np.array_equal(phased.actions[:60, 0], plain.actions[:60, 0])
    assert np.array_equal(phased.actions[:60, 1], plain.actions[:60, 0])


def test_a_linear_curve_needs_no_choice_of_size() -> None:
    """All sizes or only "all that fits": the same cost at c = 2."""
    some, every = _poisson_problem(0.3, 2.0), _poisson_problem(0.3, 2.0, full=True)

    assert iterate_policies(every).cost == pytest.approx(iterate_policies(some).cost, rel=1e-7)


def test_an_endless_price_fills_every_batch() -> None:
    """The dearer the device, the larger the control limit, up to the cap."""
    limits = [iterate_policies(_poisson_problem(0.3, c)).limit for c in (0, 2, 10, 100, 1e5)]

    assert limits == sorted(limits)
    assert limits[-1] == CAP


def test_on_a_stepped_curve_the_best_action_is_a_full_bucket() -> None:
    """At 70 % load the published actions for 1 to 19 waiting, and greedy is 59 % worse."""
    rate = 0.7 * CAPACITY
    problem = Problem(Process((rate,)), STEPPED, CAP, 0.0, states=200, full=True)

    best = iterate_policies(problem)

    assert best.actions[1:20, 0].tolist() == [
        0, 0, 0, 4, 4, 0, 0, 8, 8, 8, 8, 8, 8, 14, 15, 16, 16, 16, 16,
    ]  # fmt: skip
    greedy = np.minimum(np.arange(201), CAP)[:, None]
    assert cost_of(problem, greedy) / best.cost == pytest.approx(1.59, abs=0.02)


@pytest.mark.parametrize(("load", "off"), [(0.1, 0.001), (0.5, 0.001), (0.7, 0.002)])
def test_bounds_hold_and_are_tight(load: float, off: float) -> None:
    """Inoue's bound lies above greedy's exact mean; the fixed point lies beside it."""
    rate = load * CAPACITY
    exact = control_limit(rate, LINEAR, CAP).latency_s

    assert inoue_bound(rate, ALPHA, BETA) >= exact * (1 - 1e-4)
    assert greedy_without_cap(rate, ALPHA, BETA) == pytest.approx(exact, rel=off)


@pytest.mark.parametrize("load", [0.1, 0.3, 0.5, 0.7])
def test_the_simulator_agrees_with_the_exact_chain(load: float) -> None:
    """Greedy, simulated: mean latency and device time within 1 % of the chain's."""
    rate = load * CAPACITY

    ran = summarize(simulate(Greedy(CAP), poisson(rate, 60_000, 3), Device(LINEAR)))

    exact = control_limit(rate, LINEAR, CAP)
    assert ran.mean_ms == pytest.approx(exact.latency_s * 1e3, rel=0.01)
    assert ran.device_ms == pytest.approx(exact.device_s * 1e3, rel=0.01)


def test_the_simulator_agrees_with_the_smdp_on_modulated_arrivals() -> None:
    """The phase-seen optimum, simulated over many phases, costs what was solved for."""
    shape = Modulation()
    rate = 0.2 * CAPACITY
    process = Process(shape.rates(rate), tuple(1 / s for s in shape.sojourns_s))
    best = iterate_policies(Problem(process, LINEAR, CAP, 2.0, states=200))
    came = mmpp(rate, 150_000, 5, modulation=shape)

    ran = summarize(simulate(Table(CAP, best.actions, came.phases), came, Device(LINEAR)))

    assert process.mean_rate == pytest.approx(rate)
    assert ran.cost_ms(2.0) == pytest.approx(best.cost * 1e3, rel=0.02)


@pytest.mark.parametrize("price", [3.0, 30.0])
def test_the_closed_form_is_near_the_best_count(price: float) -> None:
    """Over devices and loads its count costs at most 2 % more than the best one, 0.5 % on average.

    Published: 1.9 % at worst over 350 combinations.
    """
    over = []
    for ratio, load in itertools.product((1, 8, 50), (0.1, 0.5)):
        beta = ALPHA / ratio
        curve = LatencyCurve(SIZES, tuple(ALPHA + beta * size for size in SIZES))
        rate = load * CAP / curve(CAP)
        limit = batch_size.control_limit(price, (ALPHA, beta), rate, CAP)
        limits = range(max(1, limit - 2), min(CAP, limit + 2) + 1)
        costs = {m: control_limit(rate, curve, CAP, m, states=100).cost(price) for m in limits}
        over.append(costs[limit] / min(costs.values()) - 1)

    assert max(over) <= 0.02
    assert sum(over) / len(over) <= 0.005


def _by_trying(arrivals: list[float], price: float) -> float:
    """J of the best of all cuts into consecutive batches."""
    costs = []
    for cuts in itertools.product((False, True), repeat=len(arrivals) - 1):
        ends = [i + 1 for i, cut in enumerate(cuts) if cut] + [len(arrivals)]
        begin, free, cost = 0, 0.0, 0.0
        for end in ends:
            service = LINEAR(end - begin)
            free = max(free, arrivals[end - 1]) + service
            cost += sum(free - came for came in arrivals[begin:end]) + price * service
            begin = end
        costs.append(cost / len(arrivals))
    return min(costs)


@given(
    gaps=st.lists(st.floats(0, 0.02), min_size=1, max_size=8),
    price=st.sampled_from([0.0, 2.0, 10.0]),
)
@settings(max_examples=40)
def test_the_clairvoyant_is_the_best_of_all_plans(gaps: list[float], price: float) -> None:
    """Dynamic programming finds what trying every plan finds."""
    arrivals = list(itertools.accumulate(gaps))

    mean, device = clairvoyant(arrivals, LINEAR, CAP, price)

    assert mean + price * device == pytest.approx(_by_trying(arrivals, price), rel=1e-9)


def test_nobody_beats_the_clairvoyant() -> None:
    """On Poisson arrivals it costs less than greedy and less than the optimum of the SMDP."""
    came = poisson(0.3 * CAPACITY, 2_000, 4)
    best = iterate_policies(_poisson_problem(0.3, 2.0))
    whole = summarize(simulate(Table(CAP, best.actions), came, Device(LINEAR)), warm_up=0)

    mean, device = clairvoyant(came.times.tolist(), LINEAR, CAP, 2.0)

    assert (mean + 2.0 * device) * 1e3 < whole.cost_ms(2.0)
