"""The cheapest batching policy there is: a semi-Markov decision process, solved twice over.

State ``(s, j)``: s samples wait, the arrival process is in phase j. Decided when the device becomes
free, and at each arrival or change of phase while it idles. Action 0 waits for the next event,
action b serves b of them. The average cost g is that of

    E[samples in the system] + c x share of the time in which the device runs,

so that by Little's law g / rate = mean latency + c x device time a request = J_c.

`iterate_values` is relative value iteration on the transformed discrete process; `iterate_policies`
is Howard's policy iteration, one linear solve a step, which the evaluation uses because it takes
milliseconds. Deb and Serfozo (1973) prove the control-limit form, Xu, Zhou and Niu (2023) use this
process for GPU batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from edged.latency import LatencyCurve

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Process:
    """Markov-modulated Poisson arrivals; one phase is plain Poisson.

    Attributes:
        rates: arrivals a second in each phase.
        exits: changes a second out of each phase, into the next one in turn.
    """

    rates: tuple[float, ...]
    exits: tuple[float, ...] = (0.0,)

    @property
    def generator(self) -> Floats:
        """Q, the generator of the phases: [J, J], rows sum to 0."""
        count = len(self.rates)
        matrix = np.zeros((count, count))
        for phase, rate in enumerate(self.exits):
            matrix[phase, (phase + 1) % count] += rate
            matrix[phase, phase] -= rate
        return matrix

    @property
    def mean_rate(self) -> float:
        """Arrivals a second on average over time."""
        if len(self.rates) == 1:
            return self.rates[0]
        lasts = [1 / rate for rate in self.exits]
        return float(np.dot(self.rates, lasts)) / sum(lasts)


@dataclass(frozen=True)
class Problem:
    """What to minimise.

    Attributes:
        process: the arrivals.
        curve: service time by batch size.
        cap: most samples in a batch.
        price: c, seconds of latency for a second of device time.
        states: S, most samples that may wait; more are lumped into the last state.
        full: every batch size up to what waits is allowed, not only all that fits; a stepped curve
            needs it.
    """

    process: Process
    curve: LatencyCurve
    cap: int
    price: float = 0.0
    states: int = 256
    full: bool = False

    @cached_property
    def arrivals(self) -> Floats:
        """[cap, S+1, J, J]: chance of k arrivals and a change j -> j' during a batch of b."""
        rates, count = np.asarray(self.process.rates), len(self.process.rates)
        generator = self.process.generator
        speed = float(np.max(rates - np.diag(generator)))
        stay, come = np.eye(count) + (generator - np.diag(rates)) / speed, np.diag(rates) / speed
        means = speed * np.array([self.curve(b) for b in range(1, self.cap + 1)])
        events = int(means.max() + 12 * np.sqrt(means.max()) + 20)
        now = np.zeros((self.states + 1, count, count))
        now[0] = np.eye(count)
        total = np.zeros((self.cap, self.states + 1, count, count))
        weight = np.exp(-means)
        for number in range(events):
            total += weight[:, None, None, None] * now
            following = now @ stay
            following[1:] += now[:-1] @ come
            now, weight = following, weight * means / (number + 1)
        return total

    @cached_property
    def phases(self) -> Floats:
        """[cap, J, J]: change of phase during a batch of b."""
        values, vectors = np.linalg.eig(self.process.generator)
        inverse = np.linalg.inv(vectors)
        times = [self.curve(b) for b in range(1, self.cap + 1)]
        return np.array([(vectors * np.exp(values * t) @ inverse).real for t in times])

    @cached_property
    def held(self) -> Floats:
        """[cap, J]: expected sample-seconds of those that come during a batch of b."""
        values, vectors = np.linalg.eig(self.process.generator)
        inverse = np.linalg.inv(vectors)
        nodes, weights = np.polynomial.legendre.leggauss(16)
        result = []
        for size in range(1, self.cap + 1):
            time = self.curve(size)
            total = np.zeros(len(self.process.rates))
            for at, weight in zip((nodes + 1) * time / 2, weights * time / 2, strict=True):
                moved = (vectors * np.exp(values * at) @ inverse).real
                total += weight * (time - at) * (moved @ np.asarray(self.process.rates))
            result.append(total)
        return np.array(result)

    @cached_property
    def moves(self) -> list[Floats]:
        """For each b: [(S+1) J, (S+1) J], from ``(s - b, j)`` left over to what then waits."""
        size, count = self.states + 1, len(self.process.rates)
        found = []
        for chances, phases in zip(self.arrivals, self.phases, strict=True):
            matrix = np.zeros((size, count, size, count))
            tail = phases - np.concatenate(([np.zeros((count, count))], chances.cumsum(0)))[:size]
            for left in range(size):
                kept = size - left - 1
                matrix[left, :, left : left + kept] = chances[:kept].transpose(1, 0, 2)
                matrix[left, :, -1] = tail[kept]
            found.append(matrix.reshape(size * count, size * count))
        return found


