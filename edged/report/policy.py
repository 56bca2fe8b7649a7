"""Which answers are reported as results, and what is summed up of the others. Pure.

No clock, thread or random number inside: the time and a chance are arguments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edged.events import Result, Summary
from edged.postprocess.answer import Said, documents, meaning_of, said
from edged.report_settings import ReportSettings

Array = npt.NDArray[np.generic]

RESULT_VALUES = 256
"""A result carries outputs of up to so many values."""
MOST_CLASSES = 32
"""A summary counts so many classes; what is none of them is counted together as ``other``."""


@dataclass(frozen=True, slots=True)
class Answered:
    """One request that has ended with a reply.

    Attributes:
        time: Unix seconds.
        model: as asked for, "" if unknown.
        id: the request's own.
        status: of the reply.
        samples: number of samples, 0 where it was refused before they were counted.
        latency_ms: from arrival until the broker had the reply.
        outputs: ``[samples, *shape]`` by name; empty with an error.
    """

    time: float
    model: str
    id: str
    status: int
    samples: int
    latency_ms: float
    outputs: Mapping[str, Array]


@dataclass
class _Sum:
    """What is summed up of one model."""

    requests: int = 0
    errors: int = 0
    samples: int = 0
    classes: Counter[str] = field(default_factory=Counter)
    confidences: list[float] = field(default_factory=lambda: [0.0, 0.0, 1.0])  # number, sum, least

    def add(self, said: Said) -> None:
        """One sample."""
        for name in said.classes:
            known = name in self.classes or len(self.classes) < MOST_CLASSES
            self.classes[name if known else "other"] += 1
        if said.confidence is not None:
            count, total, least = self.confidences
            chance = said.confidence
            self.confidences = [count + 1, total + chance, min(least, chance)]


class ResultPolicies:
    """Decides for each answer. One thread calls it; settings may be replaced by any.

    Attributes:
        settings: ``[report]`` as it is now.
    """

    def __init__(self, settings: ReportSettings) -> None:
        self.settings = settings
        self._last: dict[str, tuple[object, ...]] = {}
        self._sums: dict[str, _Sum] = {}

    def __repr__(self) -> str:
        return f"<ResultPolicies {self.settings.results}, own: {sorted(self.settings.models)}>"

    def policy(self, model: str) -> str:
        """The policy of a model: its own, else the common one."""
        own = self.settings.models.get(model)
        return own.results if own and own.results is not None else self.settings.results

    @property
    def any_wanted(self) -> bool:
        """Whether answers of any model are looked at."""
        models = self.settings.models
        return self.settings.results != "none" or any(
            self.policy(each) != "none" for each in models
        )

    def may_report(self, model: str, chance: float) -> bool:
        """Whether an answer of a model has to be looked at. Any thread.

        Args:
            model: its name.
            chance: uniform in [0, 1); the one that `reports` is given.
        """
        policy = self.policy(model)
        return policy != "none" and (policy != "sampled" or chance < self._rate(model))

    def reports(self, answered: Answered, chance: float) -> bool:
        """Whether an answer is reported; what ``summary`` and ``changed`` go by is noted.

        Args:
            answered: the answer.
            chance: uniform in [0, 1).
        """
        model, policy = answered.model, self.policy(answered.model)
        if policy == "all":
            return True
        if policy == "sampled":
            return chance < self._rate(model)
        if policy == "summary":
            self._sum_up(answered)
            return False
        if policy == "uncertain":
            lowest = confidence(answered.outputs)
            return lowest is not None and lowest < self._threshold(model)
        return policy == "changed" and self._changed(answered)

    def summaries(self, now: float, seconds: float) -> list[Summary]:
        """What was summed up since the last call, model by model.

        Args:
            now: Unix seconds.
            seconds: since the last call.
        """
        sums, self._sums = self._sums, {}
        return [_summary(now, seconds, model, each) for model, each in sorted(sums.items())]

    def _rate(self, model: str) -> float:
        own = self.settings.models.get(model)
        rate = own.sample_rate if own else None
        return self.settings.sample_rate if rate is None else rate

    def _threshold(self, model: str) -> float:
        own = self.settings.models.get(model)
        below = own.confidence_below if own else None
        return self.settings.confidence_below if below is None else below

    def _changed(self, answered: Answered) -> bool:
        """Whether the last sample's answer differs from the one before it."""
        outputs = answered.outputs
        if not outputs:
            return False
        if meaning_of(outputs) is None:
            seen = tuple(_gist(rows[-1]) for _, rows in sorted(outputs.items()) if len(rows))
        else:
            seen = said(outputs)[-1].gist
        before, self._last[answered.model] = self._last.get(answered.model), seen
        return seen != before

    def _sum_up(self, answered: Answered) -> None:
        entry = self._sums.setdefault(answered.model, _Sum())
        entry.requests += 1
        entry.errors += not answered.outputs
        entry.samples += answered.samples
        if meaning_of(answered.outputs) is not None:
            for each in said(answered.outputs):
                entry.add(each)
            return
        rows = _classified(answered.outputs)
        if rows is None:
            return
        best = zip(rows.argmax(axis=1).tolist(), rows.max(axis=1).tolist(), strict=True)
        for number, chance in best:
            entry.add(Said((), (str(number),), chance))


