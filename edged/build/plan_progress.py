"""How far a builder is, from the tree of phases that it reports. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


@dataclass
class PhaseTree:
    """Phases within phases: a step of one takes as long as all phases started inside it.

    Phases are not announced in advance, so the share is an estimate; it never falls.
    """

    _phases: dict[str, _Phase] = field(default_factory=dict)
    _share: float = 0.0

    def __repr__(self) -> str:
        return f"<PhaseTree {len(self._phases)} phases open, {self._share:.0%}>"

    def start(self, name: str, parent: str | None, steps: int) -> float:
        """A phase begins; returns the share of all work that is done, 0 to 1."""
        self._phases[name] = _Phase(parent, max(1, steps))
        return self._share

    def step(self, name: str, step: int) -> float:
        """Step number ``step``, from 0, of a phase is done; returns the share."""
        phase = self._phases.get(name)
        if phase is not None:
            phase.done = min(phase.steps, max(phase.done, step + 1))
        return self._update(name)

    def finish(self, name: str) -> float:
        """A phase ends; returns the share."""
        phase = self._phases.get(name)
        if phase is not None:
            phase.done = phase.steps
        share = self._update(name)
        self._phases.pop(name, None)
        return share

    def _update(self, name: str) -> float:
        inner, at, seen = 0.0, self._phases.get(name), 0
        while at is not None and seen <= len(self._phases):
            inner = min(1.0, (at.done + inner) / at.steps)
            at = self._phases.get(at.parent) if at.parent is not None else None
            seen += 1
        self._share = max(self._share, min(1.0, inner))
        return self._share