@dataclass(frozen=True)
class Solution:
    """The best policy.

    Attributes:
        cost: J_c in seconds.
        actions: [S+1, J]: samples to serve; 0: wait.
        rounds: iterations.
    """

    cost: float
    actions: npt.NDArray[np.int64]
    rounds: int

    @property
    def limit(self) -> int:
        """The control limit in the first phase: the least number that is served."""
        return int(np.argmax(self.actions[:, 0] > 0))


def _sizes(problem: Problem) -> range:
    return range(1, problem.cap + 1)


def _allowed(problem: Problem, size: int) -> tuple[int, int]:
    """States ``[low, high)`` in which a batch of this size may be served."""
    last = problem.states + 1
    return (size, last) if problem.full or size == problem.cap else (size, size + 1)


def _evaluate(problem: Problem, values: Floats) -> tuple[Floats, Floats, Floats]:
    """Costs, sojourns and expected next values: each [cap+1, S+1, J]; infinite if not allowed."""
    size, count = problem.states + 1, len(problem.process.rates)
    costs = np.full((problem.cap + 1, size, count), np.inf)
    sojourns, nexts = np.ones_like(costs), np.zeros_like(costs)
    rates, exits = np.asarray(problem.process.rates), np.asarray(problem.process.exits)
    table, waiting = values.reshape(size, count), np.arange(size)[:, None]
    total = rates + exits
    costs[0, :-1] = waiting[:-1] / total
    sojourns[0] = 1 / total
    changed = np.roll(table, -1, axis=1)
    nexts[0, :-1] = (rates * table[1:] + exits * changed[:-1]) / total
    for batch, move, held in zip(_sizes(problem), problem.moves, problem.held, strict=True):
        low, high = _allowed(problem, batch)
        time = problem.curve(batch)
        rows = slice(0, (high - low) * count)
        costs[batch, low:high] = (waiting[low:high] + problem.price) * time + held
        sojourns[batch, low:high] = time
        nexts[batch, low:high] = (move[rows] @ values).reshape(high - low, count)
    return costs, sojourns, nexts


def iterate_values(problem: Problem, tolerance: float = 1e-7) -> Solution:
    """Relative value iteration on the data-transformed process.

    Args:
        problem: what to minimise.
        tolerance: stop when the bounds on g are as close as this, relative.
    """
    rates = np.asarray(problem.process.rates) + np.asarray(problem.process.exits)
    step = 0.98 * min(1 / float(rates.max()), problem.curve(1))
    values = np.zeros((problem.states + 1) * len(rates))
    for number in range(1, 100_000):  # noqa: B007  # returned below
        costs, sojourns, nexts = _evaluate(problem, values)
        table = values.reshape(problem.states + 1, len(rates))
        found = step * (costs + nexts - table) / sojourns + table
        best = found.min(0)
        change = best - table
        gain = float(change.mean()) / step
        if float(np.ptp(change)) < tolerance * step * abs(gain):
            break
        values = (best - best[0, 0]).ravel()
    return Solution(gain / problem.process.mean_rate, found.argmin(0), number)


def iterate_policies(problem: Problem) -> Solution:
    """Howard's policy iteration: solve for a policy's cost, improve, until nothing changes."""
    size, count = problem.states + 1, len(problem.process.rates)
    actions = np.minimum(np.arange(size), problem.cap)[:, None].repeat(count, 1)
    for number in range(1, 200):  # noqa: B007  # returned below
        gain, values = _solve(problem, actions)
        costs, sojourns, nexts = _evaluate(problem, values)
        found = costs - gain * sojourns + nexts
        best, now = found.argmin(0), np.take_along_axis(found, actions[None], 0)[0]
        better = found.min(0) < now - 1e-9 * np.abs(values).max()
        if not better.any():
            break
        actions = np.where(better, best, actions)
    return Solution(gain / problem.process.mean_rate, actions, number)


def cost_of(problem: Problem, actions: npt.NDArray[np.int64]) -> float:
    """J_c of a given policy, in seconds."""
    return _solve(problem, actions)[0] / problem.process.mean_rate


def _solve(problem: Problem, actions: npt.NDArray[np.int64]) -> tuple[float, Floats]:
    """Average cost a second of a policy, and its relative values: one linear system."""
    size, count = problem.states + 1, len(problem.process.rates)
    states = size * count
    costs, sojourns, _ = _evaluate(problem, np.zeros(states))
    system = np.zeros((states + 1, states + 1))
    system[:states, :states] = np.eye(states)
    rates, exits = problem.process.rates, problem.process.exits
    for waiting in range(size):
        for phase in range(count):
            row, action = waiting * count + phase, int(actions[waiting, phase])
            if action:
                left = (waiting - action) * count + phase
                system[row, :states] -= problem.moves[action - 1][left]
            else:
                total = rates[phase] + exits[phase]
                system[row, row + count] -= rates[phase] / total
                changed = waiting * count + (phase + 1) % count
                system[row, changed] -= exits[phase] / total
    picked = actions[None]
    system[:states, states] = np.take_along_axis(sojourns, picked, 0).ravel()
    system[states, 0] = 1.0
    right = np.append(np.take_along_axis(costs, picked, 0).ravel(), 0.0)
    solved = np.linalg.solve(system, right)
    return float(solved[-1]), solved[:-1]
