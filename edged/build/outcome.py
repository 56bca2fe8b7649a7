"""All that a build found, before it becomes files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edged.build.candidates import Candidate, Workshop
from edged.build.choice import Decision, Rounds
from edged.build.precision import Found, Variant


@dataclass(frozen=True)
class Outcome:
    """All that a build found.

    Attributes:
        shop: sources, target, graphs and stages.
        found: candidates that passed, and why the others did not.
        timings: of those that passed.
        decision: which one is installed.
    """

    shop: Workshop
    found: Found[Candidate]
    timings: Mapping[Variant, Rounds]
    decision: Decision

    @property
    def taken(self) -> Candidate:
        """The one that is installed."""
        return self.found.passed[self.decision.variant]

    @property
    def notes(self) -> tuple[str, ...]:
        """What an operator should know, a sentence each."""
        return (*self.found.notes(), *self.decision.reasons, *_lost(self))

    @property
    def quantized(self) -> tuple[str, ...]:
        """Nodes with Q/DQ pairs in the engine that is installed."""
        if self.decision.variant.precision != "int8":
            return ()
        return self.shop.graphs.quantized.layers


def _lost(outcome: Outcome) -> tuple[str, ...]:
    """What is not known, or not INT8, although it should be."""
    quantized, taken = outcome.quantized, outcome.taken
    if not quantized or outcome.shop.target.runner != "tensorrt":
        return ()
    if not taken.made.layers:
        return ("TensorRT gave no account of its layers: that they run in INT8 is not known",)
    if not taken.fallen:
        return ()
    name, how = next(iter(taken.fallen.items()))
    count = f"{len(taken.fallen)} of {len(quantized)} quantized layers"
    return (f"{count} run in float by TensorRT's own account, e.g. {name!r}: {how}",)