def result(answered: Answered) -> Result:
    """An answer as an event."""
    return Result(
        time=answered.time,
        model=answered.model,
        id=answered.id,
        status=answered.status,
        samples=answered.samples,
        latency_ms=answered.latency_ms,
        outputs=_told(answered.outputs),
    )


def _told(outputs: Mapping[str, Array]) -> dict[str, Any]:
    meaning = meaning_of(outputs)
    if meaning is not None:
        found = documents(outputs)
        entries = sum(len(entry) if isinstance(entry, list) else 1 for entry in found)
        return {meaning: found if entries <= RESULT_VALUES else None}
    return {
        name: rows.tolist() if rows.size <= RESULT_VALUES else None
        for name, rows in outputs.items()
    }


def confidence(outputs: Mapping[str, Array]) -> float | None:
    """Probability of the best class of the least certain sample; None without a classification.

    Post-processed outputs have a confidence of their own, which counts where something was found.
    Of a model's own outputs, by name, the first with floating values and at least two of them a
    sample counts. Values that are no distribution are taken for logits (softmax).
    """
    if meaning_of(outputs) is not None:
        found = [each.confidence for each in said(outputs) if each.confidence is not None]
        return min(found, default=None)
    rows = _classified(outputs)
    return None if rows is None or not len(rows) else float(rows.max(axis=1).min())


def _classified(outputs: Mapping[str, Array]) -> npt.NDArray[np.float64] | None:
    """``[samples, classes]``: probabilities of the first output that tells classes apart."""
    for _, rows in sorted(outputs.items()):
        if not np.issubdtype(rows.dtype, np.floating) or len(rows) == 0:
            continue
        flat = rows.astype(np.float64).reshape(len(rows), -1)
        if flat.shape[1] >= 2 and bool(np.isfinite(flat).all()):
            return _probabilities(flat)
    return None


def _probabilities(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    if rows.min() >= 0.0 and bool((np.abs(rows.sum(axis=1) - 1.0) < 0.02).all()):
        return rows
    powers = np.exp(rows - rows.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float64)


def _gist(row: Array) -> object:
    """What makes an answer another one: its best class, or its value to three digits."""
    if row.size >= 2:
        return int(np.argmax(row))
    return f"{float(row.reshape(-1)[0]):.3g}" if row.size else ""


def _summary(now: float, seconds: float, model: str, entry: _Sum) -> Summary:
    count, total, least = entry.confidences
    return Summary(
        time=now,
        model=model,
        seconds=round(seconds, 3),
        requests=entry.requests,
        errors=entry.errors,
        samples=entry.samples,
        classes=dict(entry.classes),
        mean_confidence=round(total / count, 6) if count else None,
        least_confidence=round(least, 6) if count else None,
    )
