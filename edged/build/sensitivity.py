"""Which layers cost the most accuracy: one at a time becomes INT8, and all are ranked.

Pure but for the state file, by which a scan that was ended goes on where it stood. Whoever calls
quantizes and scores.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edged.build.holdout import Score
from edged.errors import BuildError

Tell = Callable[[str, float], None]
"""Called with a sentence and the share of the work that is done, 0 to 1."""


@dataclass(frozen=True)
class LayerCost:
    """What becomes of the model if this layer alone is INT8.

    Attributes:
        node: the layer.
        loss: of the task's metric against the float model.
        sqnr_db: signal to noise ratio of the model's outputs.
    """

    node: str
    loss: float
    sqnr_db: float


@dataclass(frozen=True)
class Fit:
    """How many layers stay in float for a budget.

    Attributes:
        left: those layers, the costliest first.
        score: of the model with them in float.
        before: of the model with all layers in INT8.
    """

    left: tuple[str, ...]
    score: Score
    before: Score


class ScanState:
    """Scores of a scan, on disk after each layer.

    Args:
        path: the file; another scan's content is replaced.
        key: digest of what the scores depend on.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key = path, key
        self._scores = self._read()

    def __repr__(self) -> str:
        return f"<ScanState {len(self._scores)} layers of {self._key[:12]}>"

    def get(self, node: str) -> Score | None:
        """The score of a layer, if it is known."""
        return self._scores.get(node)

    def put(self, node: str, score: Score) -> None:
        """Keeps a score.

        Raises:
            BuildError: the file cannot be written.
        """
        self._scores[node] = score
        document = {
            "key": self._key,
            "layers": {name: [s.loss, s.noise_db] for name, s in self._scores.items()},
        }
        try:
            handle, name = tempfile.mkstemp(prefix=".sensitivity.", dir=self._path.parent)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(document, file)
            Path(name).replace(self._path)
        except OSError as err:
            raise BuildError(
                f"cannot write the state of the scan: {err.strerror or err}; make the model's "
                "folder writable for the user that builds"
            ) from err

    def _read(self) -> dict[str, Score]:
        try:
            document = json.loads(self._path.read_text(encoding="utf-8"))
            if document["key"] != self._key:
                return {}
            return {
                str(name): Score(float(loss), float(noise))
                for name, (loss, noise) in document["layers"].items()
            }
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return {}  # nothing that is worth more than a scan


def scan(
    nodes: Sequence[str],
    score: Callable[[str], Score],
    state: ScanState,
    tell: Tell,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[LayerCost, ...]:
    """Scores each layer that the state does not know, and ranks all.

    Args:
        nodes: layers that are to be INT8.
        score: of the model with only that layer in INT8.
        state: what an earlier run found.
        tell: told after each layer, with the time that is left.
        clock: seconds.

    Returns:
        Costliest first: by the loss of the metric, then by output SQNR, then by name.
    """
    missing = [node for node in nodes if state.get(node) is None]
    begun = clock()
    for done, node in enumerate(missing):
        left = _left((clock() - begun) / done * (len(missing) - done)) if done else ""
        at = len(nodes) - len(missing) + done
        tell(f"layer {at + 1} of {len(nodes)}, {node}{left}", at / len(nodes))
        state.put(node, score(node))
    found = [(node, state.get(node)) for node in nodes]
    costs = [LayerCost(node, s.loss, s.sqnr_db) for node, s in found if s is not None]
    return tuple(sorted(costs, key=lambda cost: (-cost.loss, cost.sqnr_db, cost.node)))


def _left(seconds: float) -> str:
    whole = round(seconds)
    return f", {whole} s left" if whole < 120 else f", {whole // 60} min left"


def fit(
    ranked: Sequence[LayerCost],
    score: Callable[[Sequence[str]], Score],
    budget: float,
    before: Score,
) -> Fit:
    """The smallest number of costliest layers in float with which the budget holds, by bisection.

    Args:
        ranked: layers, the costliest first.
        score: of the model with these layers in float.
        budget: largest loss that is accepted.
        before: of the model with all layers in INT8.

    Raises:
        BuildError: the budget does not hold with a single layer in INT8 either.
    """
    if before.loss <= budget:
        return Fit((), before, before)
    nodes = [cost.node for cost in ranked]
    low, high = 0, len(nodes) - 1  # with `low` left out it does not hold; `high` is to be seen
    best = score(nodes[:high]) if high > 0 else before
    if best.loss > budget:
        raise BuildError(
            f"the accuracy budget of {budget:g} does not hold with {high} of {len(nodes)} layers "
            f"in float either: the loss is {best.loss:g}; raise accuracy_budget, or ask for fp16"
        )
    while high - low > 1:
        middle = (low + high) // 2
        found = score(nodes[:middle])
        if found.loss <= budget:
            high, best = middle, found
        else:
            low = middle
    return Fit(tuple(nodes[:high]), best, before)
